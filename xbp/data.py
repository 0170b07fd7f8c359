"""Where a fit gets its rows from: arrays on the device, a memory map on the host, or somebody's own batches.

All three give an epoch as a list of chunks for `Runner.run`, and the same rows in the same order give the same
training, wherever they lie. Resident data is moved once, before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .backend import Backend
from .errors import DataError, DTypeError, LabelError, ShapeError
from .inputs import check_finite, checked_inputs, host_or_own, length, taken
from .losses import Loss
from .model import Model
from .random import epoch_order
from .typing import Array, Inputs

__all__ = [
    "Batches",
    "Order",
    "Rows",
    "is_stream",
    "open_rows",
    "open_source",
    "open_validation",
    "order_of",
    "output_width",
    "prepare_batch",
]

SHARD = 64 * 2**20  # bytes of a memory map that are moved together


def is_stream(x: Any) -> bool:
    """Whether x is an iterable of batches rather than an array, a list of rows, a data frame or a mapping of arrays."""
    if isinstance(x, list) and x and all(isinstance(batch, tuple) and len(batch) in (2, 3) for batch in x):
        return True  # rows would be lists of numbers, batches are tuples (x, t)
    array_like = hasattr(x, "shape") or hasattr(x, "__array__") or isinstance(x, list | tuple | Mapping | str | bytes)
    return not array_like and isinstance(x, Iterable)


@dataclass(frozen=True)
class Rows:
    """Inputs, targets and weights of n rows, on the device where `resident`, else on the host in a memory map."""

    x: Any
    t: Any
    w: Any
    n: int
    resident: bool
    backend: Backend
    dtype: str

    def shard_rows(self) -> int:
        """How many rows are moved together where they are not resident."""
        arrays = list(self.x.values()) if isinstance(self.x, Mapping) else [self.x]
        row: int = sum(math.prod(a.shape[1:]) for a in arrays)
        return max(1, SHARD // (8 * max(1, row)))

    def on_device(self, rows: np.ndarray | slice) -> tuple[Inputs, Array, Array | None]:
        """These rows, moved."""
        x = self.x
        if isinstance(x, Mapping):
            moved: Inputs = {name: taken(name, np.asarray(a[rows]), self.backend, self.dtype) for name, a in x.items()}
        else:
            moved = taken("x", np.asarray(x[rows]), self.backend, self.dtype)
        t_dtype = None if self.t.dtype.kind in "iu" else self.dtype
        t = self.backend.asarray(np.asarray(self.t[rows]), t_dtype)
        return moved, t, None if self.w is None else self.backend.asarray(self.w[rows], self.dtype)

    def chunks(self, size: int) -> Iterator[tuple[Inputs, Array, Array | None]]:
        """All rows in order, `size` at a time, on the device."""
        for start in range(0, self.n, size):
            rows = slice(start, min(start + size, self.n))
            if not self.resident:
                yield self.on_device(rows)
                continue
            x = {k: a[rows, ...] for k, a in self.x.items()} if isinstance(self.x, Mapping) else self.x[rows, ...]
            yield x, self.t[rows, ...], None if self.w is None else self.w[rows]

    def batch_weights(self, order: np.ndarray, batch_size: int) -> np.ndarray:
        """The total weight of each batch of an epoch, float64 on the host; the numbers of rows where there are none."""
        starts = np.arange(0, self.n, batch_size)
        if self.w is None:
            return np.minimum(starts + batch_size, self.n) - starts.astype(np.float64)
        return np.add.reduceat(self._host_weights[order], starts)

    @cached_property
    def _host_weights(self) -> np.ndarray:
        """The weights on the host, moved once a fit."""
        host = self.backend.to_host(self.w) if self.resident else np.asarray(self.w)
        return host.astype(np.float64)


def order_of(shuffle: bool | Callable[[int], Any], seed: int, epoch: int, n: int) -> np.ndarray:
    """The order (n,) of the rows in an epoch, int32: as they lie, drawn from the seed, or what `shuffle(epoch)` says.

    Raises `DataError` for an order in which not every row comes once.
    """
    if not callable(shuffle):
        return epoch_order(seed, epoch, n) if shuffle else np.arange(n, dtype=np.int32)
    order = np.asarray(shuffle(epoch))
    if order.dtype.kind not in "iu" or order.shape != (n,) or not _all_once(order):
        raise DataError(
            f"shuffle= gave no order of the rows for epoch {epoch}: it has to give the integers 0 ... {n - 1}, each "
            f"once; it gave {order.dtype} of shape {order.shape}."
        )
    return order.astype(np.int32 if n < 2**31 else np.int64, copy=False)


def _all_once(order: np.ndarray) -> bool:
    if not order.size or order.min() < 0 or order.max() >= len(order):
        return False
    met = np.zeros(len(order), dtype=bool)
    met[order] = True
    return bool(met.all())


class Order:
    """The batches of one epoch: `order` (n,) cut into `full` batches of `batch_size` rows, and one of the rest."""

    def __init__(self, rows: Rows, order: np.ndarray, batch_size: int) -> None:
        self.full, rest = divmod(rows.n, batch_size)
        self.count = self.full + (rest > 0)
        self._rows = rows
        self._whole = order[: self.full * batch_size].reshape(self.full, batch_size)
        self._tail = order[self.full * batch_size :][None, :]
        self._on_device = rows.backend.asarray(self._whole) if rows.resident else None
        self._limit = self.full if rows.resident else max(1, rows.shard_rows() // batch_size)

    def stop(self, at: int, size: int) -> int:
        """Where a chunk of at most `size` batches ends that starts at batch `at`: all of one length, within a shard.

        A chunk is all that is left, or a power of two long, so that libraries which compile for each shape meet few.
        """
        left = min(self._limit, self.full - at) if at < self.full else 1
        return at + (left if left <= size else 1 << (size.bit_length() - 1))

    def batches(self, at: int, stop: int) -> tuple[Inputs, Array, Array | None, Array]:
        """(x, t, w, index (K, B)) of the batches from `at` to `stop`, for `Runner.run`."""
        rows = self._rows
        index = self._whole[at:stop] if at < self.full else self._tail
        if self._on_device is not None:
            if at >= self.full:
                return rows.x, rows.t, rows.w, rows.backend.asarray(index)
            chunk = self._on_device if stop - at == self.full else self._on_device[at:stop, :]
            return rows.x, rows.t, rows.w, chunk
        x, t, w = rows.on_device(index.reshape(-1))
        return x, t, w, rows.backend.asarray(np.arange(index.size, dtype=np.int32).reshape(index.shape))


def open_rows(model: Model, loss: Loss, x: Any, t: Any, w: Any, *, what: str = "x") -> Rows:
    """Check and move the data of a fit or an evaluation; everything checkable is checked here, before the first step.

    Raises `ShapeError` (rank, widths, numbers of rows, no rows), `DTypeError`, `LabelError`, `DataError` (NaN).
    """
    backend = model.backend
    arrays = checked_inputs(x, model.plan, backend)
    if t is None:
        raise DataError(
            "There are no targets: t is None. Only an iterable of (x, t) batches comes without a separate t."
        )
    n = length(arrays)
    if n == 0:
        raise ShapeError(f"{what} has no rows, so there is nothing to learn from.")
    for name, a in arrays.items():
        if a.ndim == 0 or a.shape[0] != n:
            raise ShapeError(
                f"The inputs differ in their number of rows: {name!r} has shape {tuple(a.shape)}, not {n} rows."
            )
        check_finite(name, a, backend)
    mapped = any(isinstance(a, np.memmap) for a in arrays.values())
    targets = _targets(model, loss, t, n, output_width(model))
    weights = _weights(model, w, n)
    if mapped:
        host_t = backend.to_host(targets) if backend.owns(targets) else targets
        host_w = None if weights is None else backend.to_host(weights)
        single = arrays if isinstance(x, Mapping) else next(iter(arrays.values()))
        return Rows(single, host_t, host_w, n, False, backend, model.dtype)
    moved = {name: backend.packed(taken(name, a, backend, model.dtype)) for name, a in arrays.items()}
    inputs: Inputs = moved if isinstance(x, Mapping) else next(iter(moved.values()))
    return Rows(inputs, targets, weights, n, True, backend, model.dtype)


def open_source(model: Model, loss: Loss, x: Any, t: Any, w: Any) -> Rows | Batches:
    """The rows of a fit, or, where x is an iterable of batches and t is None, those batches."""
    if t is not None or not is_stream(x):
        return open_rows(model, loss, x, t, w)
    if w is not None:
        raise DataError("Weights for an iterable of batches come in it, as (x, t, w), not in sample_weight=.")
    return Batches(x)


def open_validation(model: Model, loss: Loss, validation: Any) -> Rows:
    """The rows that a fit is evaluated on after each epoch: (x, t) or (x, t, w). Raises as `open_rows` does."""
    if not isinstance(validation, tuple | list) or len(validation) not in (2, 3):
        raise ValueError("validation must be (x, t) or (x, t, w).")
    return open_rows(model, loss, *validation, *([None] if len(validation) == 2 else []), what="validation x")


def output_width(model: Model) -> int | None:
    shape = model.plan.row_shapes().get(model.plan.output)
    return None if shape is None or len(shape) != 1 else shape[0]


def _targets(model: Model, loss: Loss, t: Any, n: int, outputs: int | None) -> Array:
    """Targets on the device, in the one form that the loss's kernel takes, with values checked."""
    backend, xp = model.backend, model.xp
    if isinstance(t, np.ma.MaskedArray):
        raise DataError("t is a masked array; its mask would be lost. Leave the masked rows out, or weigh them 0.")
    if backend.library_of(t) in ("", "numpy"):
        host = np.asarray(t)
        if host.dtype.kind not in "fiub":
            raise LabelError(
                f"t must hold numbers; its dtype is {host.dtype}. Encode names of classes as integers 0 ... C-1 first "
                "(np.unique(t, return_inverse=True))."
            )
        wide = host.dtype.kind in "iu" and host.dtype.itemsize > 4 and host.size > 0
        if wide and host.min() >= -(2**31) and host.max() < 2**31:
            host = host.astype(np.int32)  # every library has int32, and half the bytes
        t = backend.asarray(host, model.dtype if host.dtype.kind == "f" else None)
    elif not backend.owns(t):
        raise DTypeError(f"t is a {backend.library_of(t)} array, but the model lives on backend={backend.name!r}.")
    t = backend.bare(t)
    if t.ndim == 0 or t.shape[0] != n:
        raise ShapeError(f"x has {n} rows, t has shape {tuple(t.shape)}: every row needs its own target.")
    width = (t.shape[1] if t.ndim > 1 else 1) if outputs is None else outputs
    prepared = loss.prepare(t, (n, width), backend.dtype(model.dtype), xp=xp)
    loss.check_values(prepared, width, xp=xp)
    return prepared


