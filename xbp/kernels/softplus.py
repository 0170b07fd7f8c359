"""Softplus: y = log(1 + exp(b x)) / b, a smooth ReLU with sharpness b > 0.

    dx = dy sigmoid(b x) = dy (1 - exp(-b y))

Shapes: any; y and dx have the shape of x. Computed as max(x, 0) + log1p(exp(-b |x|)) / b, which neither overflows on
the right nor loses the left tail; the second form of the slope needs the output alone.
Source: Dugas, Bengio, Bélisle, Nadeau, Garcia, "Incorporating second-order functional knowledge for better option
pricing", NIPS 2000.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, *, beta: float, xp: Namespace) -> tuple[Array, Array]:
    y = xp.maximum(x, 0.0) + xp.log1p(xp.exp(-beta * xp.abs(x))) / beta
    return y, y


def backward(dy: Array, cache: Array, *, beta: float, xp: Namespace) -> Array:
    return dy * -xp.expm1(-beta * cache)
