"""Rectified linear unit: y = max(x, 0).

    dx = dy where y > 0, else 0

Shapes: any; y and dx have the shape of x. The slope at 0 is 0. NaN passes through, as it must to be noticed.
Source: Nair, Hinton, "Rectified linear units improve restricted Boltzmann machines", ICML 2010.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    """(y, cache): the output is kept, because the next layer keeps that array anyway."""
    y = xp.maximum(x, 0.0)
    return y, y


def backward(dy: Array, cache: Array, *, xp: Namespace) -> Array:
    return xp.where(cache > 0.0, dy, 0.0)
