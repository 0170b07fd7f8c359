"""Where each value of a scheduled program lies: in the arena, in a runner's own arrays, or in the room of one block."""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np

from xbp.program import Operation, Program, Value
from xbp.program.memory import ALIGNMENT, Lifetime, arena_plan

from .planned_ops import may_overwrite, takes_mask
from .planned_schedule import Schedule, Unit

__all__ = ["Key", "Memory"]

Key = Value | Operation  # an operation stands for the mask that it needs


class _Room:
    """Places for one block of each value inside a chain, handed out again as soon as they are free."""

    def __init__(self, unit: Unit) -> None:
        self.size = 0
        self._entries = min(max(unit.block, math.prod(unit.shape[1:])), math.prod(unit.shape))
        self._free: dict[int, list[int]] = {}

    def take(self, itemsize: int) -> int:
        if free := self._free.get(itemsize):
            return free.pop()
        at, length = self.size, self._entries * itemsize
        self.size += -(-length // ALIGNMENT) * ALIGNMENT
        return at

    def give(self, itemsize: int, at: int) -> None:
        self._free.setdefault(itemsize, []).append(at)


class Memory:
    """The places of values.

    owned      values that are written over an input at once, with the name of that input
    late       names of inputs whose new value must wait until the end, with that value
    whole      values that lie in the arena with all their entries
    offsets    of values in the arena, and of the room for a block of those that only their chain sees
    size       of the arena, in bytes
    """

    def __init__(self, program: Program, schedule: Schedule, updated: Collection[str]) -> None:
        self._schedule = schedule
        self._units = [unit for unit in schedule.units for _ in unit.operations]
        self._index = {id(unit): i for i, unit in enumerate(schedule.units)}
        self._blocks = [Lifetime(0, 0, len(schedule.units))]  # the first is the room that chains share
        self._homes: dict[Key, int] = {}  # in blocks
        self._slots: dict[Key, int] = {}  # in the room
        self.owned: dict[Value, str] = {}
        self.late = {name: program.outputs[name] for name in updated}
        self._old = {value: (name, program.inputs[name]) for name, value in self.late.items()}
        at = 0
        for unit in schedule.units:
            room = _Room(unit)
            for op in unit.operations:
                self._place(op, at, unit, room)
                at += 1
            self._blocks[0] = self._blocks[0]._replace(size=max(self._blocks[0].size, room.size))
        places, self.size = arena_plan(self._blocks)
        self.offsets = {key: places[home] for key, home in self._homes.items()}
        self.whole = self._homes.keys()
        self.offsets |= {key: places[0] + slot for key, slot in self._slots.items()}

    def _place(self, op: Operation, at: int, unit: Unit, room: _Room) -> None:
        result, layouts = op.result, self._schedule.layouts
        size = layouts[result].dtype.itemsize
        end = self._schedule.last.get(result, at)
        inside = unit.blocked and end < len(self._units) and self._units[end] is unit
        places = self._slots if inside else self._homes
        over = next((a for a in op.operands if a in places and self._may_go(a, op, at, unit)), None)
        if self._becomes_owned(op, at, unit):
            over = None
        elif over is not None:
            places[result] = places[over]
            if not inside:
                self._live_until(places[over], end)
        elif inside:
            places[result] = room.take(size)
        else:
            places[result] = self._block(math.prod(layouts[result].shape) * size, unit, end)
        if takes_mask(op) and unit.blocked:
            self._slots[op] = room.take(size)
            room.give(size, self._slots[op])
        elif takes_mask(op):
            self._homes[op] = self._block(math.prod(layouts[result].shape) * size, unit, at)
        for a in set(op.operands) & self._slots.keys():
            if self._schedule.last[a] == at and a is not over:
                room.give(layouts[a].dtype.itemsize, self._slots[a])

    def _may_go(self, a: Value, op: Operation, at: int, unit: Unit) -> bool:
        """Whether nobody needs `a` any more once the operation has read it, so that its result may be written there."""
        old, new = self._schedule.layouts[a], self._schedule.layouts[op.result]
        alike = (old.shape, old.strides, old.dtype.itemsize) == (new.shape, new.strides, new.dtype.itemsize)
        return alike and self._schedule.last[a] == at and may_overwrite(op, a) and self._only_itself(a, unit)

    def _only_itself(self, a: Value, unit: Unit) -> bool:
        """Whether the unit reads `a` entry by entry, and no view of it."""
        roots = self._schedule.roots
        return all(b is a for op in unit.operations for b in op.operands if roots[b] is a)

    def _becomes_owned(self, op: Operation, at: int, unit: Unit) -> bool:
        """Write the result over the input that it replaces, if nobody needs the old value any more."""
        if op.result not in self._old:
            return False
        name, old = self._old[op.result]
        layout, read = self._schedule.layouts[op.result], self._schedule.last.get(old, -1)
        if read > at or layout.strides != np.empty(layout.shape, layout.dtype).strides:
            return False
        if read >= 0 and self._units[read] is unit:
            whole = all(a is not old or may_overwrite(op, old) for a in op.operands)
            if not whole or not self._only_itself(old, unit):
                return False
        self.owned[op.result] = name
        del self.late[name]
        return True

    def _block(self, size: int, unit: Unit, end: int) -> int:
        self._blocks.append(Lifetime(size, self._index[id(unit)], 0))
        self._live_until(len(self._blocks) - 1, end)
        return len(self._blocks) - 1

    def _live_until(self, block: int, end: int) -> None:
        last = self._index[id(self._units[end])] if end < len(self._units) else len(self._index)
        self._blocks[block] = self._blocks[block]._replace(last=last)
