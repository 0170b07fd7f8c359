"""Exponential linear unit: y = x where x > 0, else a (exp(x) - 1), with a > 0.

    dx = dy where y > 0, else dy (y + a)

Shapes: any; y and dx have the shape of x. The slope at 0 is a, from the left as in PyTorch.
Source: Clevert, Unterthiner, Hochreiter, "Fast and accurate deep network learning by exponential linear units",
ICLR 2016.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, *, alpha: float, xp: Namespace) -> tuple[Array, Array]:
    y = xp.where(x > 0.0, x, alpha * xp.expm1(xp.minimum(x, 0.0)))
    return y, y


def backward(dy: Array, cache: Array, *, alpha: float, xp: Namespace) -> Array:
    return xp.where(cache > 0.0, dy, dy * (cache + alpha))
