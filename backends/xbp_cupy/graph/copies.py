"""What moves entries and computes nothing: concat, stack, constants, and views that have to be written out."""

from __future__ import annotations

import math
from typing import Any

from xbp.errors import NotCompiled
from xbp.program import Operation, Value
from xbp.program.views import Linear, contiguous, linear, size_of, times

from .bodies import MOST_BLOCKS, THREADS, ZERO, Body, index, term
from .expressions import MEMORY, number

__all__ = ["CopyBody"]

Strides = tuple[Linear, ...]


class CopyBody(Body):
    """Writes the entries of one such operation's result."""

    @property
    def _op(self) -> Operation:
        return self.group.operations[0]

    def blocks(self, n: int) -> int:
        size = size_of(self._op.result.shape)
        assert size is not None  # the fusion has made sure
        return max(1, min(MOST_BLOCKS, -(-size.at(n) // THREADS)))

    def text(self) -> str:
        op = self._op
        self._lines = ["const index_t first = (index_t)block * THREADS + threadIdx.x;"]
        self._do("const index_t step = (index_t)blocks * THREADS; (void)n;")
        out = self.fused.layouts[op.result].strides
        if op.function in ("concat", "stack"):
            self._joined(out)
        elif op.function in ("reshape", "getitem", "broadcast_to", "matrix_transpose"):
            self._written_out(out)
        elif op.function == "asarray":
            self._constant(out)
        else:
            raise NotCompiled(f"{op} is not compiled for CUDA.")
        return self._function(self._lines)

    def _out(self) -> str:
        return self._pointer(self.places[self._op.result], MEMORY[self._op.result.dtype.name], written=True)

    def _joined(self, out: Strides) -> None:
        """Each operand at its place along the axis."""
        op, start = self._op, Linear(0)
        axis = op.options["axis"] % op.result.ndim
        inner = out if op.function == "concat" else (*out[:axis], *out[axis + 1 :])
        for value in op.operands:
            offset = times(start, out[axis])
            if offset is None or value.dtype != op.result.dtype:
                raise NotCompiled(f"{op} joins arrays of two dtypes, or along the batch, which is not compiled.")
            self._copied(value, value.shape, self.fused.layouts[value].strides, offset, inner)
            length = linear(value.shape[axis]) if op.function == "concat" else Linear(1)
            start = Linear(start.constant + length.constant, start.per_row + length.per_row)

    def _written_out(self, out: Strides) -> None:
        """A reshape of an array with gaps between its entries; other views are always memory of their operand."""
        (source,) = self._op.operands
        plain = contiguous(source.shape)
        if self._op.function != "reshape" or plain is None or out != contiguous(self._op.result.shape):
            raise NotCompiled(f"{self._op} of that array is not compiled for CUDA.")
        self._copied(source, source.shape, self.fused.layouts[source].strides, ZERO, plain)

    def _copied(self, value: Value, shape: tuple[int, ...], strides: Strides, at: Linear, out: Strides) -> None:
        """Copy every entry of an operand, from where its layout has it to the strides of the result."""
        layout = self.fused.layouts[value]
        t = MEMORY[value.dtype.name]
        source, target = self._pointer(self.places[layout.root], t), self._out()
        size = size_of(shape)
        assert size is not None  # as above
        self._do(f"for (index_t e = first; e < {term(size)}; e += step) {{")
        self._do("index_t rest = e; (void)rest;")
        names = []
        for k in reversed(range(len(shape))):
            length = term(linear(shape[k]))
            self._do(f"const index_t at{k} = rest % {length}; rest /= {length}; (void)at{k};")
            names.append(f"at{k}")
        names.reverse()
        read = index(layout.offset, *zip(names, strides, strict=True))
        self._do(f"{target}[{index(at, *zip(names, out, strict=True))}] = {source}[{read}];")
        self._do("}")

    def _constant(self, out: Strides) -> None:
        """Nested lists, which are short."""
        op = self._op
        if out != contiguous(op.result.shape):
            raise NotCompiled(f"{op}, which a product reads, is not compiled for CUDA.")
        entries = [number(entry, op.result.dtype) for entry in _flat(op.options["value"])]
        t = MEMORY[op.result.dtype.name]
        self._do(f"const {t} values[{math.prod(op.result.shape)}] = {{{', '.join(entries)}}};")
        self._do(f"for (index_t e = first; e < {len(entries)}; e += step) {self._out()}[e] = values[e];")


def _flat(value: Any) -> list[Any]:
    return [entry for inner in value for entry in _flat(inner)] if isinstance(value, list | tuple) else [value]
