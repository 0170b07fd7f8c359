"""`xbp train`: from a name or a file to a trained model, with everything on the way reported.

The order is what keeps work safe: every path is tried before the training, the model is saved at once after it, and
only then is the test part evaluated and a picture drawn.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from ..errors import NonFiniteLoss
from ..interrupt import Interrupt
from ..progress import ProgressBar
from ..storage import check_writable
from ..training import Trainer
from .answers import scores
from .console import json_line, note, show
from .guard import INTERRUPTED
from .plot import check_picture, save_curves
from .session import Options, Session, begin, describe_network, resume
from .threads import calm_blas

__all__ = ["Output", "train"]


@dataclass(frozen=True)
class Output:
    """What is written where. `quiet` leaves errors and, if asked for, the JSON line."""

    model: Path | None = None
    plot: Path | None = None
    json: bool = False
    quiet: bool = False


def train(options: Options, output: Output) -> None:
    """Train, save, evaluate, report. Raises `typer.Exit` with 130 after Ctrl-C, 1 after a loss that is not finite."""
    check_picture(output.plot)
    _check_model_path(output.model)
    session = begin(options) if options.resume is None else resume(options, options.resume)
    path = output.model or options.resume or Path(f"{session.recipe.name}.safetensors")
    check_writable(path)
    if not output.quiet:
        _introduce(session, path)
    done = _Training(session, path, output)
    with calm_blas(session.trainer.model, session.recipe.batch_size):
        done.run()
        done.save()
        if done.failure is not None:
            raise done.failure
        done.report()
    if done.interrupted:
        raise typer.Exit(INTERRUPTED)


def _check_model_path(path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise typer.BadParameter(f"{str(path)!r} is a folder. Give the name of a file in it.", param_hint="--out")
    check_writable(path)


def _introduce(session: Session, path: Path) -> None:
    trainer, recipe, model = session.trainer, session.recipe, session.trainer.model
    what = f"{len(recipe.classes)} classes" if recipe.classes else f"{recipe.target_width} numbers to predict"
    what = "1 number to predict" if what.startswith("1 numbers") else what
    validation = f", {len(session.watched[0]):,} to validate" if recipe.validation and session.watched else ""
    note(
        f"{recipe.source}: {len(session.x):,} rows to train on{validation}, {len(session.x_test):,} held out for the "
        f"test; {session.x.shape[1]:,} columns, {what}"
    )
    note(f"network: {describe_network(trainer)}; {trainer.loss}, {type(trainer.optimizer).__name__}")
    note(f"backend: {model.backend.name} on {model.backend.device}, engine {trainer.engine}, {_numbers(trainer)}")
    if trainer.epoch:
        note(f"going on after epoch {trainer.epoch}")
    if path.exists() and not trainer.epoch:
        note(f"{path} will be replaced")


def _numbers(trainer: Trainer) -> str:
    """The dtype of the arrays, and the precision of products where it is another one."""
    dtype = trainer.model.dtype
    return dtype if trainer.precision == "float32" else f"{dtype} with products in {trainer.precision}"


class _Training:
    """One run of a session, from the first step to the last word."""

    def __init__(self, session: Session, path: Path, output: Output) -> None:
        self.session, self.path, self.output = session, path, output
        self.failure: NonFiniteLoss | None = None
        self.interrupted = False
        self.seconds = 0.0
        self.first_epoch, self.first_step = session.trainer.epoch, session.trainer.steps

    def run(self) -> None:
        s, display = self.session, () if self.output.quiet else (ProgressBar(held_out=self.session.watched_as),)
        started = time.perf_counter()
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what comes of them is told as NonFiniteLoss
                s.trainer.fit(
                    s.x,
                    s.t,
                    epochs=s.epochs,
                    batch_size=s.recipe.batch_size,
                    validation=s.watched,
                    callbacks=[*s.callbacks, *display],
                )
        except NonFiniteLoss as error:
            self.failure = error
        except KeyboardInterrupt:  # a second Ctrl-C; what has been learnt so far is worth the moment that saving takes
            s.trainer.stop_reason = "interrupted"
        self.seconds = time.perf_counter() - started
        self.interrupted = s.trainer.stop_reason == "interrupted"

    def save(self) -> None:
        """Save, unless nothing was learnt and an older model would be lost for it."""
        trainer = self.session.trainer
        if trainer.steps == self.first_step and self.path.exists():
            note(f"No step was finished; {self.path} is left as it was.")
            return
        with Interrupt() as held:  # Ctrl-C waits until the file is whole
            trainer.save(self.path)
        self.interrupted = self.interrupted or held.reason is not None
        if self.interrupted:
            note(f"Interrupted after {_count(trainer.epoch, 'epoch')}; the model is saved to {self.path}.")
        elif self.failure is not None:
            note(f"The last good weights are saved to {self.path}.")

    def report(self) -> None:
        s, trainer = self.session, self.session.trainer
        test = scores(trainer, s.recipe, s.x_test, s.t_test) if len(s.x_test) else {}
        plot = self.output.plot
        if plot is not None and trainer.history:
            save_curves(plot, trainer.history, self._title(test), s.watched_as)
        elif plot is not None:
            note(f"No epoch was finished, so there is nothing to draw into {plot}.")
        if not self.output.quiet:
            for line in self._summary(test):
                (note if self.output.json else show)(line)
        if self.output.json:
            json_line(self._result(test))

    def _rate(self) -> float:
        """Rows trained on a second, with the evaluations between the epochs in the time."""
        s, trainer = self.session, self.session.trainer
        batches = -(-len(s.x) // s.recipe.batch_size)
        epochs, steps = trainer.epoch - self.first_epoch, trainer.steps - self.first_step
        rows = epochs * len(s.x) + (steps - epochs * batches) * s.recipe.batch_size
        return rows / self.seconds

    def _result(self, test: dict[str, float]) -> dict[str, Any]:
        s, trainer = self.session, self.session.trainer
        model = trainer.model
        return {
            "test_accuracy": test.get("accuracy"),
            "test_loss": test.get("loss"),
            "test_r2": test.get("r2"),
            "test_rmse": test.get("rmse"),
            "epochs": trainer.epoch,
            "seconds": round(self.seconds, 3),
            "backend": model.backend.name,
            "device": str(model.backend.device),
            "engine": trainer.engine,
            "dtype": model.dtype,
            "precision": trainer.precision,
            "samples_per_second": round(self._rate(), 1),
            "model": str(self.path),
            "plot": None if self.output.plot is None else str(self.output.plot),
            "seed": s.recipe.seed,
            "rows": len(s.x),
            "test_rows": len(s.x_test),
            "parameters": sum(int(np.prod(a.shape)) for a in model.params.values()),
            "stop_reason": trainer.stop_reason,
        }

    def _summary(self, test: dict[str, float]) -> list[str]:
        s, trainer = self.session, self.session.trainer
        words = {"accuracy": "accuracy {:.4f}", "r2": "R2 {:.4f}", "rmse": "rmse {:.4g}", "loss": "loss {:.4g}"}
        found = ", ".join(text.format(test[name]) for name, text in words.items() if name in test)
        why = "" if trainer.stop_reason == "epochs" else f", stopped: {str(trainer.stop_reason).replace('_', ' ')}"
        return [
            f"test: {found} on {len(s.x_test):,} held-out rows" if test else "test: no rows were held out",
            f"{_count(trainer.epoch, 'epoch')}, {self.seconds:.1f} s, {self._rate():,.0f} rows/s{why}",
            f"model: {self.path}" + (f"   curves: {self.output.plot}" if self.output.plot else ""),
        ]

    def _title(self, test: dict[str, float]) -> str:
        words = {"accuracy": "test accuracy {:.4f}", "r2": "test R² {:.4f}"}
        found = [text.format(test[name]) for name, text in words.items() if name in test]
        return ", ".join([f"{self.session.recipe.name}: {describe_network(self.session.trainer)}", *found])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
