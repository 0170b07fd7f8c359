"""What a program needs of memory, known before it runs: what it is given, and the arena for all that lies between.

The arena is the one that engines plan: values that are never alive together share a place, chains of operations store
nothing between them, new values overwrite old ones. An engine with a plan of its own says so by `Backend.arena`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from ..errors import NotCompiled
from .fusion import VIEWS, fused
from .liveness import last_uses
from .memory import Lifetime, arena_plan
from .places import BYTES, Places
from .program import Program
from .shapes import bound
from .values import Value

__all__ = ["MeasuredProgram", "Memory", "memory_of", "readable"]

SHOWN = (1, 128, 4096)  # batch sizes that the text has a line for
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def readable(size: int) -> str:
    """Bytes as people read them: "1.5 MiB"."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.1f} {UNITS[unit]}"


@dataclass(frozen=True)
class Memory:
    """The bytes that a program needs; print it.

    parameters, buffers, state    of the model and its optimiser, one set of each
    gradients                     that the program is given, as the end of a batch in pieces is
    """

    parameters: int
    buffers: int
    state: int
    gradients: int
    _program: Program = field(repr=False)
    _arena: Callable[[int], int] = field(repr=False)  # its bytes, for n rows
    _arenas: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    @property
    def fixed(self) -> int:
        """What does not depend on the batch."""
        return self.parameters + self.buffers + self.state + self.gradients

    def batch(self, n: int) -> int:
        """Inputs, targets and weights of n rows, with the few numbers that come along."""
        named = self._program.inputs.items()
        return _size([v for name, v in named if name.partition(".")[0] not in (*SECTIONS, "grads")], n)

    def between(self, n: int) -> int:
        """The arena: everything that is made on the way and not yet an input's new value."""
        if n not in self._arenas:
            self._arenas[n] = self._arena(n)
        return self._arenas[n]

    def at(self, n: int) -> int:
        """All of it, for a batch of n rows."""
        return self.fixed + self.batch(n) + self.between(n)

    def __str__(self) -> str:
        lines = [f"memory of program {self._program.name}"]
        for name in ("parameters", "buffers", "state", "gradients"):
            size = getattr(self, name)
            lines += [f"{name:<12}{readable(size):>12}"] if size else []
        columns = ("batch", "between", "in all")
        lines.append(f"{'rows':<12}" + "".join([f"{c:>12}" for c in columns]))
        for n in SHOWN:
            sizes = (self.batch(n), self.between(n), self.at(n))
            lines.append(f"{n:<12}" + "".join([f"{readable(size):>12}" for size in sizes]))
        return "\n".join(lines)


SECTIONS = ("params", "buffers", "state")


def memory_of(program: Program, arena: Callable[[int], int] | None = None) -> Memory:
    """What the program needs; a "step" writes new values over old ones, others are functions and leave theirs alone.

    arena    the bytes that an engine takes between, for n rows; None is the usual plan
    """
    params, buffers, state, grads = [
        _size([v for name, v in program.inputs.items() if name.partition(".")[0] == section], 1)
        for section in (*SECTIONS, "grads")
    ]
    return Memory(params, buffers, state, grads, program, arena or _usual_arena(program))


def _usual_arena(program: Program) -> Callable[[int], int]:
    try:
        places = Places(fused(program), in_place=program.name == "step")
    except NotCompiled:  # no engine plans such a program
        return lambda n: _unplanned(program, n)
    return lambda n: places.plan(n)[1]


@dataclass(frozen=True, eq=False)
class MeasuredProgram(Program):
    """A program that knows what it needs of memory.

    arena    as that of `memory_of`
    """

    arena: Callable[[int], int] | None = field(default=None, repr=False)

    @cached_property
    def memory(self) -> Memory:
        return memory_of(self, self.arena)


def _size(values: Iterable[Value], n: int) -> int:
    return sum([prod(bound(v.shape, n)) * BYTES[v.dtype.name] for v in values])


def _unplanned(program: Program, n: int) -> int:
    """The arena for one operation after the other, each result in memory of its own but for views."""
    last = last_uses(program)
    roots: dict[Value, Value] = {}
    lives: dict[Value, tuple[int, int]] = {}
    inputs = set(program.inputs.values())
    for i, op in enumerate(program.operations):
        root = roots.get(op.operands[0], op.operands[0]) if op.function in VIEWS else op.result
        roots[op.result] = root
        end = max(i, last.get(op.result, i))
        if root not in inputs:
            first, before = lives.get(root, (i, i))
            lives[root] = (first, max(before, end))
    return arena_plan([Lifetime(_size([v], n), *life) for v, life in lives.items()])[1]
