"""From a name or a path to a `Dataset`: finds out what the source is, reads it once, holds a part out, scales.

What is scaled how: digits by 1/16, bytes (pictures) by 1/255, columns of a CSV file by mean and deviation of the
training part. Other numbers of IDX and `.npz` files are taken as they are, for whoever wrote them chose their scale.
"""

from __future__ import annotations

import difflib
import math
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError, ShapeError
from .dataset import Dataset, Scaling, float_dtype, place, standardise
from .idx import IdxFile, find
from .npz import Archive
from .split import check_split, held_out
from .table import Table, TargetColumn
from .targets import check_task, encode

__all__ = ["load", "load_features"]

_KINDS = '"digits" (scikit-learn\'s), a folder of IDX files (MNIST), .npz, and .csv or .tsv, also .gz'
_TABLES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_BYTES = Scaling(0.0, 1 / 255)
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
    kind, path = _kind(source)
    if target is not None and kind in ("digits", "idx"):
        raise DataError(f"target={target!r}: {str(source)!r} has no columns to choose from. Leave target= out.")
    try:
        if kind == "digits":
            return _digits(options)
        if kind == "idx":
            return _idx(path, options)
        if kind == "npz":
            return _npz(path, target, options)
        return _csv(path, target, options)
    except OSError as error:
        raise _unreadable(path, error) from error


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
    kind, path = _kind(source, single_idx=True)
    try:
        if kind == "digits":
            x = scaling.apply(_sklearn_digits()[0], dtype)
        elif kind == "idx":
            x = _idx_features(path, scaling, dtype)
        elif kind == "npz":
            with Archive(path) as archive:
                x = scaling.apply(_rows(archive.read(archive.features()), f"{str(path)!r}"), dtype)
        else:
            x = _csv_features(path, features, scaling, target, dtype)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ShapeError as error:
        raise ShapeError(f"{str(source)!r}: {error}") from error
    if features and x.shape[1] != len(features):
        raise ShapeError(f"{str(source)!r} has {x.shape[1]} columns, and the model takes {len(features)}.")
    return x


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


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"Cannot read {error.filename or str(path)!r}: {error.strerror or error}.")


# ---- scikit-learn's digits


def _sklearn_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            "The data set 'digits' comes with scikit-learn, which cannot be imported here "
            f"({error}). Install it: pip install 'xbp[sklearn]'."
        ) from error
    return load_digits(return_X_y=True)  # type: ignore[no-any-return]


def _digits(options: _Options) -> Dataset:
    x, values = _sklearn_digits()
    t, classes = encode(values, "classification" if task == "auto" else task, dtype, "digits")
    return _split("digits", [x], x.shape[1], t, classes, (), _SIXTEENTHS, options)


# ---- IDX folders


def _idx(folder: Path, options: _Options) -> Dataset:
    train, test = find(folder)
    labels = [_labels(pair.labels) for pair in (train, test) if pair is not None]
    where = f"{str(folder)!r}: labels"
    t, classes = encode(np.concatenate(labels), "classification" if task == "auto" else task, dtype, where)
    n = len(labels[0])
    with IdxFile(train.images) as images:
        width, scaling = _width(images, n, train.labels), _scaling_for(images.dtype)
        if test is None:
            return _split(folder.name, images.blocks(), width, t, classes, (), scaling, options)
        x, _ = place(images.blocks(), np.zeros(n, bool), width, scaling, dtype)
    with IdxFile(test.images) as images:
        if _width(images, len(t) - n, test.labels) != width or _scaling_for(images.dtype) != scaling:
            raise DataError(f"{str(folder)!r}: the test images have another size or type than those for training.")
        x_test, _ = place(images.blocks(), np.zeros(len(t) - n, bool), width, scaling, dtype)
    return Dataset(folder.name, x, t[:n], x_test, t[n:], classes, (), scaling)


def _labels(path: Path) -> np.ndarray:
    with IdxFile(path) as file:
        if len(file.shape) != 1 or file.dtype.kind not in "iu":
            raise DataError(
                f"{str(path)!r} holds {file.dtype.name} of shape {file.shape}; labels are whole numbers (N,). "
                "Are images and labels swapped?"
            )
        return file.values()


def _width(images: IdxFile, n: int, labels: Path) -> int:
    """D, after the checks that the images are some and fit their labels."""
    if len(images.shape) < 2:
        raise DataError(
            f"{str(images.path)!r} has shape {images.shape}; images are (N, ...). Are they swapped with labels?"
        )
    if images.shape[0] != n:
        raise DataError(f"{str(images.path)!r} has {images.shape[0]:,} images, and {labels.name} {n:,} labels.")
    if 0 in images.shape:
        raise DataError(f"{str(images.path)!r} has shape {images.shape}: there is nothing in it.")
    return math.prod(images.shape[1:])


def _scaling_for(dtype: np.dtype[np.generic]) -> Scaling:
    return _BYTES if dtype == np.uint8 else Scaling()


def _idx_features(path: Path, scaling: Scaling, dtype: str) -> np.ndarray:
    if path.is_dir():
        train, test = find(path)
        path = (test or train).images
    with IdxFile(path) as images:
        width = _width(images, images.shape[0], path)
        return place(images.blocks(), np.zeros(images.shape[0], bool), width, scaling, dtype)[0]


