"""Negative log-likelihood of Poisson counts, from log-rates: l_n = mean_k exp(y_nk) - t_nk y_nk.

    dy_nk = s_n (exp(y_nk) - t_nk) / K,  s_n the row's share of the batch

Shapes: y, t (N, K), t >= 0, w (N,) or None, loss (). The term log t! is left out, it does not depend on y. A rate is
the one exponential of xbp whose argument may be positive: it is held at exp(80) in float32 and exp(700) in float64, far
enough below the dtype's end for a row to sum thousands of them, so that an absurd log-rate gives a huge loss and a
slope that leads back, not infinity.
Source: McCullagh, Nelder, "Generalized Linear Models" (1989), chapter 6.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace, Scalar
from .weighting import average, shares, spread


class Cache(NamedTuple):
    residual: Array  # (N, K), exp(y) - t
    s: Array  # (N,), shares


def forward(y: Array, t: Array, w: Array | None, *, xp: Namespace) -> tuple[Array, Cache]:
    rate = bounded_exp(y, xp=xp)
    rows = xp.mean(rate - t * y, axis=1)
    s = shares(rows, w, xp=xp)
    return average(rows, s, xp=xp), Cache(rate - t, s)


def backward(dloss: Scalar, cache: Cache, *, xp: Namespace) -> Array:
    return spread(dloss, cache.s, cache.residual / cache.residual.shape[1], xp=xp)


def bounded_exp(x: Array, *, xp: Namespace) -> Array:
    return xp.exp(xp.minimum(x, 700.0 if x.dtype == xp.float64 else 80.0))
