"""The running values of reductions: along a row in registers, over all rows in one wide number."""

from __future__ import annotations

from xbp.program import DTYPES, Operation
from xbp.program.fusion import Group
from xbp.program.shapes import same

from .scalars import REGISTER, converted, number, scalar
from .writer import Counted, Writer

__all__ = ["Reduction"]


class Reduction:
    """One reduction of a loop.

    kind      one result a "row", a "column", or one of "all"
    walked    whether its operand has an entry for every column
    across    whether results of rows are added up over the rows
    """

    def __init__(self, op: Operation, kind: str, group: Group, walked: bool) -> None:
        self.op, self.kind, self.walked = op, kind, walked
        # A sum may widen its operand first; argmax compares what it is given.
        self.dtype = op.operands[0].dtype if op.function in ("argmax", "all") else op.result.dtype
        rows = same(group.rows, 1)
        self.across = (kind == "all" and not rows) or (kind == "column" and not walked and not rows)
        self._t = REGISTER[self.dtype.name]
        # Many rows are added up in float64: float32 would lose a digit over some thousand of them.
        adds = op.function in ("sum", "mean") and self.dtype.kind == "real floating"
        self._wide = DTYPES["float64"] if adds else self.dtype
        self._running = self._next = self._index = self._next_index = self._place = self._parts = ""

    @property
    def empty(self) -> str:
        """The reduction of nothing, as a constant."""
        name, dtype = self.op.function, self.dtype
        if name in ("sum", "mean"):
            return number(0, dtype)
        if name == "all":
            return "true"
        down = name in ("max", "argmax")
        if dtype.kind == "real floating":
            return number(float("-inf") if down else float("inf"), dtype)
        if dtype.kind == "bool":
            return "false" if down else "true"
        return str(-(2 ** (dtype.bits - 1)) if down else 2 ** (dtype.bits - 1) - 1)

    def combined(self, w: Writer, a: str, b: str, *, ordered: bool = True) -> str:
        """The running value `a` with one more entry. Unordered sums may be split over the lanes of a vector."""
        name = self.op.function
        if name in ("sum", "mean"):
            if self.dtype.kind != "real floating":
                return w.new(f"add {self._t} {a}, {b}")
            return w.new(f"fadd {'contract' if ordered else 'reassoc contract'} {self._t} {a}, {b}")
        if name == "all":
            return w.new(f"and i1 {a}, {b}")
        operands = [(a, self.dtype), (b, self.dtype)]
        return scalar(w, {"max": "maximum", "argmax": "maximum", "min": "minimum"}[name], operands, self.dtype)

    # --- along a row, in registers --------------------------------------------------------------------------------

    def start(self, w: Writer, before: str, body: str) -> None:
        """At the head of the walk."""
        self._running, self._next = w.name(), w.name()
        w.do(f"{self._running} = phi {self._t} [ {self.empty}, %{before} ], [ {self._next}, %{body} ]")
        if self.op.function == "argmax":
            self._index, self._next_index = w.name(), w.name()
            w.do(f"{self._index} = phi i64 [ 0, %{before} ], [ {self._next_index}, %{body} ]")

    def step(self, w: Writer, entry: str, column: str) -> None:
        """One entry. The first of equal ones is the argmax, and the first NaN, as NumPy has it."""
        t = self._t
        if self.op.function != "argmax":
            following = self.combined(w, self._running, entry, ordered=False)
            w.lines[-1] = w.lines[-1].replace(f"{following} =", f"{self._next} =")
            return
        better = w.new(
            f"{'fcmp ogt' if self.dtype.kind == 'real floating' else 'icmp sgt'} {t} {entry}, {self._running}"
        )
        if self.dtype.kind == "real floating":
            nan, had = w.new(f"fcmp uno {t} {entry}, {entry}"), w.new(f"fcmp ord {t} {self._running}, {self._running}")
            better = w.new(f"or i1 {better}, {w.new(f'and i1 {nan}, {had}')}")
        w.do(f"{self._next} = select i1 {better}, {t} {entry}, {t} {self._running}")
        w.do(f"{self._next_index} = select i1 {better}, i64 {column}, i64 {self._index}")

    def result(self, w: Writer, columns: str) -> str:
        """After the walk: the row's result, or its part of the whole."""
        if self.op.function == "argmax":
            return self._next_index
        return self._next if self.across else self.divided(w, self._next, columns)

    def divided(self, w: Writer, total: str, count: str) -> str:
        """The mean, from the sum and how many there are; other reductions are what they are."""
        if self.op.function != "mean":
            return total
        return w.new(f"fdiv {self._t} {total}, {converted(w, (count, DTYPES['int64']), self.dtype)}")

    # --- over all rows --------------------------------------------------------------------------------------------

    @property
    def addable(self) -> bool:
        """Whether each row's part may wait in memory for the others."""
        return self._adds and self._wide.name == "float64"

    def share(self, parts: str) -> None:
        """Before the rows, where threads share them: there is one float64 for each at `parts`."""
        self._parts = parts

    def open(self, w: Writer) -> None:
        """Before the rows."""
        t = REGISTER[self._wide.name]
        self._place = w.new(f"alloca {t}")
        empty = number(0, self._wide) if self._wide != self.dtype else self.empty
        w.do(f"store {t} {empty}, ptr {self._place}")

    def gather(self, w: Writer, part: str, row: str) -> None:
        """One row's part."""
        t = REGISTER[self._wide.name]
        if self._parts:
            part = converted(w, (part, self.dtype), self._wide)
            w.do(f"store {t} {part}, ptr {w.new(f'getelementptr {t}, ptr {self._parts}, i64 {row}')}")
            return
        old = w.new(f"load {t}, ptr {self._place}")
        part = converted(w, (part, self.dtype), self._wide)
        new = w.new(f"fadd reassoc {t} {old}, {part}") if self._wide.name == "float64" and self._adds else None
        w.do(f"store {t} {new or self.combined(w, old, part)}, ptr {self._place}")

    @property
    def _adds(self) -> bool:
        return self.op.function in ("sum", "mean")

    def gathered(self, w: Writer) -> str:
        """After the rows: what one thread has added up."""
        return w.new(f"load {REGISTER[self._wide.name]}, ptr {self._place}")

    def total(self, w: Writer, rows: str) -> str:
        """After the rows: the sum of all parts, always in the same order."""
        t = REGISTER[self._wide.name]
        with Counted(w, rows) as row:
            so_far = row.carried(t, number(0, self._wide))
            part = w.new(f"load {t}, ptr {w.new(f'getelementptr {t}, ptr {self._parts}, i64 {row.index}')}")
            more = w.new(f"fadd reassoc {t} {so_far}, {part}")
            row.carry(more)
        return more

    def closed(self, w: Writer, total: str, count: str) -> str:
        """The result, from what all rows add up to."""
        return self.divided(w, converted(w, (total, self._wide), self.dtype), count)