# ---- .npz archives


def _npz(path: Path, target: str | None, options: _Options) -> Dataset:
    name = path.name.removesuffix(path.suffix)
    with Archive(path) as archive:
        x_name, t_name, x_test_name, t_test_name = archive.choose(target)
        x, t = _matching(archive, x_name, t_name)
        class_names, columns = archive.class_names(), archive.column_names()
        x_test, t_test = _matching(archive, x_test_name, t_test_name) if x_test_name and t_test_name else (None, None)
    n, width, scaling = len(t), math.prod(x.shape[1:]), _scaling_for(x.dtype)
    if t_test is not None:
        if t_test.shape[1:] != t.shape[1:]:
            raise DataError(f"{str(path)!r}: {t_name} has shape {t.shape}, and {t_test_name} {t_test.shape}.")
        t = np.concatenate([t, t_test])
    t, classes = encode(t, task, dtype, f"{str(path)!r}: array {t_name!r}")
    if class_names and all(c.isdecimal() and int(c) < len(class_names) for c in classes):
        classes = tuple(class_names[int(c)] for c in classes)
    features = columns if len(columns) == width else ()
    if x_test is None:
        return _split(name, [x], width, t, classes, features, scaling, options)
    if math.prod(x_test.shape[1:]) != width or _scaling_for(x_test.dtype) != scaling:
        raise DataError(
            f"{str(path)!r}: {x_name} is {x.dtype} {x.shape}, and {x_test_name} {x_test.dtype} {x_test.shape}; their "
            "rows have to be alike."
        )
    parts = scaling.apply(x, dtype), t[:n], scaling.apply(x_test, dtype), t[n:]
    return Dataset(name, *parts, classes, features, scaling)


def _matching(archive: Archive, x_name: str, t_name: str) -> tuple[np.ndarray, np.ndarray]:
    x = _rows(archive.read(x_name), f"{str(archive.path)!r}: array {x_name!r}")
    t = archive.read(t_name)
    if t.ndim == 0 or len(t) != len(x):
        raise DataError(
            f"{str(archive.path)!r}: {x_name} has {len(x):,} rows, and {t_name} has shape {t.shape}. Each row "
            "needs its target."
        )
    return x, t


def _rows(x: np.ndarray, where: str) -> np.ndarray:
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where} has dtype {x.dtype}; features are numbers.")
    if x.ndim == 0 or 0 in x.shape:
        raise DataError(f"{where} has shape {x.shape}; features are (N, D) with at least one row and one column.")
    return x


# ---- CSV files


def _csv(path: Path, target: str | None, options: _Options) -> Dataset:
    blocks: deque[np.ndarray] = deque()
    with Table(path) as table:
        if target is None:
            raise DataError(f"{str(path)!r}: say with target= which column to learn: {', '.join(table.columns)}.")
        column = TargetColumn(table, target, task)
        features = tuple(c for c in table.columns if c != target)
        if not features:
            raise DataError(f"{str(path)!r} has no column besides the target {target!r}: nothing to learn it from.")
        positions = [table.position(c) for c in features]
        for rows, lines in table.chunks():
            column.add(rows, lines)
            blocks.append(table.numbers(rows, lines, positions))
    if not blocks:
        raise _no_rows(path)
    t, classes = column.finish(dtype)
    mask = held_out(t, classes, test_fraction, seed, str(path))
    scaling = standardise(blocks, mask)
    x, x_test = place(_emptied(blocks), mask, len(features), scaling, dtype)
    name = path.name.partition(".")[0] or path.name
    return Dataset(name, x, t[~mask], x_test, t[mask], classes, features, scaling)


def _csv_features(
    path: Path, features: tuple[str, ...], scaling: Scaling, target: str | None, dtype: str
) -> np.ndarray:
    blocks: deque[np.ndarray] = deque()
    with Table(path) as table:
        positions = [table.position(c) for c in features or table.columns if features or c != target]
        if not positions:
            raise DataError(f"{str(path)!r} has no column besides the target {target!r}: nothing to predict from.")
        for rows, lines in table.chunks():
            blocks.append(scaling.apply(table.numbers(rows, lines, positions), dtype))
    if not blocks:
        raise _no_rows(path)
    return np.concatenate(blocks)


def _no_rows(path: Path) -> DataError:
    return DataError(f"{str(path)!r} has no rows of data, only a line of column names.")


def _emptied(blocks: deque[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks, each let go as it is passed on."""
    while blocks:
        yield blocks.popleft()


# ---- all of them


def _split(
    name: str,
    blocks: Iterable[np.ndarray],
    width: int,
    t: np.ndarray,
    classes: tuple[str, ...],
    features: tuple[str, ...],
    scaling: Scaling,
    options: _Options,
) -> Dataset:
    """A data set of one part, with some of its rows held out."""
    mask = held_out(t, classes, test_fraction, seed, name)
    x, x_test = place(blocks, mask, width, scaling, dtype)
    return Dataset(name, x, t[~mask], x_test, t[mask], classes, features, scaling)
