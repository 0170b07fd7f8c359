"""Which operations share a kernel, and which kernels share a launch.

A kernel walks along lines: entries one by one, rows (each by a team of threads that reduces along it), or columns. A
column belongs to one team as a whole, so a sum over the batch is complete where it is made, and a batch norm is one
kernel. Kernels that do not wait for one another run side by side in one launch: what a step costs on a small network is
the number of its launches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from xbp.program import Dim, Operation, Program, Value
from xbp.program.fusion import ELEMENTWISE, REDUCTIONS, Access, Fused, Group, Grouping, reduction_kind, space
from xbp.program.places import BYTES
from xbp.program.shapes import same
from xbp.program.views import Linear, constant

from .epilogues import BIAS_GRADIENT, MASK, PRODUCT

__all__ = ["KernelGrouping", "across", "direction", "launches"]

BORDER = 16  # bytes
MOST_OPERANDS = 64  # that a group reads from memory: each takes registers
VIEWS = frozenset({"broadcast_to", "getitem", "matrix_transpose", "reshape"})


def across(op: Operation) -> bool:
    """Whether a reduction goes over rows and columns, so that its result is there when all blocks have finished."""
    return reduction_kind(op) == "all" and not same(_rows(op), 1)


def _rows(op: Operation) -> int:
    return space(op.operands[0].shape)[0]


def direction(op: Operation) -> str:
    """The lines that an operation needs: "row" or "column" for a reduction along them, else ""."""
    if op.function not in REDUCTIONS or across(op):
        return ""
    return "column" if reduction_kind(op) == "column" else "row"


class KernelGrouping(Grouping):
    """Groups that a kernel can walk: reductions of one direction only; and products with what they leave beside."""

    def __init__(self, program: Program) -> None:
        self._padded = _of_products(program)
        self._reads: dict[int, set[Value]] = {}  # what each group reads from memory
        super().__init__(program)

    def strides(self, value: Value) -> tuple[Linear, ...] | None:
        """Rows of what products read and make begin on borders of 16 bytes, which tensor cores want."""
        if value in self._padded:
            entries = BORDER // BYTES[value.dtype.name]
            return Linear(-(-int(value.shape[1]) // entries) * entries), Linear(1)
        return super().strides(value)

    def add(self, op: Operation) -> None:
        if op.function in (MASK, BIAS_GRADIENT):
            number = self.fused.home[op.operands[0]]
            self.fused.groups[number].operations.append(op)
            self.fused.home[op.result] = number
            self.fused.stored[op.result] = None
        elif op.function == PRODUCT:
            super().add(op)
            self.fused.groups[self.fused.home[op.result]].kind = "product"
        else:
            super().add(op)

    def fits(self, op: Operation, reads: list[Access], walk: tuple[int, int], number: int) -> bool:
        group = self.fused.groups[number]
        if group.kind != "loop":
            return False
        more = {a.root for a in reads if self.fused.home.get(a.root) != number}
        if len(self._reads.get(number, more) | more) > MOST_OPERANDS:
            return False
        wanted, there = direction(op), self._directions(group)
        once = same(walk[0], 1) and not same(group.rows, 1)  # one entry a column, in a walk over many rows
        if once:
            fits = there == {"column"} and op.function not in REDUCTIONS and same(walk[1], group.columns)
            return fits and all(self.fused.home.get(a.root) != number or self.at_hand(a, group) for a in reads)
        over_all = op.function in REDUCTIONS and across(op)
        if (wanted and there - {wanted, "all"}) or ("column" in there | {wanted} and "all" in there | {wanted}):
            return False
        if over_all and "column" in there:
            return False
        return super().fits(op, reads, walk, number)

    def at_hand(self, a: Access, group: Group) -> bool:
        if same(space(a.root.shape)[0], 1) and not same(group.rows, 1):
            maker = self.fused.makers[a.root]
            complete = maker.function not in REDUCTIONS or direction(maker) == "column"
            return complete and self.in_place(a) and constant(a.row, 0)
        return super().at_hand(a, group)

    def place(self, op: Operation, number: int, columns: int = 1, reads: Sequence[Access] = ()) -> None:
        super().place(op, number, columns, reads)
        home = self.fused.home
        self._reads.setdefault(number, set()).update(a.root for a in reads if home.get(a.root) != number)

    def cheap(self, op: Operation) -> bool:
        """Besides what every engine computes anew: whatever is made of constants and numbers of rows and columns, such
        as the share of a row in an unweighted mean, or the columns' part of random bits. A launch costs more.
        """
        if super().cheap(op):
            return True
        if op.result in self.memory or op.function not in ELEMENTWISE or not op.operands:
            return False
        return all(self._constant(self.fused.layouts[v].root) for v in op.operands)

    def _constant(self, root: Value) -> bool:
        """Whether an inlined value is made of nothing that is in memory."""
        if root not in self.deferred:
            return False
        return all(self._constant(self.fused.layouts[v].root) for v in self.deferred[root].operands)

    def _directions(self, group: Group) -> set[str]:
        found = {"all" if across(op) else direction(op) for op in group.operations if op.function in REDUCTIONS}
        return found - {""}


def _of_products(program: Program) -> set[Value]:
    """The matrices that products read and make, and that have no place of their owner's."""
    views = {op.result: op.operands[0] for op in program.operations if op.function in VIEWS}
    found = set()
    for op in program.operations:
        if op.function in (PRODUCT, "matmul"):
            for v in (op.result, *op.operands[:2]):
                while v in views:
                    v = views[v]
                found.add(v)
    outside = {*program.inputs.values(), *program.outputs.values()}
    return {v for v in found - outside if v.ndim == 2 and not isinstance(v.shape[1], Dim)}


