"""The device that CuPy computes on: memory from CuPy's pool, kernels by NVRTC, products by cuBLASLt, CUDA graphs.

CuPy refuses its own products while a stream is captured; cuBLASLt, called directly, has no such rule. Everything is
queued on the thread's current stream, as CuPy's own operations are, so that the two come in order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np

from xbp.errors import MemoryExceeded
from xbp.typing import Array

from ..lt import Algorithm, Declined, Descriptor, Handle, Library, alignment
from ..nvrtc import cubin
from ..products import Product
from ..tuning import DeviceKind, Tuning, key_of
from .bodies import THREADS
from .device import Memory
from .trials import Proofs, Trial

__all__ = ["WORKSPACE", "Cuda"]

WORKSPACE = 32 * 2**20  # bytes for a product, which is what frameworks give on large devices
CANDIDATES = 16
BORDER = 16  # bytes, of what kernels read at once


class Cuda:
    """`xbp_cupy.graph.device.Device` on a CUDA device. Threads may share it: the library is asked by one at a time.

    id    the number of the device
    """

    def __init__(self, cupy: Any, id: int) -> None:
        self._cupy = cupy
        self._lock = threading.RLock()
        self._here = cupy.cuda.Device(id)
        with self._here:
            self._handle = Handle(_library())
            self._capturing, self._side = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
        self._kind = _kind(cupy, id)
        self._workspaces: dict[int, Memory] = {}  # by stream
        self._wanted = 0  # bytes of workspace that a product has needed so far: what graphs are given
        self._proofs = Proofs(cupy, lambda product: _Multiply(self, product, tuned=False))

    # --- memory ---------------------------------------------------------------------------------------------------

    def memory(self, size: int, *, zeroed: bool = False) -> Memory:
        try:
            pointer = self._cupy.cuda.alloc(size)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            free, total = self._cupy.cuda.runtime.memGetInfo()
            raise MemoryExceeded(
                f"The device has no {size:,} bytes for a step: {free:,} of its {total:,} are free. Take smaller "
                "batches, or let Trainer cut them into pieces: memory_limit=, accumulate=."
            ) from error
        if zeroed:
            pointer.memset_async(0, size)
        return Memory(int(pointer.ptr), pointer)

    def view(self, memory: Memory, offset: int, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...]) -> Array:
        kind = _dtype(dtype)
        steps = tuple(s * kind.itemsize for s in strides)
        view: Array = self._cupy.ndarray(shape, kind, memory.owner + offset, strides=steps)
        return view

    def part(self, array: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        steps = tuple(s * array.dtype.itemsize for s in strides)
        view: Array = self._cupy.ndarray(shape, array.dtype, array.data + offset, strides=steps)
        return view

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        array: Array = self._cupy.empty(shape, _dtype(dtype))
        return array

    def copy(self, source: Array, target: Array) -> None:
        given: Any = source
        self._cupy.copyto(target, given.astype(target.dtype, copy=False))

    def contiguous(self, array: Any, dtype: str) -> Array:
        packed = array.astype(_dtype(dtype), order="C", copy=False)
        if not packed.flags.c_contiguous or packed.data.ptr % BORDER:
            packed = packed.copy(order="C")
        result: Array = packed
        return result

    def synchronize(self) -> None:
        """Wait for the thread's stream. CUDA forbids waiting for a device while any thread captures on it."""
        self._cupy.cuda.get_current_stream().synchronize()

    def address(self, array: Any) -> int:
        return int(array.data.ptr)

    # --- kernels --------------------------------------------------------------------------------------------------

    def compiled(self, text: str) -> Callable[[str], Any]:
        """By NVRTC directly: CuPy's own way would flush small numbers to zero."""
        return _module(self._cupy, self._here.id, f"sm_{self._kind.capability}", text)

    def launch(self, kernel: Any, blocks: int, arguments: Sequence[Any]) -> None:
        given = tuple([np.int64(a) if isinstance(a, int) else a for a in arguments])
        kernel((blocks,), (THREADS,), given)

    def aside(self, call: Callable[[], None]) -> None:
        """Only in a capture, whose thread has the side stream to itself; elsewhere in order, which gives the same."""
        if not self._is_capturing():
            call()
            return
        self._turn_to(self._side, self._capturing)
        with self._side:
            call()

    def join(self) -> None:
        if self._is_capturing():
            self._turn_to(self._capturing, self._side)

    def _is_capturing(self) -> bool:
        return bool(self._cupy.cuda.get_current_stream().ptr == self._capturing.ptr)

    def _turn_to(self, later: Any, earlier: Any) -> None:
        """What is queued on one stream from here on waits for what is queued on another by now."""
        event = self._cupy.cuda.Event(disable_timing=True)
        earlier.record(event)
        later.wait_event(event)

    def captured(self, run: Callable[[], None]) -> Callable[[], None]:
        stream = self._capturing
        with self._lock, stream:
            # Nothing may be allocated from here on; and graphs that run at the same time may not share a workspace.
            own = [self.memory(max(self._wanted, 1)) for _ in (stream, self._side)]
            self._workspaces |= {s.ptr: memory for s, memory in zip((stream, self._side), own, strict=True)}
            stream.begin_capture()
            try:
                run()
            except BaseException:
                with suppress(self._cupy.cuda.runtime.CUDARuntimeError):  # that the capture came to nothing
                    stream.end_capture()
                raise
            graph = stream.end_capture()

        def launch(own: object = own) -> None:
            """With its workspaces, which live as long as it does."""
            graph.launch()

        return launch

    # --- products -------------------------------------------------------------------------------------------------

    def accepts(self, product: Product) -> bool:
        """Whether the library has an algorithm for it, and its epilogue does what it is taken to do."""
        descriptor = self._handle.library.descriptor(product)
        descriptor.set_pointers(**dict.fromkeys(descriptor.missing(), 256))
        with self._lock:
            try:
                self._handle.candidates(descriptor, WORKSPACE, 1, (BORDER,) * 3)
            except Declined:
                return False
            return not product.epilogue or self._proofs.hold(product)

    def product(self, product: Product) -> _Multiply:
        return _Multiply(self, product)

    def _workspace(self, stream: int) -> Memory:
        """The workspace of a stream, on which one product comes after the other."""
        if stream not in self._workspaces:
            self._workspaces[stream] = self.memory(WORKSPACE)
        return self._workspaces[stream]

    def multiply(self, descriptor: Descriptor, algorithm: Algorithm, a: int, b: int, d: int) -> None:
        """Queue a product on the current stream."""
        stream = self._cupy.cuda.get_current_stream().ptr
        with self._lock:
            self._wanted = max(self._wanted, algorithm.workspace)
            workspace = self._workspace(stream)
            self._handle.run(descriptor, algorithm, a, b, d, workspace.address, algorithm.workspace, stream)

    def best(self, descriptor: Descriptor, addresses: tuple[int, int, int], *, tuned: bool = True) -> Algorithm:
        """The fastest algorithm for operands that lie so. Not while a stream is captured."""
        a, b, d = (min(BORDER, alignment(address)) for address in addresses)
        aligned = (a, b, d)
        product, library = descriptor.product, self._handle.library
        with self._lock:
            if not tuned:
                return self._handle.candidates(descriptor, WORKSPACE, 1, aligned)[0]
            wanted = self._wanted
            winner = _tuning().best(
                key_of(product, WORKSPACE, library.version, self._kind, aligned),
                lambda: self._handle.candidates(descriptor, WORKSPACE, CANDIDATES, aligned),
                Trial(self, self._cupy, library.descriptor(product), aligned).seconds,
                lambda algorithm: self._handle.accepted(descriptor, algorithm),
            )
            self._wanted = wanted  # the others are never run again
            return winner


