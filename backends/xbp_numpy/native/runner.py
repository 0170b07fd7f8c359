"""Who runs the machine code: the Runner of a training step, and pure programs as functions.

A Runner owns parameters, buffers and optimiser state in one block of memory, where every step changes them in place.
The code does not know where anything lies: it reads a table of addresses, which is written anew for every batch size
that is met and otherwise only told where the batch is.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Hashable, Mapping
from typing import Any, cast

import numpy as np

from xbp.backend import Backend
from xbp.errors import NotCompiled
from xbp.program import Program, Value, bound
from xbp.recording import inputs_of, nested
from xbp.typing import Array, Inputs, Scalar, Tree

from . import module, threads
from .blas import numpy_blas
from .compiler import Code, compiled, features
from .module import Module
from .scalars import REGISTER
from .tiles import registers

__all__ = ["NativeFunction", "NativeRunner"]

ALIGNMENT = 64
COPIED = 4096  # bytes that are copied faster than their address is found out
READY = 32  # programs whose code is kept for who comes next
KEPT = 8  # batch sizes whose tables are kept


def _memory(size: int) -> np.ndarray:
    """Bytes on the border of a cache line."""
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


def _check(program: Program) -> None:
    """Raises `NotCompiled` for a dtype that the code knows nothing of."""
    for value in (*program.inputs.values(), *[op.result for op in program.operations]):
        if value.dtype.name not in REGISTER:
            raise NotCompiled(f"Engine 'numba' of backend 'numpy' computes with no {value.dtype} (in {value}).")


_ready: dict[Hashable, tuple[Module, Code]] = {}


def _code_of(program: Program, *, in_place: bool) -> tuple[Module, Code]:
    """The module of a program and its machine code. Who trains the same network again, as in a search for settings,
    finds them ready; the module is then of a program that reads the same.
    """
    blas, tile = numpy_blas(), registers(features())
    integer = blas.integer if blas else ""
    key = (program.hash, integer, tile, in_place, module.SHARED)
    found = _ready.get(key)
    if found is None:
        _check(program)
        made = Module(program, integer, tile, in_place)
        found = made, compiled(made.text)
        while len(_ready) >= READY:
            _ready.pop(next(iter(_ready), None), None)
        _ready[key] = found
    return found


class _Native:
    """The machine code of a program, and how to call it."""

    def __init__(self, program: Program, *, in_place: bool) -> None:
        blas = numpy_blas()
        self.module, self._code = _code_of(program, in_place=in_place)
        self._addresses = {name: self._code.address(name) for name in ("step", "run")}
        kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_int64] * 4)
        self._functions: dict[str, Any] = {name: kind(address) for name, address in self._addresses.items()}
        self._fixed = {"yield": threads.yield_address()}
        if blas is not None:
            self._fixed |= {"sgemm": blas.sgemm, "dgemm": blas.dgemm}

    def call(self, name: str, prepared: _Prepared, n: int, steps: int = 1) -> None:
        """Call "step" or "run", with as many threads as may be had where they are worth it."""
        function = self._functions[name]
        if not self.module.parallel:
            function(prepared.address, n, steps, 0, 1)
            return
        helpers = threads.team()
        with helpers.together(min(prepared.threads, threads.available_threads())) as count:
            sync = helpers.sync if count > 1 else prepared.sync
            prepared.point("sync", sync.ctypes.data)
            if count > 1:
                helpers.work(self._addresses[name], prepared.address, n, steps, count)
            else:
                function(prepared.address, n, steps, 0, 1)

    def table(self) -> np.ndarray:
        """Addresses of the places in memory; those of the BLAS are filled in."""
        table = np.zeros(len(self.module.table), np.int64)
        for name, address in self._fixed.items():
            if name in self.module.table:
                table[self.module.table[name]] = address
        return table


class _Prepared:
    """The table and the arena for one batch size."""

    def __init__(self, native: _Native, n: int, extra: Mapping[str, Value]) -> None:
        module = native.module
        self.threads = threads.available_threads() if module.parallel else 1  # there is scratch memory for so many
        offsets, size = module.places.plan(n, self.threads)
        self.arena = _memory(size)
        self.table = native.table()
        self.address = self.table.ctypes.data
        self.places = module.table
        for name, offset in offsets.items():
            self.point(name, self.arena.ctypes.data + offset)
        self.offsets = offsets
        self.loss: Any = None  # where the loss of a step is left
        self.sync = np.zeros(8, np.int64)  # for a thread that works alone
        self.rows = {name: np.empty(bound(v.shape, n), v.dtype.name) for name, v in extra.items()}
        self.own = {name: a.ctypes.data for name, a in self.rows.items()}
        self.small = all(a.nbytes <= COPIED for a in self.rows.values())  # then every batch is copied to its own place
        for name, address in self.own.items():
            self.point(name, address)

    def point(self, name: str, address: int) -> None:
        place = self.places.get(name)
        if place is not None:
            self.table[place] = address

    def take(self, name: str, array: Any) -> object:
        """Point to a part of the batch, and return what has to be kept alive for it."""
        rows = self.rows[name]
        array = np.ascontiguousarray(array, rows.dtype)
        self.point(name, array.__array_interface__["data"][0])
        return array


def _contiguous(array: Any, value: Value) -> np.ndarray:
    return np.ascontiguousarray(array, value.dtype.name)


class NativeRunner:
    """`xbp.runner.Runner` of a training step."""

    engine = "numba"

    def __init__(self, program: Program, backend: Backend) -> None:
        self.program = program
        self._native = _Native(program, in_place=True)
        owned = {n: v for n, v in program.inputs.items() if n.split(".")[0] in ("params", "buffers", "state")}
        self._scalars = {
            name.removeprefix("scalars."): np.zeros((), v.dtype.name)
            for name, v in program.inputs.items()
            if name.startswith("scalars.")
        }
        self._batch = {n: v for n, v in program.inputs.items() if n.split(".")[0] in ("x", "t", "w")}
        self._arrays: dict[str, np.ndarray] = {}
        at, places = 0, {}
        for name, v in owned.items():
            array = np.empty(v.shape, v.dtype.name)
            places[name] = at
            at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
        self._block = _memory(at)
        for name, v in owned.items():
            size = int(np.prod(v.shape, dtype=np.int64)) * np.dtype(v.dtype.name).itemsize
            self._arrays[name] = self._block[places[name] : places[name] + size].view(v.dtype.name).reshape(v.shape)
        self._tree = nested(cast(Any, self._arrays))
        loss = program.outputs["loss"]
        self._loss = (self._native.module.places.where("loss"), loss.dtype.name)
        self._prepared: dict[int, _Prepared] = {}

    def load(self, tree: Tree) -> None:
        for section, arrays in tree.items():
            for name, a in arrays.items():
                self._arrays[f"{section}.{name}"][...] = a

    def read(self) -> Tree:
        return self._tree

    def _at(self, n: int) -> _Prepared:
        prepared = self._prepared.get(n)
        if prepared is None:
            while len(self._prepared) >= KEPT:
                del self._prepared[next(iter(self._prepared))]
            prepared = self._prepared[n] = _Prepared(self._native, n, self._batch)
            for name, array in self._arrays.items():
                prepared.point(name, array.ctypes.data)
            for name, scalar in self._scalars.items():
                prepared.point(f"scalars.{name}", scalar.ctypes.data)
            where, dtype = self._loss
            offset = prepared.offsets[where]
            size = np.dtype(dtype).itemsize
            prepared.loss = prepared.arena[offset : offset + size].view(dtype)
        return prepared

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        n = t.shape[0]
        prepared = self._prepared.get(n) or self._at(n)
        kept: list[object] = []
        if prepared.small and not isinstance(x, Mapping):
            rows = prepared.rows
            rows["x"][...], rows["t"][...] = x, t
            if w is not None:
                rows["w"][...] = w
        else:
            kept += [prepared.take(name, array) for name, array in inputs_of(x, t, w).items()]
        for name, slot in self._scalars.items():
            slot[()] = scalars[name]
        self._native.call("step", prepared, n)
        del kept  # arrays that only the table knows of have to live until here
        loss: Array = prepared.loss[0]
        return loss

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        steps, n = index.shape
        prepared = self._at(n)
        kept: list[np.ndarray] = [np.ascontiguousarray(index, np.int32)]
        prepared.point("index", kept[0].ctypes.data)
        for name, given in inputs_of(x, t, w).items():
            rows = _contiguous(given, self._batch[name])
            kept.append(rows)
            prepared.point(f"all {name}", rows.ctypes.data)
            prepared.point(name, prepared.own[name])
        for name, slot in self._scalars.items():
            values = np.ascontiguousarray(scalars[name], slot.dtype)
            kept.append(values)
            prepared.point(f"all scalars.{name}", values.ctypes.data)
        losses = np.empty(steps, self._loss[1])
        prepared.point("losses", losses.ctypes.data)
        self._native.call("run", prepared, n, steps)
        return cast(Array, losses)


class NativeFunction:
    """A pure program as a function of named arrays. Each thread has an arena of its own."""

    def __init__(self, program: Program, backend: Backend) -> None:
        self._native = _Native(program, in_place=False)
        self.program = self._native.module.program
        self._local = threading.local()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        program, module = self.program, self._native.module
        n = program.batch_size(inputs)
        kept = getattr(self._local, "prepared", None)
        if kept is None or kept[0] != n:
            kept = self._local.prepared = (n, _Prepared(self._native, n, {}))
        prepared = kept[1]
        arrays = {name: _contiguous(inputs[name], v) for name, v in program.inputs.items()}
        for name, array in arrays.items():
            prepared.point(name, array.ctypes.data)
        self._native.call("step", prepared, n)
        outputs: dict[str, Any] = {}
        for name, value in program.outputs.items():
            layout = module.layouts.layouts[value]
            place = module.places.where(name)
            dtype = np.dtype(value.dtype.name)
            if place in prepared.offsets:
                memory = prepared.arena[prepared.offsets[place] :].view(np.uint8)
            else:
                memory = arrays[place].reshape(-1).view(np.uint8)
            strides = tuple(s.at(n) * dtype.itemsize for s in layout.strides)
            view = np.ndarray(bound(value.shape, n), dtype, memory.data, layout.offset.at(n) * dtype.itemsize, strides)
            outputs[name] = view.copy()
        return outputs
