"""Random numbers that are the same on every backend: one seed, one start, the same batches, the same dropout masks.

The standard has no random generator, and libraries' own ones differ. So what is drawn once (weights, the order of the
rows) comes from NumPy on the host, from a generator named by what it is for; what is drawn in every step (masks) comes
from a counter: a hash of key, row and column in int32, the one integer type that all libraries compute with alike.
Nothing is remembered between draws, so a resumed training needs no generator state.
"""

from __future__ import annotations

import numpy as np

from .typing import Array, Namespace, Scalar, device_of

__all__ = ["bits", "epoch_order", "keep_mask", "mix", "step_keys", "weight_generator"]

WEIGHTS, ORDER, MASKS = 0, 1, 2  # the second word of every seed: what the numbers are for
GOLDEN = 0x9E3779B9 - 2**32  # 2^32 / golden ratio, as an int32; odd, so multiples of it visit every int32
MURMUR = 0xC2B2AE35 - 2**32  # odd too, and no near multiple of the other: columns must not walk as rows do


def weight_generator(seed: int, k: int) -> np.random.Generator:
    """The generator for the initial values of a network's k-th parameter."""
    return np.random.default_rng([seed, WEIGHTS, k])


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order (n,) of the rows in an epoch, int32 where n allows it."""
    order = np.random.default_rng([seed, ORDER, epoch]).permutation(n)
    return order.astype(np.int32 if n < 2**31 else np.int64)


def step_keys(seed: int, layer: int, steps: np.ndarray) -> np.ndarray:
    """An int32 key for each optimiser step (K,) of one dropout layer, folded on the host."""
    base = np.random.SeedSequence([seed, MASKS, layer]).generate_state(1).astype(np.int32)
    keys: np.ndarray = mix(base + steps.astype(np.int32) * np.int32(GOLDEN))  # type: ignore[assignment, arg-type]
    return keys


def mix(h: Array) -> Array:
    """A bijective hash of int32 in which every bit of the input moves about half of the output's bits.

    A logical shift is an arithmetic shift and a mask; products wrap. The constants are those of Wellons, "Prospecting
    for hash functions" (2018), "lowbias32".
    """
    h = (h ^ ((h >> 16) & 0xFFFF)) * 0x7FEB352D
    h = (h ^ ((h >> 15) & 0x1FFFF)) * (0x846CA68B - 2**32)
    return h ^ ((h >> 16) & 0xFFFF)


def bits(x: Array, key: Array, first_row: Scalar, *, xp: Namespace) -> Array:
    """Random int32 (N, D), uniform over all 2^32 values, for x (N, D).

    key          int32 (), from `step_keys`
    first_row    the number of x's first row in its batch, so that a batch cut in pieces draws the bits of the whole
    """
    n, d = x.shape
    rows = mix(key + (xp.arange(n, dtype=xp.int32, device=device_of(x)) + first_row) * GOLDEN)
    columns = mix((xp.arange(d, dtype=xp.int32, device=device_of(x)) + 1) * MURMUR)
    return mix(rows[:, None] ^ columns[None, :])


def keep_mask(x: Array, key: Array, first_row: Scalar, p: float, *, xp: Namespace) -> Array:
    """True (N, D) with probability 1 - p. The comparison is of integers, so every float dtype draws the same mask."""
    threshold = min(round(p * 2**32), 2**32 - 1) - 2**31  # the largest int32, for p within rounding of 1
    return bits(x, key, first_row, xp=xp) >= threshold
