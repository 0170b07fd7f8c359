"""The device that CuPy computes on: memory from CuPy's pool, kernels by NVRTC, products by cuBLASLt, CUDA graphs.

CuPy refuses its own products while a stream is captured; cuBLASLt, called directly, has no such rule. Everything is
queued on the thread's current stream, as CuPy's own operations are, so that the two come in order.
"""

from __future__ import annotations

import logging
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
from ..reference import mask_of, product_of, reference
from ..tuning import Device as Kind
from ..tuning import Tuning, key_of
from .bodies import THREADS
from .device import Memory

__all__ = ["Cuda"]

WORKSPACE = 32 * 2**20  # bytes for a product, which is what frameworks give on large devices
CANDIDATES = 16
BORDER = 16  # bytes, of what kernels read at once
TIMED = (20, 2)  # runs of a candidate that are timed together: of small products, of large ones
LARGE = 10**9  # multiplications

log = logging.getLogger(__name__)


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
        self._workspaces: dict[int, Memory] = {}
        self._known: dict[Product, bool] = {}  # kinds of products that were compared with the reference

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
            self._workspace()  # nothing may be allocated from here on
            with self._side:
                self._workspace()
            stream.begin_capture()
            try:
                run()
            except BaseException:
                with suppress(self._cupy.cuda.runtime.CUDARuntimeError):  # that the capture came to nothing
                    stream.end_capture()
                raise
            graph = stream.end_capture()

        def launch() -> None:
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
            return not product.epilogue or self._proven(product_of(40, 24, 16, product))

    def _proven(self, small: Product) -> bool:
        """Whether a small product comes out as the reference has it: where ReLU's argument is 0 as well."""
        if small not in self._known:
            self._known[small] = self._as_reference(small)
            if not self._known[small]:
                log.warning("cuBLASLt %s computes the %s differently.", self._handle.library.version, small)
        return self._known[small]

    def _as_reference(self, small: Product) -> bool:
        rng = np.random.default_rng(0)
        (rows_a, columns_a), (rows_b, columns_b), _ = small.stored
        a, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in ((rows_a, columns_a), (rows_b, columns_b)))
        b[..., :2] = 0.0  # of which ReLU makes 0, and whose gradient is 0
        bias = rng.integers(-1, 2, small.bias_length).astype(np.float32)
        aux = mask_of(rng.random((small.m, small.n)) < 0.5, small.aux_ld) if small.aux else None
        left, right = (a.T if small.a.transposed else a), (b.T if small.b.transposed else b)
        wanted = reference(small, left, right, bias, aux)
        on_device = [
            self._by_columns(a, small.a.ld, small.a.dtype),
            self._by_columns(b, small.b.ld, small.b.dtype),
            self._by_columns(np.zeros((small.m, small.n), np.float32), small.d.ld, small.d.dtype),
        ]
        beside = [self._by_columns(bias[:, None], max(1, small.bias_length), small.d.dtype)] if len(bias) else []
        beside += [] if aux is None else [self._cupy.asarray(aux)]
        _Multiply(self, small, tuned=False)(*map(self.address, on_device), *map(self.address, beside))
        found = self._numbers_of(on_device[2], small.d.dtype).reshape(small.n, small.d.ld)[:, : small.m].T
        if not np.array_equal(found, wanted.d):
            return False
        if wanted.bias is not None and not np.array_equal(self._numbers_of(beside[0], small.d.dtype), wanted.bias):
            return False
        return wanted.aux is None or np.array_equal(_bits_of(beside[-1].get(), small.m), _bits_of(wanted.aux, small.m))

    def _by_columns(self, matrix: np.ndarray, ld: int, dtype: str) -> Any:
        """A host matrix of small whole numbers, which every dtype has, as the library keeps one."""
        rows, columns = matrix.shape
        padded = np.zeros((columns, ld), np.float32)
        padded[:, :rows] = matrix.T
        if dtype == "bfloat16":
            return self._cupy.asarray((padded.view(np.uint32) >> 16).astype(np.uint16))
        return self._cupy.asarray(padded.astype(dtype))

    def _numbers_of(self, array: Any, dtype: str) -> np.ndarray:
        host: np.ndarray = array.get().ravel()
        if dtype == "bfloat16":
            return (host.astype(np.uint32) << 16).view(np.float32)
        return host.astype(np.float64 if dtype == "float64" else np.float32)

    def product(self, product: Product) -> _Multiply:
        return _Multiply(self, product)

    def _workspace(self) -> Memory:
        """The workspace of the current stream, on which one product comes after the other."""
        stream = self._cupy.cuda.get_current_stream().ptr
        if stream not in self._workspaces:
            self._workspaces[stream] = self.memory(WORKSPACE)
        return self._workspaces[stream]

    def multiply(self, descriptor: Descriptor, algorithm: Algorithm, a: int, b: int, d: int) -> None:
        """Queue a product on the current stream."""
        stream = self._cupy.cuda.get_current_stream().ptr
        with self._lock:
            self._handle.run(descriptor, algorithm, a, b, d, self._workspace().address, WORKSPACE, stream)

    def best(self, descriptor: Descriptor, addresses: tuple[int, int, int], *, tuned: bool = True) -> Algorithm:
        """The fastest algorithm for operands that lie so. Not while a stream is captured."""
        a, b, d = (min(BORDER, alignment(address)) for address in addresses)
        aligned = (a, b, d)
        product, library = descriptor.product, self._handle.library
        with self._lock:
            if not tuned:
                return self._handle.candidates(descriptor, WORKSPACE, 1, aligned)[0]
            return _tuning().best(
                key_of(product, WORKSPACE, library.version, self._kind, aligned),
                lambda: self._handle.candidates(descriptor, WORKSPACE, CANDIDATES, aligned),
                self._timed(product, aligned),
                lambda algorithm: self._handle.accepted(descriptor, algorithm),
            )

    def _timed(self, product: Product, aligned: tuple[int, int, int]) -> Callable[[Algorithm], float]:
        """A function that times an algorithm on operands of its own, which are numbers and not zeros.

        Several runs make one graph, so that a small product is not timed by how fast the host can queue it.
        """
        memories: list[Memory] = []
        addresses: list[int] = []
        graphs: dict[bytes, Callable[[], None]] = {}
        descriptor = self._handle.library.descriptor(product)
        runs = TIMED[product.m * product.n * product.k >= LARGE]
        event = self._cupy.cuda.Event

        def prepare() -> None:
            matrices = (product.a, product.b, product.d)
            for matrix, (_, columns), border in zip(matrices, product.stored, aligned, strict=True):
                filled = self._numbers(matrix.ld * columns, matrix.dtype)
                shift = border % 256  # no better aligned than the operands themselves
                memory = self.memory(filled.nbytes + 512)
                self.copy(filled, self.view(memory, shift, filled.shape, filled.dtype.name, (1,)))
                memories.append(memory)
                addresses.append(memory.address + shift)
            extra = self.memory(max(8 * (product.bias_length or 1), product.aux_bytes, 256), zeroed=True)
            memories.append(extra)
            descriptor.set_pointers(**dict.fromkeys(descriptor.missing(), extra.address))

        def seconds(algorithm: Algorithm) -> float:
            if not addresses:
                prepare()
            a, b, d = addresses

            def repeated() -> None:
                for _ in range(runs):
                    self.multiply(descriptor, algorithm, a, b, d)

            if algorithm.data not in graphs:
                self.multiply(descriptor, algorithm, a, b, d)  # loads what has to be loaded
                graphs[algorithm.data] = self.captured(repeated)
            graph = graphs[algorithm.data]
            graph()
            start, stop = event(), event()
            start.record()
            graph()
            stop.record()
            stop.synchronize()
            return float(self._cupy.cuda.get_elapsed_time(start, stop))

        return seconds

    def _numbers(self, count: int, dtype: str) -> Any:
        """Numbers between -1 and 1, as bits where CuPy does not have the dtype."""
        cupy = self._cupy
        values = ((cupy.arange(count, dtype=cupy.int32) * 7919) % 2001 - 1000).astype(cupy.float32) / 1000
        if dtype == "bfloat16":
            return (values.view(cupy.uint32) >> 16).astype(cupy.uint16)
        return values.astype(dtype)


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


def _bits_of(mask: np.ndarray, m: int) -> np.ndarray:
    """The bits of a mask that belong to entries; nobody says what the others are."""
    return np.unpackbits(mask.view(np.uint8), axis=1, bitorder="little")[:, :m]


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
def _kind(cupy: Any, id: int) -> Kind:
    properties = cupy.cuda.runtime.getDeviceProperties(id)
    return Kind(properties["name"].decode(), f"{properties['major']}{properties['minor']}")
