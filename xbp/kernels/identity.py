"""Identity: y = x, so that a network may end in a linear output by name.

    dx = dy

Shapes: any; y and dx have the shape of x.
Source: Bishop, "Pattern Recognition and Machine Learning" (2006), section 5.1, the output units of a regression.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, *, xp: Namespace) -> tuple[Array, tuple[()]]:
    return x, ()


def backward(dy: Array, cache: tuple[()], *, xp: Namespace) -> Array:
    return dy