def _weights(model: Model, w: Any, n: int) -> Array | None:
    if w is None:
        return None
    weights = taken("sample_weight", w, model.backend, model.dtype)
    if tuple(weights.shape) != (n,):
        raise ShapeError(f"sample_weight must have shape ({n},), one number a row; it is {tuple(weights.shape)}.")
    check_finite("sample_weight", weights, model.backend)
    if not bool(model.xp.all(weights >= 0.0)):
        raise DataError("sample_weight must not be negative.")
    return weights


def prepare_batch(model: Model, loss: Loss, x: Any, t: Any, w: Any) -> tuple[Inputs, Array, Array | None]:
    """One batch on the device, with shapes and dtypes checked and values not looked at."""
    backend = model.backend
    arrays = checked_inputs(x, model.plan, backend)
    n = length(arrays)
    if n == 0:
        raise ShapeError("The batch is empty: x has no rows.")
    for name, a in arrays.items():
        if a.ndim == 0 or a.shape[0] != n:
            raise ShapeError(
                f"The inputs differ in their number of rows: {name!r} has shape {tuple(a.shape)}, not {n} rows."
            )
    moved = {name: taken(name, a, backend, model.dtype) for name, a in arrays.items()}
    t = host_or_own("t", t, backend)
    if not backend.owns(t):
        t = backend.asarray(t, model.dtype if t.dtype.kind == "f" else None)
    if t.ndim == 0 or t.shape[0] != n:
        raise ShapeError(f"x has {n} rows, t has shape {tuple(t.shape)}: every row needs its own target.")
    outputs = output_width(model)
    width = (t.shape[1] if t.ndim > 1 else 1) if outputs is None else outputs
    prepared = loss.prepare(t, (n, width), backend.dtype(model.dtype), xp=model.xp)
    weight = None if w is None else taken("sample_weight", w, backend, model.dtype)
    if weight is not None and tuple(weight.shape) != (n,):
        raise ShapeError(f"sample_weight must have shape ({n},), one number a row; it is {tuple(weight.shape)}.")
    return (moved if isinstance(x, Mapping) else next(iter(moved.values()))), prepared, weight


class Batches:
    """An iterable of (x, t) or (x, t, w) batches, read anew in every epoch."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source
        self.epochs_read = 0

    def __iter__(self) -> Iterator[tuple[Any, Any, Any]]:
        if self.epochs_read and iter(self.source) is self.source:
            raise DataError(
                "The iterable of batches is used up after one epoch, as every generator is. Give an object whose "
                "__iter__ starts again (a list of batches, a loader), or fit one epoch at a time."
            )
        self.epochs_read += 1
        for i, batch in enumerate(self.source):
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
                raise DataError(
                    f"Batch {i} of the iterable must be (x, t) or (x, t, w); it is a {type(batch).__name__}."
                )
            yield batch[0], batch[1], batch[2] if len(batch) == 3 else None
