"""NumPy on the host: the reference that every other backend is compared with.

Its arrays are the host's own, so nothing is ever transferred; what comes in and goes out is copied all the same, so
that training never writes into a user's array. NumPy's main namespace follows the standard by itself; it is called
directly: nothing here needs a compatibility layer in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import ClassVar, cast

import numpy as np

from xbp.backend import Backend
from xbp.errors import BackendUnavailable
from xbp.program import Program
from xbp.runner import Runner
from xbp.typing import Array, Namespace

from .native.runner import NativeFunction, NativeRunner
from .planned import PlannedRunner, planned_function

__all__ = ["NativeFunction", "NativeRunner", "NumpyBackend", "PlannedRunner", "backend", "planned_function"]


_Function = Callable[[Mapping[str, Array]], dict[str, Array]]

_RUNNERS: dict[str, Callable[[Program, Backend], Runner]] = {"numba": NativeRunner, "planned": PlannedRunner}
_FUNCTIONS: dict[str, Callable[[Program, Backend], _Function]] = {"numba": NativeFunction, "planned": planned_function}


class NumpyBackend(Backend):
    """NumPy arrays, computed with by NumPy."""

    on_host = True
    extras: ClassVar[Mapping[str, str]] = {"numba": "llvmlite, pip install 'xbp[numba]'"}

    @property
    def engines(self) -> tuple[str, ...]:  # type: ignore[override]  # known when asked: llvmlite is an extra
        """The step as machine code, where llvmlite is installed; as prepared calls of NumPy; as it is written."""
        return ("numba", "planned", "eager") if find_spec("llvmlite") else ("planned", "eager")

    def packed(self, array: Array) -> Array:
        return cast(Array, np.ascontiguousarray(array))

    def compile(self, program: Program, engine: str) -> Runner:
        if engine not in _RUNNERS:
            raise self._without(engine)
        return _RUNNERS[engine](program, self)

    def function(self, program: Program, engine: str) -> _Function:
        if engine not in _FUNCTIONS:
            raise self._without(engine)
        return _FUNCTIONS[engine](program, self)


def backend(device: str | None = None) -> NumpyBackend:
    """The NumPy backend. Its only device is "cpu"."""
    if device not in (None, "cpu"):
        raise BackendUnavailable(
            f"Backend 'numpy' computes on the CPU; it has no device {device!r}. Leave device= out, or choose the "
            'backend of a library that computes there, such as "cupy" or "torch".'
        )
    return NumpyBackend("numpy", cast(Namespace, np), device="cpu", version=np.__version__)
