"""A program for batches of N rows, laid out in memory and made into one list of calls.

All that is computed on the way lies in one arena, planned by lifetimes; new values of what a runner owns are written
over the old ones where nobody reads those any more, and are copied there at the end where somebody does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from itertools import starmap
from operator import call
from typing import Any

import numpy as np

from xbp.program import Operation, Program, Value, bound
from xbp.program.memory import ALIGNMENT

from .planned_memory import Key, Memory
from .planned_ops import Call, calls_of, copy, number, takes_mask, view_of
from .planned_schedule import Unit, schedule

__all__ = ["COPIED", "Plan"]

COPIED = 2**15  # bytes up to which an input is copied to its place instead of being read where it lies


class Plan:
    """Calls for batches of n rows.

    owned     inputs at fixed addresses; new values are written into those that the program updates
    arena     bytes to compute in; more are taken where these are too few
    """

    def __init__(self, program: Program, n: int, owned: Mapping[str, np.ndarray], arena: np.ndarray) -> None:
        self._schedule = schedule(program, n)
        memory = Memory(program, self._schedule, [name for name in program.updates if name in owned])
        self.arena = arena if arena.nbytes >= memory.size else _aligned(memory.size)
        self._offsets = memory.offsets
        self._inputs = {name: value for name, value in program.inputs.items() if name not in owned}
        self._values = self._schedule.constants | {program.inputs[name]: a for name, a in owned.items()}
        self._given: dict[str, list[np.ndarray]] = {}  # an input's own buffer, and the array that is read now
        for name, value in self._inputs.items():
            self._values[value] = buffer = np.zeros(bound(value.shape, n), value.dtype.name)
            self._given[name] = [buffer, buffer]
        for unit in self._schedule.units:
            for op in unit.operations:
                self._locate(op, unit, memory, owned)
        for op in self._schedule.views:
            self._view(op)
        self._rooms: dict[tuple[Key, tuple[int, ...]], np.ndarray] = {}  # the same for every block
        self._numbers: dict[tuple[str, Any], np.ndarray] = {}
        self._calls: list[Call] = []
        self._readers: dict[str, list[tuple[int, Unit]]] = {name: [] for name in self._inputs}
        self._write_calls()
        self._write_late(memory.late, owned)
        self._outputs = program.outputs
        self._sink: deque[Any] = deque(maxlen=0)

    def output(self, name: str) -> np.ndarray:
        """Where the result of that name lies after `run`, until the next."""
        return self._values[self._outputs[name]]

    def buffer(self, name: str) -> np.ndarray:
        """The place for an input, which the calls read after `give(name, buffer)`."""
        return self._given[name][0]

    def give(self, name: str, array: np.ndarray) -> None:
        """Let the calls read this array: a small one is copied, a large one is read where it lies."""
        buffer, now = self._given[name]
        if array is now:
            return
        if array is not buffer and (array.nbytes <= COPIED or not _readable(array, buffer)):
            buffer[...] = array
            array = buffer
        if array is not now:
            self._given[name][1] = array
            self._read_from(name, array)

    def run(self) -> None:
        """Make all calls. Compiled code alone makes them, so that no signal is answered between two of them."""
        self._sink.extend(starmap(call, self._calls))

    # --- where the values lie -------------------------------------------------------------------------------------

    def _locate(self, op: Operation, unit: Unit, memory: Memory, owned: Mapping[str, np.ndarray]) -> None:
        layout = self._schedule.layouts[op.result]
        if op.result in memory.owned:
            self._values[op.result] = owned[memory.owned[op.result]]
        elif not unit.blocked or op.result in memory.whole:
            self._values[op.result] = np.ndarray(
                layout.shape, layout.dtype, self.arena.data, self._offsets[op.result], layout.strides
            )

    def _view(self, op: Operation) -> None:
        view = view_of(op, self._values[op.operands[0]], self._schedule.n)
        assert view is not None  # it was one of arrays that lie in memory as these do
        self._values[op.result] = view

    # --- the calls ------------------------------------------------------------------------------------------------

    def _write_calls(self) -> None:
        roots = self._schedule.roots
        names = {value: name for name, value in self._inputs.items()}
        for unit in self._schedule.units:
            for name in {names[roots[a]] for op in unit.operations for a in op.operands if roots[a] in names}:
                self._readers[name].append((len(self._calls), unit))
            self._calls += self._unit(unit)

    def _write_late(self, late: Mapping[str, Value], owned: Mapping[str, np.ndarray]) -> None:
        """New values over old ones, at the end. Old values that become new ones elsewhere are set aside first."""
        inputs = {id(a) for a in owned.values()}
        new = {name: self._values[value] for name, value in late.items()}
        for name, value in late.items():
            if id(self._values[self._schedule.roots[value]]) in inputs:
                aside = np.empty_like(new[name])
                self._calls.append(copy(aside, new[name]))
                new[name] = aside
        self._calls += [copy(owned[name], a) for name, a in new.items()]

    def _read_from(self, name: str, array: np.ndarray) -> None:
        root = self._inputs[name]
        self._values[root] = array
        for op in self._schedule.views:
            if self._schedule.roots[op.result] is root:
                self._view(op)
        for start, unit in self._readers[name]:
            calls = list(self._unit(unit))
            self._calls[start : start + len(calls)] = calls

    def _unit(self, unit: Unit) -> Iterator[Call]:
        if not unit.blocked:
            for op in unit.operations:
                yield from self._operation(op, self._values, unit.shape)
            return
        outside = {a: self._values[a] for op in unit.operations for a in (*op.operands, op.result) if a in self._values}
        # Where all arrays are whole and in order, blocks need not be rows.
        flat = all(a.ndim == 0 or (a.shape == unit.shape and a.flags.c_contiguous) for a in outside.values())
        row = () if flat else unit.shape[1:]
        length = math.prod(unit.shape) if flat else unit.shape[0]
        step = max(1, unit.block // math.prod(row))
        for start in range(0, length, step):
            rows = slice(start, min(start + step, length))
            block = {value: _part(a, rows, length, flat, len(unit.shape)) for value, a in outside.items()}
            for op in unit.operations:
                yield from self._operation(op, block, (rows.stop - rows.start, *row))

    def _operation(self, op: Operation, arrays: dict[Value, np.ndarray], shape: tuple[int, ...]) -> list[Call]:
        if op.result not in arrays:
            arrays[op.result] = self._room(op.result, shape, op.result.dtype.name)
        beside = op.operands[1:] if op.function == "where" else op.operands
        dtype = np.result_type(*(a.dtype.name for a in beside)) if beside else None
        operands = [arrays[a] if isinstance(a, Value) else self._number(a, dtype) for a in op.arguments]
        mask = self._room(op, operands[0].shape, f"i{arrays[op.result].itemsize}") if takes_mask(op) else None
        return calls_of(op, operands, arrays[op.result], mask)

    def _room(self, key: Key, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        made = self._rooms.get((key, shape))
        if made is None:
            made = self._rooms[key, shape] = np.ndarray(shape, dtype, self.arena.data, self._offsets[key])
        return made

    def _number(self, value: float, dtype: Any) -> np.ndarray:
        key = (repr(value), dtype)  # 1, 1.0 and True are equal, and so are 0.0 and -0.0
        if key not in self._numbers:
            self._numbers[key] = number(value, dtype)
        return self._numbers[key]


def _part(a: np.ndarray, rows: slice, length: int, flat: bool, ndim: int) -> np.ndarray:
    """The block of an operand; of one that is repeated along the rows, the whole."""
    if a.ndim == 0:
        return a
    if flat:
        return a.reshape(-1)[rows]
    return a[rows] if a.ndim == ndim and a.shape[0] == length else a


def _aligned(size: int) -> np.ndarray:
    raw = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def _readable(array: np.ndarray, buffer: np.ndarray) -> bool:
    """Whether calls that were made for the buffer can read this array where it lies."""
    return (
        array.shape == buffer.shape and array.dtype == buffer.dtype and array.flags.c_contiguous and array.flags.aligned
    )
