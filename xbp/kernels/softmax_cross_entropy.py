"""Cross entropy of a softmax, from scores: l_n = -sum_k q_nk log p_nk with p = softmax of row n of y.

    dy_n = s_n (p_n sum_k q_nk - q_n),  s_n the row's share of the batch

Shapes: y, p, q (N, C); t (N,) integers or (N, C) probabilities (one-hot or soft); w (N,) or None; loss ().
log p is y - max - log(sum exp(y - max)), never the logarithm of a rounded probability; a class with q = 0 adds nothing,
even at p = 0. A label outside 0 ... C-1 makes its row's loss NaN. With label smoothing a, q becomes (1 - a) q + a / C.
Source: Bishop, "Pattern Recognition and Machine Learning" (2006), sections 4.3.4 and 5.2; smoothing: Szegedy et al.,
"Rethinking the Inception architecture for computer vision", CVPR 2016.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..typing import Array, Namespace, Scalar, device_of
from .softmax import shifted
from .weighting import average, shares, spread


class Cache(NamedTuple):
    p: Array  # (N, C), the softmax
    t: Array  # (N,) or (N, C), the targets as given
    s: Array  # (N,), shares


def forward(y: Array, t: Array, w: Array | None, *, label_smoothing: float, xp: Namespace) -> tuple[Array, Cache]:
    z, e, total = shifted(y, xp=xp)
    log_p = z - xp.log(total)
    q = probabilities(t, log_p, label_smoothing=label_smoothing, xp=xp)
    rows = -xp.sum(q * xp.where(q != 0.0, log_p, 0.0), axis=1)
    if t.ndim == 1:
        rows = xp.where((t >= 0) & (t < y.shape[1]), rows, math.nan)
    s = shares(rows, w, xp=xp)
    return average(rows, s, xp=xp), Cache(e / total, t, s)


def backward(dloss: Scalar, cache: Cache, *, label_smoothing: float, xp: Namespace) -> Array:
    p, t, s = cache
    q = probabilities(t, p, label_smoothing=label_smoothing, xp=xp)
    return spread(dloss, s, p * xp.sum(q, axis=1, keepdims=True) - q, xp=xp)


def probabilities(t: Array, like: Array, *, label_smoothing: float, xp: Namespace) -> Array:
    """The targets as probabilities q (N, C) in the dtype of `like`: one-hot for labels, smoothed if asked."""
    classes = like.shape[1]
    if t.ndim == 1:
        t = t[:, None] == xp.arange(classes, dtype=t.dtype, device=device_of(like))
    q = xp.astype(t, like.dtype)
    return q * (1.0 - label_smoothing) + label_smoothing / classes if label_smoothing else q
