"""What moves entries and computes nothing: concat, stack, and constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from xbp.errors import NotCompiled
from xbp.program import Operation, Value
from xbp.program.fusion import Fused
from xbp.program.views import Layout, Linear, contiguous, linear, times

from .scalars import MEMORY, number
from .writer import Counted, Writer

__all__ = ["Copy"]


class Copy:
    """Writes the function of one such operation: pointers to its operands' memory, then to the result's."""

    def __init__(self, op: Operation, fused: Fused, declarations: set[str], parallel: bool) -> None:
        self._op, self._fused, self._parallel = op, fused, parallel
        self._w = Writer(declarations)
        self._t = MEMORY[op.result.dtype.name]

    @property
    def roots(self) -> list[Value]:
        return [self._fused.layouts[v].root for v in self._op.operands]

    def text(self, name: str) -> str:
        w, op = self._w, self._op
        w.start("entry")
        if self._parallel:
            w.leave_unless(w.new("icmp eq i64 %tid, 0"))
        if op.function in ("concat", "stack"):
            self._joined()
        elif op.function == "take":
            raise NotCompiled(f"{op} reads where data says; machine code would not notice a number out of range.")
        elif op.function == "asarray":
            self._constant(op.options["value"], [])
        elif op.function in ("reshape", "getitem", "broadcast_to", "matrix_transpose"):
            raise NotCompiled(f"{op} of an array with gaps between its entries is not compiled.")
        else:
            raise NotCompiled(f"{op.function} is not compiled.")
        w.do("ret void")
        pointers = "".join(f"ptr %s{i}, " for i in range(len(op.operands)))
        return (
            f"define internal void @{name}({pointers}ptr %out, i64 %n, i64 %tid, i64 %nt) noinline nounwind {{\n"
            + "\n".join([*w.lines, "}\n"])
        )

    def _at(self, pointer: str, offset: Linear, terms: Sequence[tuple[str, Linear]], t: str) -> str:
        w, total = self._w, self._w.linear(offset)
        for index, stride in terms:
            if stride != Linear(0):
                total = w.new(f"add i64 {total}, {w.new(f'mul i64 {index}, {self._w.linear(stride)}')}")
        return w.new(f"getelementptr {t}, ptr {pointer}, i64 {total}")

    def _strides(self, value: Value) -> tuple[Linear, ...]:
        strides = contiguous(value.shape)
        assert strides is not None  # the fusion has made sure
        return strides

    def _each(self, lengths: Sequence[int], indices: list[str], entry: Callable[[list[str]], None]) -> None:
        """Nested loops over the lengths; `entry(indices)` writes the innermost."""
        if len(indices) == len(lengths):
            entry(indices)
            return
        with Counted(self._w, self._w.linear(linear(lengths[len(indices)]))) as loop:
            self._each(lengths, [*indices, loop.index], entry)

    def _joined(self) -> None:
        """concat and stack: each operand at its place along the axis."""
        op = self._op
        axis = op.options["axis"] % op.result.ndim
        out = self._strides(op.result)
        start = Linear(0)
        for i, value in enumerate(op.operands):
            layout = self._fused.layouts[value]
            inner = out if op.function == "concat" else (*out[:axis], *out[axis + 1 :])
            offset = times(start, out[axis])
            if offset is None or value.dtype != op.result.dtype:
                raise NotCompiled(f"{op} joins arrays of two dtypes, or along the batch, which is not compiled.")

            self._each(value.shape, [], partial(self._entry, f"%s{i}", layout, offset, inner))
            length = linear(value.shape[axis]) if op.function == "concat" else Linear(1)
            start = Linear(start.constant + length.constant, start.per_row + length.per_row)

    def _entry(self, source: str, layout: Layout, at: Linear, strides: tuple[Linear, ...], indices: list[str]) -> None:
        """Copy one entry, from where the layout has it to the strides of the result."""
        w, t = self._w, self._t
        address = self._at(source, layout.offset, list(zip(indices, layout.strides, strict=True)), t)
        target = self._at("%out", at, list(zip(indices, strides, strict=True)), t)
        w.do(f"store {t} {w.new(f'load {t}, ptr {address}')}, ptr {target}")

    def _constant(self, value: object, place: list[int]) -> None:
        """The entries of nested lists, one by one: constants are short."""
        if isinstance(value, list | tuple):
            for i, inner in enumerate(value):
                self._constant(inner, [*place, i])
            return
        strides = self._strides(self._op.result)
        at = sum(i * s.constant for i, s in zip(place, strides, strict=True))
        entry = number(value, self._op.result.dtype)  # type: ignore[arg-type]  # a Python number
        entry = {"true": "1", "false": "0"}.get(entry, entry)
        self._w.do(f"store {self._t} {entry}, ptr {self._w.new(f'getelementptr {self._t}, ptr %out, i64 {at}')}")
