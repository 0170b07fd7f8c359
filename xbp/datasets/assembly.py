"""From the rows of any source to a `Dataset`: what is held out, how it is scaled, and where each row goes.

Every source ends in the same function, so all are treated alike, and besides the result there is room for one block
of rows only. Columns that are to be standardised are the exception: they have to be seen once before.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .dataset import Dataset, Scaling, float_dtype
from .split import held_out

__all__ = ["Raw", "assemble", "emptied", "in_blocks", "place", "standardise"]

_BLOCK = 1 << 18  # bytes


class Raw(NamedTuple):
    """What a source yields, before anything is scaled or held out: the rows for training, then any for the test."""

    name: str
    blocks: Iterator[np.ndarray]  # (k, ...), the rows in pieces, to be passed through once
    width: int  # D
    t: np.ndarray  # (N,) int64 indices, or (N, K) numbers
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    scaling: Scaling | None = None  # None: to mean 0 and deviation 1, column by column
    n_train: int | None = None  # where the source's own test part begins; None where it has none


def assemble(raw: Raw, test_fraction: float, seed: int, dtype: str) -> Dataset:
    if raw.n_train is None:
        mask = held_out(raw.t, raw.classes, test_fraction, seed, raw.name)
    else:
        mask = np.arange(len(raw.t)) >= raw.n_train
    blocks, scaling = raw.blocks, raw.scaling
    if scaling is None:
        seen = deque(blocks)
        scaling = standardise(seen, mask)
        blocks = emptied(seen)
    x, x_test = place(blocks, mask, raw.width, scaling, dtype)
    with np.errstate(over="ignore"):
        t = raw.t if raw.classes else raw.t.astype(dtype)
    return Dataset(raw.name, x, t[~mask], x_test, t[mask], raw.classes, raw.features, scaling)


def place(
    blocks: Iterable[np.ndarray], mask: np.ndarray, width: int, scaling: Scaling, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """(x, x_test): all rows, scaled, those where the mask (N,) is True in x_test; in the order in which they come."""
    n_test = int(np.count_nonzero(mask))
    x_test = np.empty((n_test, width), float_dtype(dtype))
    x = np.empty((len(mask) - n_test, width), x_test.dtype)
    row = i = j = 0
    for block in blocks:
        y = scaling.apply(block, dtype)
        here = mask[row : row + len(y)]
        row += len(y)
        j_next = j + int(np.count_nonzero(here))
        i_next = row - j_next
        x[i:i_next], x_test[j:j_next] = y[~here], y[here]
        i, j = i_next, j_next
    return x, x_test


def standardise(blocks: Sequence[np.ndarray], mask: np.ndarray) -> Scaling:
    """The scaling to mean 0 and deviation 1 of the rows (k, D), float64, where the mask (N,) is False.

    A column that is the same in all of them becomes 0 and has factor 1: dividing by what rounding leaves of its
    deviation would blow up the first row that differs.
    """
    kept = [~mask[i:j] for i, j in pairwise(np.cumsum([0, *map(len, blocks)]))]
    n = len(mask) - np.count_nonzero(mask)
    width = blocks[0].shape[1]
    low, high = np.full(width, np.inf), np.full(width, -np.inf)
    for block, keep in zip(blocks, kept, strict=True):
        low = np.minimum(low, block[keep].min(axis=0, initial=np.inf))
        high = np.maximum(high, block[keep].max(axis=0, initial=-np.inf))
    # Measured from the lowest value in units of the span: neither a large offset nor a large scale costs digits.
    span = np.where(high > low, high - low, 1.0)
    mean = np.zeros(width)
    for block, keep in zip(blocks, kept, strict=True):
        mean += ((block[keep] - low) / span).sum(axis=0) / n
    variance = np.zeros(width)
    for block, keep in zip(blocks, kept, strict=True):
        variance += np.square((block[keep] - low) / span - mean).sum(axis=0) / n
    deviation = np.where(high > low, np.sqrt(variance) * span, 1.0)
    return Scaling(tuple(low + mean * span), tuple(1 / deviation))


def in_blocks(x: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array in pieces: views."""
    step = max(1, _BLOCK // max(1, x[:1].nbytes))
    for i in range(0, len(x), step):
        yield x[i : i + step]


def emptied(blocks: deque[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks, each let go as it is passed on."""
    while blocks:
        yield blocks.popleft()
