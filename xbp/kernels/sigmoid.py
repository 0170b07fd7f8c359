"""Logistic sigmoid: y = 1 / (1 + exp(-x)).

    dx = dy y (1 - y)

Shapes: any; y and dx have the shape of x. With e = exp(-|x|), y is 1/(1+e) on the right and e/(1+e) on the left: `exp`
gets no positive argument, nothing overflows, and both tails keep their relative accuracy.
Source: Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 3.10.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    e = xp.exp(-xp.abs(x))
    y = xp.where(x >= 0.0, 1.0, e) / (1.0 + e)
    return y, y


def backward(dy: Array, cache: Array, *, xp: Namespace) -> Array:
    return dy * cache * (1.0 - cache)