def launches(f: Fused) -> list[list[int]]:
    """The numbers of the groups, in launches: one product alone, or other groups side by side.

    A group waits until somebody needs it; whoever is ready by then comes along. So what starts from the step's inputs
    rides with the first launch, and the optimiser's update of every parameter shares the last one.
    """
    needs = _needs(f)
    waiting = [number for number, group in enumerate(f.groups) if group.kind != "product"]
    done: set[int] = set()
    order: list[list[int]] = []

    def launch(wanted: Iterable[int]) -> None:
        """Launch what is wanted, level by level."""
        left = set(wanted)
        while left:
            ready = [g for g in waiting if needs[g] <= done]
            order.append(ready)
            done.update(ready)
            waiting[:] = [g for g in waiting if g not in done]
            left -= done

    for number, group in enumerate(f.groups):
        if group.kind != "product":
            continue
        launch(_ancestors(number, needs) - done)
        order.append([number])
        done.add(number)
    launch(waiting)
    return order


def _ancestors(number: int, needs: list[set[int]]) -> set[int]:
    found: set[int] = set()
    stack = list(needs[number])
    while stack:
        g = stack.pop()
        if g not in found:
            found.add(g)
            stack += needs[g]
    return found


def _needs(f: Fused) -> list[set[int]]:
    """The groups that have to be finished before each: those that make what it reads, and, where it makes the new
    value of an input, those that read the old one, so that the new one can take its place.
    """
    readers: dict[Value, set[int]] = {}
    needs: list[set[int]] = [set() for _ in f.groups]

    def note(root: Value, number: int) -> None:
        readers.setdefault(root, set()).add(number)
        if root in f.inlined:
            for inner in f.makers[root].operands:
                note(f.layouts[inner].root, number)
        home = f.home.get(root)
        if home is not None and home != number:
            needs[number].add(home)

    for number, group in enumerate(f.groups):
        for op in group.operations:
            for operand in op.operands:
                note(f.layouts[operand].root, number)
    for name in f.program.updates:
        writer = f.home.get(f.layouts[f.program.outputs[name]].root)
        if writer is None:
            continue
        old = readers.get(f.program.inputs[name], set()) - {writer}
        needs[writer] |= {g for g in old if writer not in _ancestors(g, needs)}
    return needs
