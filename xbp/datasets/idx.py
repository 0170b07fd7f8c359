"""IDX files, the format of MNIST and its relatives, read as a stream: the pictures are never held as bytes as a whole.

Layout, big-endian: two zero bytes, a byte for the type, a byte for the rank, the lengths as uint32, the values.
Source: Y. LeCun, C. Cortes, C. J. C. Burges, "The MNIST database of handwritten digits", section on file formats.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

import numpy as np

from ..errors import DataError
from .assembly import Raw, place
from .dataset import Scaling
from .targets import encode

__all__ = ["IdxFile", "read", "read_features"]

_FILE_NAMES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"

_NAME = re.compile(r"(?:.+[-_.])?(train|t10k|test)[-_](images|labels)[-.]idx\d[-.]ubyte(?:\.gz)?")
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BLOCK = 1 << 18  # bytes read at a time
_BYTES = Scaling(0.0, 1 / 255)


def read(folder: Path, task: str) -> Raw:
    """The images and labels of a folder, by MNIST's names; without a t10k part all rows are for training."""
    files = _find(folder)
    for part in ("train", "t10k"):
        there = {what for p, what in files if p == part}
        if len(there) == 1:
            lacking = "labels" if "images" in there else "images"
            name = files[part, there.pop()].name
            raise DataError(f"Folder {str(folder)!r} has {name}, but not the file with the {lacking} to it.")
    if ("train", "images") not in files:
        raise _nothing_in(folder)
    parts = [part for part in ("train", "t10k") if (part, "images") in files]
    paths = [files[part, "images"] for part in parts]
    labels = [_labels(files[part, "labels"]) for part in parts]
    kinds = []
    for part, path, t in zip(parts, paths, labels, strict=True):
        n, shape, dtype = _images(path)
        kinds.append((shape, dtype))
        if n != len(t):
            name = files[part, "labels"].name
            raise DataError(
                f"{str(path)!r} has {n:,} images, and {name} has {len(t):,} labels. They do not belong together."
            )
    if kinds[0] != kinds[-1]:
        raise DataError(
            f"{str(folder)!r}: the images of {paths[0].name} and of {paths[-1].name} differ in size or type."
        )
    where = f"{str(folder)!r}: the column of labels"
    t, classes = encode(np.concatenate(labels), "classification" if task == "auto" else task, where)
    scaling, n_train = _BYTES if dtype == np.uint8 else Scaling(), len(labels[0]) if len(parts) == 2 else None
    return Raw(folder.name, _stream(paths), math.prod(shape), t, classes, (), scaling, n_train)


def read_features(path: Path, scaling: Scaling, dtype: str) -> np.ndarray:
    """The images of one file, or of a folder: those for the test, or else those for training."""
    if path.is_dir():
        files = _find(path)
        images = files.get(("t10k", "images")) or files.get(("train", "images"))
        if images is None:
            raise _nothing_in(path)
        path = images
    n, shape, _ = _images(path)
    return place(_stream([path]), np.zeros(n, bool), math.prod(shape), scaling, dtype)[0]


def _find(folder: Path) -> dict[tuple[str, str], Path]:
    """{("train" or "t10k", "images" or "labels"): path}; of a file and its packed twin, the unpacked one."""
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if match is None:
            continue
        key = ("train" if match[1] == "train" else "t10k", match[2])
        other = found.setdefault(key, path).name
        if other.removesuffix(".gz") != path.name.removesuffix(".gz"):
            raise DataError(
                f"Folder {str(folder)!r} has two files for the {key[0]} {key[1]}: {other}, {path.name}. "
                "Keep one of them, or put each data set into a folder of its own."
            )
    return found


def _nothing_in(folder: Path) -> DataError:
    names = sorted(p.name for p in folder.iterdir())
    inside = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "nothing"
    return DataError(
        f"Folder {str(folder)!r} has no IDX files to train on. They are named {_FILE_NAMES}, also with .gz; the folder "
        f"has {inside}."
    )


