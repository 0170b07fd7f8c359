"""`--plot`: the curves of a training as a file, the loss in one field, and beside it the accuracy, or R2.

Matplotlib is imported only when a picture is asked for, and drawn with its Agg canvas, which needs no display.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import CheckpointError, DataError
from ..plots import loss_curves
from ..storage import write_bytes

__all__ = ["check_picture", "save_curves"]

SUFFIXES = (".png", ".svg", ".pdf")
SCORES = ("accuracy", "r2")


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
    picture = io.BytesIO()
    _figure(history, title, held_out).savefig(picture, dpi=150, format=path.suffix[1:].lower())
    try:
        write_bytes(path, picture.getvalue())
    except CheckpointError as error:
        raise DataError(f"The picture is lost. {error}") from error


def _figure(history: Mapping[str, Sequence[float]], title: str, held_out: str) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scores = [name for name in SCORES if f"val_{name}" in history]
    figure = Figure(figsize=(4.9 * (1 + len(scores)), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    fields = figure.subplots(1, 1 + len(scores), squeeze=False)[0]
    figure.suptitle(title, fontsize=12)
    for field, name in zip(fields, ["loss", *scores], strict=True):
        loss_curves(history, field, metric=name, held_out=held_out)
    return figure
