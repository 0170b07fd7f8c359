"""Evaluation: the loss and the metrics of a model over rows, added up on the device and divided on the host."""

from __future__ import annotations

import math

import numpy as np

from . import scaling
from .backend import Backend
from .data import Rows
from .engine import Engine
from .metrics import Metric
from .scalars import Scalars
from .typing import Array

__all__ = ["evaluated", "gradient_norm", "loss_now"]

EVALUATION_ROWS = 4096


def evaluated(engine: Engine, rows: Rows, metrics: tuple[Metric, ...], backend: Backend) -> dict[str, float]:
    """{"loss": ..., "accuracy": ..., ...} as floats; waits for the device once."""
    parts = [engine.sums(x, t, w) for x, t, w in rows.chunks(EVALUATION_ROWS)]
    sums = backend.to_host(backend.xp.stack(parts)).astype(np.float64)  # (chunks, 2 + S)
    loss, weight = sums[:, :2].sum(axis=0)
    results = {"loss": float(loss / weight) if weight else 0.0}
    at, targets = 2, rows.t.shape[1] if rows.t.ndim > 1 else 1
    for metric in metrics:
        size = metric.size(targets)
        results[metric.name] = metric.value(sums[:, at : at + size])
        at += size
    return results


def gradient_norm(engine: Engine, rows: Rows, scalars: Scalars, step: int, backend: Backend) -> float:
    """The norm of the gradient of the mean loss over the rows; waits for the device."""
    weights = rows.batch_weights(np.arange(rows.n), EVALUATION_ROWS)
    chunks = zip(rows.chunks(EVALUATION_ROWS), weights / weights.sum(), strict=True)
    return float(backend.to_host(engine.gradient_norm(chunks, scalars.single(step))))


def loss_now(engine: Engine, rows: Rows, count: int, backend: Backend) -> Array:
    """The loss (1,) of a few rows with the newest weights, which the last step may have ruined after its loss.

    NaN where the loss scale has fallen as far as it can: then no step is taken any more, because the gradients are not
    finite at any scale, and a loss that stays where it is would hide it.
    """
    loss = engine.sums(*next(rows.chunks(min(count, EVALUATION_ROWS))))[:1]
    scale = engine.read()["state"].get(scaling.FACTOR)
    return loss if scale is None else backend.xp.where(scale > scaling.LEAST, loss, math.nan)
