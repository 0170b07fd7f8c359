"""Batch normalisation in training: y = g (x - m) / sqrt(v + eps) + b, with mean m and variance v of each column.

    with h = (x - m) r,  r = 1 / sqrt(v + eps):
    dg = sum over rows of dy h     db = sum over rows of dy
    dx = g r (dy - mean(dy) - h mean(dy h)),  means down the column

Shapes: x, y, dy (N, D), g, b, m, v (D,). v is the population variance here; the running variance takes the unbiased
one, v N / (N - 1), as PyTorch does. `frozen_norm` is the same map with statistics that are given.
Source: Ioffe, Szegedy, "Batch normalization", ICML 2015.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace


class Cache(NamedTuple):
    x: Array  # (N, D)
    g: Array  # (D,)
    m: Array  # (D,)
    v: Array  # (D,), population variance


def forward(x: Array, g: Array, b: Array, *, eps: float, xp: Namespace) -> tuple[Array, Cache]:
    m = xp.mean(x, axis=0)
    centred = x - m
    v = xp.mean(centred * centred, axis=0)
    return centred * (g / xp.sqrt(v + eps)) + b, Cache(x, g, m, v)


def backward(dy: Array, cache: Cache, *, eps: float, xp: Namespace) -> tuple[Array, Array, Array]:
    x, g, m, v = cache
    r = 1.0 / xp.sqrt(v + eps)
    h = (x - m) * r
    dx = g * r * (dy - xp.mean(dy, axis=0) - h * xp.mean(dy * h, axis=0))
    return dx, xp.sum(dy * h, axis=0), xp.sum(dy, axis=0)


def running(old: Array, new: Array, *, momentum: float) -> Array:
    """The running statistic after a batch: (1 - momentum) old + momentum new."""
    return old * (1.0 - momentum) + new * momentum


def unbiased(v: Array, x: Array, *, xp: Namespace) -> Array:
    """v N / (N - 1); N is counted as an array, so that no batch size is fixed in a recorded step."""
    n = xp.sum(xp.ones_like(x[:, :1]))
    return v * (n / (n - 1.0))
