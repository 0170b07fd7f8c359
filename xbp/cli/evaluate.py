"""`xbp evaluate` and `xbp predict`: a model file on data, which is treated as the model's training data was."""

from __future__ import annotations

import csv
import io
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import typer

from ..backend import get_backend
from ..datasets import load_features
from ..errors import DataError
from ..training import Trainer
from .answers import Answers, answers, scores
from .console import json_line, note, show
from .names import known_name
from .recipe import Recipe, rows_of

__all__ = ["evaluate", "predict"]

PARTS = ("auto", "held-out", "all")


def _open(model: Path, backend: str, device: str | None) -> tuple[Trainer, Recipe]:
    trainer = Trainer.load(model, backend=get_backend(backend, device), engine="auto")
    return trainer, Recipe.of(trainer.model.metadata, model)


def evaluate(
    model: Path, source: str | None, target: str | None, rows: str, backend: str, device: str | None, as_json: bool
) -> None:
    """Print how well a model does on a source; None is the source that it was trained on."""
    part = known_name("part", rows, PARTS, "--rows")
    trainer, recipe = _open(model, backend, device)
    x, t, which = rows_of(recipe, source or recipe.source, target, part)
    found = scores(trainer, recipe, x, t)
    if as_json:
        values = {name: found.get(name) for name in ("accuracy", "loss", "r2", "rmse")}
        place = {"backend": trainer.model.backend.name, "model": str(model), "source": source or recipe.source}
        json_line({**values, "rows": len(x), "part": which, **place})
        return
    show(f"{source or recipe.source}: {f'all {len(x):,}' if which == 'all' else f'{len(x):,} {which}'} rows")
    for name in ("accuracy", "r2", "rmse", "loss"):
        if name in found:
            show(f"{name:<9} {found[name]:.4f}" if name in ("accuracy", "r2") else f"{name:<9} {found[name]:.6g}")


def predict(model: Path, source: str, out: Path | None, backend: str, device: str | None) -> None:
    """Write what a model says of each row to a .csv or an .npz file, or as CSV to standard output."""
    if out is not None and out.suffix.lower() not in (".csv", ".npz"):
        raise typer.BadParameter(f"{str(out)!r} should end in .csv or .npz.", param_hint="--out")
    trainer, recipe = _open(model, backend, device)
    x = load_features(source, features=recipe.columns, scaling=recipe.scaling, target=recipe.target, dtype=recipe.dtype)
    y = trainer.model.backend.to_host(trainer.model.predict(x))
    said = answers(recipe, trainer.loss, y)
    if out is None:
        sys.stdout.write(_csv_text(said))
        return
    if out.suffix.lower() == ".npz":
        arrays: dict[str, Any] = _arrays(recipe, said)
        _replace(out, lambda file: np.savez(file, **arrays))
    else:
        _replace(out, lambda file: file.write(_csv_text(said).encode()))
    note(f"{len(x):,} predictions written to {out}")


def _csv_text(said: Answers) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(said.columns)
    writer.writerows(zip(*(_cells(column) for column in said.columns.values()), strict=True))
    return text.getvalue()


def _cells(column: np.ndarray) -> list[Any]:
    """Numbers in the shortest form that reads back as the same."""
    return list(map(str, column)) if column.dtype.kind == "f" else column.tolist()


def _arrays(recipe: Recipe, said: Answers) -> dict[str, np.ndarray]:
    """prediction, and for classes their names and the probabilities (N, C); else every column by its name."""
    if not recipe.classes:
        return {"prediction": said.point, **{name: c for name, c in said.columns.items() if c.ndim == 1}}
    rest = [column for name, column in said.columns.items() if name != "class"]
    kind = "probabilities" if "p_" + recipe.classes[0] in said.columns else "scores"
    return {"prediction": said.point, kind: np.stack(rest, axis=1), "classes": np.asarray(recipe.classes)}


def _replace(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("wb") as file:
            write(file)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"Cannot write {str(path)!r}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
