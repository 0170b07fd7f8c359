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
        x_name, t_name, *test_names = archive.choose(target)
        x, t = _matching(archive, x_name, t_name)
        rest = [_matching(archive, *test_names)] if test_names else []
        class_names, columns = archive.texts(_CLASSES), archive.texts(_COLUMNS)
    for (x_test, t_test), (x_test_name, t_test_name) in zip(rest, [test_names], strict=False):
        for a, name, b, test_name in ((x, x_name, x_test, x_test_name), (t, t_name, t_test, t_test_name)):
            if a.shape[1:] != b.shape[1:] or a.dtype.kind != b.dtype.kind:
                raise DataError(
                    f"{str(path)!r}: {name} is {a.dtype} {a.shape}, and {test_name} is {b.dtype} {b.shape}; their rows "
                    "have to be alike."
                )
    values = np.concatenate([t, *(t_test for _, t_test in rest)])
    t, classes = encode(values, task, f"{str(path)!r}: array {t_name!r}")
    if class_names and all(c.isdecimal() and int(c) < len(class_names) for c in classes):
        classes = tuple(class_names[int(c)] for c in classes)
    blocks = chain(in_blocks(x), *(in_blocks(x_test) for x_test, _ in rest))
    width = math.prod(x.shape[1:])
    features = columns if len(columns) == width else ()
    scaling = Scaling(0.0, 1 / 255) if x.dtype == np.uint8 else Scaling()
    return Raw(path.stem, blocks, width, t, classes, features, scaling, len(x) if rest else None)


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

    def choose(self, target: str | None) -> tuple[str, ...]:
        """The names of x, t, and, where there is a test part, of x_test and t_test."""
        if target is not None and target not in self.names:
            raise DataError(f"{str(self.path)!r} has no array {target!r}. {self.inside()}")
        for part in ("train", ""):
            x, t = self._one(_FEATURES, part), target or self._one(_TARGETS, part)
            if x is None or t is None:
                continue
            test = (self._one(_FEATURES, "test"), self._one(_TARGETS, "test")) if part and target is None else ()
            names = [name for name in test if name]
            if len(names) == 1:
                raise DataError(
                    f"{str(self.path)!r} has {names[0]!r}, but not the other half of the test. {self.inside()}"
                )
            return (x, t, *names)
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
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
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
