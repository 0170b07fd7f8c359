"""Accuracy and R2 as scikit-learn defines them, computed where the predictions are; a few numbers come to the host."""

from __future__ import annotations

import math

import numpy as np

from ..backend import Backend
from ..typing import Array

__all__ = ["accuracy", "r2"]


def accuracy(right: Array, w: Array | None, backend: Backend) -> float:
    """The weighted share of `right` (N,) or (N, K); a row of several answers is right where all of them are."""
    xp = backend.xp
    rows = xp.all(right, axis=1) if right.ndim == 2 else right
    dtype = backend.dtype("float32") if w is None else w.dtype
    hits = xp.astype(rows, dtype)
    if w is None:
        return float(backend.to_host(xp.sum(hits))) / right.shape[0]
    return float(np.divide(*backend.to_host(xp.stack([xp.sum(hits * w), xp.sum(w)]))))


def r2(y: Array, t: Array, w: Array | None, backend: Backend) -> float:
    """The mean over outputs of 1 - residual / spread; 1 or 0 where an output does not vary; NaN for predictions that
    are no numbers.
    """
    xp = backend.xp
    weights = xp.ones_like(t[:, :1]) if w is None else w[:, None]
    mean = xp.sum(weights * t, axis=0) / xp.sum(weights)
    residual, spread = xp.sum(weights * (t - y) ** 2, axis=0), xp.sum(weights * (t - mean) ** 2, axis=0)
    off, varies = backend.to_host(xp.stack([residual, spread])).astype(np.float64)
    if not np.isfinite(off).all():
        return math.nan
    values = np.where(off == 0.0, 1.0, 0.0)
    return float(np.mean(np.where(varies > 0.0, 1.0 - off / np.where(varies > 0.0, varies, 1.0), values)))
