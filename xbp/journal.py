"""Trainings on record: a line an epoch in the program's log, and event files for TensorBoard."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .callbacks import Callback, TrainerView
from .libraries import need

__all__ = ["EpochLog", "TensorBoard"]

log = logging.getLogger("xbp.training")


@dataclass
class EpochLog(Callback):
    """A line an epoch in the logger "xbp.training", at level INFO; every fit has one of these.

    To see it: logging.basicConfig(level=logging.INFO).
    """

    _began: float = field(default=0.0, init=False, repr=False)

    def on_fit_begin(self, trainer: TrainerView) -> None:
        self._began = time.monotonic()

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        if log.isEnabledFor(logging.INFO):
            values = ", ".join(f"{name} {series[-1]:.6g}" for name, series in trainer.history.items())
            seconds = time.monotonic() - self._began
            log.info("epoch %d of %d: %s (%.2f s)", trainer.epoch, trainer.epochs_planned, values, seconds)
        return None


@dataclass
class TensorBoard(Callback):
    """The history as event files that TensorBoard opens: `tensorboard --logdir runs`.

    log_dir       folder of this training; give each one its own, as in "runs/second"
    histograms    also the distribution of every parameter, every so many epochs; each one is copied to the host for it

    "loss" and "val_loss" are "loss/training" and "loss/validation" there, in one picture, and so are the metrics; the
    rate is "learning_rate". The step is the number of the epoch, so a resumed training goes on where it was.
    Raises `LibraryMissing` without tensorboardX.
    """

    log_dir: str | Path
    histograms: int = 0
    _writer: Any = field(default=None, init=False, repr=False)
    _module: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.histograms < 0:
            raise ValueError(f"TensorBoard: histograms is a number of epochs, or 0; it is {self.histograms!r}.")
        self._module = need("tensorboardX", "TensorBoard", "tensorboard")

    def on_fit_begin(self, trainer: TrainerView) -> None:
        # The file's own name holds the second only, and a training that goes on within it would replace its beginning.
        suffix = f".after-{trainer.epoch}"
        self._writer = self._module.SummaryWriter(str(self.log_dir), filename_suffix=suffix)

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        for name, series in trainer.history.items():
            self._writer.add_scalar(_tag(name), series[-1], trainer.epoch)
        model = getattr(trainer, "model", None)
        if self.histograms and trainer.epoch % self.histograms == 0 and model is not None:
            for name, a in model.params.items():
                self._writer.add_histogram(f"parameters/{name}", model.backend.to_host(a), trainer.epoch)
        self._writer.flush()
        return None

    def on_fit_end(self, trainer: TrainerView) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _tag(name: str) -> str:
    if name == "lr":
        return "learning_rate"
    if name.startswith("val_"):
        return f"{name.removeprefix('val_')}/validation"
    return f"{name}/training"
