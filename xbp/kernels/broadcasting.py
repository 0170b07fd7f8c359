"""Undoing a broadcast: the gradient of an operand that was repeated is the sum over its copies.

Shapes: g has the broadcast shape; the result has the shape asked for.
Source: the chain rule for a variable used several times; Goodfellow, Bengio, Courville, "Deep Learning" (2016), 6.5.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def unbroadcast(g: Array, shape: tuple[int, ...], *, xp: Namespace) -> Array:
    added = len(g.shape) - len(shape)
    axes = tuple(range(added)) + tuple(
        added + i for i, length in enumerate(shape) if length == 1 and g.shape[added + i] != 1
    )
    return xp.reshape(xp.sum(g, axis=axes, keepdims=True), shape) if axes else g
