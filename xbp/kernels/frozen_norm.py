"""Batch normalisation with given statistics, as it predicts: y = g (x - m) / sqrt(v + eps) + b.

    with r = 1 / sqrt(v + eps):    dx = dy g r     dg = sum over rows of dy (x - m) r     db = sum over rows of dy

Shapes: x, y, dy (N, D), g, b, m, v (D,). m and v are running statistics, constants with no gradient.
Source: Ioffe, Szegedy, "Batch normalization", ICML 2015, algorithm 2.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace


class Cache(NamedTuple):
    x: Array  # (N, D)
    g: Array  # (D,)
    m: Array  # (D,)
    v: Array  # (D,)


def forward(x: Array, g: Array, b: Array, m: Array, v: Array, *, eps: float, xp: Namespace) -> tuple[Array, Cache]:
    return (x - m) * (g / xp.sqrt(v + eps)) + b, Cache(x, g, m, v)


def backward(dy: Array, cache: Cache, *, eps: float, xp: Namespace) -> tuple[Array, Array, Array]:
    x, g, m, v = cache
    r = 1.0 / xp.sqrt(v + eps)
    return dy * (g * r), xp.sum(dy * ((x - m) * r), axis=0), xp.sum(dy, axis=0)
