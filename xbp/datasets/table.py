"""CSV files in one pass: cells become numbers as they are read, and only a handful of rows is ever held as text.

The first line names the columns. The delimiter is the one of comma, semicolon and tab that the first line has most of.
Every cell of a feature has to be a finite number; the error for one that is not says line, column and cell.
"""

from __future__ import annotations

import csv
import gzip
import math
import operator
import re
import zlib
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO

import numpy as np

from ..errors import DataError, unknown_name_text
from .assembly import Raw, emptied
from .dataset import Scaling
from .targets import MOST_CLASSES, few, label_classes

__all__ = ["Table", "TargetColumn", "read", "read_features"]

_CELLS = 1 << 15  # cells held as text at a time
_HEAD_LINES = 100  # a quotation mark in the first line that is still open after so many was never meant to be one
_INTEGER = re.compile(r"[+-]?\d+")

_Rows = list[list[str]]


def read(path: Path, target: str | None, task: str) -> Raw:
    """All columns but the target as features, to be standardised."""
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
    t, classes = column.finish()
    return Raw(path.name.partition(".")[0], emptied(blocks), len(features), t, classes, features)


def read_features(
    path: Path, features: tuple[str, ...], scaling: Scaling, target: str | None, dtype: str
) -> np.ndarray:
    with Table(path) as table:
        columns = features or tuple(c for c in table.columns if c != target)
        positions = [table.position(c) for c in columns]
        if not positions:
            raise DataError(f"{str(path)!r} has no column besides the target {target!r}: nothing to predict from.")
        return np.concatenate([scaling.apply(table.numbers(*chunk, positions), dtype) for chunk in table.chunks()])


