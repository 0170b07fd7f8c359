"""Negative log-likelihood of a normal with mean m and log-variance v: l_n = mean_k (v + (t - m)^2 exp(-v)) / 2.

    dm_nk = s_n (m - t) exp(-v) / K      dv_nk = s_n (1 - (t - m)^2 exp(-v)) / 2K,  s_n the row's share of the batch

Shapes: y (N, 2K), its first K columns m, the others v; t (N, K), w (N,) or None, loss (). The constant log(2 pi) / 2 is
left out. The precision exp(-v) is held below the dtype's end as in `poisson_nll`.
Source: Nix, Weigend, "Estimating the mean and variance of the target probability distribution", ICNN 1994.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace, Scalar
from .poisson_nll import bounded_exp
from .weighting import average, shares, spread


class Cache(NamedTuple):
    d: Array  # (N, K), m - t
    precision: Array  # (N, K), exp(-v)
    s: Array  # (N,), shares


def forward(y: Array, t: Array, w: Array | None, *, xp: Namespace) -> tuple[Array, Cache]:
    K = y.shape[1] // 2
    m, v = y[:, :K], y[:, K:]
    d, precision = m - t, bounded_exp(-v, xp=xp)
    rows = 0.5 * xp.mean(v + d * d * precision, axis=1)
    s = shares(rows, w, xp=xp)
    return average(rows, s, xp=xp), Cache(d, precision, s)


def backward(dloss: Scalar, cache: Cache, *, xp: Namespace) -> Array:
    d, precision, s = cache
    K = d.shape[1]
    dm = d * precision / K
    dv = (1.0 - d * d * precision) / (2.0 * K)
    return spread(dloss, s, xp.concat([dm, dv], axis=1), xp=xp)