class _Multiply:
    """A product, with the algorithm for each way in which its operands may lie."""

    def __init__(self, device: Cuda, product: Product, *, tuned: bool = True) -> None:
        self._device, self._tuned = device, tuned
        self._descriptor = device._handle.library.descriptor(product)
        self._algorithms: dict[tuple[int, ...], Algorithm] = {}
        self._names = [n for n, needed in (("bias", product.bias_length), ("aux", product.aux)) if needed]

    def __call__(self, a: int, b: int, d: int, *epilogue: int) -> None:
        if self._names:
            self._descriptor.set_pointers(**dict(zip(self._names, epilogue, strict=True)))
        lying = tuple(min(BORDER, alignment(address)) for address in (a, b, d, *epilogue))
        algorithm = self._algorithms.get(lying)
        if algorithm is None:
            algorithm = self._algorithms[lying] = self._device.best(self._descriptor, (a, b, d), tuned=self._tuned)
        self._device.multiply(self._descriptor, algorithm, a, b, d)


def _dtype(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        from ml_dtypes import bfloat16  # CuPy's own bfloat16 is this one

        return np.dtype(bfloat16)  # type: ignore[no-any-return]  # without stubs, it is anything
    return np.dtype(name)


@cache
def _library() -> Library:
    return Library()


@cache
def _tuning() -> Tuning:
    return Tuning.of_user()


@cache
def _module(cupy: Any, id: int, arch: str, text: str) -> Callable[[str], Any]:
    """The kernels of a text on a device, by name. They stay to the end of the process, as CuPy's own do: code must not
    be unloaded while a launch of it is queued, nor by a thread that has no device."""
    module = cupy.cuda.Module()
    module.load(cubin(text, arch))
    return cache(module.get_function)


@cache
def _kind(cupy: Any, id: int) -> DeviceKind:
    properties = cupy.cuda.runtime.getDeviceProperties(id)
    return DeviceKind(properties["name"].decode(), f"{properties['major']}{properties['minor']}")
