"""Sigmoid linear unit (swish): y = x s with s = 1 / (1 + exp(-x)).

    dx = dy (s + y (1 - s))

Shapes: any; y and dx have the shape of x. The limit at minus infinity is 0, but -inf itself gives NaN (-inf times 0).
Source: Elfwing, Uchibe, Doya, "Sigmoid-weighted linear units for neural network function approximation in reinforcement
learning", Neural Networks 107 (2018).
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace
from . import sigmoid


class Cache(NamedTuple):
    s: Array  # the sigmoid of x
    y: Array  # the output, which the next layer keeps anyway


def forward(x: Array, *, xp: Namespace) -> tuple[Array, Cache]:
    s, _ = sigmoid.forward(x, xp=xp)
    y = x * s
    return y, Cache(s, y)


def backward(dy: Array, cache: Cache, *, xp: Namespace) -> Array:
    return dy * (cache.s + cache.y * (1.0 - cache.s))
