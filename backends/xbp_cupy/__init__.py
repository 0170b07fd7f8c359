"""CuPy on CUDA devices.

CuPy computes on the *current* device of the thread and its creation functions know no other, so a backend of device 1
has to make it current: for its own calls, for the thread that asked for it by number, and, through `active`, for any
other thread that computes with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, wraps
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np

from xbp.backend import Backend, load_library
from xbp.errors import BackendUnavailable
from xbp.program import PRECISIONS, Program
from xbp.runner import Runner
from xbp.typing import Array, DType, Namespace

from .graph.cuda import WORKSPACE, Cuda
from .graph.runner import GraphFunction, GraphRunner, arena_of
from .libraries import INSTALL, load

__all__ = ["INSTALL", "WORKSPACE", "Cuda", "CupyBackend", "GraphFunction", "GraphRunner", "arena_of", "backend", "load"]

CREATION = ("arange", "asarray", "empty", "eye", "full", "linspace", "ones", "zeros")  # most ignore their device=


class CupyBackend(Backend):
    """CuPy arrays on one CUDA device."""

    keeps_device = True
    extras: ClassVar[Mapping[str, str]] = {"graph": f"CUDA's libraries nvrtc and cublasLt: {INSTALL}"}
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS

    def __init__(self, cupy: Any, compat: Any, device: Any) -> None:
        super().__init__("cupy", cast(Namespace, _on_device(compat, device)), device=device, version=cupy.__version__)
        self._cupy = cupy

    def dtype(self, name: str) -> DType:
        if name == "bfloat16":  # CuPy has it, under the name that NumPy's does
            return load_library("ml_dtypes", "cupy", "pip install ml_dtypes").bfloat16
        return super().dtype(name)

    @cached_property
    def engines(self) -> tuple[str, ...]:  # type: ignore[override]  # known when asked: the libraries may be missing
        """The step as one CUDA graph, where CUDA's compiler and cuBLASLt are found; as it is written."""
        try:
            load("cublasLt")
            load("nvrtc")
        except BackendUnavailable:
            return ("eager",)
        return ("graph", "eager")

    def compile(self, program: Program, engine: str) -> Runner:
        if engine != "graph":
            raise self._without(engine)
        return GraphRunner(program, self._cuda)

    def function(self, program: Program, engine: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        if engine != "graph":
            raise self._without(engine)
        return GraphFunction(program, self._cuda)

    def arena(self, program: Program, engine: str) -> Callable[[int], int] | None:
        if engine != "graph" or (arena := arena_of(program)) is None:
            return None
        return lambda n: arena(n) + WORKSPACE

    @cached_property
    def _cuda(self) -> Cuda:
        return Cuda(self._cupy, self.device.id)

    def _upload(self, a: np.ndarray) -> Array:
        with self.device:
            return super()._upload(a)

    def _download(self, array: Array) -> np.ndarray:
        with self.device:
            a: np.ndarray = self._cupy.asnumpy(array)
        # Where host and device share their memory, CuPy may hand out a view of the device's.
        return a if a.flags.owndata else a.copy()

    def active(self) -> AbstractContextManager[object]:
        return cast("AbstractContextManager[object]", self._cupy.cuda.Device(self.device.id))

    def synchronize(self) -> None:
        with self.device:
            self._cupy.cuda.get_current_stream().synchronize()

    def memory(self) -> dict[str, int]:
        """`used` by live arrays, `reserved` by CuPy's pool, `free` and `total` of the whole device, in bytes."""
        with self.device:
            pool = self._cupy.get_default_memory_pool()
            free, total = self._cupy.cuda.runtime.memGetInfo()
            return {"used": pool.used_bytes(), "reserved": pool.total_bytes(), "free": free, "total": total}


def _on_device(compat: Any, home: Any) -> SimpleNamespace:
    """array-api-compat's CuPy namespace whose creation functions create on `home` unless told another device."""

    def placed(create: Callable[..., Array]) -> Callable[..., Array]:
        @wraps(create)
        def call(*args: Any, device: Any = None, **options: Any) -> Array:
            with home if device is None else device:
                return create(*args, **options)

        return call

    xp = SimpleNamespace(**vars(compat))
    for name in CREATION:
        setattr(xp, name, placed(getattr(compat, name)))
    return xp


def backend(device: str | None = None) -> CupyBackend:
    """The CuPy backend on device "0", "1", ... ("cuda:1" is the same as "1"); None is the thread's current device."""
    cupy = load_library("cupy", "cupy", INSTALL)
    compat = load_library("array_api_compat.cupy", "cupy", INSTALL)
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendUnavailable(
            f"Backend 'cupy' cannot run: CuPy {cupy.__version__} is installed, but no CUDA device answers ({error}). "
            f"Install the NVIDIA driver; if it is there, the CuPy for its CUDA version: {INSTALL}"
        ) from error
    if count == 0:
        raise BackendUnavailable(
            f"Backend 'cupy' cannot run: CuPy {cupy.__version__} finds no CUDA device. If the machine has one, see "
            "whether CUDA_VISIBLE_DEVICES hides it."
        )
    if device is None:
        return CupyBackend(cupy, compat, cupy.cuda.Device())
    number = device.removeprefix("cuda").removeprefix(":") or "0"
    if not number.isdecimal() or int(number) >= count:
        raise BackendUnavailable(
            f"Backend 'cupy' has no device {device!r}; it sees {count}, named by their numbers from 0. "
            f'The last one is "cupy:{count - 1}".'
        )
    return CupyBackend(cupy, compat, cupy.cuda.Device(int(number)).use())
