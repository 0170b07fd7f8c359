"""Binary cross entropy of sigmoids, from scores: l_n = mean_k of max(y, 0) - y t + log(1 + exp(-|y|)).

    dy_nk = s_n (sigmoid(y_nk) - t_nk) / K,  s_n the row's share of the batch

Shapes: y (N, K), t (N, K) in [0, 1], w (N,) or None, loss (). This is -t log p - (1 - t) log(1 - p) with
p = sigmoid(y), written so that `exp` gets no positive argument and no logarithm meets a rounded 0.
Source: Bishop, "Pattern Recognition and Machine Learning" (2006), section 4.3.2.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace, Scalar
from . import sigmoid
from .weighting import average, shares, spread


class Cache(NamedTuple):
    y: Array  # (N, K)
    t: Array  # (N, K)
    s: Array  # (N,), shares


def forward(y: Array, t: Array, w: Array | None, *, xp: Namespace) -> tuple[Array, Cache]:
    rows = xp.mean(xp.maximum(y, 0.0) - y * t + xp.log1p(xp.exp(-xp.abs(y))), axis=1)
    s = shares(rows, w, xp=xp)
    return average(rows, s, xp=xp), Cache(y, t, s)


def backward(dloss: Scalar, cache: Cache, *, xp: Namespace) -> Array:
    y, t, s = cache
    p, _ = sigmoid.forward(y, xp=xp)
    return spread(dloss, s, (p - t) / y.shape[1], xp=xp)
