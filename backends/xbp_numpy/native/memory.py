"""Where a loop finds its entries: addresses from places in memory, the loop's row and column, and strides."""

from __future__ import annotations

from xbp.program import Dim, RecordedDType, Value
from xbp.program.fusion import space
from xbp.program.views import Linear

from .scalars import MEMORY
from .writer import Writer

__all__ = ["ONE", "ZERO", "Memory"]

ZERO, ONE = Linear(0), Linear(1)


class Memory:
    """Loads and stores where the loop stands.

    slots    the place of every stored value: values that share one have the same
    """

    def __init__(self, slots: dict[Value, str], declarations: set[str]) -> None:
        self._slots = slots
        self._w = Writer(declarations)
        self._pointers: dict[str, str] = {}
        self._row, self._column = "0", "0"
        self._flat = False  # whether rows and columns are one long row

    @property
    def arguments(self) -> list[str]:
        """The places in memory, in the order of the function's pointers."""
        return list(self._pointers)

    def _pointer(self, slot: str) -> str:
        return self._pointers.setdefault(slot, f"%p{len(self._pointers)}")

    def _times(self, *lengths: int) -> str:
        """The product of lengths, one of which may hold N."""
        fixed, symbolic = 1, 0
        for length in lengths:
            symbolic = length.times if isinstance(length, Dim) else symbolic
            fixed *= 1 if isinstance(length, Dim) else int(length)
        if not symbolic:
            return str(fixed)
        return "%n" if fixed * symbolic == 1 else self._w.new(f"mul i64 %n, {fixed * symbolic}")

    def _address(self, pointer: str, dtype: RecordedDType, offset: Linear, row: Linear, column: Linear) -> str:
        w, terms = self._w, []
        if offset != ZERO:
            terms.append(self._w.linear(offset))
        if self._flat:
            row, column = ZERO, ONE if row != ZERO or column != ZERO else ZERO
        for index, stride in ((self._row, row), (self._column, column)):
            if stride != ZERO and index != "0":
                terms.append(index if stride == ONE else w.new(f"mul i64 {index}, {self._w.linear(stride)}"))
        total = terms[0] if terms else "0"
        for term in terms[1:]:
            total = w.new(f"add i64 {total}, {term}")
        return w.new(f"getelementptr {MEMORY[dtype.name]}, ptr {pointer}, i64 {total}")

    def _load(self, pointer: str, dtype: RecordedDType, offset: Linear, row: Linear, column: Linear) -> str:
        address = self._address(pointer, dtype, offset, row, column)
        loaded = self._w.new(f"load {MEMORY[dtype.name]}, ptr {address}")
        return self._w.new(f"trunc i8 {loaded} to i1") if dtype.name == "bool" else loaded

    def _store(self, pointer: str, dtype: RecordedDType, register: str, row: Linear, column: Linear) -> None:
        address = self._address(pointer, dtype, ZERO, row, column)
        if dtype.name == "bool":
            register = self._w.new(f"zext i1 {register} to i8")
        self._w.do(f"store {MEMORY[dtype.name]} {register}, ptr {address}")

    def _keep(self, value: Value, register: str) -> None:
        """Store an entry of a value made here in its own memory."""
        columns = space(value.shape)[1]
        row = Linear(0, columns.times) if isinstance(columns, Dim) else Linear(int(columns))
        self._store(self._pointer(self._slots[value]), value.dtype, register, row, ONE)
