"""array-api-strict: the standard and nothing more, for tests.

What runs here runs on any conforming library. Its pretended devices refuse to be mixed or to become NumPy arrays
unasked, as a GPU's arrays do, so that such mistakes show on a machine without one.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from xbp.backend import Backend, load_library
from xbp.errors import BackendUnavailable
from xbp.typing import Array, Namespace

__all__ = ["StrictBackend", "backend"]

INSTALL = "pip install array-api-strict"
DEVICES = ("CPU_DEVICE", "device1", "device2", "no_float64")  # of the versions that xbp supports


class StrictBackend(Backend):
    """Arrays of array-api-strict on one of its pretended devices."""

    def __init__(self, strict: Any, device: Any) -> None:
        super().__init__("strict", cast(Namespace, strict), device=device, version=strict.__version__)
        self._host = strict.Device("CPU_DEVICE")

    def _download(self, array: Array) -> np.ndarray:
        return np.array(cast(Any, array).to_device(self._host))


def backend(device: str | None = None) -> StrictBackend:
    """The array-api-strict backend on "CPU_DEVICE" (also "cpu", the default), "device1", "device2" or "no_float64"."""
    strict = load_library("array_api_strict", "strict", INSTALL)
    name = "CPU_DEVICE" if device in (None, "cpu") else device
    try:
        return StrictBackend(strict, strict.Device(name))
    except ValueError as error:
        raise BackendUnavailable(f"Backend 'strict' has no device {device!r}. Known: {', '.join(DEVICES)}.") from error
