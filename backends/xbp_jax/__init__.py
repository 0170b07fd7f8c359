"""JAX on its CPU, GPU or TPU devices.

JAX has no 64-bit dtypes unless told so, and then narrows what it is given in silence. This backend never does that to
floats: float64 is refused with the line that turns it on. Host integers, which in xbp are labels, rows and counters,
become int32 on purpose, and only where every value fits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import numpy as np

from xbp.backend import Backend, load_library
from xbp.errors import BackendUnavailable, DTypeError
from xbp.program import Program
from xbp.runner import Runner
from xbp.typing import Array, DType, Namespace

from .jit import JitRunner, function, interpreter

__all__ = ["JaxBackend", "JitRunner", "backend", "function", "interpreter"]

INSTALL = "pip install 'xbp[jax]'"
ENABLE = 'jax.config.update("jax_enable_x64", True)'


class JaxBackend(Backend):
    """JAX arrays on one device."""

    engines: ClassVar[tuple[str, ...]] = ("jit", "eager")
    precisions: ClassVar[tuple[str, ...]] = ("float32", "mixed-bfloat16", "mixed-float16")

    def __init__(self, jax: Any, device: Any) -> None:
        super().__init__("jax", _namespace(jax, device.platform), device=device, version=jax.__version__)
        self._jax = jax

    def dtype(self, name: str) -> DType:
        if name in ("float64", "int64", "uint64", "complex128") and not self._jax.config.jax_enable_x64:
            raise DTypeError(f"JAX has no {name} until it is told so, before its first array: {ENABLE}")
        return super().dtype(name)

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        """As the base; without x64, 64-bit integers whose dtype was not asked for become int32 if they fit."""
        a = self._read(host)
        if dtype is None and not self._jax.config.jax_enable_x64:
            if a.dtype in (np.int64, np.uint64):
                return super().asarray(_as_int32(a), "int32")
            if a.dtype == np.float64:
                raise DTypeError(
                    "JAX would narrow this float64 data to float32 in silence. Ask for it, dtype='float32', or turn "
                    f"float64 on before the first JAX array: {ENABLE}"
                )
        return super().asarray(a, dtype)

    def synchronize(self) -> None:
        # JAX has no queue to wait for, only arrays; of the many that there may be, few are still being computed.
        for array in self._jax.live_arrays():
            if not (array.is_deleted() or array.is_ready()) and self.device in array.devices():
                array.block_until_ready()

    def memory(self) -> dict[str, int]:
        """`used` and `total`, where the device tells; a CPU does not."""
        stats = self.device.memory_stats() or {}
        names = {"used": "bytes_in_use", "total": "bytes_limit"}
        return {ours: stats[theirs] for ours, theirs in names.items() if theirs in stats}

    def compile(self, program: Program, engine: str) -> Runner:
        if engine != "jit":
            raise self._without(engine)
        return JitRunner(program, self._jax, self.xp, any_count=self.device.platform == "cpu")

    def function(self, program: Program, engine: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        if engine != "jit":
            raise self._without(engine)
        return function(program, self._jax, self.xp)

    def interpreted(self, program: Program) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        return interpreter(program, self._jax, self.xp, self.device)


def _as_int32(a: np.ndarray) -> np.ndarray:
    limits = np.iinfo(np.int32)
    if a.size and (a.min() < limits.min or a.max() > limits.max):
        raise DTypeError(
            f"JAX has no {a.dtype} until it is told so ({ENABLE}), and these integers, from {a.min()} to {a.max()}, do "
            "not fit into its int32."
        )
    return a.astype(np.int32)


def _namespace(jax: Any, platform: str) -> Namespace:
    """jax.numpy; off the CPU with products in the precision of their dtype, where JAX's default is a coarser one."""
    if platform == "cpu":
        return cast(Namespace, jax.numpy)
    xp = SimpleNamespace(**vars(jax.numpy))
    xp.matmul = partial(jax.numpy.matmul, precision=jax.lax.Precision.HIGHEST)
    return cast(Namespace, xp)


def backend(device: str | None = None) -> JaxBackend:
    """The JAX backend on "cpu", "gpu", "tpu", or one of several as "gpu:1"; None is JAX's default device."""
    jax = load_library("jax", "jax", INSTALL)
    load_library("jax.numpy", "jax", INSTALL)
    if device is None:
        return JaxBackend(jax, jax.numpy.zeros(()).device)
    platform, _, number = device.partition(":")
    try:
        return JaxBackend(jax, jax.devices(platform)[int(number or 0)])
    except (RuntimeError, ValueError, IndexError) as error:
        have = ", ".join(f"{d.platform}:{d.id}" for d in jax.devices())
        raise BackendUnavailable(
            f"Backend 'jax' has no device {device!r}; it sees {have}. For a GPU or TPU, install JAX's build for it."
        ) from error
