"""Layer normalisation: y = g (x - m) / sqrt(v + eps) + b, with mean m and variance v of each row.

    with h = (x - m) r,  r = 1 / sqrt(v + eps):
    dg = sum over rows of dy h     db = sum over rows of dy
    dx = r (d - mean(d) - h mean(d h)),  d = dy g, means along the row

Shapes: x, y, dy (N, D), g and b (D,). v is the population variance (divided by D). Two numbers a row are kept, and h is
recomputed. eps keeps a constant row finite: its h is 0.
Source: Ba, Kiros, Hinton, "Layer normalization", arXiv:1607.06450 (2016).
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace


class Cache(NamedTuple):
    x: Array  # (N, D)
    g: Array  # (D,)
    m: Array  # (N, 1)
    r: Array  # (N, 1)


def forward(x: Array, g: Array, b: Array, *, eps: float, xp: Namespace) -> tuple[Array, Cache]:
    m = xp.mean(x, axis=1, keepdims=True)
    centred = x - m
    r = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=1, keepdims=True) + eps)
    return centred * r * g + b, Cache(x, g, m, r)


def backward(dy: Array, cache: Cache, *, eps: float, xp: Namespace) -> tuple[Array, Array, Array]:
    x, g, m, r = cache
    h = (x - m) * r
    d = dy * g
    dx = r * (d - xp.mean(d, axis=1, keepdims=True) - h * xp.mean(d * h, axis=1, keepdims=True))
    return dx, xp.sum(dy * h, axis=0), xp.sum(dy, axis=0)
