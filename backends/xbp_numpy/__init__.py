"""NumPy on the host: the reference that every other backend is compared with.

Its arrays are the host's own, so nothing is ever transferred; what comes in and goes out is copied all the same, so
that training never writes into a user's array. NumPy's main namespace follows the standard by itself; it is called
directly: nothing here needs a compatibility layer in between.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from xbp.backend import Backend
from xbp.errors import BackendUnavailable
from xbp.typing import Namespace

__all__ = ["NumpyBackend", "backend"]


class NumpyBackend(Backend):
    """NumPy arrays, computed with by NumPy."""

    on_host = True


def backend(device: str | None = None) -> NumpyBackend:
    """The NumPy backend. Its only device is "cpu"."""
    if device not in (None, "cpu"):
        raise BackendUnavailable(
            f"Backend 'numpy' computes on the CPU; it has no device {device!r}. Leave device= out, or choose the "
            'backend of a library that computes there, such as "cupy" or "torch".'
        )
    return NumpyBackend("numpy", cast(Namespace, np), device="cpu", version=np.__version__)
