"""What a training shows while it runs: a bar on a terminal, and a line for each epoch anywhere.

Both go to standard error. In a pipe or a file there is no bar, because nobody watches it and its control codes would be
in the way; the lines stay. The bar is redrawn between chunks of steps by the thread that trains, so it costs no other.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..callbacks import Callback, TrainerView
from .console import console

__all__ = ["Display"]

REDRAW = 0.1  # seconds


@dataclass
class Display(Callback):
    """Bar and lines.

    held_out    what the values of the history that begin with "val_" are measured on: "test", "validation"
    """

    held_out: str = "test"
    _started: float = field(default=0.0, init=False, repr=False)
    _drawn: float = field(default=0.0, init=False, repr=False)
    _first: int = field(default=0, init=False, repr=False)
    _bar: Progress | None = field(default=None, init=False, repr=False)
    _task: Any = field(default=None, init=False, repr=False)
    _out: Any = field(default=None, init=False, repr=False)

    def on_fit_begin(self, trainer: TrainerView) -> None:
        self._started, self._first = time.monotonic(), trainer.epoch
        self._out = console(stderr=True)
        if sys.stderr.isatty() and not self._out.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(compact=True),
                console=self._out,
                auto_refresh=False,
                transient=True,
                expand=True,
            )
            self._task = self._bar.add_task(self._epoch(trainer, 1), total=trainer.epochs_planned - trainer.epoch)
            self._bar.start()

    def on_chunk_end(self, trainer: TrainerView) -> str | None:
        if self._bar is not None and time.monotonic() - self._drawn >= REDRAW:
            done, of = trainer.epoch_progress
            part = done / of if of else 0.0
            self._draw(self._epoch(trainer, 1), trainer.epoch + min(part, 1.0) - self._first)
        return None

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        self._say(self._line(trainer))
        if self._bar is not None:
            self._draw(self._epoch(trainer, 0), trainer.epoch - self._first)
        return None

    def on_fit_end(self, trainer: TrainerView) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _draw(self, text: str, completed: float) -> None:
        assert self._bar is not None
        self._bar.update(self._task, description=text, completed=completed)
        self._bar.refresh()
        self._drawn = time.monotonic()

    def _say(self, line: Text) -> None:
        if sys.stderr.isatty():
            self._out.print(line, soft_wrap=True)
        else:
            print(line.plain, file=sys.stderr, flush=True)  # as it is: whoever reads a log does not want it wrapped

    def _epoch(self, trainer: TrainerView, ahead: int) -> str:
        number = min(trainer.epoch + ahead, trainer.epochs_planned)
        return f"epoch {number:>{len(str(trainer.epochs_planned))}}/{trainer.epochs_planned}"

    def _line(self, trainer: TrainerView) -> Text:
        parts = [(self._epoch(trainer, 0), "bold")]
        for name, series in trainer.history.items():
            if name == "lr":
                continue
            held = name.startswith("val_")
            label = f"{self.held_out} {name.removeprefix('val_')}" if held else name
            parts.append((f"{label} {_number(name, series[-1])}", "green" if held else ""))
        parts.append((f"{time.monotonic() - self._started:.1f} s", "dim"))
        return Text("   ").join(Text(text, style) for text, style in parts)


def _number(name: str, value: float) -> str:
    """Shares with four decimals, so that they stand in a column; the rest with four digits."""
    return f"{value:.4f}" if name.endswith(("accuracy", "r2")) else f"{value:#.4g}"
