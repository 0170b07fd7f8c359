"""What MLPClassifier and MLPRegressor have in common: from scikit-learn's settings to one Trainer, and back.

Input is checked by scikit-learn, so messages and exceptions are its own. Weights and the order of the rows are drawn
from `random_state` exactly as scikit-learn draws them, so a training is scikit-learn's up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPRegressor as _OfScikitLearn
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, Options, StrOptions
from sklearn.utils.validation import _check_sample_weight

from ..callbacks import TimeLimit
from ..errors import NonFiniteLoss
from ..losses import Loss
from ..optimizers import OPTIMIZERS
from ..training import Trainer
from ..typing import Array
from .building import built, hidden_sizes, kept, optimizer_of
from .curve import Curve
from .following import Tasks, Told, begun, managed
from .held_out import HeldOut, Rows, given_rows
from .lbfgs import minimised
from .rows import Shuffled, SparseBatches, followed, in_order, named_backend
from .stream import Known, known, went_on
from .warned import warned

__all__ = ["Perceptron"]

SOLVERS = ("sgd", "adam")
WORK = 200_000  # rows an epoch times weights: above it, compiling the step for the processor pays
NON_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be preprocessed."
)


class Perceptron(Told, HeldOut, BaseEstimator):
    """Base of the two estimators; see `MLPClassifier` for what the settings mean."""

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **{k: v for k, v in _OfScikitLearn._parameter_constraints.items() if k != "loss"},
        "activation": [StrOptions({"identity", "logistic", "tanh", "relu"}), str, "array-like", HasMethods("forward")],
        "dropout": [Interval(Real, 0, 1, closed="left"), "array-like"],
        "normalization": [StrOptions({"batch", "layer"}), None],
        "optimizer": [StrOptions(set(OPTIMIZERS)), HasMethods("update"), None],
        "schedule": [callable, None],
        "clip_norm": [Interval(Real, 0, None, closed="neither"), None],
        "scoring": [str, callable, None],
        "time_limit": [Interval(Real, 0, None, closed="neither"), None],
        "callbacks": ["array-like", tuple],
        "engine": [str],
        "backend": [str, None],
        "dtype": [Options(str, {"float32", "float64"}), None],
    }

    loss: str | Loss
    _known: Known | None
    _tasks: tuple[Tasks, ...]
    _curve: Curve

    # --- what the two differ in -----------------------------------------------------------------------------------

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _outputs(self, t: Any) -> int:
        """The width of the network's output for these targets."""
        raise NotImplementedError

    def _predicted(self, t: Any) -> int:
        """How many numbers are predicted for a row."""
        return self._outputs(t)

    # --- fitting --------------------------------------------------------------------------------------------------

    @managed
    @_fit_context(prefer_skip_nested_validation=True)
    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        *,
        X_val: Any = None,
        y_val: Any = None,
        sample_weight_val: Any = None,
    ) -> Self:
        """Fit to X (N, D), an array or a sparse matrix, and y.

        sample_weight        (N,), the weight of each row in the loss
        X_val, y_val         rows that are scored after each epoch, for `early_stopping` in place of a share of X;
                             their loss is in `validation_loss_curve_`
        sample_weight_val    (N_val,), the weights of those
        """
        held_out = given_rows(X_val, y_val, sample_weight_val)
        return self._fit(X, y, sample_weight, incremental=False, held_out=held_out)

    def _fit(self, X: Any, y: Any, sample_weight: Any, *, incremental: bool, held_out: Rows | None = None) -> Self:
        self._known = None
        sizes = hidden_sizes(self.hidden_layer_sizes)
        self._check_scoring()
        first = not self.__sklearn_is_fitted__() or (not self.warm_start and not incremental)
        X, t, class_weight = self._validate_input(X, y, incremental, first)
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
        self._random_state = check_random_state(self.random_state)
        if first:
            self._initialize(X, [X.shape[1], *sizes, self._outputs(t)], t)
        else:
            self._check_same_library(X, "partial_fit" if incremental else "fit")
        metadata = None if sample_weight is None else {"sample_weight": sample_weight}
        with self.backend_.active():
            w = self._weights(sample_weight, class_weight)
            self._train(X, y, self._moved(t), w, incremental, held_out, metadata)
        return self

    def _train(
        self,
        X: Any,
        y: Any,
        t: Array,
        w: Array | None,
        incremental: bool,
        held_out: Rows | None,
        metadata: dict[str, Any] | None,
    ) -> None:
        context = None if incremental else begun(self, X, y, self.max_iter, metadata)
        self._tasks = () if context is None else (Tasks(self, context, X, y, metadata),)
        try:
            if self.solver == "lbfgs":
                self._fit_lbfgs(X, t, w, held_out)
            else:
                self._fit_stochastic(X, t, w, incremental, held_out)
        finally:
            self._tasks = ()
        if context is not None:
            context.call_on_fit_task_end(
                estimator=self, X=X, y=y, metadata=metadata, reconstruction_attributes=self._fitted_so_far
            )

    def _fitted_so_far(self) -> dict[str, Any]:
        """What makes a copy of this estimator ready to predict, as things stand."""
        state = self.__getstate__()
        return {name: value for name, value in state.items() if name not in self.get_params(deep=False)}

    def _initialize(self, X: Any, units: list[int], t: Any) -> None:
        """A new network with newly drawn weights, and an empty curve."""
        self._place = followed(X) if self.backend is None else named_backend(self.backend)
        self._input_place = followed(X)
        if self._input_place[0] not in ("numpy", self._place[0]):
            raise ValueError(
                f"X is an array of {self._input_place[0]} and backend={self.backend!r}: leave backend=None to compute "
                "where X lives, or give X as a NumPy array."
            )
        self._dtype = self.dtype or str(X.dtype).rpartition(".")[2]
        self._units = units
        self._fitted_loss = self.loss
        self._built = {
            "activation": kept(self.activation),
            "dropout": kept(self.dropout),
            "normalization": self.normalization,
        }
        self._model, self._names = built(units, random_state=self._random_state, **self._building())
        self._seed = self._model.seed
        self._trainer = self._resume = self._lists = None
        self._others: dict[str, Array] = {}
        self.n_iter_ = 0
        self.t_ = 0
        self.n_outputs_ = self._predicted(t)
        self.n_layers_ = len(units)
        self.out_activation_ = self._out_activation()
        if self.solver in SOLVERS:
            self.loss_curve_: list[float] = []
            self.validation_loss_curve_: list[float] | None = None
            self._no_improvement_count = 0
            self.validation_scores_: list[float] | None = [] if self.early_stopping else None
            self.best_validation_score_ = -np.inf if self.early_stopping else None
            self.best_loss_ = None if self.early_stopping else np.inf

    def _out_activation(self) -> str:
        raise NotImplementedError

    def _ruled_by_solver(self) -> bool:
        """Whether the rate is scikit-learn's business, and not that of an optimiser or a schedule of xbp."""
        return self.optimizer is None and self.schedule is None

    def _ready(self, rows: int, *, anew: bool) -> Trainer:
        """The trainer, holding the newest weights; with a new optimiser where `anew`."""
        if self._model is None:  # after a pickle
            self._model, _ = built(self._units, random_state=None, seed=self._seed, **self._building())
            for name, value in (self._resume.buffers if self._resume is not None else {}).items():
                self._model.buffers[name] = value
        self._take_back()
        old = self._trainer
        if not anew and old is not None and old._step.penalty == self.alpha:  # Trainer's partner, as its checkpoint
            return old
        engine = self.engine
        if engine == "auto" and self.backend_.on_host:
            weights = sum(a * b for a, b in zip(self._units[:-1], self._units[1:], strict=True))
            engine = "auto" if rows * weights >= WORK else "planned"
        if anew or (old is None and self._resume is None):
            self._rule = self._loss(), optimizer_of(self), self.clip_norm
            self._fitted_loss = self.loss  # which says what scores mean, whatever is set later
        loss, optimizer, clip_norm = self._rule
        trainer = Trainer(
            self._model,
            loss=loss,
            optimizer=optimizer,
            clip_norm=clip_norm,
            engine=engine if anew or old is None else old.engine,
            penalty=float(self.alpha),
        )
        if not anew and old is not None:
            trainer._load(old._snapshot())
            trainer._scalars.lr, trainer.steps = old._scalars.lr, old.steps
        elif not anew and self._resume is not None:
            trainer._load({**trainer._tree(), "state": self._resume.state})
            trainer._scalars.lr, trainer.steps = self._resume.rate, self._resume.steps
        self._trainer, self._resume = trainer, None
        return trainer

    def _fit_stochastic(self, X: Any, t: Array, w: Array | None, incremental: bool, held_out: Rows | None) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        if held_out is not None:
            held_out = self._checked_held_out(*held_out, t)
        elif self.early_stopping:
            X, t, w, held_out = self._split(X, t, w)
        n = X.shape[0]
        batch_size = self._batch_size(n)
        order: Callable[[int], np.ndarray] = Shuffled(self._random_state, n) if self.shuffle else in_order(n)
        trainer = self._ready(n, anew=not incremental)
        self.n_iter_ = 0
        curve = Curve(self, trainer, n, batch_size, self._scorer(held_out), self.early_stopping)
        if held_out is not None and self.validation_scores_ is None:
            self.validation_scores_ = []
        self._held_out = held_out
        self._curve = curve
        if self.early_stopping:
            curve.keep()
            self.best_validation_score_ = (
                -np.inf if self.best_validation_score_ is None else self.best_validation_score_
            )
        elif self.best_loss_ is None:  # a warm start, after a training that went by the score
            self.best_loss_ = np.inf
        limit = () if self.time_limit is None else (TimeLimit(self.time_limit),)
        options: dict[str, Any] = {
            "epochs": 1 if incremental else self.max_iter,
            "callbacks": (curve, *limit, *self._tasks, *self.callbacks),
        }
        try:
            if sparse.issparse(X):
                host_t, host_w = self._host(t), None if w is None else self._host(w)
                trainer.fit(SparseBatches(X, host_t, host_w, order, batch_size), **options)
            else:
                rows = order if self.shuffle else False
                trainer.fit(X, t, sample_weight=w, batch_size=batch_size, shuffle=rows, **options)
        except NonFiniteLoss as error:
            raise ValueError(NON_FINITE) from error
        finally:
            self._held_out = None
            self._lists = None  # whoever looked during the training saw what is old now
            if self.early_stopping:
                curve.restore()
        self._say_ending(trainer, curve, incremental)

    def _say_ending(self, trainer: Trainer, curve: Curve, incremental: bool) -> None:
        """Warn of a training that was ended before its time."""
        unfinished = self.n_iter_ == 0 and curve.noted_in_part()
        if trainer.stop_reason == "interrupted":
            warned("Training interrupted by user.")
        elif unfinished:
            warned(
                f"Training was stopped ({trainer.stop_reason}) before the end of its first epoch. Steps made: "
                f"{unfinished}; loss_ is their mean.",
                ConvergenceWarning,
            )
        elif trainer.stop_reason == "epochs" and not incremental:
            warned(
                f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                "converged yet.",
                ConvergenceWarning,
            )

    def _one_step(self, X: Any, y: Any) -> bool:
        """Whether a batch for `partial_fit` could be taken the quick way, and has been."""
        loss = went_on(self, X, y, self._targets)
        if loss is not None and not math.isfinite(loss):
            raise ValueError(NON_FINITE)
        return loss is not None

    def _long_way(self, X: Any, y: Any, sample_weight: Any) -> Self:
        """A batch for `partial_fit`, checked in full."""
        self._fit(X, y, sample_weight, incremental=True)
        assert self._trainer is not None  # it made the step
        self._known = known(self, X, y, self._trainer, self._curve)
        return self

    def _targets(self, y: np.ndarray) -> np.ndarray | None:
        """Targets of a plain y (N,), or None where it has to be looked at more closely."""
        raise NotImplementedError

    def _fit_lbfgs(self, X: Any, t: Array, w: Array | None, held_out: Rows | None) -> None:
        if held_out is not None:
            raise ValueError("X_val and y_val are scored after each epoch, and solver='lbfgs' has no epochs.")
        if not minimised(self, self._ready(X.shape[0], anew=True), X, t, w):
            raise ValueError(NON_FINITE)

    def _batch_size(self, n: int) -> int:
        if self.batch_size == "auto":
            return min(200, n)
        if self.batch_size > n:
            warned("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped")
        return int(np.clip(self.batch_size, 1, n))

    # --- what scikit-learn asks ---------------------------------------------------------------------------------------

    def _check_solver(self) -> bool:
        if self.solver not in SOLVERS:
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {self.solver} is not stochastic."
            )
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        return tags
