"""The solver "lbfgs": SciPy's, on all parameters as one flat vector in scikit-learn's order.

The vector goes to the device once an evaluation and the gradient comes back once, with the loss as its last entry.
Callbacks see an iteration as an epoch, and an evaluation of the loss as a chunk of steps. However the training ends,
the model is left with the best weights that were met.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
import scipy.optimize
from scipy import sparse
from sklearn.utils.optimize import _check_optimize_result

from ..callbacks import Callback, TimeLimit
from ..errors import XBPError
from ..interrupt import Interrupt
from ..layers import BatchNorm
from ..model import Model
from ..progress import watchers
from ..recording import Signature, signature_of
from ..step import Step
from ..training import Trainer
from ..typing import Array
from .rows import CHUNK, chunks
from .warned import warned

__all__ = ["Iterations", "minimised"]

log = logging.getLogger("xbp.training")

PRINTS = tuple(int(part) for part in scipy.__version__.split(".")[:2]) < (1, 15)  # SciPy's is silent from then on
STOCHASTIC = ("optimizer", "schedule", "clip_norm")  # settings beyond scikit-learn's that another solver is for


def minimised(estimator: Any, trainer: Trainer, X: Any, t: Array, w: Array | None) -> bool:
    """Train to the end: leaves the best weights in the model and `n_iter_`, `loss_` in the estimator.

    Returns whether these weights are finite.
    """
    _check_settings(estimator, trainer)
    limit = () if estimator.time_limit is None else (TimeLimit(estimator.time_limit),)
    observers = watchers((*limit, *estimator._tasks, *estimator.callbacks), False)
    iterations = Iterations(estimator, _Objective(estimator, trainer, X, t, w), observers)
    options: dict[str, Any] = {"maxfun": estimator.max_fun, "maxiter": estimator.max_iter, "gtol": estimator.tol}
    if PRINTS:
        options["iprint"] = 1 if estimator.verbose >= 1 else -1
    for observer in observers:
        observer.on_fit_begin(iterations)
    try:
        iterations.run(options)
    finally:
        iterations.put(iterations.best)
        for observer in observers:
            observer.on_fit_end(iterations)
    estimator.loss_, vector = iterations.best
    if iterations.stop_reason == "interrupted":
        warned("Training interrupted by user.")
    return bool(np.isfinite(vector).all())


def _check_settings(estimator: Any, trainer: Trainer) -> None:
    for name in STOCHASTIC:
        if getattr(estimator, name) is not None:
            raise ValueError(
                f"solver='lbfgs' has no use for {name}={getattr(estimator, name)!r}: it finds its steps by itself. "
                f"Take solver='adam' or 'sgd', or {name}=None."
            )
    plan = trainer.model.plan
    if plan.random_nodes():
        raise ValueError("solver='lbfgs' needs a loss that is the same each time, which dropout makes random.")
    if any(isinstance(node.layer, BatchNorm) for node in plan.nodes):
        raise ValueError(
            "solver='lbfgs' looks at all rows at once, and normalization='batch' averages over batches. "
            "Take normalization='layer', or solver='adam'."
        )


class _StopError(Exception):
    """Somebody wants the training to end."""


class _Objective:
    """The loss of all rows and its gradient, as a function of one flat vector on the host."""

    def __init__(self, estimator: Any, trainer: Trainer, X: Any, t: Array, w: Array | None) -> None:
        model, backend, loss = trainer.model, trainer.backend, trainer.loss
        self.model, self._backend, self._X = model, backend, X
        self._names = [f"{n}.{kind}" for kind in ("W", "b") for n in estimator._names]
        self._names += [n for n in model.params if n not in self._names]
        self._shapes = {n: tuple(model.params[n].shape) for n in self._names}
        self._buffers = dict(model.buffers)
        xp, n, dtype = backend.xp, X.shape[0], backend.dtype(model.dtype)
        self.rows = n
        self._targets = loss.prepare(backend.bare(t), (n, estimator._units[-1]), dtype, xp=xp)
        loss.check_values(self._targets, estimator._units[-1], xp=xp)
        self._w = None if w is None else xp.astype(backend.bare(w), dtype)
        self._bounds = [(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK)]
        self._shares = [self._share(first, stop) for first, stop in self._bounds]
        # What is dense is moved once; what is sparse becomes dense a part at a time, in every evaluation.
        self._parts = None if sparse.issparse(X) else list(chunks(X, backend, model.dtype))
        first = next(iter(self._parts or chunks(X[:1], backend, model.dtype)))
        self._step = _compiled(trainer, signature_of(first, self._targets, self._w))
        self._last: tuple[np.ndarray, dict[str, Array]] | None = None

    def _share(self, first: int, stop: int) -> Any:
        """What part of the weight of all rows these have, computed where the weights are."""
        w = self._w
        if w is None or len(self._bounds) == 1:
            return (stop - first) / self._bounds[-1][1]
        xp = self._backend.xp
        total = xp.sum(w)
        return xp.sum(w[first:stop]) / xp.where(total > 0.0, total, 1.0)

    def start(self) -> np.ndarray:
        """The model's weights."""
        xp, params = self._backend.xp, self.model.params
        flat = xp.concat([xp.reshape(params[n], (-1,)) for n in self._names])
        return self._backend.to_host(flat).astype(np.float64)

    def params(self, vector: np.ndarray) -> dict[str, Array]:
        """The parameters on the device; those of the last evaluation are there already."""
        if self._last is not None and np.array_equal(self._last[0], vector):
            return self._last[1]
        flat, at, params = self._backend.asarray(vector, self.model.dtype), 0, {}
        for name, shape in self._shapes.items():
            size = math.prod(shape)
            params[name] = self._backend.xp.reshape(flat[at : at + size], shape)
            at += size
        self._last = vector.copy(), params
        return params

    def __call__(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        params, whole, xp = self.params(vector), None, self._backend.xp
        parts: Iterable[Array] = self._parts or chunks(self._X, self._backend, self.model.dtype)
        for rows, (first, stop), share in zip(parts, self._bounds, self._shares, strict=True):
            t, w = self._targets[first:stop, ...], None if self._w is None else self._w[first:stop]
            part = self._step.piece(params, self._buffers, rows, t, w, {}, first, share, xp=xp)
            gradients = (xp.reshape(part.grads[n], (-1,)) for n in self._names)
            flat = xp.concat([*gradients, xp.reshape(part.loss, (1,))])
            whole = flat if whole is None else whole + flat
        assert whole is not None  # a fit has rows
        host = self._backend.to_host(whole).astype(np.float64)
        return float(host[-1]), host[:-1]


def _compiled(trainer: Trainer, look: Signature) -> Step:
    """The step whose pieces the trainer's engine computes; as it is written where the engine cannot."""
    step, engine = trainer._step, trainer._run_engine()  # as `Perceptron` is, a partner of Trainer
    if engine.name == "eager":
        return step
    try:
        return engine.pieces_by(look)
    except XBPError as error:
        log.warning("Engine %r cannot run this training, which is done eagerly. The reason: %s", engine.name, error)
        return step


class Iterations:
    """A training by L-BFGS as callbacks see it: `xbp.callbacks.TrainerView`, with iterations for epochs.

    best    the lowest loss that was met, and its weights
    """

    def __init__(self, estimator: Any, objective: _Objective, observers: tuple[Callback, ...]) -> None:
        self._estimator, self._objective, self._observers = estimator, objective, observers
        self.history: dict[str, list[float]] = {}
        self.epoch, self.epochs_planned, self.rows = 0, int(estimator.max_iter), objective.rows
        self.epoch_progress = (0, 0)  # evaluations of this iteration; nobody knows how many there will be
        self.stop_reason: str | None = None
        self.best = math.inf, objective.start()
        self._now = self.best  # value and weights of the last iteration
        self._kept: tuple[float, np.ndarray] | None = None
        self._value, self._gradient = math.inf, np.zeros(0)  # of the last evaluation
        self._evaluations = 0
        self._interrupt = Interrupt()
        self._watched = bool(estimator._tasks or estimator.callbacks)  # by somebody who may look at the weights

    @property
    def model(self) -> Model:
        return self._objective.model

    @property
    def lr(self) -> float:
        self._no_rate()

    @lr.setter
    def lr(self, value: float) -> None:
        self._no_rate()

    def _no_rate(self) -> NoReturn:
        raise ValueError("solver='lbfgs' finds the length of each step by itself; it has no rate to look at or change.")

    def keep_best(self) -> None:
        """Remember the weights of this moment."""
        self._kept = self._now

    def restore_best(self) -> bool:
        """Bring back what `keep_best` remembered; False where there is nothing."""
        if self._kept is None:
            return False
        self.best = self._kept
        self.put(self.best)
        return True

    def gradient_norm(self) -> float:
        """Norm of the gradient of what is minimised, the penalty included, at the weights of the last iteration."""
        return float(np.linalg.norm(self._gradient))

    def run(self, options: dict[str, Any]) -> None:
        """Call SciPy's solver, until it ends or is ended."""
        try:
            with self._interrupt:
                result = scipy.optimize.minimize(
                    self._evaluated,
                    self.best[1].copy(),
                    method="L-BFGS-B",
                    jac=True,
                    options=options,
                    callback=self._iterated,
                )
        except _StopError:
            return
        self.stop_reason = "converged" if result.success else "epochs"
        self.best = self._now = float(result.fun), result.x
        self._estimator.n_iter_ = _check_optimize_result("lbfgs", result, self._estimator.max_iter)

    def put(self, point: tuple[float, np.ndarray]) -> None:
        """These weights into the model, where whoever looks finds them."""
        self.model.load_params(self._objective.params(point[1]))
        self._estimator._lists = None

    def _evaluated(self, vector: np.ndarray) -> tuple[float, np.ndarray]:
        self._value, self._gradient = self._objective(vector)
        if self._value < self.best[0]:
            self.best = self._value, vector.copy()
        self._evaluations += 1
        self.epoch_progress = (self._evaluations, 0)
        self._end_if([next((r for o in self._observers if (r := o.on_chunk_end(self))), None)])
        return self._value, self._gradient

    def _iterated(self, vector: np.ndarray) -> None:
        self._now = self._value, vector.copy()
        self._evaluations = 0
        self.epoch += 1
        self.history.setdefault("loss", []).append(self._value)
        self._estimator.n_iter_, self._estimator.loss_ = self.epoch, self._value
        if self._watched:
            self.put(self._now)
        self._end_if([o.on_epoch_end(self) for o in self._observers])

    def _end_if(self, reasons: list[str | None]) -> None:
        self.stop_reason = self._interrupt.reason or next((r for r in reasons if r is not None), None)
        if self.stop_reason is not None:
            raise _StopError
