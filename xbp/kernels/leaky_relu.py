"""Leaky rectified linear unit: y = x where x > 0, else s x, with a slope s >= 0.

    dx = dy where y > 0, else s dy

Shapes: any; y and dx have the shape of x. The slope at 0 is s. The output tells the side, because s >= 0
keeps the sign.
Source: Maas, Hannun, Ng, "Rectifier nonlinearities improve neural network acoustic models", ICML 2013.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, *, negative_slope: float, xp: Namespace) -> tuple[Array, Array]:
    y = xp.where(x > 0.0, x, negative_slope * x)
    return y, y


def backward(dy: Array, cache: Array, *, negative_slope: float, xp: Namespace) -> Array:
    return xp.where(cache > 0.0, dy, negative_slope * dy)
