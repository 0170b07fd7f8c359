"""From a name or a path to a `Dataset`: finds out what the source is, reads it once, holds a part out, scales.

What is scaled how: digits by 1/16, bytes (pictures) by 1/255, columns of a CSV file by mean and deviation of the
training part. Other numbers of IDX and `.npz` files are taken as they are, for whoever wrote them chose their scale.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError, ShapeError
from . import idx, npz, table
from .assembly import Raw, assemble
from .dataset import Dataset, Scaling, float_dtype
from .split import check_split
from .targets import check_task, encode

__all__ = ["load", "load_features"]

_KINDS = '"digits" (scikit-learn\'s), a folder of IDX files (MNIST), .npz, and .csv or .tsv, also .gz'
_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_SIXTEENTHS = Scaling(0.0, 1 / 16)


def load(
    source: str | Path,
    *,
    target: str | None = None,
    task: str = "auto",
    test_fraction: float = 0.2,
    seed: int = 0,
    dtype: str = "float32",
) -> Dataset:
    """The data of `source`, scaled, with a part held out.

    source          "digits", or the path of a folder of IDX files, an .npz or a .csv file
    target          the target column of a .csv, or the target array of an .npz with names of its own
    task            "classification", "regression", or "auto": text and few different whole numbers are classes (the
                    rule stands in `xbp/datasets/targets.py`; IDX labels always are classes)
    test_fraction   the share of rows to hold out, of each class alike; a source with a test part of its own keeps that
    seed            which rows are held out
    dtype           "float32" or "float64"
    """
    check_task(task)
    check_split(test_fraction, seed)
    float_dtype(dtype)
    with _told(source):
        kind, path = _kind(source)
        if target is not None and kind in ("digits", "idx"):
            raise DataError(f"target={target!r}: {str(source)!r} has no columns to choose from. Leave target= out.")
        if kind == "digits":
            raw = _digits(task)
        elif kind == "idx":
            raw = idx.read(path, task)
        elif kind == "npz":
            raw = npz.read(path, target, task)
        else:
            raw = table.read(path, target, task)
        return assemble(raw, test_fraction, seed, dtype)


def load_features(
    source: str | Path,
    *,
    features: Iterable[str] = (),
    scaling: Scaling,
    target: str | None = None,
    dtype: str = "float32",
) -> np.ndarray:
    """New rows x (N, D) for a model, scaled as its training data was.

    features   the model's columns: they are looked up by name, in its order, and other columns passed over.
               () takes all columns but `target`, which need not be there
    scaling    the model's

    An .npz gives x, or x_test where that is all; a folder of IDX files its test pictures, or else the others; one IDX
    file of pictures will do too.
    """
    float_dtype(dtype)
    features = tuple(features)
    with _told(source):
        kind, path = _kind(source, single_idx=True)
        if kind == "digits":
            x = scaling.apply(_sklearn_digits()[0], dtype)
        elif kind == "idx":
            x = idx.read_features(path, scaling, dtype)
        elif kind == "npz":
            x = npz.read_features(path, scaling, dtype)
        else:
            x = table.read_features(path, features, scaling, target, dtype)
    if features and x.shape[1] != len(features):
        raise ShapeError(f"{str(source)!r} has {x.shape[1]} columns, and the model takes {len(features)}.")
    return x


@contextlib.contextmanager
def _told(source: str | Path) -> Iterator[None]:
    """Errors that know nothing of the source get its name."""
    try:
        yield
    except OSError as error:
        raise DataError(f"Cannot read {error.filename or str(source)!r}: {error.strerror or error}.") from error
    except MemoryError as error:
        raise DataError(f"{str(source)!r} does not fit into memory ({error}).") from error
    except ShapeError as error:
        raise ShapeError(f"{str(source)!r}: {error}") from error


def _kind(source: str | Path, single_idx: bool = False) -> tuple[str, Path]:
    """What the source is, by its name: "digits", "idx", "npz" or "csv"."""
    path = Path(source)
    if source == "digits":
        return "digits", path
    if path.is_dir():
        return "idx", path
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else None
        here = [str(path.parent / p.name) for p in folder.iterdir()] if folder else []
        near = difflib.get_close_matches(str(path), ["digits", *here], n=3, cutoff=0.6)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        missing = "" if folder else f" (folder {str(path.parent)!r} does not exist)"
        raise DataError(f"No data set or file {str(source)!r}{missing}.{hint} Data can be {_KINDS}.")
    name = path.name.lower()
    if name.endswith(".npz"):
        return "npz", path
    if name.endswith(_TABLES):
        return "csv", path
    if "idx" in name and "ubyte" in name:
        if single_idx:
            return "idx", path
        raise DataError(f"{str(source)!r} is one of several IDX files. Give the folder, {str(path.parent)!r}.")
    raise DataError(
        f"{str(source)!r}: files named {path.suffix or 'without a suffix'} are not known. Data can be {_KINDS}."
    )


def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"The data set 'digits' comes with scikit-learn, which cannot be imported here ({error}). "
            "Install it: pip install 'xbp[sklearn]'."
        ) from error
    x, t = load_digits(return_X_y=True)
    return x, t


def _digits(task: str) -> Raw:
    x, values = _sklearn_digits()
    t, classes = encode(values, "classification" if task == "auto" else task, "digits: the column of labels")
    return Raw("digits", iter([x]), x.shape[1], t, classes, (), _SIXTEENTHS)
