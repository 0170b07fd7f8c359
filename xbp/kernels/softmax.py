"""Softmax of each row: y_k = exp(x_k) / sum_j exp(x_j), and its logarithm.

    dx = y (dy - sum_k dy_k y_k)

Shapes: x, y, dy, dx (..., C). The row maximum is subtracted first, so `exp` gets no positive argument. As the last
layer before a cross entropy it is a mistake: `SoftmaxCrossEntropy` takes scores and contains the softmax.
Source: Bridle, "Probabilistic interpretation of feedforward classification network outputs" (1990); Goodfellow, Bengio,
Courville, "Deep Learning" (2016), section 4.1.
"""

from __future__ import annotations

from ..typing import Array, Namespace


def forward(x: Array, *, xp: Namespace) -> tuple[Array, Array]:
    _, e, total = shifted(x, xp=xp)
    y = e / total
    return y, y


def backward(dy: Array, cache: Array, *, xp: Namespace) -> Array:
    return cache * (dy - xp.sum(dy * cache, axis=-1, keepdims=True))


def log_softmax(x: Array, *, xp: Namespace) -> Array:
    """x - log(sum exp x) of each row, right where the softmax itself underflows."""
    z, _, total = shifted(x, xp=xp)
    return z - xp.log(total)


def shifted(x: Array, *, xp: Namespace) -> tuple[Array, Array, Array]:
    """z = x - max x, exp z, and its sum (..., 1): whoever needs the softmax and its logarithm takes one exponential."""
    z = x - xp.max(x, axis=-1, keepdims=True)
    e = xp.exp(z)
    return z, e, xp.sum(e, axis=-1, keepdims=True)
