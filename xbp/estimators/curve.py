"""The course of a training as scikit-learn keeps it: loss curve, scores, when to slow down and when to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..callbacks import Callback, TrainerView
from ..training import Trainer
from ..typing import Tree

__all__ = ["Curve"]

LEAST_RATE = 1e-6  # at which "adaptive" gives up


class Curve(Callback):
    """Writes `n_iter_`, `loss_`, `loss_curve_`, `t_`, ... of an estimator after each epoch, and decides what follows.

    rows      how many there are, in batches of `batch_size`: scikit-learn weights losses by rows, whatever they weigh
    score     the score on rows held out, or None
    stops     whether that score decides, not the loss
    """

    def __init__(
        self, estimator: Any, trainer: Trainer, n: int, batch_size: int, score: Callable[[], float] | None, stops: bool
    ) -> None:
        self._estimator, self._trainer, self.rows = estimator, trainer, n
        self._sizes = np.minimum(batch_size, n - np.arange(0, n, batch_size))
        self._score, self._stops = score, stops
        self._value: float | None = None  # of the last score
        self._best: Tree = {}

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        self._estimator._lists = None  # what somebody looked at after the last epoch is old
        loss = float(self._trainer.step_losses @ self._sizes) / self.rows
        reason = self.noted(loss)
        # Callbacks come after this one, and find what was measured beside the loss of the epoch.
        for name, value in (("val_loss", self._estimator._note_validation(self._trainer)), ("val_score", self._value)):
            if value is not None:
                self._trainer.history.setdefault(name, []).append(value)
        return reason

    def noted_in_part(self) -> int:
        """Take down the loss of an epoch that was not finished. How many steps it had; 0 leaves everything as it was.

        Its steps have changed the weights, so there is a loss to tell of, though no epoch.
        """
        e, losses = self._estimator, self._trainer.step_losses
        steps = len(losses)
        if steps:
            e.loss_ = float(losses @ self._sizes[:steps]) / int(self._sizes[:steps].sum())
            e.best_loss_ = None if e.best_loss_ is None else min(e.loss_, e.best_loss_)
        return steps

    # --- the best weights -----------------------------------------------------------------------------------------

    def keep(self) -> None:
        """Remember the weights of this moment. `Trainer.keep_best` has one place, and that is the callbacks'."""
        tree = self._trainer._snapshot()
        self._best = {name: tree[name] for name in ("params", "buffers")}

    def restore(self) -> None:
        """Bring back what `keep` remembered, whatever callbacks have left; nothing where no epoch had a score."""
        if self._estimator.best_validation_score_ > -np.inf:
            self._trainer._load({**self._trainer._tree(), **self._best})
        self._best = {}

    # --- an epoch -------------------------------------------------------------------------------------------------

    def noted(self, loss: float) -> str | None:
        """Take down the loss of an epoch. A reason to stop, or None."""
        e = self._estimator
        e.n_iter_ += 1
        e.loss_ = loss
        e.t_ += self.rows
        e.loss_curve_.append(loss)
        if e.verbose:
            print(f"Iteration {e.n_iter_}, loss = {loss:.8f}")
        if self._score is not None:
            self._value = score = self._score()
            e.validation_scores_.append(score)
            if e.verbose:
                print(f"Validation score: {score:f}")
        self._count(loss)
        if e.solver == "sgd" and e.learning_rate == "invscaling" and e._ruled_by_solver():
            self._trainer.lr = e.learning_rate_init / (e.t_ + 1) ** e.power_t
        return self._ending() if e._no_improvement_count > e.n_iter_no_change else None

    def _count(self, loss: float) -> None:
        e = self._estimator
        if self._stops:
            score = e.validation_scores_[-1]
            e._no_improvement_count = e._no_improvement_count + 1 if score < e.best_validation_score_ + e.tol else 0
            if score > e.best_validation_score_:
                e.best_validation_score_ = score
                self.keep()
            return
        if self._score is not None:
            best = e.best_validation_score_
            e.best_validation_score_ = e.validation_scores_[-1] if best is None else max(best, e.validation_scores_[-1])
        e._no_improvement_count = e._no_improvement_count + 1 if loss > e.best_loss_ - e.tol else 0
        e.best_loss_ = min(loss, e.best_loss_)  # scikit-learn's curve has no NaN either: training stops before

    def _ending(self) -> str | None:
        e = self._estimator
        what = "Validation score" if self._stops else "Training loss"
        message = f"{what} did not improve more than tol={e.tol:f} for {e.n_iter_no_change} consecutive epochs."
        adaptive = e.solver == "sgd" and e.learning_rate == "adaptive" and e._ruled_by_solver()
        if not adaptive or self._trainer.lr <= LEAST_RATE:
            small = " Learning rate too small." if adaptive else ""
            self._say(f"{message}{small} Stopping.")
            return "converged"
        self._trainer.lr /= 5.0
        e._no_improvement_count = 0
        self._say(f"{message} Setting learning rate to {self._trainer.lr:f}")
        return None

    def _say(self, text: str) -> None:
        if self._estimator.verbose:
            print(text)
