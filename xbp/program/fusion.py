"""Fusion: which operations share one pass over memory.

A loop group walks over R rows of C columns once. In it are element-by-element operations and the reductions of what
they make: along a row, whose result the same row may use at once (a softmax with its loss and gradient is one group),
down the columns, and over everything, whose results are complete when the walk ends. Products, and what is no loop of
this kind, are groups of their own. Engines turn groups into compiled loops or kernels; nothing here knows which.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import NotCompiled
from . import shapes
from .program import Operation, Program
from .records import KINDS
from .shapes import Shape
from .values import Value
from .views import Layout, Linear, constant, contiguous, linear, size_of, spread, viewed

__all__ = [
    "ELEMENTWISE",
    "REDUCTIONS",
    "Access",
    "Fused",
    "Group",
    "Grouping",
    "accesses",
    "fused",
    "leaves",
    "reduction_kind",
    "space",
]

ELEMENTWISE = frozenset(KINDS) | {"where", "astype"}
REDUCTIONS = frozenset({"sum", "mean", "max", "min", "all", "argmax"})
FREE = frozenset({"full", "arange"})  # made where they are needed, out of nothing
WALKED = ELEMENTWISE | REDUCTIONS
LOOPED = WALKED | FREE  # what loops are made of
CHEAP = frozenset(
    {"astype", "negative", "less", "less_equal", "greater", "greater_equal", "equal", "not_equal"}
    | {"bitwise_and", "bitwise_or", "bitwise_invert"}
)


class Access(NamedTuple):
    """An operand as the loop sees it: memory of `root` at offset + i * row + j * column."""

    root: Value
    offset: Linear
    row: Linear
    column: Linear


@dataclass(eq=False)
class Group:
    """Operations that run together; kind "loop", "product" or "other". Rows and columns are those of the loop."""

    kind: str
    rows: int = 1
    columns: int = 1
    operations: list[Operation] = field(default_factory=list)


def space(shape: Shape) -> tuple[int, int]:
    """(rows, columns) of a loop over an array: a vector over the batch is a column, any other vector a row."""
    if len(shape) == 0:
        return 1, 1
    if len(shape) == 1:
        return (shape[0], 1) if isinstance(shape[0], shapes.Dim) else (1, shape[0])
    columns = 1
    for length in shape[1:]:
        columns = length if columns == 1 else columns if length == 1 else int(columns) * int(length)
        if len(shape) > 2 and isinstance(length, shapes.Dim):
            raise NotCompiled(f"An array of shape {shape} has the batch on an inner axis, which loops do not walk.")
    return shape[0], columns


@dataclass
class Fused:
    """The groups of a program in order, and what engines need to know about its values.

    layouts   where the entries of each value lie: its own memory, or another value's, for views
    stored    values that need memory of their own: read by another group than the one that makes them, or an output
    makers    the operation behind each value
    inlined   values that are computed anew wherever they are read, and never stored
    """

    program: Program
    groups: list[Group] = field(default_factory=list)
    layouts: dict[Value, Layout] = field(default_factory=dict)
    home: dict[Value, int] = field(default_factory=dict)
    stored: dict[Value, None] = field(default_factory=dict)  # in the order of their first reading
    makers: dict[Value, Operation] = field(default_factory=dict)
    inlined: set[Value] = field(default_factory=set)
    _seen: dict[tuple[Value, Shape], Access] = field(default_factory=dict, init=False, repr=False)

    def access(self, operand: Value, shape: Shape) -> Access:
        """The operand, broadcast to the shape of the operation that reads it, as rows and columns."""
        access = self._seen.get((operand, shape))
        if access is None:
            access = self._seen[operand, shape] = self._access(operand, shape)
        return access

    def _access(self, operand: Value, shape: Shape) -> Access:
        layout = self.layouts[operand]
        strides = spread(operand.shape, layout.strides, shape)
        if len(shape) == 0:
            return Access(layout.root, layout.offset, Linear(0), Linear(0))
        if len(shape) == 1:
            zero = Linear(0)
            row, column = (strides[0], zero) if isinstance(shape[0], shapes.Dim) else (zero, strides[0])
            return Access(layout.root, layout.offset, row, column)
        if len(shape) == 2:
            return Access(layout.root, layout.offset, *strides)
        inner = contiguous(shape[1:])
        kept = [(s, p) for s, p, n in zip(strides[1:], inner or (), shape[1:], strict=True) if n != 1]
        if inner is not None and all(s == p for s, p in kept):
            return Access(layout.root, layout.offset, strides[0], Linear(1))
        if all(constant(s, 0) for s, _ in kept):
            return Access(layout.root, layout.offset, strides[0], Linear(0))
        raise NotCompiled(
            f"Operand {operand.name} of shape {operand.shape} is repeated along an inner axis of {shape}, which loops "
            "do not walk."
        )


def accesses(fused: Fused, op: Operation) -> list[Access]:
    """What an operation reads, seen from its loop."""
    shape = op.operands[0].shape if op.function in REDUCTIONS else op.result.shape
    return [fused.access(v, shape) for v in op.operands]


def leaves(fused: Fused, op: Operation) -> Iterator[Access]:
    """What an operation reads from memory or from its group; inlined operands give what they read."""
    for a in accesses(fused, op):
        if a.root in fused.inlined:
            yield from leaves(fused, fused.makers[a.root])
        else:
            yield a


def fused(program: Program, grouping: type[Grouping] | None = None) -> Fused:
    """The program as groups, placed by `grouping`. Raises `NotCompiled` for shapes that no loop here can walk."""
    builder = (grouping or Grouping)(program)
    for operation in _early_first(program):
        builder.add(operation)
    return builder.finished()


def _early_first(program: Program) -> list[Operation]:
    """Small operations that wait for no product come first, so that no group has to be cut for their sake."""
    late: set[Value] = set()
    early, rest = [], []
    inputs = set(program.inputs.values())
    for op in program.operations:
        waits = (op.function not in LOOPED and op.function not in VIEWS) or not late.isdisjoint(op.operands)
        # What is wide is late, unless it is an input.
        if waits or any([space(v.shape)[1] != 1 for v in (op.result, *op.operands) if v is op.result or v in inputs]):
            late.add(op.result)
            rest.append(op)
        else:
            early.append(op)
    return early + _where_first_read(rest, program)


def _where_first_read(operations: list[Operation], program: Program) -> list[Operation]:
    """What is made of inputs alone moves to its first reader, whose group it then joins."""
    inputs = set(program.inputs.values())
    waiting = {op.result: op for op in operations if op.operands and inputs.issuperset(op.operands)}
    waiting = {v: op for v, op in waiting.items() if op.function in ELEMENTWISE}
    outputs = set(program.outputs.values())
    moved: list[Operation] = []
    for op in operations:
        if op.result in waiting and op.result not in outputs:
            continue
        moved += [waiting.pop(v) for v in dict.fromkeys(op.operands) if v in waiting]
        moved.append(op)
    return moved


VIEWS = frozenset({"reshape", "matrix_transpose", "broadcast_to", "getitem"})


class Grouping:
    """Places operations one after the other, each into the last group it fits: short lives, and no idle walks.

    Engines whose loops are less free than a processor's say so by overriding `fits`, `at_hand`, `cheap`.
    """

    def __init__(self, program: Program) -> None:
        self.fused = Fused(program)
        self.deferred: dict[Value, Operation] = {}
        for value in program.inputs.values():
            self._own(value)
        for op in program.operations:
            self.fused.makers[op.result] = op
            view = viewed(op, self.fused.layouts)
            if view is None:
                self._own(op.result)
            else:
                self.fused.layouts[op.result] = view
        self.memory = self._in_memory()

    def strides(self, value: Value) -> tuple[Linear, ...] | None:
        """How the entries of a value that is no view lie in its memory; None where that grows with N squared."""
        return contiguous(value.shape)

    def _own(self, value: Value) -> None:
        strides = self.strides(value)
        if strides is None or size_of(value.shape) is None:
            raise NotCompiled(f"{value.name} of shape {value.shape} grows with the square of the batch.")
        self.fused.layouts[value] = Layout(value, Linear(0), strides)

    def _in_memory(self) -> set[Value]:
        """Values that are in memory whatever the groups will be: for products, for outputs, and to be read askew."""
        program, layouts = self.fused.program, self.fused.layouts
        memory = set(program.inputs.values()) | {layouts[v].root for v in program.outputs.values()}
        for op in program.operations:
            if layouts[op.result].root is not op.result:
                continue
            if op.function not in LOOPED:
                memory.update(layouts[v].root for v in op.operands)
                memory.add(op.result)
            else:
                memory.update(a.root for a in self._accesses(op) if not self.in_place(a))
        return memory

    def add(self, op: Operation) -> None:
        if self.fused.layouts[op.result].root is not op.result:
            return  # a view
        if op.function not in LOOPED:
            kind = "product" if op.function == "matmul" else "other"
            self.place(op, self._new(Group(kind)))
            self.fused.stored.update(dict.fromkeys(self.fused.layouts[v].root for v in op.operands))
        elif self.cheap(op):
            self.deferred[op.result] = op
        else:
            self._fit(op)

    def cheap(self, op: Operation) -> bool:
        """Whether it costs less to compute anew than to store: from memory that is there, or out of nothing."""
        if op.result in self.memory or op.function not in CHEAP | FREE:
            return False
        roots = [self.fused.layouts[v].root for v in op.operands]
        return all(root in self.deferred or root in self.memory for root in roots)

    def _fit(self, op: Operation) -> None:
        rows, columns = _walk(op)
        reads = list(self._roots(op))
        earliest = max([self.fused.home.get(a.root, 0) for a in reads], default=0)
        for number in range(len(self.fused.groups) - 1, earliest - 1, -1):
            if self.fits(op, reads, (rows, columns), number):
                break
        else:
            number = self._new(Group("loop", rows, columns))
        self.place(op, number, columns, reads)

    def _accesses(self, op: Operation) -> list[Access]:
        """What the operation reads, seen from its loop."""
        if op.function not in WALKED:
            return []
        shape = op.operands[0].shape if op.function in REDUCTIONS else op.result.shape
        return [self.fused.access(operand, shape) for operand in op.operands]

    def _roots(self, op: Operation) -> Iterator[Access]:
        """As `_accesses`, where deferred operands give what they read themselves."""
        for access in self._accesses(op):
            if access.root in self.deferred:
                yield from self._roots(self.deferred[access.root])
            else:
                yield access

    def fits(self, op: Operation, reads: list[Access], walk: tuple[int, int], number: int) -> bool:
        """Whether an operation that walks over so many rows and columns may join a group."""
        (rows, columns), group = walk, self.fused.groups[number]
        if group.kind != "loop" or not shapes.same(rows, group.rows):
            return False
        if columns != 1 and group.columns != 1 and not shapes.same(columns, group.columns):
            return False
        home = self.fused.home
        return all([home.get(a.root) != number or self.at_hand(a, group) for a in reads])

    def at_hand(self, a: Access, group: Group) -> bool:
        """Whether a value made in the group is known to the loop where it is read: the same entry, or its row's."""
        maker = self.fused.makers[a.root]
        if maker.function in REDUCTIONS and not _along_rows(maker):
            return False
        return self.in_place(a) and (group.rows == 1 or not constant(a.row, 0))

    def in_place(self, a: Access) -> bool:
        """Whether entry (i, j) of the loop reads entry (i, j) of the value, or (i, 0), (0, j) if it has no more."""
        columns = linear(space(a.root.shape)[1])
        rows = self.fused.layouts[a.root].strides[0] if a.root.ndim == 2 else columns
        if not constant(a.offset, 0) or (a.row != rows and not constant(a.row, 0)):
            return False
        return constant(a.column, 1) or constant(columns, 1)

    def place(self, op: Operation, number: int, columns: int = 1, reads: Sequence[Access] = ()) -> None:
        """Put an operation into a group; what it reads of other groups has to be in memory."""
        group = self.fused.groups[number]
        group.columns = columns if group.columns == 1 else group.columns
        for a in reads:
            if self.fused.home.get(a.root) != number:
                self.fused.stored[a.root] = None
        group.operations.append(op)
        self.fused.home[op.result] = number

    def _new(self, group: Group) -> int:
        self.fused.groups.append(group)
        return len(self.fused.groups) - 1

    def finished(self) -> Fused:
        fused = self.fused
        fused.stored.update(dict.fromkeys(fused.layouts[v].root for v in fused.program.outputs.values()))
        fused.inlined = set(self.deferred)
        order = {op.result: i for i, op in enumerate(fused.program.operations)}
        for group in fused.groups:
            group.operations.sort(key=lambda op: order[op.result])
        return fused


def _walk(op: Operation) -> tuple[int, int]:
    """The rows and columns that an operation walks over."""
    return space(op.operands[0].shape if op.function in REDUCTIONS else op.result.shape)


def _along_rows(op: Operation) -> bool:
    """Whether a reduction gives one result a row, so that the row can use it."""
    kind, rows = reduction_kind(op), _walk(op)[0]
    return kind == "row" or (kind == "all" and shapes.same(rows, 1))


def reduction_kind(op: Operation) -> str:
    """What a reduction leaves: one result a "row", one a "column", or one of "all".

    Raises `NotCompiled` for other axes of arrays with more than two.
    """
    shape, axis = op.operands[0].shape, op.options["axis"]
    axes = (axis % len(shape),) if isinstance(axis, int) else tuple(range(len(shape))) if axis is None else axis
    if len(axes) == len(shape):
        return "all"
    if axes == (0,):
        return "column"
    if axes == tuple(range(1, len(shape))):
        return "row"
    raise NotCompiled(f"{op.function} of an array of shape {shape} along axis={axis}: loops reduce rows or columns.")
