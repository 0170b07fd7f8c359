"""Trainer: epochs of steps, and everything around them: validation, history, stopping, saving, resuming."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from . import checkpoint, checks, scaling
from .backend import Backend, on_device
from .callbacks import Callback
from .data import Batches, Order, Rows, open_rows, open_source, open_validation, order_of
from .engine import Engine
from .errors import DataError
from .evaluation import evaluated, gradient_norm, loss_now
from .interrupt import Interrupt
from .losses import Loss
from .metrics import Metric, resolve_metrics
from .model import Model
from .optimizers import Names, Optimizer
from .program import MeasuredProgram
from .progress import watchers
from .scalars import Scalars
from .step import Step
from .typing import Array, Tree
from .weights import copied

__all__ = ["Trainer"]

CHUNK_SECONDS = 0.1  # how long the engine runs before callbacks and signals are looked at


class Trainer:
    """Trains a model: one loss, one optimiser, one engine.

    model         a Network or a Graph
    loss          such as SoftmaxCrossEntropy()
    optimizer     such as Adam(1e-3); its rate is a number or a schedule f(step)
    metrics       names ("accuracy", "mae", "r2", ...) or Metrics, reported beside the loss's own
    clip_norm     the largest global norm of the gradients
    accumulate    cut every batch into so many pieces, one after the other: less memory, the same step up to the
                  order of summation; refused with BatchNorm, whose statistics are the whole batch's
    trainable     which parameters learn: names or a predicate on names; None is all
    engine        "auto", or one of `model.backend.engines`
    precision     "float32"; "tf32", "mixed-bfloat16" or "mixed-float16" where `model.backend.precisions` has it:
                  products of narrow numbers, added up in float32. Parameters and optimiser stay float32
    memory_limit  bytes that a step may take, as `program.memory` says: larger ones are cut as by `accumulate`, into
                  as few pieces as fit; None sets no limit
    penalty       alpha of an L2 penalty on the weight matrices, divided by the weight of the batch; see `xbp.penalty`

    Raises `ShapeError`, `DTypeError`, `NameUnknown`, `ValueError` for settings that cannot work together.
    """

    def __init__(
        self,
        model: Model,
        *,
        loss: Loss,
        optimizer: Optimizer,
        metrics: Iterable[str | Metric] = (),
        clip_norm: float | None = None,
        accumulate: int = 1,
        trainable: Names | None = None,
        engine: str = "auto",
        precision: str = "float32",
        memory_limit: int | None = None,
        penalty: float = 0.0,
    ) -> None:
        checks.check_trainer(model, loss, optimizer, clip_norm, accumulate, memory_limit, penalty)
        self.model = model
        self.backend = model.backend
        self.epoch = 0  # finished epochs
        self.steps = 0  # finished optimiser steps
        self.history: dict[str, list[float]] = {}
        self.step_losses = np.zeros(0)  # of the last epoch, float64
        self.stop_reason: str | None = None
        self.epochs_planned, self.epoch_progress, self.rows = 0, (0, 0), 0  # rows of this fit, where they are counted
        self._scalars = Scalars(model, optimizer.lr)  # type: ignore[attr-defined]  # every rule has a rate
        self._best: Tree | None = None
        self._chunk = 1  # steps that the engine takes in about CHUNK_SECONDS, as far as is known
        self._rows: Rows | None = None
        self._step = Step(
            model.plan,
            loss,
            optimizer,
            checks.trainable_names(model, trainable),
            clip_norm,
            accumulate,
            resolve_metrics(metrics, loss),
            checks.chosen_precision(model, precision),
            float(penalty),
        )
        self._state = self._step.init(model.params, xp=model.xp)
        name = checks.chosen_engine(model.backend, engine)
        self._engine = Engine(self._step, model.backend, name, memory_limit, checks.uncut(model))
        self._gate = checks.Gate(model, loss)
        self._version = -1  # of the weights that the engine has; it has none yet

    # --- settings -------------------------------------------------------------------------------------------------

    @property
    def loss(self) -> Loss:
        return self._step.loss

    @property
    def optimizer(self) -> Optimizer:
        return self._step.optimizer

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return self._step.metrics

    @property
    def lr(self) -> float:
        """The rate of the next step. Setting it replaces a schedule by that number; nothing is recorded anew."""
        return self._scalars.rate(self.steps)

    @lr.setter
    def lr(self, value: float) -> None:
        self._scalars.set_rate(value)

    # --- the engine -----------------------------------------------------------------------------------------------

    @property
    def engine(self) -> str:
        """The engine that runs the steps; another one as soon as something could not be compiled."""
        return self._engine.name

    @property
    def accumulate(self) -> int:
        """Into how many pieces batches are cut: as many as were asked for, or as make the last batches fit."""
        return self._engine.pieces

    @property
    def precision(self) -> str:
        """What products are computed in."""
        return self._step.precision

    @property
    def program(self) -> MeasuredProgram:
        """The step as recorded for the last batches, before the first for unweighted rows; `program.memory` too."""
        return self._run_engine().program()

    def _run_engine(self) -> Engine:
        """The engine, holding the newest values whoever changed them."""
        weights = self.model._weights  # Trainer is the one partner that model's weights are lent to
        if weights.version != self._version:
            state = self._state if self._version < 0 else self._engine.read()["state"]
            self._engine.load({**weights.tree, "state": dict(state)})
            self._version = weights.lend(self._engine.read, self._engine.scores)
        return self._engine

    def _advanced(self, steps: int) -> None:
        self.steps += steps
        self.model._weights.changed_by(self._engine.read)  # as above

    def _recount(self) -> None:
        """Count the steps by the optimiser's own count: an interrupt may fall between a step and its being counted."""
        with contextlib.suppress(Exception):  # the engine may be what failed
            state = self._engine.read()["state"]
            counts = [self.backend.to_host(state[name]) for name in ("step", scaling.SKIPPED) if name in state]
            self.steps = int(sum(counts))
            self._advanced(0)

    def _tree(self) -> Tree:
        return self._run_engine().read()

    def _load(self, tree: Tree) -> None:
        self._run_engine().load(tree)
        self._advanced(0)

    def _snapshot(self) -> Tree:
        return {section: copied(arrays, self.backend) for section, arrays in self._tree().items()}

    # --- training -------------------------------------------------------------------------------------------------

    @on_device
    def step(self, x: Any, t: Any, sample_weight: Any = None) -> Array:
        """One optimiser step on a batch; the loss as a 0-d array of the backend, which is not waited for.

        Shapes and dtypes are checked (`ShapeError`, `DTypeError`), values are not.
        """
        batch = self._gate.passed(x, t, sample_weight)
        engine, scalars = self._run_engine(), self._scalars.single(self.steps)
        try:
            loss = engine.step(*batch, scalars, same=self._gate.same)
            self._advanced(1)
        except BaseException:
            self._recount()
            raise
        return loss

    @on_device
    def fit(
        self,
        x: Any,
        t: Any = None,
        *,
        sample_weight: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        shuffle: bool | Callable[[int], Any] = True,
        validation: tuple[Any, ...] | None = None,
        callbacks: Collection[Callback] = (),
        progress: bool = False,
    ) -> dict[str, list[float]]:
        """Train for `epochs` more epochs and return the history of all epochs so far, a dict of lists.

        x, t             (N, D) inputs and targets as the loss takes them; or an iterable of (x, t) batches and no t
        sample_weight    (N,), the weight of each row in the loss; None is equal weights
        batch_size       rows a step; the last batch of an epoch may be smaller, and counts by its rows
        shuffle          draw a new order of the rows for every epoch, from the model's seed; or epoch -> order (N,)
        validation       (x, t) or (x, t, w), evaluated after each epoch: "val_loss", "val_accuracy", ...
        callbacks        stop conditions and observers, see `xbp.callbacks`
        progress         a bar on standard error, or a line an epoch where there is no terminal or no rich

        Ctrl-C stops after the step at hand; `stop_reason` says why the training ended. Raises `ShapeError`,
        `DTypeError`, `LabelError`, `DataError` before the first step for data that does not fit, and `NonFiniteLoss`
        when the loss becomes NaN or infinite: the weights are then those from before the epoch.
        """
        observers = watchers(callbacks, progress)
        source = open_source(self.model, self.loss, x, t, sample_weight)
        if isinstance(source, Rows):
            checks.check_fit(self.model, source.n, batch_size)
            self._rows, self.rows = source, source.n
        held_out = None if validation is None else open_validation(self.model, self.loss, validation)
        self.stop_reason = None
        self.epochs_planned = self.epoch + checks.whole_number("epochs", epochs, 0)
        if isinstance(source, Rows):
            self._run_engine().prepare(*next(source.chunks(1)), rows=min(batch_size, source.n))
        for observer in observers:
            observer.on_fit_begin(self)
        try:
            with Interrupt() as interrupt:
                while self.epoch < self.epochs_planned and self.stop_reason is None:
                    self._epoch(source, batch_size, shuffle, held_out, observers, interrupt)
            self._stop("epochs")
        except BaseException:
            self._recount()
            raise
        finally:
            for observer in observers:
                observer.on_fit_end(self)
            self._rows, self.rows = None, 0
        return {name: list(values) for name, values in self.history.items()}

    def _stop(self, reason: str | None) -> None:
        self.stop_reason = self.stop_reason or reason  # the first one counts

    def _epoch(
        self,
        source: Rows | Batches,
        batch_size: int,
        shuffle: bool | Callable[[int], Any],
        held_out: Rows | None,
        observers: tuple[Callback, ...],
        interrupt: Interrupt,
    ) -> None:
        start, first_step = self._snapshot(), self.steps
        losses: list[Array] = []
        reason = None
        if isinstance(source, Rows):
            order = order_of(shuffle, self.model.seed, self.epoch, source.n)
            weights = source.batch_weights(order, batch_size)
            chunks = self._chunks(source, order, batch_size)
        else:
            weights = np.zeros(0)
            chunks = self._stream(source)
        done = 0
        for chunk_losses, chunk_weights in chunks:
            losses.append(chunk_losses)
            weights = np.concatenate([weights, chunk_weights]) if isinstance(source, Batches) else weights
            done += int(chunk_losses.shape[0])
            self.epoch_progress = (done, len(weights) if isinstance(source, Rows) else 0)
            told = next((r for o in observers if (r := o.on_chunk_end(self))), None)
            reason = interrupt.reason or told
            if reason is not None:
                break
        if not losses:
            raise DataError("The iterable of batches gave none; there is nothing to learn from.")
        if isinstance(source, Rows):
            losses.append(loss_now(self._run_engine(), source, batch_size, self.backend))
        values = self.backend.to_host(self.model.xp.concat(losses)).astype(np.float64)
        self._check_losses(values, done, first_step, start)
        self.step_losses = values = values[:done]
        if reason is not None and (isinstance(source, Batches) or done < len(weights)):
            self._stop(reason)  # in the middle of an epoch, for all we know: the steps count, the epoch does not
            return
        total = weights.sum()
        line = {"loss": float((values * weights).sum() / total) if total else 0.0}
        if held_out is not None:
            line.update({f"val_{name}": value for name, value in self._evaluate(held_out).items()})
        line["lr"] = self._scalars.rate(self.steps - 1)
        for name, value in line.items():
            self.history.setdefault(name, []).append(value)
        self.epoch += 1
        for ending in [reason, *(o.on_epoch_end(self) for o in observers)]:
            self._stop(ending)

    def _chunks(self, rows: Rows, order: np.ndarray, batch_size: int) -> Iterator[tuple[Array, np.ndarray]]:
        """Losses (K,) of each chunk of steps, about `CHUNK_SECONDS` long; the chunking changes no number."""
        batches, at = Order(rows, order, batch_size), 0
        lr: object = None
        while at < batches.count:
            if lr is not self._scalars.lr:  # the first chunk of the epoch, or a rate that was set since
                lr, offset = self._scalars.lr, at
                scalars = self._scalars.table(self.steps, batches.count - at)
            stop = batches.stop(at, self._chunk)
            whole = at == offset and stop == batches.count
            now = scalars if whole else {name: v[at - offset : stop - offset] for name, v in scalars.items()}
            began = time.monotonic()
            losses = self._run_engine().run(*batches.batches(at, stop), now)
            self._advanced(stop - at)
            yield losses, np.zeros(0)
            self.backend.synchronize()
            seconds = max((time.monotonic() - began) / (stop - at), 1e-7)
            at, self._chunk = stop, max(1, min(int(CHUNK_SECONDS / seconds), 4 * self._chunk))

    def _stream(self, batches: Batches) -> Iterator[tuple[Array, np.ndarray]]:
        """Losses (1,) and weights (1,) of each batch; a batch is checked as a whole data set is."""
        for x, t, w in batches:
            rows = open_rows(self.model, self.loss, x, t, w)
            checks.check_fit(self.model, rows.n, None)
            loss = self._run_engine().step(*next(rows.chunks(rows.n)), self._scalars.single(self.steps))
            self._advanced(1)
            yield self.model.xp.reshape(loss, (1,)), rows.batch_weights(np.arange(rows.n), rows.n)

    def _check_losses(self, values: np.ndarray, done: int, first_step: int, start: Tree) -> None:
        bad = np.flatnonzero(~np.isfinite(values))
        if not bad.size:
            return
        rate = self._scalars.rate(first_step + min(int(bad[0]), done - 1))
        self._load(start)
        self.steps = first_step
        self.stop_reason = "non_finite_loss"
        raise checks.non_finite(float(values[bad[0]]), int(bad[0]), done, self.epoch + 1, rate)

    # --- looking --------------------------------------------------------------------------------------------------

    @on_device
    def evaluate(self, x: Any, t: Any, sample_weight: Any = None) -> dict[str, float]:
        """{"loss": ..., "accuracy": ..., ...} over the rows, as floats. Raises as `fit` does."""
        return self._evaluate(open_rows(self.model, self.loss, x, t, sample_weight))

    def _evaluate(self, rows: Rows) -> dict[str, float]:
        return evaluated(self._run_engine(), rows, self.metrics, self.backend)

    @on_device
    def gradient_norm(self) -> float:
        """Norm of the gradient of the mean loss over the rows of the fit at hand (callbacks call it). Waits."""
        if self._rows is None:
            raise ValueError("gradient_norm() is for callbacks of a fit on arrays; there is no such fit at hand.")
        return gradient_norm(self._engine, self._rows, self._scalars, self.steps, self.backend)

    # --- keeping --------------------------------------------------------------------------------------------------

    @on_device
    def keep_best(self) -> None:
        """Remember the parameters and buffers of this moment, on the device."""
        tree = self._snapshot()
        self._best = {"params": tree["params"], "buffers": tree["buffers"]}

    @on_device
    def restore_best(self) -> bool:
        """Bring back what `keep_best` remembered; False where there is nothing."""
        if self._best is None:
            return False
        self._load({**self._tree(), **{section: dict(arrays) for section, arrays in self._best.items()}})
        return True

    @on_device
    def save(self, path: str | Path) -> None:
        """Write everything a resume needs to one file, whole or not at all. `Network.load` opens it too.

        Raises `CheckpointError` where the file cannot be written, or a schedule is a plain function.
        """
        checkpoint.save(self, path)

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        backend: str | Backend = "auto",
        engine: str | None = None,
        precision: str | None = None,
        custom: Mapping[str, type] | None = None,
    ) -> Self:
        """The trainer in a file that `save` wrote. Training goes on bit for bit as if it had never stopped.

        engine, precision    others than those of the file
        custom               your own classes of layers, losses, optimisers, schedules by name
        """
        loaded: Self = checkpoint.load(cls, path, backend, engine, precision, custom or {})
        loaded._run_engine()  # so that the model predicts as it did when it was saved
        return loaded
