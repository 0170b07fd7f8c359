"""The one place where a loss is averaged over the batch: loss = sum_n s_n l_n with shares s_n = w_n / sum(w).

Shapes: rows l (N,), weights w (N,) or None for equal ones, shares s (N,). A total weight of zero gives shares of zero,
so loss and gradients are 0, without a branch and without a warning; a row of weight zero counts as absent, even if its
loss is NaN. N is never read: equal weights are counted by summing ones.
Source: the weighted mean of empirical risk; Goodfellow, Bengio, Courville, "Deep Learning" (2016), section 8.1.
"""

from __future__ import annotations

from ..typing import Array, Namespace, Scalar


def shares(rows: Array, w: Array | None, *, xp: Namespace) -> Array:
    weights = xp.ones_like(rows) if w is None else w
    total = xp.sum(weights)
    return weights / xp.where(total > 0.0, total, 1.0)


def average(rows: Array, s: Array, *, xp: Namespace) -> Array:
    return xp.sum(s * xp.where(s != 0.0, rows, 0.0))


def spread(dloss: Scalar, s: Array, slope: Array, *, xp: Namespace) -> Array:
    """dy (N, K) of the averaged loss, given the slope (N, K) of each row's own loss."""
    factor = (dloss * s)[:, None]
    return factor * xp.where(factor != 0.0, slope, 0.0)
