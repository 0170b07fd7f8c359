"""Writing LLVM's text: fresh registers, labels, and the intrinsics that have to be declared."""

from __future__ import annotations

from xbp.program.views import Linear

__all__ = ["Counted", "Writer"]


class Writer:
    """The lines of one function. Registers are never reused, so that every name has one meaning."""

    def __init__(self, declarations: set[str]) -> None:
        self.lines: list[str] = []
        self.label = "entry"
        self._count = 0
        self._declarations = declarations

    def name(self) -> str:
        self._count += 1
        return f"%r{self._count}"

    def new(self, instruction: str) -> str:
        """An instruction with a result; its register."""
        register = self.name()
        self.lines.append(f"  {register} = {instruction}")
        return register

    def do(self, instruction: str) -> None:
        """An instruction without a result."""
        self.lines.append(f"  {instruction}")

    def start(self, label: str) -> None:
        """A new block of that name."""
        self.lines.append(f"{label}:")
        self.label = label

    def fresh_label(self) -> str:
        self._count += 1
        return f"b{self._count}"

    def linear(self, a: Linear) -> str:
        """The number constant + per_row * N of entries or bytes."""
        if not a.per_row:
            return str(a.constant)
        scaled = "%n" if a.per_row == 1 else self.new(f"mul i64 %n, {a.per_row}")
        return scaled if not a.constant else self.new(f"add i64 {scaled}, {a.constant}")

    def share(self, count: str, unit: int) -> tuple[str, str]:
        """From where to where this thread's share of `count` things goes, in whole units: by %tid of %nt."""
        units = self.new(f"sdiv i64 {self.new(f'add i64 {count}, {unit - 1}')}, {unit}") if unit > 1 else count
        ends = []
        for number in ("%tid", self.new("add i64 %tid, 1")):
            at = self.new(f"sdiv i64 {self.new(f'mul i64 {units}, {number}')}, %nt")
            if unit > 1:
                at = self.new(f"mul i64 {at}, {unit}")
                at = self.new(f"select i1 {self.new(f'icmp slt i64 {at}, {count}')}, i64 {at}, i64 {count}")
            ends.append(at)
        return ends[0], ends[1]

    def leave_unless(self, condition: str) -> None:
        """Return from the function where the condition does not hold."""
        stay, leave = self.fresh_label(), self.fresh_label()
        self.do(f"br i1 {condition}, label %{stay}, label %{leave}")
        self.start(leave)
        self.do("ret void")
        self.start(stay)

    def declare(self, declaration: str) -> None:
        self._declarations.add(declaration)

    def call(self, intrinsic: str, t: str, *registers: str, extra: str = "") -> str:
        """An intrinsic of operands of one type, such as llvm.sqrt of float; `extra` is one more, with its type."""
        short = t
        for long, brief in (("float", "f32"), ("double", "f64"), ("<", "v"), (" x ", ""), (">", "")):
            short = short.replace(long, brief)
        types = ", ".join([t] * len(registers) + ([extra.split()[0]] if extra else []))
        self.declare(f"declare {t} @{intrinsic}.{short}({types})")
        operands = ", ".join([f"{t} {r}" for r in registers] + ([extra] if extra else []))
        return self.new(f"call {t} @{intrinsic}.{short}({operands})")


class Counted:
    """A loop from `first` to before `last`, with values that are carried from turn to turn.

    may_be_empty    whether it may have no turn at all; nothing is carried out of such a loop
    """

    def __init__(self, w: Writer, last: str, first: str = "0", *, step: int = 1, may_be_empty: bool = False) -> None:
        self._w, self._first, self._last, self._step, self._may_be_empty = w, first, last, step, may_be_empty
        self._carried: list[tuple[str, str, str]] = []  # (register, type, first value)
        self._next: list[str] = []

    def __enter__(self) -> Counted:
        w = self._w
        self._before, self._body = w.label, w.fresh_label()
        self._after = w.fresh_label()
        self.index, self._following = w.name(), w.name()
        if self._may_be_empty:
            some = w.new(f"icmp slt i64 {self._first}, {self._last}")
            w.do(f"br i1 {some}, label %{self._body}, label %{self._after}")
        else:
            w.do(f"br label %{self._body}")
        w.start(self._body)
        self._slot = len(w.lines)
        return self

    def carried(self, t: str, first: str) -> str:
        register = self._w.name()
        self._carried.append((register, t, first))
        return register

    def carry(self, register: str) -> None:
        self._next.append(register)

    def __exit__(self, *_: object) -> None:
        w = self._w
        phis = [("i64", self.index, self._first, self._following)]
        phis += [(t, r, first, n) for (r, t, first), n in zip(self._carried, self._next, strict=True)]
        w.lines[self._slot : self._slot] = [
            f"  {r} = phi {t} [ {first}, %{self._before} ], [ {n}, %{w.label} ]" for t, r, first, n in phis
        ]
        w.lines.append(f"  {self._following} = add nuw nsw i64 {self.index}, {self._step}")
        again = w.new(f"icmp slt i64 {self._following}, {self._last}")
        w.do(f"br i1 {again}, label %{self._body}, label %{self._after}")
        w.start(self._after)
