"""What the kernels of a group have in common: how they read their operands, and how they write down an operation.

A body is the text of one device function. It computes the entries of its group where it stands, at row `i` and column
`j`, from memory, from what it has computed there already, or anew. `kernels` adds the ways of walking over them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from xbp.errors import NotCompiled
from xbp.program import DTYPES, Dim, Operation, RecordedDType, Value
from xbp.program.fusion import FREE, REDUCTIONS, Access, Fused, Group, space
from xbp.program.shapes import same
from xbp.program.views import Linear, linear

from .expressions import ANSWERS, MEMORY, REGISTER, converted, number, scalar
from .grouping import direction

__all__ = ["MOST_BLOCKS", "ONE", "THREADS", "ZERO", "Body", "Scratch", "index", "joined", "term"]

THREADS = 256  # of every block, as the prelude has it
MOST_BLOCKS = 1024  # of one body: some for each multiprocessor, and few enough for the last one to add up
ZERO, ONE = Linear(0), Linear(1)
LITERAL = re.compile(r"\(?-?[0-9.]+(e[+-]?[0-9]+)?(f|LL)?\)?|true|false")


def term(a: Linear) -> str:
    """A number that may grow with the batch, as C."""
    if not a.per_row:
        return str(a.constant)
    product = "n" if a.per_row == 1 else f"{a.per_row} * n"
    return f"({a.constant} + {product})" if a.constant else f"({product})"


def index(offset: Linear, *steps: tuple[str, Linear]) -> str:
    """offset + the sum of index times stride, as C."""
    terms = [] if offset == ZERO else [term(offset)]
    for at, stride in steps:
        if stride != ZERO and at != "0":
            terms.append(at if stride == ONE else f"{at} * {term(stride)}")
    return " + ".join(terms) or "0"


@dataclass(frozen=True)
class Scratch:
    """Memory that a body keeps for itself. `zeroed`: it is all zeros before the first launch, and again after each."""

    place: str
    bytes: int
    zeroed: bool = False


@dataclass
class Body:
    """One device function.

    fused       the program's groups
    places      the place of every stored value
    name        of the function
    arguments   the places that the function is given, in the order of its pointers
    scratch     what it needs besides
    """

    fused: Fused
    group: Group
    places: dict[Value, str]
    name: str
    arguments: dict[str, str] = field(default_factory=dict, init=False)
    scratch: list[Scratch] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._types: dict[str, str] = {}
        self._written: set[str] = set()
        self._made = {op.result: op for op in self.group.operations}
        self._lines: list[str] = []
        self._known: list[dict[object, str]] = [{}]  # what has been computed, by scope
        self._names = 0
        self._i, self._j = "i", "j"

    @property
    def walks(self) -> str:
        """Along what, in a word."""
        return "entries"

    def blocks(self, n: int) -> int:
        """How many blocks share the work, for batches of n rows."""
        raise NotImplementedError

    def text(self) -> str:
        """The device function."""
        raise NotImplementedError

    def parameters(self) -> list[str]:
        """The pointers of the function, as C declares them."""
        return [
            f"{'' if place in self._written else 'const '}{self._types[place]} *__restrict__ {p}"
            for place, p in self.arguments.items()
        ]

    def _function(self, lines: list[str]) -> str:
        head = ", ".join(["const int block, const int blocks, const index_t n", *self.parameters()])
        return f"static __device__ void {self.name}({head}) {{\n{joined(lines, 1)}\n}}\n"

    # --- writing --------------------------------------------------------------------------------------------------

    def _do(self, line: str) -> None:
        self._lines.append(line)

    def _new(self, t: str, expression: str) -> str:
        """A constant for an expression, so that it is computed once; a name or a number stays as it is."""
        if expression.isidentifier() or LITERAL.fullmatch(expression):
            return expression
        self._names += 1
        name = f"v{self._names}"
        self._do(f"const {t} {name} = {expression};")
        return name

    def _pointer(self, place: str, t: str, *, written: bool = False) -> str:
        if written:
            self._written.add(place)
        if self._types.setdefault(place, t) != t:
            raise NotCompiled(f"The place {place} holds values of two dtypes.")
        return self.arguments.setdefault(place, f"p{len(self.arguments)}")

    def _private(self, what: str, size: int, t: str, *, zeroed: bool = False) -> str:
        place = f"{what} of {self.name}"
        self.scratch.append(Scratch(place, size, zeroed))
        return self._pointer(place, t, written=True)

    # --- reading --------------------------------------------------------------------------------------------------

    def _read(self, a: Access, in_row: bool = True, in_column: bool = True) -> str:
        """The entry of an operand at (i, j); repeated along rows or columns if told so."""
        row, column = (a.row if in_row else ZERO), (a.column if in_column else ZERO)
        key = (a.root, a.offset, row, column)
        for scope in self._known if a.root not in self._made else ():
            if key in scope:
                return scope[key]
        if a.root in self._made:
            return self.value(a.root)
        if a.root in self.fused.inlined:
            name = self._new(REGISTER[a.root.dtype.name], self._anew(a.root, row != ZERO, column != ZERO))
        else:
            name = self._load(a.root, a.offset, row, column)
        self._known[-1][key] = name
        return name

    def _load(self, root: Value, offset: Linear, row: Linear, column: Linear) -> str:
        pointer = self._pointer(self.places[root], MEMORY[root.dtype.name])
        at = index(offset, (self._i, row), (self._j, column))
        return self._new(REGISTER[root.dtype.name], f"loaded({pointer}[{at}])")

    def value(self, value: Value) -> str:
        """The entry at (i, j) of a value that the group makes."""
        for scope in self._known:
            if value in scope:
                return scope[value]
        name = self._new(REGISTER[value.dtype.name], self._expression(self._made[value]))
        self._known[-1][value] = name
        return name

    def _expression(self, op: Operation) -> str:
        if op.function in FREE:
            return self._anew(op.result, True, True)
        if op.function in REDUCTIONS:  # of one entry
            return number(0, op.result.dtype) if op.function == "argmax" else self._operand(op, 0, op.result.dtype)
        if op.function == "astype":
            (source,) = op.operands
            read = self._read(self.fused.access(source, op.result.shape))
            return converted(read, source.dtype, op.result.dtype)
        reads = {v: self._read(self.fused.access(v, op.result.shape)) for v in op.operands}
        return self._applied(op, reads)

    def _operand(self, op: Operation, i: int, dtype: RecordedDType) -> str:
        """An operand of a reduction, in another dtype."""
        source = op.operands[i]
        return converted(self._read(self.fused.access(source, source.shape)), source.dtype, dtype)

    def _applied(self, op: Operation, reads: dict[Value, str]) -> str:
        dtype = op.result.dtype
        if op.function in ANSWERS:
            dtype = max((v.dtype for v in op.operands), key=lambda d: d.bits)
        arguments = []
        for k, a in enumerate(op.arguments):
            wanted = DTYPES["bool"] if op.function == "where" and k == 0 else dtype
            text = converted(reads[a], a.dtype, wanted) if isinstance(a, Value) else number(a, wanted)
            arguments.append(text)
        return scalar(op.function, arguments, dtype)

    def _anew(self, value: Value, in_row: bool, in_column: bool) -> str:
        """A value that is never stored: a number, the number of the row or column, or made of its operands."""
        op, dtype = self.fused.makers[value], value.dtype
        if op.function == "full":
            filling = op.options["value"]
            if not isinstance(filling, Dim):
                return number(filling, dtype)
            return converted(term(linear(filling)), DTYPES["int64"], dtype)
        if op.function == "arange":
            along_rows = isinstance(value.shape[0], Dim)
            at = (self._i if in_row else "0") if along_rows else (self._j if in_column else "0")
            return f"(({REGISTER[dtype.name]}){at})"
        reads = {v: self._read(self.fused.access(v, value.shape), in_row, in_column) for v in op.operands}
        if op.function == "astype":
            return converted(reads[op.operands[0]], op.operands[0].dtype, dtype)
        return self._applied(op, reads)

    # --- what is kept ---------------------------------------------------------------------------------------------

    def _keep(self, value: Value, guard: str = "") -> None:
        """Store the entry at (i, j). A value with one entry a row is stored in column 0 alone."""
        columns = self._space(value)[1]
        pointer = self._pointer(self.places[value], MEMORY[value.dtype.name], written=True)
        row, column = self._steps(value)
        at = index(ZERO, (self._i, row), (self._j, column))
        conditions = [guard] if guard else []
        if same(columns, 1) and not same(self.group.columns, 1):
            conditions.append(f"{self._j} == 0")
        condition = f"if ({' && '.join(conditions)}) " if conditions else ""
        self._do(f"{condition}store(&{pointer}[{at}], {self.value(value)});")

    def _space(self, value: Value) -> tuple[int, int]:
        """The rows and columns of a value as the loop sees them: what a line was reduced to is one entry of that line,
        whatever its shape has become.
        """
        op = self._made.get(value)
        if op is not None and op.function in REDUCTIONS and (lines := direction(op)):
            rows, columns = space(op.operands[0].shape)
            return (rows, 1) if lines == "row" else (1, columns)
        return space(value.shape)

    def _steps(self, value: Value) -> tuple[Linear, Linear]:
        """How far it is in a value's own memory from one row to the next, and from one column to the next."""
        rows, columns = self._space(value)
        row = self.fused.layouts[value].strides[0] if value.ndim == 2 else linear(columns)
        return ZERO if same(rows, 1) else row, ZERO if same(columns, 1) else ONE

    def _stored(self) -> list[Value]:
        """The values of the group that have a place in memory, other than reductions over everything."""
        return [v for v in self._made if v in self.places]


def joined(lines: Sequence[str], depth: int) -> str:
    """Lines one below the other, indented by their braces."""
    texts = []
    for line in lines:
        depth -= line.startswith("}")
        texts.append("    " * depth + line)
        depth += line.endswith("{")
    return "\n".join(texts)
