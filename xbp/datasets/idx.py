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
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple

import numpy as np

from ..errors import DataError

__all__ = ["IdxFile", "Pair", "find"]

_FILE_NAMES = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte"

_NAME = re.compile(r"(?:.+[-_.])?(train|t10k|test)[-_](images|labels)[-.]idx\d[-.]ubyte(?:\.gz)?")
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BLOCK = 1 << 20  # bytes read at a time


class Pair(NamedTuple):
    """The two files of one part."""

    images: Path
    labels: Path


def find(folder: Path) -> tuple[Pair, Pair | None]:
    """The IDX files of a folder for training and, where there are such, for the test: MNIST's names, packed or not."""
    found: dict[tuple[str, str], Path] = {}
    names = sorted(p.name for p in folder.iterdir())
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            continue
        key = ("train" if match[1] == "train" else "test", match[2])
        other = found.setdefault(key, folder / name).name
        if other.removesuffix(".gz") != name.removesuffix(".gz"):
            raise DataError(
                f"Folder {str(folder)!r} has two files for the {key[0]} {key[1]}: {other}, {name}. "
                "Keep one of them, or put each data set into a folder of its own."
            )
    pairs: dict[str, Pair] = {}
    for part in ("train", "test"):
        files = {what: found[part, what] for what in ("images", "labels") if (part, what) in found}
        if len(files) == 2:
            pairs[part] = Pair(**files)
        elif files:
            (there,) = files.values()
            lacking = "labels" if "images" in files else "images"
            raise DataError(f"Folder {str(folder)!r} has {there.name}, but not the file with the {lacking} to it.")
    if "train" not in pairs:
        inside = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "") or "nothing"
        raise DataError(
            f"Folder {str(folder)!r} holds no IDX files to train on. They are named {_FILE_NAMES}, also with .gz; the "
            f"folder holds {inside}."
        )
    return pairs["train"], pairs.get("test")


class IdxFile:
    """An open IDX file: its shape and dtype at once, its values block by block. Packed files are told by content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw: IO[bytes] = path.open("rb")
        try:
            packed = self._raw.read(2) == b"\x1f\x8b"
            self._raw.seek(0)
            self._file: IO[bytes] = gzip.GzipFile(fileobj=self._raw) if packed else self._raw
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
        magic = self._read(4, 0)
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _TYPES or magic[3] == 0:
            raise DataError(
                f"{str(self.path)!r} is not an IDX file: it starts with the bytes {magic.hex(' ') or '(none)'} instead "
                "of 00 00, a type (08 for bytes) and a rank. Was a web page saved in its place?"
            )
        self.dtype = np.dtype(_TYPES[magic[2]])
        self.head = 4 + 4 * magic[3]
        lengths = self._read(4 * magic[3], 4)
        if len(lengths) < 4 * magic[3]:
            raise DataError(f"{str(self.path)!r} is cut off: it ends inside its header of {self.head} bytes.")
        self.shape: tuple[int, ...] = struct.unpack(f">{magic[3]}I", lengths)

    def _read(self, count: int, done: int) -> bytes:
        """Up to `count` bytes, fewer at the end; `done` is what was read before, for the error.

        Piece by piece: a damaged header may announce more than memory holds, and the file's end shall be met first.
        """
        pieces: list[bytes] = []
        try:
            while count and (piece := self._file.read(min(count, _BLOCK))):
                pieces.append(piece)
                count -= len(piece)
        except EOFError:
            raise self._wrong_length(done + sum(map(len, pieces)), about="about ") from None
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{str(self.path)!r}: the packed data is damaged ({error}). Take an undamaged copy."
            ) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _wrong_length(self, found: int, about: str = "") -> DataError:
        where = repr(str(self.path))
        if not hasattr(self, "total"):
            return DataError(f"{where} is cut off inside its header. Was its copy or download interrupted?")
        if found < self.total:
            return DataError(
                f"{where} is cut off: its header {list(self.shape)} announces {self.total:,} bytes, {about}{found:,} "
                "are there. Was its copy or download interrupted?"
            )
        return DataError(
            f"{where}: {found - self.total:,} bytes follow behind the {self.total:,} that its header "
            f"{list(self.shape)} announces. The file is damaged, or its header is that of another."
        )

    def blocks(self) -> Iterator[np.ndarray]:
        """All values once, as arrays (k, ...) of some rows each; after the last, the file has ended where it should."""
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        step = max(1, _BLOCK // max(1, row))
        done = self.head
        for start in range(0, self.shape[0], step):
            rows = min(step, self.shape[0] - start)
            data = self._read(rows * row, done)
            done += len(data)
            if len(data) < rows * row:
                raise self._wrong_length(done)
            yield np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])
        while data := self._read(_BLOCK, done):
            done += len(data)
        if done != self.total:
            raise self._wrong_length(done)

    def values(self) -> np.ndarray:
        """All values as one array."""
        blocks = list(self.blocks())
        return np.concatenate(blocks) if blocks else np.empty(self.shape, self.dtype)
