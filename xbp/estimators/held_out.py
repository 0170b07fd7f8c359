"""Rows that are not trained on: taken from X or given besides, scored after each epoch, and their loss."""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.metrics import check_scoring
from sklearn.model_selection import train_test_split
from sklearn.utils.validation import _check_sample_weight

from ..backend import Backend
from ..training import Trainer
from ..typing import Array
from .arrays import Placed
from .rows import CHUNK

__all__ = ["HeldOut", "given_rows"]

Rows = tuple[Any, Any, Any]  # X, targets, weights or None


def given_rows(X: Any, y: Any, w: Any) -> Rows | None:
    """What `fit` is given as rows to hold out; None for nothing. Raises `ValueError` for a part of it."""
    if (X is None) != (y is None):
        raise ValueError("X_val and y_val go together; only one of them is given.")
    if X is None and w is not None:
        raise ValueError("sample_weight_val weighs the rows of X_val and y_val, and these are not given.")
    return None if X is None else (X, y, w)


class HeldOut(Placed):
    """Mixin: rows held out, with what an estimator has to say of them."""

    validation_fraction: float
    scoring: Any
    validation_loss_curve_: list[float] | None
    _random_state: np.random.RandomState
    _held_out: Rows | None

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any, Any]:
        """(X, targets, weights that the classes give or None), in scikit-learn's words where something is wrong."""
        raise NotImplementedError

    def _held_out_score(self, scores: Array, t: Array, w: Array | None, backend: Backend) -> float:
        raise NotImplementedError

    def _decoded(self, t: Array) -> Any:
        """Targets as y was given, for scorers."""
        raise NotImplementedError

    def _stratified(self, t: Any) -> Any:
        """What the split for early stopping keeps the shares of; None: nothing."""
        return None

    def _split(self, X: Any, t: Array, w: Array | None) -> tuple[Any, Array, Array | None, Rows]:
        """Training and held-out rows, split as scikit-learn does from the same random numbers."""
        kept, out = train_test_split(
            np.arange(X.shape[0]),
            random_state=self._random_state,
            test_size=self.validation_fraction,
            stratify=self._stratified(t),
        )
        if len(out) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        rows = [(self._rows(X, i), self._rows(t, i), None if w is None else self._rows(w, i)) for i in (kept, out)]
        return (*rows[0], rows[1])

    def _rows(self, a: Any, index: np.ndarray) -> Any:
        if isinstance(a, np.ndarray) or sparse.issparse(a):
            return a[index]
        return self.backend_.xp.take(a, self.backend_.asarray(index), axis=0)

    def _checked_held_out(self, X: Any, y: Any, w: Any, trained: Array) -> Rows:
        """The rows that `fit` was given besides those that it trains on, whose targets are `trained`."""
        X, t, class_weight = self._validate_input(X, y, True, False)
        if t.shape[1:] != trained.shape[1:]:
            raise ValueError(f"y_val has {_columns(t)} and y has {_columns(trained)}; they must have as many.")
        w = None if w is None else _check_sample_weight(w, X)
        return X, self._moved(t), self._weights(w, class_weight)

    def _check_scoring(self) -> None:
        """Refuse a scorer that nobody knows, also where nothing is scored."""
        if self.scoring is not None:
            check_scoring(self, scoring=self.scoring)

    def _scorer(self, held_out: Rows | None) -> Callable[[], float] | None:
        """The score on the rows held out, as a function of no arguments."""
        if held_out is None:
            return None
        X, t, w = held_out
        if self.scoring is None:
            return lambda: self._held_out_score(self._scores(X), t, w, self.backend_)
        scorer, y = check_scoring(self, scoring=self.scoring), self._decoded(t)
        weights = {"sample_weight": w} if w is not None and _takes_weights(scorer) else {}

        def score() -> float:
            with warnings.catch_warnings():  # the rows held out have gone through a check that takes names off
                warnings.filterwarnings("ignore", "X does not have valid feature names")
                value = float(scorer(self, X, y, **weights))
            if math.isnan(value):  # no score is better than it or worse, so nothing could be decided
                raise ValueError(
                    f"scoring={self.scoring!r} gave NaN for the {X.shape[0]} rows held out. Give a scorer that has a "
                    "value for them, or other rows (X_val, y_val)."
                )
            return value

        return score

    def _note_validation(self, trainer: Trainer) -> float | None:
        """Add the loss of the rows held out to their curve, and return it; None where there are none."""
        if self._held_out is None:
            return None
        X, t, w = self._held_out
        losses, weights = [], []
        size = CHUNK if sparse.issparse(X) else X.shape[0]
        for first in range(0, X.shape[0], size):
            rows = slice(first, min(first + size, X.shape[0]))
            part = X[rows].toarray() if sparse.issparse(X) else X
            weight = None if w is None else w[rows]
            losses.append(trainer.evaluate(part, t[rows, ...], weight)["loss"])
            weights.append(part.shape[0] if weight is None or size == X.shape[0] else float(self._host(weight).sum()))
        if self.validation_loss_curve_ is None:
            self.validation_loss_curve_ = []
        loss = float(np.average(losses, weights=weights))
        self.validation_loss_curve_.append(loss)
        return loss


def _columns(t: Array) -> str:
    count = int(t.shape[1]) if t.ndim == 2 else 1
    return "1 column" if count == 1 else f"{count} columns"


def _takes_weights(scorer: Any) -> bool:
    """Whether a scorer has a parameter `sample_weight`; of those that `make_scorer` made, the function inside counts.

    It is the rule by which scikit-learn hands weights to some of several scorers.
    """
    return "sample_weight" in inspect.signature(getattr(scorer, "_score_func", scorer)).parameters
