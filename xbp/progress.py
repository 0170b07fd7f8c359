"""What a training shows while it runs: a bar on a terminal or in a notebook, and a line for each epoch anywhere.

In a pipe or a file there is no bar, because nobody watches it and its control codes would be in the way; the lines
stay. The bar is redrawn between chunks of steps by the thread that trains, so it costs no other.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from typing import IO, Any

from .callbacks import Callback, Progress, TrainerView, check_callbacks
from .journal import EpochLog
from .libraries import installed, need

__all__ = ["ProgressBar", "watchers"]

REDRAW = 0.1  # seconds between two pictures of the bar
WIDE = 100  # columns from which on the figures of the last epoch stand behind the bar


@dataclass
class ProgressBar(Callback):
    """A bar over all epochs with the rows a second, the time left, and the last loss and validation figures.

    stream      where to, standard error by default. No terminal, no bar: the lines of the epochs remain, as plain text
    every       print a line every so many epochs, and for the last; 0 prints none
    held_out    what to call the values of the history that begin with "val_"
    disable     show nothing

    Colour is for terminals, and the variable NO_COLOR turns it off. Raises `LibraryMissing` without rich.
    """

    stream: IO[str] | None = None
    every: int = 1
    held_out: str = "val"
    disable: bool = False
    _started: float = field(default=0.0, init=False, repr=False)
    _drawn: float = field(default=0.0, init=False, repr=False)
    _first: int = field(default=0, init=False, repr=False)
    _told: int = field(default=0, init=False, repr=False)  # the last epoch that has its line
    _terminal: bool = field(default=False, init=False, repr=False)
    _bar: Any = field(default=None, init=False, repr=False)
    _out: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.every < 0:
            raise ValueError(f"ProgressBar: every is a number of epochs, or 0; it is {self.every!r}.")
        self._console = need("rich.console", "ProgressBar", "progress").Console

    def on_fit_begin(self, trainer: TrainerView) -> None:
        if self.disable:
            return
        self._started, self._first, self._told = time.monotonic(), trainer.epoch, trainer.epoch
        file = self.stream or sys.stderr
        plain: dict[str, Any] = {"color_system": None} if os.environ.get("NO_COLOR") else {}
        self._out = self._console(file=file, highlight=False, **plain)
        # What the stream is counts here, and not whether the surroundings want colour in a pipe (FORCE_COLOR).
        self._terminal = bool(getattr(file, "isatty", lambda: False)())
        watched = self._terminal and not self._out.is_dumb_terminal
        if self._out.is_jupyter:  # whose bars are drawn with widgets, where it has them
            watched = installed("ipywidgets")
        if watched and trainer.epochs_planned > trainer.epoch:
            self._bar = self._made(trainer)
            self._bar.start()

    def on_chunk_end(self, trainer: TrainerView) -> str | None:
        if self._bar is not None and time.monotonic() - self._drawn >= REDRAW:
            done, of = trainer.epoch_progress
            self._draw(trainer, min(done / of, 1.0) if of else 0.0)
        return None

    def on_epoch_end(self, trainer: TrainerView) -> str | None:
        if self._out is not None and self.every and trainer.epoch % self.every == 0:
            self._say(trainer)
        if self._bar is not None:
            self._draw(trainer, 0.0)
        return None

    def on_fit_end(self, trainer: TrainerView) -> None:
        if self._out is not None and self.every and trainer.epoch > self._told:
            self._say(trainer)
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._out = None

    # --- the bar --------------------------------------------------------------------------------------------------

    def _made(self, trainer: TrainerView) -> Any:
        rich = need("rich.progress", "ProgressBar", "progress")

        def words(text: str, style: str = "") -> Any:
            return rich.TextColumn(text, style=style, table_column=need("rich.table", "", "").Column(no_wrap=True))

        columns = [
            words("{task.description}"),
            rich.BarColumn(bar_width=None),
            words("{task.percentage:>3.0f} %"),
            words("{task.fields[speed]}"),
            rich.TimeRemainingColumn(compact=True),
        ]
        if self._out.width >= WIDE:
            columns.append(words("{task.fields[figures]}"))
        bar = rich.Progress(*columns, console=self._out, auto_refresh=False, transient=True, expand=True)
        total = trainer.epochs_planned - trainer.epoch
        bar.add_task(self._epoch(trainer, 1), total=total, speed="", figures=self._figures(trainer))
        return bar

    def _draw(self, trainer: TrainerView, part: float) -> None:
        (task,) = self._bar.task_ids
        done = trainer.epoch + part - self._first
        self._bar.update(
            task,
            description=self._epoch(trainer, 1),
            completed=done,
            speed=self._speed(trainer, done),
            figures=self._figures(trainer),
        )
        self._bar.refresh()
        self._drawn = time.monotonic()

    def _speed(self, trainer: TrainerView, epochs: float) -> str:
        """Rows a second since the beginning, evaluations included; "" where an iterable does not say how many."""
        seconds = time.monotonic() - self._started
        return f"{_short(trainer.rows * epochs / seconds)} rows/s" if trainer.rows and seconds > 0 else ""

    def _figures(self, trainer: TrainerView) -> str:
        return "  ".join(f"{name} {value}" for name, value, _ in self._values(trainer))

    # --- the lines ------------------------------------------------------------------------------------------------

    def _say(self, trainer: TrainerView) -> None:
        self._told = trainer.epoch
        text = need("rich.text", "ProgressBar", "progress").Text
        parts = [(self._epoch(trainer, 0), "bold")]
        parts += [(f"{name} {value}", "green" if held else "") for name, value, held in self._values(trainer)]
        parts.append((f"{time.monotonic() - self._started:.1f} s", "dim"))
        line = text("   ").join(text(words, style) for words, style in parts)
        if self._terminal or self._out.is_jupyter:
            self._out.print(line, soft_wrap=True)
        else:  # as it is: whoever reads a log does not want it wrapped
            self._out.file.write(line.plain + "\n")
            self._out.file.flush()

    def _epoch(self, trainer: TrainerView, ahead: int) -> str:
        number = min(trainer.epoch + ahead, trainer.epochs_planned)
        return f"epoch {number:>{len(str(trainer.epochs_planned))}}/{trainer.epochs_planned}"

    def _values(self, trainer: TrainerView) -> list[tuple[str, str, bool]]:
        """Name, text, and whether it was measured on held-out rows, of everything but the rate."""
        found = []
        for name, series in trainer.history.items():
            if name != "lr" and series:
                held = name.startswith("val_")
                label = f"{self.held_out} {name.removeprefix('val_')}" if held else name
                found.append((label, _number(name, series[-1]), held))
        return found


def _number(name: str, value: float) -> str:
    """Shares with four decimals, so that they stand in a column; the rest with four digits."""
    return f"{value:.4f}" if name.endswith(("accuracy", "r2")) else f"{value:#.4g}"


def _short(number: float) -> str:
    """Three digits, with k for thousands and M for millions: 1.23k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:#.3g}".rstrip(".") + letter
    return f"{number:.0f}"


def watchers(callbacks: Any, progress: bool) -> tuple[Callback, ...]:
    """All who watch a fit: the user's callbacks, the log, and the bar or the lines of `fit(progress=True)`.

    The bar is for a terminal or a notebook where rich is installed, the lines for anything else.
    """
    found = (*check_callbacks(callbacks), EpochLog())
    if not progress:
        return found
    bar = installed("rich") and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return (*found, ProgressBar() if bar else Progress())
