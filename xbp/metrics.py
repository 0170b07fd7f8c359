"""Metrics, added up on the device and read once.

A metric turns scores, targets and weights of a chunk into a few sums; the sums of all chunks give the value. So a
metric is right for any chunking, weights rows as the loss does, and costs one small transfer an evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import numpy as np

from .errors import ShapeError, unknown_name
from .kernels.softmax_cross_entropy import probabilities
from .losses import Loss, SigmoidCrossEntropy
from .typing import Array, Namespace

__all__ = [
    "METRICS",
    "R2",
    "Accuracy",
    "BinaryAccuracy",
    "MeanAbsoluteErrorMetric",
    "MeanSquaredErrorMetric",
    "Metric",
    "RootMeanSquaredError",
    "TopKAccuracy",
    "resolve_metrics",
]


@dataclass(frozen=True)
class Metric:
    """Base of the metrics. `higher_is_better` tells early stopping which way to look."""

    name: ClassVar[str]
    higher_is_better: ClassVar[bool] = False

    def size(self, targets: int) -> int:
        """S, how many sums there are, for that many columns of targets (1 for labels)."""
        return 2

    def sums(self, y: Array, t: Array, w: Array, *, xp: Namespace) -> Array:
        """(S,) sums over the rows of scores y (N, K), prepared targets t, weights w (N,)."""
        raise NotImplementedError(f"{type(self).__name__} has no sums.")

    def value(self, sums: np.ndarray) -> float:
        """The metric, from the sums (chunks, S) in float64; NaN where the total weight is 0."""
        total, weight = sums.sum(axis=0)
        return float(total / weight) if weight else math.nan


def _weighted(rows: Array, w: Array, xp: Namespace) -> Array:
    return xp.stack([xp.sum(rows * w), xp.sum(w)])


def _means(y: Array, t: Array) -> Array:
    """The columns of y that estimate t: all, or the means where log-variances follow them."""
    if t.ndim == 1:
        raise ShapeError("mae, mse, rmse and r2 compare numbers, but the targets are class labels. Choose accuracy.")
    return y[:, : t.shape[1]]


class Accuracy(Metric):
    """Share of rows whose highest score is at the right class. Targets: labels (N,) or probabilities (N, C)."""

    name = "accuracy"
    higher_is_better = True

    def sums(self, y: Array, t: Array, w: Array, *, xp: Namespace) -> Array:
        truth = t if t.ndim == 1 else xp.argmax(t, axis=1)
        right = xp.astype(xp.argmax(y, axis=1), truth.dtype) == truth
        return _weighted(xp.astype(right, y.dtype), w, xp)


class BinaryAccuracy(Metric):
    """Share of right answers: score above 0 where the target is above 1/2; the mean over K answers a row."""

    name = "accuracy"
    higher_is_better = True

    def sums(self, y: Array, t: Array, w: Array, *, xp: Namespace) -> Array:
        right = (y > 0.0) == (t > 0.5)
        return _weighted(xp.mean(xp.astype(right, y.dtype), axis=1), w, xp)


@dataclass(frozen=True)
class TopKAccuracy(Metric):
    """Share of rows whose right class is among the k highest scores; equal scores count for the row."""

    name = "top_k_accuracy"
    higher_is_better = True
    k: int = 5

    def __post_init__(self) -> None:
        if not isinstance(self.k, Integral) or self.k < 1:
            raise ValueError(f"TopKAccuracy: k must be a whole number of at least 1; it is {self.k!r}.")

    def sums(self, y: Array, t: Array, w: Array, *, xp: Namespace) -> Array:
        q = probabilities(t if t.ndim == 1 else xp.argmax(t, axis=1), y, label_smoothing=0.0, xp=xp)
        own = xp.sum(xp.where(q > 0.0, y, 0.0), axis=1, keepdims=True)
        above = xp.sum(xp.astype(y > own, y.dtype), axis=1)
        return _weighted(xp.astype(above < self.k, y.dtype), w, xp)


class MeanAbsoluteErrorMetric(Metric):
    """Mean of |y - t|."""

    name = "mae"

    def sums(self, y: Array, t: Array, w: Array, *, xp: Namespace) -> Array:
        return _weighted(xp.mean(xp.abs(_means(y, t) - t), axis=1), w, xp)


class MeanSquaredErrorMetric(Metric):
    """Mean of (y - t)^2."""

    name = "mse"

    def sums(self, y: Array, t: Array, w: Array, *, xp: Namespace) -> Array:
        d = _means(y, t) - t
        return _weighted(xp.mean(d * d, axis=1), w, xp)


class RootMeanSquaredError(MeanSquaredErrorMetric):
    """Root of the mean of (y - t)^2, in the units of t."""

    name = "rmse"

    def value(self, sums: np.ndarray) -> float:
        return math.sqrt(super().value(sums))


class R2(Metric):
    """1 - sum (y - t)^2 / sum (t - mean t)^2 of each output, and the mean over them; NaN where one does not vary.

    A chunk sends its mean and the spread around it: the difference of two large sums would lose small spreads.
    Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", The American Statistician 37 (1983).
    """

    name = "r2"
    higher_is_better = True

    def size(self, targets: int) -> int:
        return 1 + 3 * targets

    def sums(self, y: Array, t: Array, w: Array, *, xp: Namespace) -> Array:
        d, weights, total = _means(y, t) - t, w[:, None], xp.sum(w)
        mean = xp.sum(t * weights, axis=0) / xp.where(total > 0.0, total, 1.0)
        off = t - mean
        error, spread = xp.sum(d * d * weights, axis=0), xp.sum(off * off * weights, axis=0)
        return xp.concat([xp.reshape(total, (1,)), error, mean, spread])

    def value(self, sums: np.ndarray) -> float:
        weights = sums[:, 0]
        error, means, spreads = np.split(sums[:, 1:], 3, axis=1)
        if not weights.any():
            return math.nan
        between = weights @ (means - np.average(means, axis=0, weights=weights)) ** 2
        spread = spreads.sum(axis=0) + between
        return float(np.mean(1.0 - error.sum(axis=0) / spread)) if np.all(spread > 0) else math.nan


METRICS: dict[str, Metric] = {
    "accuracy": Accuracy(),
    "top_k_accuracy": TopKAccuracy(),
    "mae": MeanAbsoluteErrorMetric(),
    "mse": MeanSquaredErrorMetric(),
    "rmse": RootMeanSquaredError(),
    "r2": R2(),
}


def resolve_metrics(metrics: Iterable[str | Metric], loss: Loss) -> tuple[Metric, ...]:
    """Metrics by name or as they are, after the loss's own; "accuracy" means what it means for the loss."""
    if isinstance(metrics, str | Metric):
        metrics = (metrics,)
    found: dict[str, Metric] = {}
    for metric in (*loss.metrics, *metrics):
        if isinstance(metric, str):
            if metric not in METRICS:
                raise unknown_name("metric", metric, METRICS)
            binary = metric == "accuracy" and isinstance(loss, SigmoidCrossEntropy)
            metric = BinaryAccuracy() if binary else METRICS[metric]
        found[metric.name] = metric
    return tuple(found.values())
