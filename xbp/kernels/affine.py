"""Affine map of a batch: y = x W + b.

    dx = dy W^T      dW = x^T dy      db = sum of dy over the rows

Shapes: x (N, D), W (D, M), b (M,) or None, y (N, M).
The matrix products are the broadcasting sums dx = sum_m dy[:, None, m] W[None, :, m] and
dW = sum_n x[n, :, None] dy[n, None, :], without their (N, D, M) intermediate.
Source: Rumelhart, Hinton, Williams, "Learning representations by back-propagating errors", Nature 323 (1986).
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace


class Cache(NamedTuple):
    x: Array  # (N, D)
    W: Array  # (D, M), the parameter itself, not a copy


def forward(x: Array, W: Array, b: Array | None, *, xp: Namespace) -> tuple[Array, Cache]:
    y = xp.matmul(x, W)
    return (y if b is None else y + b), Cache(x, W)


def backward(dy: Array, cache: Cache, *, xp: Namespace, need_dx: bool = True) -> tuple[Array | None, Array, Array]:
    """(dx, dW, db). The first layer of a network has no use for dx, a third of its work: then need_dx is False."""
    dx = xp.matmul(dy, xp.matrix_transpose(cache.W)) if need_dx else None
    dW = xp.matmul(xp.matrix_transpose(cache.x), dy)
    db = xp.sum(dy, axis=0)
    return dx, dW, db
