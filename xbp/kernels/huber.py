"""Huber loss with threshold e ("delta"): l_n = mean_k h(d_nk), d = y - t, where

    h(d) = d^2 / 2 for |d| <= e, else e (|d| - e / 2)
    dy_nk = s_n max(-e, min(d_nk, e)) / K,  s_n the row's share of the batch

Shapes: y, t (N, K), w (N,) or None, loss (). Written as c^2 / 2 + e (|d| - c) with c = min(|d|, e), so that a large
error is never squared.
Source: Huber, "Robust estimation of a location parameter", Annals of Mathematical Statistics 35 (1964).
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace, Scalar
from .weighting import average, shares, spread


class Cache(NamedTuple):
    d: Array  # (N, K), y - t
    s: Array  # (N,), shares


def forward(y: Array, t: Array, w: Array | None, *, delta: float, xp: Namespace) -> tuple[Array, Cache]:
    d = y - t
    a = xp.abs(d)
    c = xp.minimum(a, delta)
    rows = xp.mean(0.5 * (c * c) + delta * (a - c), axis=1)
    s = shares(rows, w, xp=xp)
    return average(rows, s, xp=xp), Cache(d, s)


def backward(dloss: Scalar, cache: Cache, *, delta: float, xp: Namespace) -> Array:
    slope = xp.maximum(xp.minimum(cache.d, delta), -delta)
    return spread(dloss, cache.s, slope / cache.d.shape[1], xp=xp)
