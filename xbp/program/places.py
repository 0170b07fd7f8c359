"""Places: where in memory each stored value of a program lies, before anything has run.

A step's parameters, state and batch lie where their owner put them. Everything between has a block in a static arena,
shared by values that are never needed at the same moment. A new value of an input takes the place of the old one
wherever nobody reads the old one later; where somebody does, it waits in a block until the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import NotCompiled
from .fusion import REDUCTIONS, Fused, leaves, space
from .memory import ALIGNMENT, Lifetime, arena_plan
from .values import Value
from .views import Linear, linear, size_of, times

__all__ = ["BYTES", "Block", "Places"]

BYTES = {"bool": 1, "float16": 2, "bfloat16": 2, "int32": 4, "int64": 8, "float32": 4, "float64": 8}


@dataclass
class Block:
    """A block of the arena: how large, and from which moment to which it is taken.

    each    whether every thread has one of its own
    """

    size: Linear  # bytes
    first: int
    last: int
    each: bool = False


@dataclass
class Places:
    """The places of a program's values.

    fused       the groups
    in_place    whether new values take the places of old ones; a pure function leaves its inputs alone
    moments     when each group runs; groups of one moment run side by side. None: one after the other
    until       the last moment in which each may still be running; None: the one in which it began
    of          the place of every stored value: the name of an input, or of a block
    blocks      the blocks of the arena, by name
    late        inputs whose new value waits in a block until the end, because the old one is still read
    """

    fused: Fused
    in_place: bool = True
    moments: Sequence[int] | None = None
    until: Sequence[int] | None = None
    of: dict[Value, str] = field(init=False)
    blocks: dict[str, Block] = field(default_factory=dict, init=False)
    late: dict[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._when = list(range(len(self.fused.groups)) if self.moments is None else self.moments)
        self._until = list(self._when if self.until is None else self.until)
        self._readers = _readers(self.fused)
        self.of = self._assign()

    def plan(self, n: int, threads: int = 1, alignment: int = ALIGNMENT) -> tuple[dict[str, int], int]:
        """(offset of each block, size of the arena) in bytes for batches of n rows."""
        names = list(self.blocks)
        lifetimes = [Lifetime(b.size.at(n) * (threads if b.each else 1), b.first, b.last) for b in self.blocks.values()]
        offsets, size = arena_plan(lifetimes, alignment)
        return dict(zip(names, offsets, strict=True)), size

    def where(self, name: str) -> str:
        """The place of an output."""
        return self.of[self.fused.layouts[self.fused.program.outputs[name]].root]

    def add(self, name: str, value: Value, group: int) -> None:
        """A block for what a group keeps for itself."""
        self.blocks[name] = Block(self._bytes(value), self._when[group], self._when[group])

    def reserve(self, name: str, size: int, moment: int) -> None:
        """A block of so many bytes, for one moment."""
        self.blocks[name] = Block(Linear(size), moment, moment)

    def _bytes(self, value: Value) -> Linear:
        """The size of a value's memory, with the gaps that its layout leaves between rows."""
        size = size_of(value.shape)
        if value.ndim == 2 and value in self.fused.layouts:
            size = times(linear(value.shape[0]), self.fused.layouts[value].strides[0])
        assert size is not None  # the fusion has made sure
        width = BYTES[value.dtype.name]
        return Linear(size.constant * width, size.per_row * width)

    def _assign(self) -> dict[Value, str]:
        f, program = self.fused, self.fused.program
        places = {value: name for name, value in program.inputs.items()}
        end = max(self._when, default=0) + 1
        lasting = set()
        for name, value in program.outputs.items():
            root = f.layouts[value].root
            if name not in program.inputs or not self.in_place:
                lasting.add(root)
            elif root is value and root not in places and self._may_overwrite(name, root):
                places[root] = name
        for root in f.stored:
            if root not in places:
                places[root] = root.name
                first = self._when[f.home[root]]
                reads = [self._until[g] for g in (f.home[root], *self._readers.get(root, ()))]
                self.blocks[root.name] = Block(
                    self._bytes(root), first, end if root in lasting else max([first, *reads])
                )
        for name in program.updates if self.in_place else ():
            root = f.layouts[program.outputs[name]].root
            if places[root] != name:
                if root is not program.outputs[name] or root.name not in self.blocks:
                    raise NotCompiled(f"The new value of {name} is a view of another value, which is not compiled.")
                self.late[name] = root.name
                self.blocks[root.name].last = end
        return places

    def _may_overwrite(self, name: str, new: Value) -> bool:
        """Whether a new value may be written where the old one lies: whoever reads the old one has done so before.

        Within the group, every reader has to read the entry that it is about to make, and in the first walk over the
        entries: what waits for a reduction comes in a later one.
        """
        f, old = self.fused, self.fused.program.inputs[name]
        home = f.home[new]
        group = f.groups[home]
        others = [g for g in self._readers.get(old, ()) if g != home]
        if group.kind != "loop" or any(self._until[g] >= self._when[home] for g in others):
            return False
        rows, columns = space(new.shape)
        reduced: set[Value] = set()  # and what is made of them
        for op in group.operations:
            reads = list(leaves(f, op))
            waits = any(a.root in reduced for a in reads)
            if waits or op.function in REDUCTIONS:
                reduced.add(op.result)
            if waits and op.result is new:
                return False
            for a in reads:
                if a.root is not old:
                    continue
                if op.result in reduced:
                    return False
                # A stride of 0 is right along an axis of one entry alone: elsewhere one entry is read for many.
                aligned = a.offset == Linear(0) and (rows == 1 or a.row == linear(columns))
                aligned = aligned and (columns == 1 or a.column == Linear(1))
                if not aligned or space(op.result.shape) != (rows, columns):
                    return False
        return True


def _readers(f: Fused) -> dict[Value, list[int]]:
    """The groups that read each value from memory."""
    readers: dict[Value, list[int]] = {}

    def note(root: Value, number: int) -> None:
        readers.setdefault(root, []).append(number)
        if root in f.inlined:
            for inner in f.makers[root].operands:
                note(f.layouts[inner].root, number)

    for number, group in enumerate(f.groups):
        for op in group.operations:
            for operand in op.operands:
                note(f.layouts[operand].root, number)
    return readers
