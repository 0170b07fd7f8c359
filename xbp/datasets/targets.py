"""Targets: whether they are classes or numbers, and which class is which index.

The rule of task="auto", the same for every source. Text and truth values are classes. Whole numbers, that is integer
arrays, or cells without point or exponent, are classes where there are at most 20 different ones and on average
two rows or more of each. Rows with a single 1 among zeros (one-hot) are classes. Everything else is numbers.
"""

from __future__ import annotations

import numpy as np

from ..errors import DataError, unknown_name

__all__ = ["MOST_CLASSES", "TASKS", "check_task", "encode", "few", "label_classes"]

TASKS = ("auto", "classification", "regression")
MOST_CLASSES = 20


def check_task(task: str) -> None:
    if task not in TASKS:
        raise unknown_name("task", task, TASKS)


def few(distinct: int, rows: int) -> bool:
    """Whether so many different whole numbers are taken for classes where the user has not said."""
    return distinct <= MOST_CLASSES and 2 * distinct <= rows


def encode(values: np.ndarray, task: str, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """(t, classes) from the raw targets of all rows: int64 indices (N,), or numbers (N, K) and ()."""
    kind = values.dtype.kind
    if kind not in "biufUS":
        raise DataError(f"{where} has dtype {values.dtype}. Targets are numbers, truth values or text.")
    if values.ndim == 0 or values.ndim > 2 or values.size == 0:
        raise DataError(f"{where} has shape {values.shape}. Targets are (N,) or (N, K), with at least one row.")
    one_hot = kind in "biuf" and values.ndim == 2 and values.shape[1] > 1 and _is_one_hot(values)
    flat = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if task == "auto":
        whole = flat.ndim == 1 and kind in "iu" and few(len(np.unique(flat)), len(flat))
        task = "classification" if kind in "bUS" or whole or one_hot else "regression"
    if task == "regression":
        if kind in "US":
            raise DataError(f"{where} holds text, such as {str(values.flat[0])!r}; regression needs numbers.")
        return values.reshape(len(values), -1), ()
    if one_hot:
        return np.argmax(values, axis=1).astype(np.int64), label_classes(range(values.shape[1]), where)
    if flat.ndim != 1:
        raise DataError(f"{where} has shape {values.shape}; classes are one column (N,), or one-hot rows (N, C).")
    if kind == "f" and not np.all(flat == np.floor(flat)):  # also refuses NaN
        odd = flat[flat != np.floor(flat)][0]
        raise DataError(f"{where} holds {odd!s}, which is no class. Classes are whole numbers or text.")
    labels, t = np.unique(flat, return_inverse=True)
    if kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    return t.astype(np.int64), label_classes((int(v) if kind in "iuf" else v for v in labels), where)


def label_classes(labels: object, where: str) -> tuple[str, ...]:
    """The names of the classes; a single class is refused, as there would be nothing to tell apart."""
    classes = tuple(str(label) for label in labels)  # type: ignore[attr-defined]
    if len(classes) == 1:
        raise DataError(f"{where} is {classes[0]!r} in every row. A classifier needs two classes or more.")
    return classes


def _is_one_hot(values: np.ndarray) -> bool:
    ones = values == 1
    return bool(np.all(ones | (values == 0)) and np.all(np.count_nonzero(ones, axis=1) == 1))
