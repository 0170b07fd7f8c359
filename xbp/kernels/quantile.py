"""Quantile (pinball) loss: l_n = mean_k max(q_k d_nk, (q_k - 1) d_nk) with d = t - y.

    dy_nk = s_n (1 - q_k) / K where y > t,    -s_n q_k / K where y < t,  s_n the row's share of the batch

Shapes: y, t (N, K), q one number or K of them in (0, 1), w (N,) or None, loss (). The slope at y = t is 0. Its
minimiser is the q-quantile of t given x; q = 1/2 is half the absolute error.
Source: Koenker, Bassett, "Regression quantiles", Econometrica 46 (1978).
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace, Scalar, device_of
from .weighting import average, shares, spread


class Cache(NamedTuple):
    d: Array  # (N, K), t - y
    s: Array  # (N,), shares


def forward(y: Array, t: Array, w: Array | None, *, q: tuple[float, ...], xp: Namespace) -> tuple[Array, Cache]:
    d = t - y
    level = levels(q, d, xp=xp)
    rows = xp.mean(xp.maximum(level * d, (level - 1.0) * d), axis=1)
    s = shares(rows, w, xp=xp)
    return average(rows, s, xp=xp), Cache(d, s)


def backward(dloss: Scalar, cache: Cache, *, q: tuple[float, ...], xp: Namespace) -> Array:
    d, s = cache
    level = levels(q, d, xp=xp)
    below, above = xp.astype(d > 0.0, d.dtype), xp.astype(d < 0.0, d.dtype)  # of y, seen from t
    return spread(dloss, s, (above * (1.0 - level) - below * level) / d.shape[1], xp=xp)


def levels(q: tuple[float, ...], like: Array, *, xp: Namespace) -> Array:
    """q as an array (K,) or (1,), filled on the device: nothing is copied from the host inside a step."""
    return xp.concat([xp.full((1,), value, dtype=like.dtype, device=device_of(like)) for value in q])