class Table:
    """An open CSV file: its column names at once, its rows chunk by chunk. Packed files are told by content."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        opener: Callable[..., Any] = gzip.open if packed else open
        self._file: TextIO = opener(path, "rt", encoding="utf-8-sig", newline="")
        try:
            self.columns = self._read_columns()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Table:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._file.close()

    def _read_columns(self) -> list[str]:
        self._line, first = 0, list[str]()
        self._guarded(lambda: first.append(self._file.readline()))
        while "".join(first).count('"') % 2 and first[-1] and len(first) < _HEAD_LINES:  # a name with a line end in it
            self._guarded(lambda: first.append(self._file.readline()))
        delimiter = max(",;\t", key=re.sub(r'"[^"]*"', "", "".join(first)).count)
        lines = chain(first, self._file)
        self._reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
        rows: _Rows = []
        self._guarded(lambda: rows.append(next(self._reader, [])))
        columns = [c.strip() for c in rows[0]]
        if not any(columns):
            raise DataError(f"{str(self.path)!r} has nothing in its first line, which has to name the columns.")
        if "" in columns:
            raise DataError(
                f"{str(self.path)!r}: column {columns.index('') + 1} of {len(columns)} has no name. Name it in the "
                "first line, or remove it (pandas leaves its index out with index=False)."
            )
        numbers = [_number(c) for c in columns]
        if None not in numbers and numbers not in (list(range(len(columns))), list(range(1, len(columns) + 1))):
            raise DataError(
                f"{str(self.path)!r}: the first line has to name the columns, and holds only numbers: "
                f"{', '.join(columns[:6])}{', ...' if len(columns) > 6 else ''}. Put a line with names above it."
            )
        double = next((c for i, c in enumerate(columns) if c in columns[:i]), None)
        if double is not None:
            raise DataError(f"{str(self.path)!r}: two columns are named {double!r}. Give each column its own name.")
        return columns

    def _guarded(self, read: Callable[[], object]) -> None:
        """Run `read`, with every way in which a text file can be broken told as where and what."""
        where = repr(str(self.path))
        try:
            read()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{where} is not UTF-8 text (byte {error.object[error.start]:#04x}, after line {self._line}). Save it "
                "as UTF-8; spreadsheets call that 'CSV UTF-8'."
            ) from error
        except csv.Error as error:
            raise DataError(
                f"{where}, line {self._reader.line_num}: {error}. Is a quotation mark left open?"
            ) from error
        except EOFError as error:
            raise DataError(f"{where} is cut off: the packed data ends after line {self._line}.") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{where}: the packed data is damaged after line {self._line} ({error}).") from error

    def chunks(self) -> Iterator[tuple[_Rows, list[int]]]:
        """Rows, all as long as the header, with their line numbers. Rows without any content are passed over."""
        width = len(self.columns)
        most = max(1, _CELLS // width)
        rows: _Rows = []
        lines: list[int] = []

        def fill() -> None:
            for row in self._reader:
                if any(map(str.strip, row)):
                    rows.append(row)
                    lines.append(self._reader.line_num)
                    if len(rows) == most:
                        break

        while True:
            rows, lines = [], []
            self._guarded(fill)
            if not rows and not self._line:
                raise DataError(f"{str(self.path)!r} has no rows of data, only a line of column names.")
            if not rows:
                return
            self._line = lines[-1]
            for row, line in zip(rows, lines, strict=True):
                if len(row) != width:
                    raise DataError(
                        f"{str(self.path)!r}, line {line}: {len(row)} cell(s), and the first line names {width} "
                        "columns. A cell that holds the delimiter needs quotation marks."
                    )
            yield rows, lines

    def position(self, column: str) -> int:
        if column not in self.columns:
            raise DataError(f"{str(self.path)!r}: {unknown_name_text('column', column, self.columns)}")
        return self.columns.index(column)

    def numbers(self, rows: _Rows, lines: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """The cells of some columns as float64 (k, D)."""
        pick = operator.itemgetter(*positions) if len(positions) > 1 else lambda row: (row[positions[0]],)
        cells = map(float, chain.from_iterable(map(pick, rows)))
        try:
            block = np.fromiter(cells, np.float64, len(rows) * len(positions)).reshape(-1, len(positions))
        except ValueError:
            self._refuse(rows, lines, positions)
        if not np.isfinite(block).all():
            self._refuse(rows, lines, positions)
        return block

    def _refuse(self, rows: _Rows, lines: Sequence[int], positions: Sequence[int]) -> NoReturn:
        """The error for the first cell that is not a finite number."""
        line, p, cell = next(
            (line, p, row[p]) for row, line in zip(rows, lines, strict=True) for p in positions if not _finite(row[p])
        )
        if not cell.strip():
            what = "is empty. Fill it in, or remove the row or the column"
        elif re.fullmatch(r"\s*[+-]?\d*,\d+\s*", cell):
            what = "has a decimal comma. Write decimal points"
        elif _number(cell) is not None:
            what = "is not a finite number. Fill in a value, or remove the row or the column"
        else:
            what = "is not a number. Correct it, or remove the column or replace it by columns of numbers"
        raise DataError(f"{str(self.path)!r}, line {line}, column {self.columns[p]!r}: the cell {cell!r} {what}.")


class TargetColumn:
    """The targets of a table as they stream by, kept as numbers and as class codes for as long as both are possible."""

    def __init__(self, table: Table, column: str, task: str) -> None:
        self.table, self.task = table, task
        self.position = table.position(column)
        self.where = f"{str(table.path)!r}: target column {column!r}"
        self._codes: dict[str, int] | None = None if task == "regression" else {}
        self._indices = array("q")
        self._numbers: list[np.ndarray] | None = None if task == "classification" else []
        self._text = ""  # where and what the first cell was that is not a number

    def add(self, rows: _Rows, lines: Sequence[int]) -> None:
        cells = [row[self.position].strip() for row in rows]
        if "" in cells:
            raise DataError(
                f"{self.where}: the cell in line {lines[cells.index('')]} is empty. Fill it in, or remove the row."
            )
        if self._numbers is not None:
            text = next((i for i, c in enumerate(cells) if _number(c) is None), None)
            if text is None or self.task == "regression":
                self._numbers.append(self.table.numbers(rows, lines, [self.position])[:, 0])
            else:
                self._text = f"{cells[text]!r} in line {lines[text]}"
                if self._codes is None:
                    raise self._mixed()
                self._numbers = None
        if self._codes is not None:
            codes = self._codes
            self._indices.extend([codes.setdefault(c, len(codes)) for c in cells])
            if self._numbers is not None and len(codes) > MOST_CLASSES:
                self._codes, self._indices = None, array("q")  # numbers, and too many to be classes

    def finish(self) -> tuple[np.ndarray, tuple[str, ...]]:
        """(t, classes), as `targets.encode` has them."""
        codes, n = self._codes, len(self._indices)
        numeric = codes is not None and all(_number(c) is not None for c in codes)
        if codes is None or (
            self.task == "auto" and numeric and not (few(len(codes), n) and all(map(_INTEGER.fullmatch, codes)))
        ):
            numbers = np.concatenate(self._numbers or [np.empty(0)])
            return numbers[:, None], ()
        if self.task == "auto" and len(codes) > MOST_CLASSES and any(_number(c) is not None for c in codes):
            raise self._mixed()
        odd = next((c for c in codes if numeric and not float(c).is_integer()), None)
        if odd is not None:
            raise DataError(f"{self.where} holds {odd}, which is no class. Classes are whole numbers or text.")
        names = [(int(c) if _INTEGER.fullmatch(c) else int(float(c))) if numeric else c for c in codes]
        labels = sorted(set(names))  # all int or all str
        index = {name: k for k, name in enumerate(labels)}
        table = np.asarray([index[name] for name in names], np.int64)
        return table[np.frombuffer(self._indices, np.int64)], label_classes(labels, self.where)

    def _mixed(self) -> DataError:
        return DataError(
            f"{self.where} mixes numbers and text ({self._text}). Correct the cell; or say task='classification' if "
            "every value is a class."
        )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _finite(cell: str) -> bool:
    value = _number(cell)
    return value is not None and math.isfinite(value)
