"""Callbacks in scikit-learn's own form (SLEP023): `set_callbacks`, where the installed scikit-learn has it.

The fit is a task, and each epoch a task within it. A scikit-learn from before there were callbacks trains without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..callbacks import Callback, TrainerView

try:
    from sklearn import callback as _theirs
except ImportError:  # scikit-learn 1.8 and older
    _theirs = None

__all__ = ["Tasks", "Told", "begun", "managed"]

_Base: Any = object if _theirs is None else _theirs.CallbackSupportMixin


class Told(_Base):
    """Mixin: `set_callbacks`, where there is such a thing."""


def managed(method: Callable[..., Any]) -> Callable[..., Any]:
    """A fit after which callbacks are let go, however it ends."""
    done: Callable[..., Any] = method if _theirs is None else _theirs.with_callbacks(method)
    return done


def begun(estimator: Any, X: Any, y: Any, subtasks: int, metadata: dict[str, Any] | None = None) -> Any:
    """The context of a fit that begins; None where there are no callbacks to tell.

    metadata    what scorers take besides X and y, such as {"sample_weight": (N,)}
    """
    if not getattr(estimator, "_skl_callbacks", None):  # set by `set_callbacks`, or by the estimator around this one
        return None
    context = estimator._init_callback_context(max_subtasks=subtasks)
    return context.call_on_fit_task_begin(estimator=estimator, X=X, y=y, metadata=metadata)


class Tasks(Callback):
    """Tells scikit-learn's callbacks of each epoch. A hook that returns True ends the training."""

    def __init__(self, estimator: Any, context: Any, X: Any, y: Any, metadata: dict[str, Any] | None = None) -> None:
        self._estimator, self._context = estimator, context
        self._told = {"estimator": estimator, "X": X, "y": y, "metadata": metadata}
        self._epoch: Any = None

    def on_fit_begin(self, trainer: TrainerView) -> None:
        self._epoch = self._context.subcontext(task_name="epoch").call_on_fit_task_begin(**self._told)

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        task, self._epoch = self._epoch, None
        stop = task.call_on_fit_task_end(**self._told, reconstruction_attributes=self._estimator._fitted_so_far)
        if not stop and trainer.epoch < trainer.epochs_planned:
            self.on_fit_begin(trainer)
        return "callback" if stop else None

    def on_fit_end(self, trainer: TrainerView) -> None:
        if self._epoch is not None:  # begun, and never run: another callback has stopped the training
            self._epoch.call_on_fit_task_end(estimator=self._estimator)
