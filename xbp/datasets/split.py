"""Which rows are held out for the test.

The choice depends on the seed alone, so the same command meets the same rows. Of every class the same share is held
out, since a class that the test or the training never sees makes the accuracy mean something else.
"""

from __future__ import annotations

import math

import numpy as np

from ..errors import DataError

__all__ = ["check_split", "held_out"]

_STREAM = 3  # the second word of the seed; 0 to 2 are weights, batches and masks


def check_split(test_fraction: float, seed: object) -> None:
    """Refuse a fraction or a seed that means nothing, before anything is read."""
    if isinstance(test_fraction, bool) or not 0.0 <= test_fraction < 1.0:
        raise DataError(
            f"test_fraction={test_fraction!r} is not a share of the rows: take 0 (no test) up to, but not including, 1."
        )
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise DataError(f"seed={seed!r} is not a whole number from 0 up.")


def held_out(t: np.ndarray, classes: tuple[str, ...], test_fraction: float, seed: int, where: str) -> np.ndarray:
    """A mask (N,), True for the rows of the test: `test_fraction` of each class, rounded, at least one and not all."""
    mask = np.zeros(len(t), bool)
    if test_fraction == 0.0:
        return mask
    rng = np.random.default_rng([seed, _STREAM])
    if not classes:
        if len(t) < 2:
            raise DataError(f"{where} has {len(t)} row, too few to hold one out. Give test_fraction=0 or more rows.")
        mask[rng.permutation(len(t))[: _share(len(t), test_fraction)]] = True
        return mask
    for k, name in enumerate(classes):
        rows = np.flatnonzero(t == k)
        if len(rows) < 2:
            raise DataError(
                f"{where}: class {name!r} has a single row, which cannot stand in training and in test. Remove the "
                "class, add rows to it, or give test_fraction=0."
            )
        mask[rng.permutation(rows)[: _share(len(rows), test_fraction)]] = True
    return mask


def _share(n: int, fraction: float) -> int:
    return min(max(1, math.floor(n * fraction + 0.5)), n - 1)
