"""Products without a library: every entry by one thread, for networks so small that launches are all they cost.

It is also what remains where cuBLASLt has no algorithm for a product.
"""

from __future__ import annotations

from xbp.program.views import linear

from .bodies import MOST_BLOCKS, ONE, THREADS, ZERO, Body, index, term
from .expressions import MEMORY, REGISTER
from .products import checked, factors

__all__ = ["ProductBody"]


class ProductBody(Body):
    """One thread an entry of the product (n, m), along k."""

    def blocks(self, n: int) -> int:
        rows, _, columns = (linear(length) for length in self._sizes())
        return max(1, min(MOST_BLOCKS, -(-rows.at(n) * columns.at(n) // THREADS)))

    def multiplications(self, n: int) -> int:
        """How many there are for batches of n rows."""
        rows, k, columns = (linear(length).at(n) for length in self._sizes())
        return rows * k * columns

    def _sizes(self) -> tuple[int, int, int]:
        rows, columns = factors(self.group.operations[0])
        return rows[0], rows[1], columns[1]

    def text(self) -> str:
        op = self.group.operations[0]
        checked(op)
        left, right = op.operands[:2]
        a, b = self.fused.layouts[left], self.fused.layouts[right]
        rows = (ZERO, *a.strides) if left.ndim == 1 else a.strides
        columns = (*b.strides, ZERO) if right.ndim == 1 else b.strides
        of_a = self._pointer(self.places[a.root], MEMORY[left.dtype.name])
        of_b = self._pointer(self.places[b.root], MEMORY[right.dtype.name])
        out = self._pointer(self.places[op.result], MEMORY[op.result.dtype.name], written=True)
        n, k, m = (term(linear(length)) for length in self._sizes())
        t = REGISTER[op.result.dtype.name]
        at_a = index(a.offset, ("i", rows[0]), ("l", rows[1]))
        at_b = index(b.offset, ("l", columns[0]), ("j", columns[1]))
        ld = self.fused.layouts[op.result].strides[0] if op.result.ndim == 2 else linear(self._sizes()[2])
        at = index(ZERO, ("i", ld), ("j", ONE))
        self._lines = [
            f"const index_t entries = (index_t){n} * {m}, step = (index_t)blocks * THREADS; (void)n;",
            "for (index_t e = (index_t)block * THREADS + threadIdx.x; e < entries; e += step) {",
            f"const index_t i = e / {m}, j = e % {m}; (void)i; (void)j;",
            f"{t} sum = 0;",
            f"for (index_t l = 0; l < {k}; ++l) sum += ({t})loaded({of_a}[{at_a}]) * ({t})loaded({of_b}[{at_b}]);",
            f"store(&{out}[{at}], sum);",
            "}",
        ]
        return self._function(self._lines)
