"""What a model file has to say besides its weights: which columns, which classes, scaled how, held out which rows.

It travels as JSON in the model's metadata. With it a new file is treated as the training data was, and the rows that
the model has not been trained on can be told from the others.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import Dataset, Scaling, load
from ..errors import CheckpointError, DataError, LabelError, ShapeError

__all__ = ["KEY", "Recipe", "fingerprint", "inputs_of", "rows_of", "targets_of"]

KEY = "data"  # of the model's metadata


@dataclass(frozen=True)
class Recipe:
    """How the data of a model was made, and how it is trained.

    name              of the data set, by which its model is called
    classes           names of the classes, () for numbers
    columns           names of the columns of x, () where the source has none
    scaling           of x
    target_scaling    of the targets, which are numbers; for classes it does nothing
    held_out          a checksum of the rows held out: a source with the same sum is the one that was trained on
    validation        the share of the training rows that validates, 0 for none
    epochs            that were planned, so that a training that was stopped can be finished
    """

    name: str
    source: str
    task: str
    target: str | None
    classes: tuple[str, ...]
    columns: tuple[str, ...]
    scaling: Scaling
    target_scaling: Scaling
    target_width: int
    dtype: str
    seed: int
    test_fraction: float
    held_out: int
    validation: float
    schedule: str
    batch_size: int
    epochs: int

    def to_json(self) -> dict[str, Any]:
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}
        return plain | {"scaling": self.scaling.to_json(), "target_scaling": self.target_scaling.to_json()}

    @classmethod
    def of(cls, metadata: Mapping[str, Any], path: str | Path) -> Recipe:
        """The recipe in the metadata of the model at `path`."""
        plain = metadata.get(KEY)
        if plain is None:
            raise CheckpointError(
                f"{str(path)!r} holds a model, but not how its data was made, which `xbp train` writes into the file. "
                "Load it in Python: xbp.Network.load(path).predict(x)."
            )
        try:
            scalings = {name: Scaling.from_json(plain[name]) for name in ("scaling", "target_scaling")}
            tuples = {name: tuple(plain[name]) for name in ("classes", "columns")}
            return cls(**{f.name: plain[f.name] for f in fields(cls)} | scalings | tuples)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{str(path)!r}: the description of the data is damaged ({error!r}).") from error

    def load(self, source: str, target: str | None = None, test_fraction: float | None = None) -> Dataset:
        """The data of a source, read in the way of the training data; x, classes and scaling are still its own."""
        fraction = self.test_fraction if test_fraction is None else test_fraction
        return load(
            source,
            target=self.target if target is None else target,
            task=self.task,
            test_fraction=fraction,
            seed=self.seed,
            dtype=self.dtype,
        )


def fingerprint(data: Dataset) -> int:
    """A checksum of the rows held out; two sources that agree in it hold the same rows, for every practical purpose."""
    sum_x = zlib.crc32(np.ascontiguousarray(data.x_test).view(np.uint8).data)
    return zlib.crc32(np.ascontiguousarray(data.t_test).view(np.uint8).data, sum_x)


def inputs_of(recipe: Recipe, data: Dataset, x: np.ndarray) -> np.ndarray:
    """x (N, D) of a data set, in the order and the scaling of the model's columns."""
    offset, factor = (np.broadcast_to(np.asarray(v, np.float64), x.shape[1:]) for v in _pair(data.scaling))
    if recipe.columns and data.features and recipe.columns != data.features:
        missing = [c for c in recipe.columns if c not in data.features]
        if missing:
            raise DataError(
                f"{data.name}: the model needs the columns {', '.join(map(repr, missing))}, which are not there. "
                f"There are {', '.join(data.features)}."
            )
        at = [data.features.index(c) for c in recipe.columns]
        x, offset, factor = x[:, at], offset[at], factor[at]
    if recipe.columns and x.shape[1] != len(recipe.columns):
        raise ShapeError(f"{data.name} has {x.shape[1]} columns, and the model takes {len(recipe.columns)}.")
    if recipe.scaling.width not in (None, x.shape[1]):
        raise ShapeError(f"{data.name} has {x.shape[1]} columns, and the model takes {recipe.scaling.width}.")
    own_offset, own_factor = (np.asarray(v, np.float64) for v in _pair(recipe.scaling))
    if np.array_equal(offset, np.broadcast_to(own_offset, offset.shape)) and np.array_equal(
        factor, np.broadcast_to(own_factor, factor.shape)
    ):
        return x
    # ((x / factor + offset) - own offset) * own factor, without the raw values between, which may be large.
    slope, start = own_factor / factor, (offset - own_offset) * own_factor
    return Scaling(tuple(-start / slope), tuple(slope)).apply(x, recipe.dtype)


def _pair(scaling: Scaling) -> tuple[float | tuple[float, ...], float | tuple[float, ...]]:
    return scaling.offset, scaling.factor


def targets_of(recipe: Recipe, data: Dataset, t: np.ndarray) -> np.ndarray:
    """t of a data set: for classes, the indices (N,) of the model's classes; for numbers (N, K), as they are."""
    if not recipe.classes:
        if t.shape[1:] != (recipe.target_width,):
            raise ShapeError(f"{data.name} has {t.shape[1]} targets a row, and the model gives {recipe.target_width}.")
        return t
    if data.classes == recipe.classes:
        return t
    new = [c for c in data.classes if c not in recipe.classes]
    if new:
        raise LabelError(
            f"{data.name} has the classes {', '.join(map(repr, new[:5]))}, which the model does not know. It knows "
            f"{', '.join(recipe.classes[:20])}{', ...' if len(recipe.classes) > 20 else ''}."
        )
    return np.take(np.asarray([recipe.classes.index(c) for c in data.classes], np.int64), t)


def rows_of(recipe: Recipe, source: str, target: str | None, part: str) -> tuple[np.ndarray, np.ndarray, str]:
    """(x, t, in words which rows) to evaluate a model on, treated as its training data was.

    part    "held-out": what the model was not trained on; "all": every row; "auto": the former where the source is the
            one that was trained on, or has a test part of its own, else all
    """
    data = recipe.load(source, target)
    same = recipe.held_out == fingerprint(data) and len(data.x_test) > 0
    words = "held-out"
    if part == "held-out" and not same:
        raise DataError(
            f"{source!r} is not what the model was trained on ({recipe.source!r}), so none of its rows were held out. "
            "Evaluate all of them: --rows all."
        )
    if not same and data.scaling.width is None:  # no table: it may have a test part, and a second look is cheap
        data = recipe.load(source, target, 0.0)
    elif not same:
        data = _whole(data)
    if not same or part == "all":
        own = len(data.x_test) > 0 and part == "auto"
        data = data if own else _whole(data)
        words = "test" if own else "all"
    x, t = (data.x_test, data.t_test) if len(data.x_test) else (data.x, data.t)
    return inputs_of(recipe, data, x), targets_of(recipe, data, t), words


def _whole(data: Dataset) -> Dataset:
    """The data with nothing held out."""
    if not len(data.x_test):
        return data
    x, t = np.concatenate([data.x, data.x_test]), np.concatenate([data.t, data.t_test])
    return Dataset(data.name, x, t, x[:0], t[:0], data.classes, data.features, data.scaling)
