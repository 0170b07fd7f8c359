"""Mean squared error: l_n = mean_k (y_nk - t_nk)^2, without the factor one half.

    dy_nk = s_n 2 (y_nk - t_nk) / K,  s_n the row's share of the batch

Shapes: y, t (N, K), w (N,) or None, loss ().
Source: Bishop, "Pattern Recognition and Machine Learning" (2006), section 5.2.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace, Scalar
from .weighting import average, shares, spread


class Cache(NamedTuple):
    d: Array  # (N, K), y - t
    s: Array  # (N,), shares


def forward(y: Array, t: Array, w: Array | None, *, xp: Namespace) -> tuple[Array, Cache]:
    d = y - t
    rows = xp.mean(d * d, axis=1)
    s = shares(rows, w, xp=xp)
    return average(rows, s, xp=xp), Cache(d, s)


def backward(dloss: Scalar, cache: Cache, *, xp: Namespace) -> Array:
    return spread(dloss, cache.s, cache.d * (2.0 / cache.d.shape[1]), xp=xp)
