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

    loss = fields[0]
    _curve(loss, history["loss"], TRAINING, "training")
    if "val_loss" in history:
        _curve(loss, history["val_loss"], HELD_OUT, held_out)
    _dress(loss, "loss", len(history["loss"]))
    values = [*history["loss"], *history.get("val_loss", ())]
    if min(values) > 0 and max(values) > 20 * min(values):
        loss.set_yscale("log")
    elif min(values) > 0:
        loss.set_ylim(bottom=0)
    for field, name in zip(fields[1:], scores, strict=True):
        series = history[f"val_{name}"]
        _curve(field, series, HELD_OUT, held_out)
        best = max(range(len(series)), key=lambda i: series[i])
        field.plot(
            best + 1, series[best], "o", color=HELD_OUT, markersize=6, label=f"best: {series[best]:.4f}", zorder=3
        )
        _dress(field, LABELS[name], len(series))
    return figure


def _curve(field: Any, values: Sequence[float], colour: str, label: str) -> None:
    mark = "o" if len(values) <= 20 else None  # a single epoch would be an invisible line
    field.plot(range(1, len(values) + 1), values, color=colour, label=label, linewidth=1.8, marker=mark, markersize=3.5)


def _dress(field: Any, label: str, epochs: int) -> None:
    from matplotlib.ticker import MaxNLocator

    field.set_title(label, fontsize=11, color=INK, loc="left")
    field.set_xlabel("epoch", color=INK)
    field.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))
    margin = 0.5 if epochs == 1 else 0.02 * epochs
    field.set_xlim(1 - margin, epochs + margin)
    field.grid(visible=True, color=FAINT, linewidth=0.7)
    field.set_axisbelow(True)
    field.tick_params(colors=INK, labelsize=9)
    for side in ("top", "right"):
        field.spines[side].set_visible(False)
    field.legend(frameon=False, fontsize=9)
