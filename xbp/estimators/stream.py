"""The quick way through `partial_fit`: a batch that looks like the last one takes a cheap check and one step.

Scikit-learn's checks cost more than a step of a small network. So the first call goes through all of them, and later
ones skip them where nothing that they look at can have changed: plain arrays of the same width and dtypes, finite, with
known labels, and the same settings. Anything else goes the long way, and gets scikit-learn's own answer.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from ..training import Trainer
from .curve import Curve

__all__ = ["Known", "known", "went_on"]


class Known(NamedTuple):
    """What the last call looked like that was checked in full."""

    width: int
    dtype: np.dtype[Any]
    y_dtype: np.dtype[Any]
    settings: tuple[Any, ...]
    trainer: Trainer
    curve: Curve


def known(estimator: Any, X: Any, y: Any, trainer: Trainer, curve: Curve) -> Known | None:
    """What to compare the next call with; None where the long way has to be gone in any case."""
    plain = type(X) is np.ndarray and type(y) is np.ndarray and y.ndim == 1
    simple = not estimator.callbacks and estimator.time_limit is None
    if not (plain and simple and trainer.backend.on_host and X.dtype == estimator._dtype):
        return None
    if hasattr(estimator, "feature_names_in_") or getattr(estimator, "class_weight", None) is not None:
        return None  # scikit-learn warns of names that are missing
    return Known(X.shape[1], X.dtype, y.dtype, _settings(estimator), trainer, curve)


def went_on(estimator: Any, X: Any, y: Any, targets: Callable[[np.ndarray], np.ndarray | None]) -> float | None:
    """The loss of the step that was made; None where the batch has to go the long way.

    targets    from y to what the loss takes; None where y cannot be taken unchecked
    """
    before: Known | None = vars(estimator).get("_known")
    if before is None or type(X) is not np.ndarray or type(y) is not np.ndarray:
        return None
    shape, dtypes = X.shape, (X.dtype, y.dtype)
    if dtypes != (before.dtype, before.y_dtype) or len(shape) != 2 or shape[1] != before.width:
        return None
    n = shape[0]
    size = estimator.batch_size
    if y.shape != (n,) or n == 0 or not (n <= 200 if size == "auto" else n == size):
        return None
    if not all(map(is_, before.settings, _settings(estimator))):
        return None
    if estimator._lists is not None or estimator._trainer is not before.trainer or not np.isfinite(X).all():
        return None
    t = targets(y)
    if t is None:
        return None
    if estimator.shuffle and type(estimator.random_state) is not int:
        check_random_state(estimator.random_state).shuffle(np.arange(n))  # what scikit-learn takes from it
    loss = float(before.trainer.step(X, t))
    estimator.n_iter_ = 0
    before.curve.rows = n
    before.curve.noted(loss)
    return loss


def _settings(estimator: Any) -> tuple[Any, ...]:
    values = vars(estimator)
    return tuple([values[name] for name in estimator._parameter_constraints])
