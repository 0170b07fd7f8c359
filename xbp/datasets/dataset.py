"""What every source of data becomes: arrays to train on, arrays held out, and how they were scaled.

The scaling is kept as plain numbers, because a model is worth nothing on new data that was not treated in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError

__all__ = ["Dataset", "Scaling", "float_dtype"]

_ROWS = 1 << 17  # values scaled at a time, so that no intermediate grows with the data


@dataclass(frozen=True)
class Scaling:
    """y = (x - offset) * factor, with one pair of numbers for all columns or one for each of the D columns."""

    offset: float | tuple[float, ...] = 0.0
    factor: float | tuple[float, ...] = 1.0

    def __post_init__(self) -> None:
        for name in ("offset", "factor"):
            value = np.asarray(getattr(self, name), np.float64)
            if value.ndim > 1:
                raise ShapeError(
                    f"Scaling takes a number or one number a column, not an {name} of shape {value.shape}."
                )
            object.__setattr__(self, name, value.item() if value.ndim == 0 else tuple(value.tolist()))
        widths = {len(v) for v in (self.offset, self.factor) if isinstance(v, tuple)}
        if len(widths) > 1:
            raise ShapeError(f"Scaling got offset and factor for different numbers of columns: {sorted(widths)}.")

    @property
    def width(self) -> int | None:
        """D, where the columns have their own numbers."""
        return next((len(v) for v in (self.offset, self.factor) if isinstance(v, tuple)), None)

    def apply(self, x: np.ndarray, dtype: str = "float32") -> np.ndarray:
        """`x` (N, ...) as a new array (N, D) of `dtype`, scaled.

        Bytes go straight to `dtype`; float64 and wide integers are scaled in float64 and rounded once, so that a
        large offset (a year, a time stamp) costs no digits.
        """
        out_dtype = float_dtype(dtype)
        if not (np.issubdtype(x.dtype, np.floating) or np.issubdtype(x.dtype, np.integer) or x.dtype == np.bool_):
            raise DTypeError(f"Scaling takes numbers, not an array of dtype {x.dtype}.")
        if x.ndim == 0:
            raise ShapeError("Scaling takes rows: an array (N, ...), not a single number.")
        width = math.prod(x.shape[1:])
        if self.width not in (None, width):
            raise ShapeError(f"The scaling is made for {self.width} columns, and the data has {width}.")
        x = x.reshape(len(x), width)
        work = np.result_type(x.dtype, out_dtype)
        offset, factor = np.asarray(self.offset, work), np.asarray(self.factor, work)
        out = np.empty(x.shape, out_dtype)
        step = max(1, _ROWS // max(1, width))
        for i in range(0, len(x), step):
            rows = np.subtract(x[i : i + step], offset, dtype=work)
            with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which `fit` refuses by row and column
                np.multiply(rows, factor, out=out[i : i + step], casting="same_kind")
        return out

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists, for a model's header."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in (("offset", self.offset), ("factor", self.factor))
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Scaling:
        return cls(value["offset"], value["factor"])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Data ready for training. Shapes: x (N, D); t (N,) for classes, (N, K) for numbers.

    classes     the names of the classes, in the order of their indices in t; () for regression
    features    the names of the columns of x; () where the source has none
    scaling     how x was made of the raw values
    """

    name: str
    x: np.ndarray  # (N, D) float32 or float64
    t: np.ndarray  # (N,) int64, indices into `classes`; or (N, K) of x's dtype
    x_test: np.ndarray  # (M, D), rows that are not in x
    t_test: np.ndarray  # (M,) or (M, K)
    classes: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    scaling: Scaling = Scaling()

    @property
    def task(self) -> str:
        """ "classification" or "regression"."""
        return "classification" if self.classes else "regression"

    def __repr__(self) -> str:
        kind = f"{len(self.classes)} classes" if self.classes else f"{self.t.shape[1]} targets"
        return f"Dataset({self.name!r}, x {self.x.shape}, x_test {self.x_test.shape}, {self.x.dtype}, {kind})"


def float_dtype(name: str) -> np.dtype[Any]:
    """The dtype of that name, if networks compute in it."""
    if name not in ("float32", "float64"):
        raise DTypeError(f"dtype={name!r}: data can be float32 or float64.")
    return np.dtype(name)
