"""Inverted dropout: y = x / (1 - p) where the unit is kept, else 0.

    dx = dy / (1 - p) where kept, else 0

Shapes: any; keep, a boolean array, has the shape of x. The mask is an argument: a kernel draws no random number. The
factor keeps the expected value, so nothing is rescaled when predicting.
Source: Srivastava, Hinton, Krizhevsky, Sutskever, Salakhutdinov, "Dropout", JMLR 15 (2014).
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, keep: Array, *, p: float, xp: Namespace) -> tuple[Array, Array]:
    return xp.where(keep, x * (1.0 / (1.0 - p)), 0.0), keep


def backward(dy: Array, cache: Array, *, p: float, xp: Namespace) -> Array:
    return xp.where(cache, dy * (1.0 / (1.0 - p)), 0.0)
