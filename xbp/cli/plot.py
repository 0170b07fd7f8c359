"""The curves of a training as a picture: the loss in one field, and beside it the accuracy, or R2.

Matplotlib is imported only when a picture is asked for, and drawn with its Agg canvas, which needs no display.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import DataError

__all__ = ["check_picture", "save_curves"]

SUFFIXES = (".png", ".svg", ".pdf")
TRAINING, HELD_OUT = "#1f5fa8", "#d1651a"  # told apart by the colour-blind as well, and in grey by their lightness
INK, FAINT = "#2b2b2b", "#d9d9d9"
LABELS = {"accuracy": "accuracy", "r2": "R²"}


def check_picture(path: Path | None) -> None:
    """A usage error for a picture that cannot be written in the end: worth knowing before the training."""
    if path is None:
        return
    if path.suffix.lower() not in SUFFIXES:
        raise typer.BadParameter(f"{str(path)!r} should end in {', '.join(SUFFIXES)}.", param_hint="--plot")
    if not path.parent.is_dir():
        raise typer.BadParameter(f"the folder {str(path.parent)!r} does not exist.", param_hint="--plot")
    try:
        import matplotlib.figure  # noqa: F401  # asked for now, used at the end
    except ImportError as error:
        raise DataError(f"--plot needs Matplotlib: {error}. Install it: pip install 'xbp[cli]'.") from error


def save_curves(path: Path, history: Mapping[str, Sequence[float]], title: str, held_out: str) -> None:
    """Draw the history into a file, whole or not at all.

    held_out    what the values that begin with "val_" are measured on: "test", "validation"
    """
    figure = _figure(history, title, held_out)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"Cannot write the picture {str(path)!r}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _figure(history: Mapping[str, Sequence[float]], title: str, held_out: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = [name for name in LABELS if f"val_{name}" in history]
    figure = Figure(figsize=(4.9 * (1 + len(scores)), 4.2), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    fields = figure.subplots(1, 1 + len(scores), squeeze=False)[0]
    figure.suptitle(title, fontsize=12, color=INK)

    _curve(fields[0], history["loss"], TRAINING, "training")
    if "val_loss" in history:
        _curve(fields[0], history["val_loss"], HELD_OUT, held_out)
    _dress(fields[0], "loss", len(history["loss"]))
    _scale(fields[0], [*history["loss"], *history.get("val_loss", ())])
    for field, name in zip(fields[1:], scores, strict=True):
        _curve(field, history[f"val_{name}"], HELD_OUT, held_out)
        _dress(field, LABELS[name], len(history["loss"]))
    return figure


def _curve(field: Any, values: Sequence[float], colour: str, label: str) -> None:
    mark = "o" if len(values) <= 20 else None  # a single epoch would be an invisible line
    field.plot(range(1, len(values) + 1), values, color=colour, label=label, linewidth=1.8, marker=mark, markersize=3.5)


def _scale(field: Any, losses: Sequence[float]) -> None:
    """Logarithmic where the losses span a factor of 20, else from 0; negative ones, as densities have, as they are."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = min(losses), max(losses)
    if low > 0 and high > 20 * low:
        field.set_yscale("log")
        field.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        field.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        field.yaxis.set_minor_locator(NullLocator())
    elif low > 0:
        field.set_ylim(bottom=0)


def _dress(field: Any, label: str, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    field.set_title(label, fontsize=11, color=INK, loc="left")
    field.set_xlabel("epoch", color=INK)
    field.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    margin = 0.5 if epochs == 1 else 0.02 * epochs
    field.set_xlim(1 - margin, epochs + margin)
    field.grid(visible=True, color=FAINT, linewidth=0.7)
    field.set_axisbelow(True)
    field.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        field.spines[side].set_visible(False)
    field.legend(frameon=False, fontsize=9, labelcolor=INK)
