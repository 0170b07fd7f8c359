"""The rows of a fit: which backend they live on, in which order they are taken, and sparse ones a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import sparse
from sklearn import get_config

from ..backend import Backend, get_backend
from ..errors import BackendUnavailable, DTypeError, UnknownBackend
from ..typing import Array

__all__ = [
    "CHUNK",
    "Shuffled",
    "SparseBatches",
    "backend_of",
    "chunks",
    "float_dtypes",
    "followed",
    "in_order",
    "named_backend",
    "on_host",
]

CHUNK = 4096  # rows that are predicted together
NAMES = {"array_api_strict": "strict"}  # libraries whose backend is not called like them


@lru_cache(maxsize=64)
def backend_of(name: str, device: str | None) -> Backend:
    """The backend of that name and device, one in a process, so that its transfers are counted in one place."""
    return get_backend(name, device)


def followed(X: Any) -> tuple[str, str | None]:
    """Name and device of the backend that X's own library has; NumPy's for what is not an array of a library."""
    library = Backend.library_of(X)
    if library in ("", "numpy"):
        return "numpy", None
    device = X.device
    # CuPy counts its devices, array_api_strict shows Device('device1'), the rest have a word.
    place = str(device.id if library == "cupy" else getattr(device, "_device", device))
    return NAMES.get(library, library), place


def float_dtypes(X: Any) -> tuple[Any, ...]:
    """The dtypes that X may keep, in its own library's words; what has another becomes the first of them."""
    library = Backend.library_of(X)
    if library in ("", "numpy") or not get_config()["array_api_dispatch"]:
        return np.float64, np.float32
    backend = backend_of(*followed(X))
    found = []
    for name in ("float64", "float32"):
        with suppress(DTypeError):
            found.append(backend.dtype(name))
    return tuple(found)


def on_host(a: Any) -> np.ndarray:
    """An array of any library that has a backend, as a NumPy array."""
    return a if isinstance(a, np.ndarray) else backend_of(*followed(a)).to_host(a)


def named_backend(given: str | Backend) -> tuple[str, str | None]:
    if isinstance(given, Backend):
        raise BackendUnavailable("backend= of an estimator is a name, such as 'cupy:1', so that it can be pickled.")
    if not isinstance(given, str):
        raise UnknownBackend(f"backend= takes a name; it is {given!r}.")
    name, _, device = given.partition(":")
    return name, device or None


class Shuffled:
    """Orders of n rows, drawn from a RandomState as scikit-learn draws them: each shuffles the one before."""

    def __init__(self, random_state: np.random.RandomState, n: int) -> None:
        self._random_state = random_state
        self._order = np.arange(n)

    def __call__(self, epoch: int) -> np.ndarray:
        places = np.arange(len(self._order))
        self._random_state.shuffle(places)
        self._order = self._order[places]
        return self._order


def in_order(n: int) -> Callable[[int], np.ndarray]:
    rows = np.arange(n)
    return lambda epoch: rows


class SparseBatches:
    """Batches of a sparse X, each dense for as long as it is trained on."""

    def __init__(
        self, X: Any, t: np.ndarray, w: np.ndarray | None, order: Callable[[int], np.ndarray], batch_size: int
    ) -> None:
        self._X, self._t, self._w = sparse.csr_array(X), t, w
        self._order, self._size = order, batch_size
        self._epoch = 0

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        order = self._order(self._epoch)
        self._epoch += 1
        for start in range(0, len(order), self._size):
            rows = order[start : start + self._size]
            batch = self._X[rows, :].toarray(), self._t[rows]
            yield batch if self._w is None else (*batch, self._w[rows])


def chunks(X: Any, backend: Backend, dtype: str, size: int = CHUNK) -> Iterator[Array]:
    """The rows of X, dense and on the device, `size` at a time."""
    wanted = backend.dtype(dtype)
    for start in range(0, max(X.shape[0], 1), size):
        rows = X[start : min(start + size, X.shape[0]), ...] if not sparse.issparse(X) else X[start : start + size]
        rows = rows.toarray() if sparse.issparse(rows) else rows
        if not backend.owns(rows):
            rows = backend.asarray(rows, dtype)
        rows = backend.bare(rows)
        yield rows if rows.dtype == wanted else backend.xp.astype(rows, wanted)