def _labels(path: Path) -> np.ndarray:
    with IdxFile(path) as file:
        if len(file.shape) != 1 or file.dtype.kind not in "iu":
            raise DataError(
                f"{str(path)!r} has {file.dtype.name} of shape {file.shape}; labels are whole numbers (N,). "
                "Are images and labels swapped?"
            )
        return np.concatenate([np.empty(0, file.dtype), *file.blocks()])


def _images(path: Path) -> tuple[int, tuple[int, ...], np.dtype[np.generic]]:
    """How many images a file has, and of what shape and dtype; of the values nothing is read."""
    with IdxFile(path) as file:
        n, *shape = file.shape
        if not shape or 0 in file.shape:
            raise DataError(
                f"{str(path)!r} has shape {file.shape}; images are (N, height, width), one or more. Are images and "
                "labels swapped?"
            )
        return n, tuple(shape), file.dtype


def _stream(paths: Iterable[Path]) -> Iterator[np.ndarray]:
    for path in paths:
        with IdxFile(path) as file:
            yield from file.blocks()


class IdxFile:
    """An open IDX file: its shape and dtype at once, its values block by block. Packed files are told by content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._broken_off = False  # whether the packed data ended before its own end mark
        self._raw = path.open("rb")
        try:
            packed = self._raw.read(2) == b"\x1f\x8b"
            self._raw.seek(0)
            self._file = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
            self._read_head()
            self.total = self.head + math.prod(self.shape) * self.dtype.itemsize
            size = os.fstat(self._raw.fileno()).st_size
            if not packed and size != self.total:
                raise self._wrong_length(size)
        except BaseException:
            self._raw.close()
            raise

    def __enter__(self) -> IdxFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._raw.close()

    def _read_head(self) -> None:
        magic = self._read(4)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] == 0:
            raise DataError(
                f"{str(self.path)!r} is not an IDX file: it starts with the bytes {magic.hex(' ') or '(none)'} instead "
                "of 00 00, a type (08 for bytes) and a rank. Was a web page saved in its place?"
            )
        self.dtype = np.dtype(_TYPES[magic[2]])
        self.head = 4 + 4 * magic[3]
        lengths = self._read(4 * magic[3])
        if len(lengths) < 4 * magic[3]:
            raise DataError(f"{str(self.path)!r} is cut off: it ends inside its header of {self.head} bytes.")
        self.shape: tuple[int, ...] = struct.unpack(f">{magic[3]}I", lengths)

    def _read(self, count: int) -> bytes:
        """Up to `count` bytes, fewer where the file ends.

        Piece by piece: a damaged header may announce more than memory holds, and the file's end shall be met first.
        """
        pieces: list[bytes] = []
        try:
            while count and (piece := self._file.read1(min(count, _BLOCK))):
                pieces.append(piece)
                count -= len(piece)
        except EOFError:
            self._broken_off = True
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{str(self.path)!r}: the packed data is damaged ({error}). Take an undamaged copy."
            ) from error
        return b"".join(pieces)

    def _wrong_length(self, found: int) -> DataError:
        where = f"{str(self.path)!r}: its header {list(self.shape)} announces {self.total:,} bytes"
        if found > self.total:
            return DataError(f"{where}, and {found - self.total:,} more follow. The file or its header is damaged.")
        return DataError(f"{where}, and {found:,} are there. It is cut off: was its copy or download interrupted?")

    def blocks(self) -> Iterator[np.ndarray]:
        """All values once, as arrays (k, ...) of some rows each; after the last, the file has ended where it should."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _BLOCK // max(1, row))
        done = self.head
        for start in range(0, self.shape[0], step):
            rows = min(step, self.shape[0] - start)
            data = self._read(rows * row)
            done += len(data)
            if len(data) < rows * row:
                raise self._wrong_length(done)
            yield np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])
        while data := self._read(_BLOCK):
            done += len(data)
        if done != self.total:
            raise self._wrong_length(done)
        if self._broken_off:
            raise DataError(f"{str(self.path)!r} is cut off: the check sum behind the packed data is missing.")
