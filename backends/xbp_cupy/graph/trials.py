"""Products tried on the device before they are used: whether an epilogue does what it is taken to do, and how fast an
algorithm is.

The library's documents leave things open, such as what ReLU's mask says of a 0. So each kind of product is run once on
small whole numbers, which every dtype has, and compared with `xbp_cupy.reference`. Nobody needs to trust anybody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from xbp.typing import Array

from ..lt import Algorithm, Descriptor
from ..products import Matrix, Product
from ..reference import bits_of, mask_of, reference, small_product
from .device import Memory, Multiply

__all__ = ["Proofs", "Stage", "Trial"]

TIMED = (20, 2)  # runs of a candidate that are timed together: of small products, of large ones
LARGE = 10**9  # multiplications

log = logging.getLogger(__name__)


class Proofs:
    """The kinds of products that were compared with the reference, each once.

    multiply    makes a product ready to run
    """

    def __init__(self, cupy: Any, multiply: Callable[[Product], Multiply]) -> None:
        self._cupy, self._multiply = cupy, multiply
        self._known: dict[Product, bool] = {}

    def hold(self, product: Product) -> bool:
        """Whether a small product of that kind comes out right, also where ReLU is given a 0."""
        small = small_product(40, 24, 16, product)
        if small not in self._known:
            self._known[small] = self._comes_out(small)
            if not self._known[small]:
                log.warning("cuBLASLt computes the %s in another way than is asked of it; kernels do it.", small)
        return self._known[small]

    def _comes_out(self, p: Product) -> bool:
        rng = np.random.default_rng(0)
        a, b = (rng.integers(-3, 4, shape).astype(np.float32) for shape in p.stored[:2])
        b[..., :2] = 0.0
        bias = rng.integers(-1, 2, p.bias_length).astype(np.float32)
        aux = mask_of(rng.random((p.m, p.n)) < 0.5, p.aux_ld) if p.aux else None
        wanted = reference(p, a.T if p.a.transposed else a, b.T if p.b.transposed else b, bias, aux)
        empty = np.zeros((p.m, p.n), np.float32)
        matrices = [self._by_columns(*given) for given in ((a, p.a), (b, p.b), (empty, p.d))]
        beside = [self._by_columns(bias[:, None], Matrix(p.d.dtype, p.bias_length))] if len(bias) else []
        beside += [] if aux is None else [self._cupy.asarray(aux)]
        self._multiply(p)(*(int(array.data.ptr) for array in (*matrices, *beside)))
        found = _numbers_of(matrices[2], p.d.dtype).reshape(p.n, p.d.ld)[:, : p.m].T
        right = np.array_equal(found, wanted.d)
        if wanted.bias is not None:
            right = right and np.array_equal(_numbers_of(beside[0], p.d.dtype), wanted.bias)
        if wanted.aux is not None:
            right = right and np.array_equal(bits_of(beside[-1].get(), p.m), bits_of(wanted.aux, p.m))
        return right

    def _by_columns(self, matrix: np.ndarray, like: Matrix) -> Any:
        """A host matrix as the library keeps one; as bits, where CuPy does not have the dtype."""
        rows, columns = matrix.shape
        padded = np.zeros((columns, like.ld), np.float32)
        padded[:, :rows] = matrix.T
        if like.dtype == "bfloat16":
            return self._cupy.asarray((padded.view(np.uint32) >> 16).astype(np.uint16))
        return self._cupy.asarray(padded.astype(like.dtype))


def _numbers_of(array: Any, dtype: str) -> np.ndarray:
    host: np.ndarray = array.get().ravel()
    if dtype == "bfloat16":
        return (host.astype(np.uint32) << 16).view(np.float32)
    return host.astype(np.float64 if dtype == "float64" else np.float32)


class Stage(Protocol):
    """What a trial needs of the device."""

    def memory(self, size: int, *, zeroed: bool = False) -> Memory: ...

    def view(
        self, memory: Memory, offset: int, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...]
    ) -> Array: ...

    def copy(self, source: Array, target: Array) -> None: ...

    def captured(self, run: Callable[[], None]) -> Callable[[], None]: ...

    def multiply(self, descriptor: Descriptor, algorithm: Algorithm, a: int, b: int, d: int) -> None: ...


class Trial:
    """Times algorithms of one product on operands of its own, which are numbers and not zeros.

    aligned    what divides the addresses of A, B and D, in bytes: no more divides those of the trial
    """

    def __init__(self, device: Stage, cupy: Any, descriptor: Descriptor, aligned: tuple[int, int, int]) -> None:
        self._device, self._cupy, self._descriptor, self._aligned = device, cupy, descriptor, aligned
        self._memories: list[Memory] = []
        self._addresses: list[int] = []
        self._graphs: dict[bytes, Callable[[], None]] = {}

    def seconds(self, algorithm: Algorithm) -> float:
        """The time of some runs, in milliseconds of the device's clock. They are one graph, so that a small product is
        not timed by how fast the host can queue it.
        """
        if not self._addresses:
            self._prepare()
        graph = self._graphs.get(algorithm.data)
        if graph is None:
            self._device.multiply(self._descriptor, algorithm, *self._operands())  # loads what has to be loaded
            graph = self._graphs[algorithm.data] = self._device.captured(lambda: self._repeat(algorithm))
        graph()
        start, stop = self._cupy.cuda.Event(), self._cupy.cuda.Event()
        start.record()
        graph()
        stop.record()
        stop.synchronize()
        return float(self._cupy.cuda.get_elapsed_time(start, stop))

    def _repeat(self, algorithm: Algorithm) -> None:
        p = self._descriptor.product
        for _ in range(TIMED[p.m * p.n * p.k >= LARGE]):
            self._device.multiply(self._descriptor, algorithm, *self._operands())

    def _operands(self) -> tuple[int, int, int]:
        a, b, d = self._addresses
        return a, b, d

    def _prepare(self) -> None:
        p = self._descriptor.product
        for matrix, (_, columns), border in zip((p.a, p.b, p.d), p.stored, self._aligned, strict=True):
            filled = self._numbers(matrix.ld * columns, matrix.dtype)
            shift = border % 256  # no better aligned than the operands themselves
            memory = self._device.memory(filled.nbytes + 512)
            self._device.copy(filled, self._device.view(memory, shift, filled.shape, filled.dtype.name, (1,)))
            self._memories.append(memory)
            self._addresses.append(memory.address + shift)
        beside = self._device.memory(max(8 * p.bias_length, p.aux_bytes, 256), zeroed=True)
        self._memories.append(beside)
        self._descriptor.set_pointers(**dict.fromkeys(self._descriptor.missing(), beside.address))

    def _numbers(self, count: int, dtype: str) -> Any:
        """Numbers between -1 and 1, as bits where CuPy does not have the dtype."""
        cupy = self._cupy
        values = ((cupy.arange(count, dtype=cupy.int32) * 7919) % 2001 - 1000).astype(cupy.float32) / 1000
        if dtype == "bfloat16":
            return (values.view(cupy.uint32) >> 16).astype(cupy.uint16)
        return values.astype(dtype)
