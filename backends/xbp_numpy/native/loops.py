"""A loop group as one function of LLVM's: what is fused becomes one walk over rows and columns.

Within a row, the columns are walked as often as reductions along the row demand: a softmax walks three times, once for
its maximum, once for the sum, once for what uses both. What one walk makes and a later one reads waits beside it.
Every pointer is `noalias`, which is what lets LLVM make vector instructions of the loops; so a value that takes another
one's place in memory must come in as one pointer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from xbp.errors import NotCompiled
from xbp.program import DTYPES, Dim, Operation, RecordedDType, Value
from xbp.program.fusion import FREE, REDUCTIONS, Access, Fused, Group, accesses, leaves, reduction_kind, space
from xbp.program.shapes import same
from xbp.program.views import Linear, contiguous, linear, scaled

from .memory import ONE, ZERO, Memory
from .reductions import Reduction
from .scalars import MEMORY, converted, number, scalar

__all__ = ["Loop"]

STACK = 32_768  # bytes that one row of a value may take there
LINE = 16  # entries: threads do not write into one another's cache lines
ANSWERS = frozenset({"less", "less_equal", "greater", "greater_equal", "equal", "not_equal"})


class Loop(Memory):
    """Writes the function of one group; `text` is it, and `arguments` are the places in memory that it takes.

    parallel    whether the function takes its share of the work by `tid` and `nt`, or does all of it
    extra       values that wait for a later walk in memory of their own: a row of them is too long for the stack
    parts       bytes for what each row adds to a sum, in float64, where threads share the rows
    """

    def __init__(
        self, fused: Fused, group: Group, slots: dict[Value, str], declarations: set[str], parallel: bool
    ) -> None:
        super().__init__(dict(slots), declarations)
        self._fused, self._group, self._parallel = fused, group, parallel
        self._made = {op.result for op in group.operations}
        self.extra: dict[Value, str] = {}
        self.parts: dict[str, Linear] = {}
        self._parts_shared = False
        self._stack: dict[Value, str] = {}  # values of which one row waits, on the stack of the thread
        self._levels: dict[Value, int] = {}
        self._row_values: dict[Any, str] = {}
        self._walk_values: dict[Any, str] | None = None
        self._walk = -1
        self._narrow = same(group.columns, 1)  # no columns to walk: every value is one of the row
        self._flat = self._is_flat()
        self._reductions = self._plan()
        self._body = self._function()

    def text(self, name: str) -> str:
        pointers = "".join(f"ptr noalias {p}, " for p in self._pointers.values())
        head = f"define internal void @{name}({pointers}i64 %n, i64 %tid, i64 %nt) noinline nounwind {{"
        return f"{head}\n{self._body}\n}}\n"

    # --- the plan -------------------------------------------------------------------------------------------------

    def _full(self, value: Value) -> bool:
        """Whether a value has an entry for every column that is walked."""
        return not self._narrow and not same(space(value.shape)[1], 1)

    def _leaves(self, op: Operation) -> Iterator[Access]:
        return leaves(self._fused, op)

    def _is_flat(self) -> bool:
        """Whether the group is one long row: no reduction, and every array is read from end to end, or is a number."""
        plain = contiguous((self._group.rows, self._group.columns))
        shape = (self._group.rows, self._group.columns)
        for op in self._group.operations:
            if op.function in REDUCTIONS or plain is None or not _same_space(op.result, shape):
                return False
            for a in self._leaves(op):
                if a.row == a.column == ZERO:
                    continue
                aligned = same(shape[0], 1) or a.row == plain[0]
                aligned = aligned and (same(shape[1], 1) or a.column == plain[1])
                if a.offset != ZERO or not aligned or not _same_space(a.root, shape):
                    return False
            if any(self._grows(v) for v in op.operands):
                return False
        return True

    def _grows(self, value: Value) -> bool:
        """Whether an operand is made of row or column numbers, or is inlined and smaller than the loop."""
        root = self._fused.layouts[value].root
        if root not in self._fused.inlined:
            return False
        op = self._fused.makers[root]
        if op.function == "arange" or (op.function != "full" and any(self._grows(v) for v in op.operands)):
            return True
        return op.function != "full" and not _same_space(root, (self._group.rows, self._group.columns))

    def _plan(self) -> dict[Value, Reduction]:
        """Find the walk in which each value is made, the scratch rows, and the reductions."""
        reductions = {}
        for op in self._group.operations:
            walked = self._full(op.operands[0]) if op.function in REDUCTIONS else self._full(op.result)
            level = 0 if walked or self._flat else -1
            for a in self._leaves(op):
                if a.root in self._made:
                    late = walked and not self._flat and not self._full(a.root)
                    level = max(level, self._levels[a.root] + late)
            self._levels[op.result] = level
            if op.function in REDUCTIONS:
                made = reductions[op.result] = Reduction(op, reduction_kind(op), self._group, walked)
                if op.function == "argmax" and (made.across or made.kind == "column"):
                    raise NotCompiled(f"{op} does not go along rows, which is all that is compiled of argmax.")
        for op in self._group.operations:
            for a in self._leaves(op):
                early = self._levels.get(a.root, self._levels[op.result]) < self._levels[op.result]
                if a.root in self._made and self._full(a.root) and early and a.root not in self._slots:
                    self._set_aside(a.root)
        return reductions

    def _set_aside(self, value: Value) -> None:
        """Keep a value for a later walk of the same row."""
        columns = self._group.columns
        if isinstance(columns, Dim) or columns * value.dtype.bits > 8 * STACK:
            self.extra[value] = self._slots[value] = f"extra {value.name}"
        else:
            self._stack.setdefault(value, self._w.name())

    # --- the function ---------------------------------------------------------------------------------------------

    def _function(self) -> str:
        w = self._w
        w.start("entry")
        for value, register in self._stack.items():
            w.do(f"{register} = alloca [{self._group.columns} x {MEMORY[value.dtype.name]}], align 64")
        self._take_share()
        if self._flat:
            self._walk_columns(0)
        else:
            across = [r for r in self._reductions.values() if r.across]
            for r in across:
                if self._parts_shared:
                    place = f"parts {r.op.result.name}"
                    self.parts[place] = scaled(linear(self._group.rows), 8)
                    r.share(self._pointer(place))
                else:
                    r.open(w)
            for r in self._columnwise():
                self._each_column(r, first=True)
            self._each_row()
            if self._parts_shared:
                self._leave_unless_last()
            for r in across:
                total = r.total(w, self._times(self._group.rows)) if self._parts_shared else r.gathered(w)
                self._keep(r.op.result, r.closed(w, total, self._count(r)))
            for r in self._columnwise():
                if r.op.function == "mean":
                    self._each_column(r, first=False)
        w.do("ret void")
        return "\n".join(w.lines)

    def _take_share(self) -> None:
        """Find the rows and columns that are this thread's. Sums down the columns are shared by columns, or not at all.

        No entry is summed by two threads, and what rows add up to is summed by one, so their number changes no bit.
        """
        w, group = self._w, self._group
        self._rows = ("0", self._times(group.rows))
        self._columns = ("0", self._times(group.rows, group.columns) if self._flat else self._times(group.columns))
        if not self._parallel:
            return
        reductions = self._reductions.values()
        if self._flat:
            share = self._columns = w.share(self._columns[1], LINE)
        elif all(r.addable if r.across else r.kind == "row" for r in reductions):
            self._parts_shared = any(r.across for r in reductions)
            share = self._rows = w.share(self._rows[1], 1)
        elif all(r.walked and r.kind == "column" for r in reductions) and not self._keeps_rows():
            share = self._columns = w.share(self._columns[1], LINE)
        else:
            w.leave_unless(w.new("icmp eq i64 %tid, 0"))
            return
        w.leave_unless(w.new(f"icmp slt i64 {share[0]}, {share[1]}"))

    def _leave_unless_last(self) -> None:
        """All threads that have rows come here; the one that comes last stays, and finds what the others have left."""
        w, rows = self._w, self._times(self._group.rows)
        counter = w.new(f"getelementptr i64, ptr {self._pointer('sync')}, i64 1")
        before = w.new(f"atomicrmw add ptr {counter}, i64 1 acq_rel")
        fewer = w.new(f"icmp slt i64 %nt, {rows}")
        others = w.new(f"sub i64 {w.new(f'select i1 {fewer}, i64 %nt, i64 {rows}')}, 1")
        w.leave_unless(w.new(f"icmp eq i64 {before}, {others}"))
        w.do(f"store i64 0, ptr {counter}")

    def _keeps_rows(self) -> bool:
        """Whether something is stored once a row, which threads that share the columns would all store."""
        return any(v in self._slots and not self._full(v) for v in self._made - self._reductions.keys())

    def _each_row(self) -> None:
        w, (start, rows) = self._w, self._rows
        single = rows == "1"
        if not single:
            before, body = w.label, w.fresh_label()
            self._row, following = w.name(), w.name()
            w.do(f"br label %{body}")
            w.start(body)
            slot = len(w.lines)
        self._row_values = {}
        self._row_operations(-1)
        for level in range(1 + max(self._levels.values())):
            if not self._narrow:
                self._walk_columns(level)
            self._row_operations(level)
        if not single:
            w.lines.insert(slot, f"  {self._row} = phi i64 [ {start}, %{before} ], [ {following}, %{w.label} ]")
            w.lines.append(f"  {following} = add nuw nsw i64 {self._row}, 1")
            self._loop_end(following, rows, body)
            self._row = "0"

    def _walk_columns(self, level: int) -> None:
        """One loop over the columns: everything of that level that somebody needs later."""
        w, (start, columns) = self._w, self._columns
        before, body = w.label, w.fresh_label()
        self._column, following = w.name(), w.name()
        here = [r for r in self._reductions.values() if self._levels[r.op.result] == level]
        along = [r for r in here if r.walked and r.kind != "column"]
        w.do(f"br label %{body}")
        w.start(body)
        w.do(f"{self._column} = phi i64 [ {start}, %{before} ], [ {following}, %{body} ]")
        for r in along:
            r.start(w, before, body)
        self._walk_values, self._walk = {}, level
        for op in self._group.operations:
            value = op.result
            if self._levels[value] != level:
                continue
            reduction = self._reductions.get(value)
            if reduction is not None and reduction.walked:
                self._reduce_entry(reduction)
            elif reduction is None and (self._flat or self._full(value)):
                self._walk_values[value] = self._walk_values.get(value) or self._compute(op)
        for value, register in list(self._walk_values.items()):  # last: a value may take the place of one that is read
            if value in self._made and value in self._slots:
                self._keep(value, register)
            elif value in self._stack:
                self._store(self._stack[value], value.dtype, register, ZERO, ONE)
        w.do(f"{following} = add nuw nsw i64 {self._column}, 1")
        self._loop_end(following, columns, body)
        self._walk_values, self._walk, self._column = None, -1, "0"

    def _loop_end(self, following: str, count: str, body: str) -> None:
        w, after = self._w, self._w.fresh_label()
        again = w.new(f"icmp slt i64 {following}, {count}")
        w.do(f"br i1 {again}, label %{body}, label %{after}")
        w.start(after)

    def _row_operations(self, level: int) -> None:
        """What is computed once a row, after the walk of that level."""
        for op in self._group.operations:
            value = op.result
            if self._levels[value] != level:
                continue
            reduction = self._reductions.get(value)
            if reduction is not None and reduction.walked and reduction.kind == "column":
                continue
            if reduction is None and self._full(value):
                continue
            if reduction is None:
                register = self._compute(op)
            elif reduction.walked:
                register = reduction.result(self._w, self._times(self._group.columns))
            else:
                register = self._operand(op, 0, reduction.dtype)
            if reduction is not None and reduction.across:
                reduction.gather(self._w, register, self._row)
                continue
            if reduction is not None and not reduction.walked and op.function == "argmax":
                register = "0"
            self._row_values[value] = register
            if value in self._slots:
                self._keep(value, register)

    # --- reductions -----------------------------------------------------------------------------------------------

    def _columnwise(self) -> list[Reduction]:
        return [r for r in self._reductions.values() if r.walked and r.kind == "column"]

    def _reduce_entry(self, r: Reduction) -> None:
        register = self._operand(r.op, 0, r.dtype)
        if r.kind != "column":
            r.step(self._w, register, self._column)
            return
        pointer = self._pointer(self._slots[r.op.result])
        old = self._load(pointer, r.dtype, ZERO, ZERO, ONE)
        self._store(pointer, r.dtype, r.combined(self._w, old, register), ZERO, ONE)

    def _each_column(self, r: Reduction, *, first: bool) -> None:
        """Before the rows: what an empty reduction is. After them: the mean of the sum."""
        w, (start, columns) = self._w, self._columns
        before, body = w.label, w.fresh_label()
        self._column, following = w.name(), w.name()
        w.do(f"br label %{body}")
        w.start(body)
        w.do(f"{self._column} = phi i64 [ {start}, %{before} ], [ {following}, %{body} ]")
        pointer = self._pointer(self._slots[r.op.result])
        value = r.empty
        if not first:
            value = r.divided(w, self._load(pointer, r.dtype, ZERO, ZERO, ONE), self._times(self._group.rows))
        self._store(pointer, r.dtype, value, ZERO, ONE)
        w.do(f"{following} = add nuw nsw i64 {self._column}, 1")
        self._loop_end(following, columns, body)
        self._column = "0"

    def _count(self, r: Reduction) -> str:
        """How many entries a reduction over everything has."""
        return self._times(self._group.rows, self._group.columns if r.walked else 1)

    # --- single values --------------------------------------------------------------------------------------------

    def _compute(self, op: Operation) -> str:
        """The entry of an operation's result where the loop stands."""
        if op.function in FREE:
            return self._inlined(op.result, True, True)
        if op.function == "astype":
            return converted(self._w, (self._read(accesses(self._fused, op)[0]), op.operands[0].dtype), op.result.dtype)
        dtype = op.result.dtype
        if op.function in ANSWERS | {"isfinite"}:
            dtype = max((v.dtype for v in op.operands), key=lambda d: d.bits)
        arguments = [
            (self._operand(op, i, DTYPES["bool"] if op.function == "where" and i == 0 else dtype), dtype)
            for i in range(len(op.arguments))
        ]
        return scalar(self._w, op.function, arguments, dtype)

    def _operand(self, op: Operation, i: int, dtype: RecordedDType) -> str:
        """The register of an operation's argument, in that dtype."""
        argument = op.arguments[i]
        if not isinstance(argument, Value):
            return number(argument, dtype)
        shape = op.operands[0].shape if op.function in REDUCTIONS else op.result.shape
        return converted(self._w, (self._read(self._fused.access(argument, shape)), argument.dtype), dtype)

    def _read(self, a: Access, in_row: bool = True, in_column: bool = True) -> str:
        """The entry that an operand has where the loop stands; repeated along the rows or columns if told so."""
        row, column = (a.row if in_row else ZERO), (a.column if in_column else ZERO)
        if a.root in self._made:
            if not self._flat and not self._full(a.root):
                return self._row_values[a.root]
            if self._walk_values is not None and a.root in self._walk_values:
                return self._walk_values[a.root]
            if self._levels[a.root] == self._walk:  # in this walk, but not yet: operations come in order
                return self._computed(a.root)
        scope = self._row_values if self._walk_values is None else self._walk_values
        key = (a.root, a.offset, row, column)
        for known in (self._row_values, scope):
            if key in known:
                return known[key]
        if a.root in self._fused.inlined:
            register = self._inlined(a.root, row != ZERO, column != ZERO)
        else:
            waiting = self._stack.get(a.root)
            pointer = waiting or self._pointer(self._slots[a.root])
            register = self._load(pointer, a.root.dtype, a.offset, ZERO if waiting else row, column)
        scope[key] = register
        return register

    def _computed(self, value: Value) -> str:
        assert self._walk_values is not None
        register = self._walk_values[value] = self._compute(self._fused.makers[value])
        return register

    def _inlined(self, value: Value, in_row: bool, in_column: bool) -> str:
        """A value that is made anew: from its operands, a number, or the number of the row or column."""
        op, dtype = self._fused.makers[value], value.dtype
        if op.function == "full":
            filling = op.options["value"]
            if not isinstance(filling, Dim):
                return number(filling, dtype)
            return converted(self._w, (self._times(filling), DTYPES["int64"]), dtype)
        if op.function == "arange":
            along_rows = isinstance(value.shape[0], Dim)
            index = (self._row if in_row else "0") if along_rows else (self._column if in_column else "0")
            return converted(self._w, (index, DTYPES["int64"]), dtype)
        reads = {v: self._read(self._fused.access(v, value.shape), in_row, in_column) for v in op.operands}
        if op.function == "astype":
            return converted(self._w, (reads[op.operands[0]], op.operands[0].dtype), dtype)
        if op.function in ANSWERS:
            dtype = max((v.dtype for v in op.operands), key=lambda d: d.bits)
        arguments = [
            (converted(self._w, (reads[v], v.dtype), dtype) if isinstance(v, Value) else number(v, dtype), dtype)
            for v in op.arguments
        ]
        return scalar(self._w, op.function, arguments, dtype)


def _same_space(value: Value, shape: tuple[int, int]) -> bool:
    rows, columns = space(value.shape)
    return same(rows, shape[0]) and same(columns, shape[1])
