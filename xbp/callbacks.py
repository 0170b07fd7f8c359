"""Callbacks: what watches a training between its chunks and epochs, and may stop it.

A callback sees the trainer through a small protocol, and what it decides follows from its options and the history
alone, so a resumed training decides the same. `on_epoch_end` and `on_chunk_end` return a reason to stop, or None.

The bar is in `xbp.progress`, the log and TensorBoard's files in `xbp.journal`.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Protocol

from .errors import unknown_name
from .metrics import METRICS

__all__ = [
    "Callback",
    "EarlyStopping",
    "GradientNorm",
    "Progress",
    "ReduceLROnPlateau",
    "TargetMetric",
    "TimeLimit",
    "TrainerView",
    "check_callbacks",
]


class TrainerView(Protocol):
    """What callbacks may read and do."""

    lr: float

    @property
    def history(self) -> Mapping[str, list[float]]: ...
    @property
    def epoch(self) -> int: ...
    @property
    def epoch_progress(self) -> tuple[int, int]: ...
    @property
    def epochs_planned(self) -> int: ...
    @property
    def rows(self) -> int: ...
    def keep_best(self) -> None: ...
    def restore_best(self) -> bool: ...
    def gradient_norm(self) -> float: ...


class Callback:
    """Base of the callbacks; every hook does nothing."""

    def on_fit_begin(self, trainer: TrainerView) -> None:
        """Before the first step."""

    def on_chunk_end(self, trainer: TrainerView) -> str | None:
        """About every tenth of a second, after whole steps. A returned reason stops the training."""
        return None

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        """After each epoch, when `trainer.history` has its line. A returned reason stops the training."""
        return None

    def on_fit_end(self, trainer: TrainerView) -> None:
        """After the last step, however the training ended."""


def _series(trainer: TrainerView, monitor: str) -> list[float]:
    if monitor not in trainer.history:
        raise unknown_name("quantity to monitor", monitor, trainer.history)
    return list(trainer.history[monitor])


def _sign(monitor: str, mode: str) -> float:
    """1 where lower is better, -1 where higher is."""
    if mode not in ("auto", "min", "max"):
        raise unknown_name("mode", mode, ("auto", "min", "max"))
    if mode != "auto":
        return 1.0 if mode == "min" else -1.0
    name = monitor.removeprefix("val_")
    higher = name == "score" or (name in METRICS and METRICS[name].higher_is_better)  # of estimators, the score
    return -1.0 if higher else 1.0


def _since_best(values: list[float], sign: float, min_delta: float) -> tuple[int, bool]:
    """(epochs since the best one, whether the last epoch is the best), NaN never being best."""
    best, age = math.inf, 0
    for value in values:
        improved = sign * value < best - min_delta
        best, age = (sign * value, 0) if improved else (best, age + 1)
    return age, age == 0 and bool(values)


@dataclass
class EarlyStopping(Callback):
    """Stop when `monitor` has not improved by more than `min_delta` for `patience` epochs; the best weights come back.

    monitor        any name of the history: "val_loss", "val_accuracy", "loss", ...
    mode           "min", "max", or "auto": higher is better for accuracy and R2, lower for the rest
    restore_best   put the parameters and buffers of the best epoch back at the end, however the training ends

    Raises `NameUnknown` at the end of the first epoch where nothing of that name is in the history.
    """

    monitor: str = "val_loss"
    patience: int = 10
    min_delta: float = 0.0
    mode: str = "auto"
    restore_best: bool = True

    def __post_init__(self) -> None:
        _sign(self.monitor, self.mode)
        if self.patience < 1:
            raise ValueError(f"EarlyStopping: patience is at least 1 epoch; it is {self.patience!r}.")

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        age, best = _since_best(_series(trainer, self.monitor), _sign(self.monitor, self.mode), self.min_delta)
        if best and self.restore_best:
            trainer.keep_best()
        return "early_stopping" if age >= self.patience else None

    def on_fit_end(self, trainer: TrainerView) -> None:
        if self.restore_best:
            trainer.restore_best()


@dataclass
class ReduceLROnPlateau(Callback):
    """Multiply the rate by `factor` when `monitor` has not improved for `patience` epochs, down to `min_lr`."""

    monitor: str = "val_loss"
    factor: float = 0.1
    patience: int = 5
    min_delta: float = 0.0
    min_lr: float = 0.0
    mode: str = "auto"

    def __post_init__(self) -> None:
        _sign(self.monitor, self.mode)
        if self.patience < 1:
            raise ValueError(f"ReduceLROnPlateau: patience is at least 1 epoch; it is {self.patience!r}.")
        if not 0.0 < self.factor < 1.0:
            raise ValueError(f"ReduceLROnPlateau: factor lies between 0 and 1; it is {self.factor!r}.")

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        age, _ = _since_best(_series(trainer, self.monitor), _sign(self.monitor, self.mode), self.min_delta)
        if age and age % self.patience == 0:
            trainer.lr = max(trainer.lr * self.factor, self.min_lr)
        return None


@dataclass
class TargetMetric(Callback):
    """Stop as soon as `monitor` has reached `value`."""

    value: float
    monitor: str = "loss"
    mode: str = "auto"

    def __post_init__(self) -> None:
        _sign(self.monitor, self.mode)

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        sign = _sign(self.monitor, self.mode)
        return "target_reached" if sign * _series(trainer, self.monitor)[-1] <= sign * self.value else None


@dataclass
class TimeLimit(Callback):
    """Stop after `seconds` of this fit, in the middle of an epoch if need be; whole steps only."""

    seconds: float
    _end: float = field(default=math.inf, init=False, repr=False)

    def on_fit_begin(self, trainer: TrainerView) -> None:
        self._end = time.monotonic() + self.seconds

    def on_chunk_end(self, trainer: TrainerView) -> str | None:
        return "time_limit" if time.monotonic() >= self._end else None


@dataclass
class GradientNorm(Callback):
    """Stop when the norm of the gradient of the mean training loss is at most `tolerance`.

    The gradient is that of all rows together, without dropout's noise between steps, so each check costs about one more
    pass over the data; `every` spaces them out.
    """

    tolerance: float
    every: int = 1

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"GradientNorm: every is at least 1 epoch; it is {self.every!r}.")

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        if trainer.epoch % self.every == 0 and trainer.gradient_norm() <= self.tolerance:
            return "gradient_norm"
        return None


@dataclass
class Progress(Callback):
    """A line an epoch on `stream` (standard error); on a terminal, a running count of steps as well."""

    stream: IO[str] | None = None
    _started: float = field(default=0.0, init=False, repr=False)

    def on_fit_begin(self, trainer: TrainerView) -> None:
        self._started = time.monotonic()

    def on_chunk_end(self, trainer: TrainerView) -> str | None:
        out = self._out()
        if out.isatty():
            done, of = trainer.epoch_progress
            total = f"/{of}" if of else ""
            out.write(f"\r\x1b[Kepoch {trainer.epoch + 1}/{trainer.epochs_planned}  step {done}{total}")
            out.flush()
        return None

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        out = self._out()
        values = "  ".join(f"{name} {series[-1]:.4g}" for name, series in trainer.history.items())
        seconds = time.monotonic() - self._started
        start = "\r\x1b[K" if out.isatty() else ""
        out.write(f"{start}epoch {trainer.epoch}/{trainer.epochs_planned}  {values}  ({seconds:.1f} s)\n")
        out.flush()
        return None

    def _out(self) -> IO[str]:
        return self.stream if self.stream is not None else sys.stderr


def check_callbacks(callbacks: Any) -> tuple[Callback, ...]:
    """The callbacks as a tuple; a class instead of an instance, or a foreign object, is refused."""
    found = (callbacks,) if isinstance(callbacks, Callback) else tuple(callbacks)
    for callback in found:
        if not isinstance(callback, Callback):
            raise TypeError(f"{callback!r} is no callback. Give instances of subclasses of xbp.callbacks.Callback.")
    return found
