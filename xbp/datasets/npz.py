"""NumPy's `.npz` archives: which arrays in one are the features, and which the targets.

People name them in a dozen ways; the usual ones are known, and where none fits the error lists what is inside. Arrays
of Python objects are refused, because reading them would run code that the file brings.
"""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError
from .assembly import Raw, in_blocks
from .dataset import Scaling
from .targets import encode

__all__ = ["Archive", "read", "read_features"]

_FEATURES = ("x", "data", "images", "features", "inputs", "input")
_TARGETS = ("t", "y", "target", "targets", "labels", "label")
_CLASSES = ("classes", "class_names", "target_names")
_COLUMNS = ("feature_names", "columns")


def read(path: Path, target: str | None, task: str) -> Raw:
    """The arrays of an archive; bytes are taken for images and scaled, other numbers are left as they are."""
    with Archive(path) as archive:
        parts = archive.choose(target)
        arrays = [_matching(archive, *names) for names in parts]
        class_names, columns = archive.texts(_CLASSES), archive.texts(_COLUMNS)
    for names, *pair in zip(zip(parts[0], parts[-1], strict=True), arrays[0], arrays[-1], strict=True):
        _check_alike(path, names, *pair)
    x, t = arrays[0]
    t, classes = encode(np.concatenate([t for _, t in arrays]), task, f"{str(path)!r}: array {parts[0][1]!r}")
    if class_names and all(c.isdecimal() and int(c) < len(class_names) for c in classes):
        classes = tuple(class_names[int(c)] for c in classes)
    blocks = chain.from_iterable(in_blocks(x) for x, _ in arrays)
    width = math.prod(x.shape[1:])
    features = columns if len(columns) == width else ()
    scaling = Scaling(0.0, 1 / 255) if x.dtype == np.uint8 else Scaling()
    return Raw(path.stem, blocks, width, t, classes, features, scaling, len(x) if len(parts) == 2 else None)


def read_features(path: Path, scaling: Scaling, dtype: str) -> np.ndarray:
    with Archive(path) as archive:
        name = archive.choose_features()
        return scaling.apply(archive.rows(name), dtype)


def _matching(archive: Archive, x_name: str, t_name: str) -> tuple[np.ndarray, np.ndarray]:
    x, t = archive.rows(x_name), archive.read(t_name)
    if t.ndim == 0 or len(t) != len(x):
        raise DataError(
            f"{str(archive.path)!r}: {x_name} has {len(x):,} rows, and {t_name} has shape {t.shape}. Each row needs "
            "its target."
        )
    return x, t


def _check_alike(path: Path, names: tuple[str, str], a: np.ndarray, b: np.ndarray) -> None:
    """The rows of both parts have one shape, and none are bytes beside others that are not."""
    if a.shape[1:] != b.shape[1:] or a.dtype.kind != b.dtype.kind or (a.dtype == np.uint8) != (b.dtype == np.uint8):
        raise DataError(
            f"{str(path)!r}: {names[0]} is {a.dtype} {a.shape}, and {names[1]} is {b.dtype} {b.shape}; their rows have "
            "to be alike."
        )


class Archive:
    """An open `.npz`. Names are compared without regard to case; of "x_train" and "train_x" either will do."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{str(path)!r} is not a whole .npz file ({error}). Was its copy or download interrupted? An .npz is "
                "written by numpy.savez."
            ) from error
        self.names = [n.removesuffix(".npy") for n in self._zip.namelist() if n.endswith(".npy")]

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._zip.close()

    def choose(self, target: str | None) -> list[tuple[str, str]]:
        """The names of x and t, and, where there is a test part, those of its x and t."""
        if target is not None and target not in self.names:
            raise DataError(f"{str(self.path)!r} has no array {target!r}. {self.inside()}")
        for part in ("train", ""):
            x, t = self._one(_FEATURES, part), target or self._one(_TARGETS, part)
            if x is None or t is None:
                continue
            x_test, t_test = (
                (self._one(_FEATURES, "test"), self._one(_TARGETS, "test")) if part and target is None else (None, None)
            )
            if x_test is not None and t_test is not None:
                return [(x, t), (x_test, t_test)]
            if x_test is not None or t_test is not None:
                raise DataError(
                    f"{str(self.path)!r} has {x_test or t_test!r}, but not the other half of the test. {self.inside()}"
                )
            return [(x, t)]
        raise DataError(
            f"{str(self.path)!r}: no features and targets found. Name the arrays x and t, X and y, data and target, "
            f"or x_train, y_train, x_test, y_test; or name the targets with target=. {self.inside()}"
        )

    def choose_features(self) -> str:
        """The name of the rows to predict: x, or else those for the test."""
        for part in ("", "test", "train"):
            name = self._one(_FEATURES, part)
            if name is not None:
                return name
        if len(self.names) == 1:
            return self.names[0]
        raise DataError(f"{str(self.path)!r}: no features found. Name the array x. {self.inside()}")

    def _one(self, stems: Iterable[str], part: str) -> str | None:
        """The one array that is named after one of the stems and the part; two of them are a question, not a choice."""
        wanted = {f"{s}_{part}" for s in stems} | {f"{part}_{s}" for s in stems} if part else set(stems)
        found = [n for n in self.names if n.lower() in wanted]
        if len(found) > 1:
            raise DataError(
                f"{str(self.path)!r}: {' and '.join(map(repr, found))} might be meant. Keep one of them, or name the "
                f"targets with target=. {self.inside()}"
            )
        return found[0] if found else None

    def read(self, name: str) -> np.ndarray:
        try:
            with self._zip.open(f"{name}.npy") as file:
                array: np.ndarray = npy.read_array(file, allow_pickle=False)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
            if "Object arrays" in str(error):
                raise DataError(
                    f"{str(self.path)!r}: array {name!r} holds Python objects, which are not read, because that may "
                    "run code. Save it with a dtype of numbers or text, as in x.astype('float32') or t.astype(str)."
                ) from error
            raise DataError(
                f"{str(self.path)!r}: array {name!r} is damaged ({error}). Was its copy or download interrupted?"
            ) from error
        return array

    def rows(self, name: str) -> np.ndarray:
        """An array of features."""
        x = self.read(name)
        where = f"{str(self.path)!r}: array {name!r}"
        if x.dtype.kind not in "biuf":
            raise DataError(f"{where} has dtype {x.dtype}; features are numbers.")
        if x.ndim == 0 or 0 in x.shape:
            raise DataError(f"{where} has shape {x.shape}; features are (N, D) with at least one row and one column.")
        return x

    def texts(self, names: Iterable[str]) -> tuple[str, ...]:
        """Names that lie beside the data, as in an archive made of scikit-learn's; () where there are none."""
        for name in (n for n in self.names if n.lower() in names):
            with contextlib.suppress(DataError):  # what is only decoration need not be readable
                values = self.read(name)
                if values.dtype.kind == "U" and values.ndim == 1:
                    return tuple(map(str, values))
        return ()

    def inside(self) -> str:
        """What the archive holds, for an error; only the headers are read."""
        return f"Inside: {', '.join(self._described()) or 'no arrays'}."

    def _described(self) -> Iterator[str]:
        for name in self.names:
            try:
                with self._zip.open(f"{name}.npy") as file:
                    version = npy.read_magic(file)
                    header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = header(file)
                yield f"{name} {shape} {dtype}"
            except (ValueError, EOFError, zipfile.BadZipFile, zlib.error):
                yield f"{name} (damaged)"
