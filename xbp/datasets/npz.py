"""NumPy's `.npz` archives: which arrays in one are the features, and which the targets.

People name them in a dozen ways; the usual ones are known, and where none fits the error lists what is inside. Arrays
of Python objects are refused, because reading them would run code that the file brings.
"""

from __future__ import annotations

import contextlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.lib import format as npy

from ..errors import DataError

__all__ = ["Archive"]

_FEATURES = ("x", "data", "images", "features", "inputs", "input")
_TARGETS = ("t", "y", "target", "targets", "labels", "label")
_CLASSES = ("classes", "class_names", "target_names")
_COLUMNS = ("feature_names", "columns")


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

    def choose(self, target: str | None) -> tuple[str, str, str | None, str | None]:
        """The names of x, t, x_test, t_test; the last two are None where the archive has one part only."""
        if target is not None and target not in self.names:
            raise DataError(f"{str(self.path)!r} has no array {target!r}. {self.inside()}")
        for train, test in (("train", "test"), ("", "")):
            x = self._one(_FEATURES, train)
            t = target or self._one(_TARGETS, train)
            if x is not None and t is not None:
                x_test, t_test = (self._one(_FEATURES, test), self._one(_TARGETS, test)) if test else (None, None)
                if (x_test is None) != (t_test is None):
                    raise DataError(f"{str(self.path)!r} has half a test part: {x_test or t_test!r}. {self.inside()}")
                return x, t, x_test, t_test
        raise DataError(
            f"{str(self.path)!r}: no features and targets found. Name the arrays x and t, X and y, data and target, "
            f"or x_train, y_train, x_test, y_test; or name the targets with target=. {self.inside()}"
        )

    def features(self) -> str:
        """The name of the rows to predict: x, or the test part where there is no plain x."""
        for part in ("", "test", "train"):
            name = self._one(_FEATURES, part)
            if name is not None:
                return name
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

    def class_names(self) -> tuple[str, ...]:
        """Names of classes that lie beside the data, as in an archive made of scikit-learn's."""
        return self._texts(_CLASSES)

    def column_names(self) -> tuple[str, ...]:
        return self._texts(_COLUMNS)

    def _texts(self, names: Iterable[str]) -> tuple[str, ...]:
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
