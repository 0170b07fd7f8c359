"""The quick way through `partial_fit`: a batch that looks like the last one takes a cheap check and one step.

Scikit-learn's checks cost more than a step of a small network. So the first call goes through all of them, and later
ones skip them where nothing that they look at can have changed: plain arrays of the same width and dtypes, finite, with
known labels, and the same settings. Anything else goes the long way, and gets scikit-learn's own answer. A batch whose
loss overflows leaves the weights that it found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import is_
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from ..training import Trainer
from ..typing import Tree
from ..weights import copied
from .curve import Curve

__all__ = ["Known", "Past", "known", "went_on"]

LEAST = 2**20  # bytes of batches that are kept in any case


class Past:
    """The weights of some steps ago and the batches since, from which the start of a step is made again.

    A step is done in the place of the weights before, and copying all of them before each one would take as long as a
    small step does. A batch is smaller than that, so it is what is copied, until batches outweigh the weights.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer: Any = trainer  # on the host, so its arrays are NumPy's
        self._start: tuple[Tree, int] | None = None  # arrays, and how many steps had made them
        self._since: list[tuple[np.ndarray, np.ndarray, Any]] = []  # x, t and the rate, or its schedule
        self._room = 0

    def step(self, X: np.ndarray, t: np.ndarray) -> float:
        """The loss of the step. Where it is not finite, the step has been taken back."""
        trainer, rate = self._trainer, self._trainer._scalars.lr
        fresh = (trainer._snapshot(), trainer.steps) if self._room <= 0 else None
        loss = float(trainer.step(X, t))
        if not math.isfinite(loss):
            self._take_back(fresh, rate)
            return loss
        if fresh is not None:  # not before its loss is known to be finite
            self._start, self._since = fresh, []
            self._room = max(4 * sum(a.nbytes for part in fresh[0].values() for a in part.values()), LEAST)
        self._since.append((X.copy(), t, rate))
        self._room -= X.nbytes + t.nbytes
        return loss

    def _take_back(self, fresh: tuple[Tree, int] | None, rate: Any) -> None:
        """To before the step that failed, or before the last one where that has spoilt the weights already."""
        start = self._start or fresh
        assert start is not None  # without a start there is no room, and a fresh one has been made
        self._repeat(start, self._since)
        if self._since:
            X, t, _ = self._since[-1]
            if not math.isfinite(self._trainer.evaluate(X, t)["loss"]):
                self._since.pop()
                self._repeat(start, self._since)
        self._trainer._scalars.lr = rate

    def _repeat(self, start: tuple[Tree, int], batches: Iterable[tuple[np.ndarray, np.ndarray, Any]]) -> None:
        tree, steps = start
        self._trainer._load({section: copied(arrays, self._trainer.backend) for section, arrays in tree.items()})
        self._trainer.steps = steps
        for X, t, rate in batches:
            self._trainer._scalars.lr = rate
            self._trainer.step(X, t)


class Known(NamedTuple):
    """What the last call looked like that was checked in full."""

    width: int
    dtype: np.dtype[Any]
    y_dtype: np.dtype[Any]
    settings: tuple[Any, ...]
    trainer: Trainer
    curve: Curve
    past: Past


def known(estimator: Any, X: Any, y: Any, trainer: Trainer, curve: Curve) -> Known | None:
    """What to compare the next call with; None where the long way has to be gone in any case."""
    plain = type(X) is np.ndarray and type(y) is np.ndarray and y.ndim == 1
    simple = not estimator.callbacks and estimator.time_limit is None
    if not (plain and simple and trainer.backend.on_host and X.dtype == estimator._dtype):
        return None
    if hasattr(estimator, "feature_names_in_") or getattr(estimator, "class_weight", None) is not None:
        return None  # scikit-learn warns of names that are missing
    return Known(X.shape[1], X.dtype, y.dtype, _settings(estimator), trainer, curve, Past(trainer))


def went_on(estimator: Any, X: Any, y: Any, targets: Callable[[np.ndarray], np.ndarray | None]) -> float | None:
    """The loss of the step that was made; None where the batch has to go the long way.

    A loss that is not finite is that of a step which has been taken back, and is not written down.

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
    estimator.n_iter_ = 0
    try:
        loss = before.past.step(X, t)
    except BaseException:  # whether the step was made is not known here, so the next batch begins anew
        estimator._known = None
        raise
    if math.isfinite(loss):
        before.curve.rows = n
        before.curve.noted(loss)
    return loss


def _settings(estimator: Any) -> tuple[Any, ...]:
    values = vars(estimator)
    return tuple([values[name] for name in estimator._parameter_constraints])
