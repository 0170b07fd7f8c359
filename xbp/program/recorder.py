"""A namespace that computes nothing: it knows shapes and dtypes, and notes every operation.

What runs here looks at no value of an array, writes into none, and uses nothing beside `xbp.typing.Namespace`; so it
can be recorded once and replayed on a device. Whether a formula depends on the batch size shows in the text: it is the
same at any two sizes, except where somebody computed with `x.shape[0]`.

    recorder = Recorder(batch=5)
    x, W = recorder.input("x", ("N", 3)), recorder.input("W", (3, 2))
    y = recorder.xp.matmul(x, W)
    print(recorder.text(y))
"""

from __future__ import annotations

from typing import Any, NoReturn

from ..errors import DTypeError, RecordingError, ShapeError
from . import shapes
from .records import (
    ALL,
    DEVICE,
    FLOATING,
    NUMERIC,
    Record,
    RecordedArray,
    as_scalar,
    promoted,
)
from .shapes import Axis, Shape
from .values import DTYPES, RecordedDType

__all__ = ["Recorder", "RecordingNamespace"]

# What `isdtype` calls the dtypes of each kind.
GROUPS = {
    "bool": {"bool"},
    "integral": {"integral", "signed integer", "numeric"},
    "real floating": {"real floating", "numeric"},
}

bool_ = bool  # `RecordingNamespace.bool` shadows the built-in inside the class body


class Recorder(Record):
    """Notes what is computed with `xp` on its inputs; `text` is the record, to read and to compare.

    batch     the number that N stands for while recording
    xp        the namespace to compute with, `xbp.typing.Namespace` and nothing else
    device    of all its arrays
    """

    def __init__(self, batch: int = 1) -> None:
        super().__init__(batch)
        self.device = DEVICE
        self.xp = RecordingNamespace(self)


class RecordingNamespace:
    """Exactly the functions and dtypes of `xbp.typing.Namespace`."""

    float32 = DTYPES["float32"]
    float64 = DTYPES["float64"]
    int32 = DTYPES["int32"]
    int64 = DTYPES["int64"]
    bool = DTYPES["bool"]

    def __init__(self, record: Record) -> None:
        self._record = record
        self.__name__ = "recorder"

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"xp.{name} is not in xbp.typing.Namespace, which is all that a backend has to have. Use what is there."
        )

    # elementwise

    def abs(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("abs", x)

    def exp(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("exp", x)

    def expm1(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("expm1", x)

    def isfinite(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("isfinite", x)

    def log(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("log", x)

    def log1p(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("log1p", x)

    def maximum(self, a: RecordedArray, b: RecordedArray | float, /) -> RecordedArray:
        return self._record.elementwise("maximum", a, b)

    def minimum(self, a: RecordedArray, b: RecordedArray | float, /) -> RecordedArray:
        return self._record.elementwise("minimum", a, b)

    def sign(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("sign", x)

    def sqrt(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("sqrt", x)

    def tanh(self, x: RecordedArray, /) -> RecordedArray:
        return self._record.elementwise("tanh", x)

    def where(self, condition: RecordedArray, a: RecordedArray | float, b: RecordedArray | float, /) -> RecordedArray:
        arrays = [x for x in (a, b) if isinstance(x, RecordedArray)]
        self._record.check("where", condition)
        if condition.dtype.kind != "bool":
            raise DTypeError(f"where chooses by a bool array, not {condition.dtype}; compare, for example x > 0.")
        if not arrays:
            raise DTypeError("where takes one Python number at most: two of them have no dtype.")
        self._record.check("where", *arrays)
        dtype = promoted([x.dtype for x in arrays])
        values = [x if isinstance(x, RecordedArray) else as_scalar(x, dtype) for x in (a, b)]
        shape = shapes.broadcast(condition.shape, *(x.shape for x in arrays))
        return self._record.note("where", (condition, *values), shape, dtype)

    # products and reductions

    def matmul(self, a: RecordedArray, b: RecordedArray, /) -> RecordedArray:
        self._record.check("matmul", a, b)
        _require("matmul", a, NUMERIC)
        return self._record.note("matmul", (a, b), shapes.matmul(a.shape, b.shape), promoted([a.dtype, b.dtype]))

    def argmax(self, x: RecordedArray, /, *, axis: int | None = None) -> RecordedArray:
        return self._reduce("argmax", x, axis, False, NUMERIC, self.int64)

    def all(self, x: RecordedArray, /, *, axis: Axis = None) -> RecordedArray:
        return self._reduce("all", x, axis, False, ALL, self.bool)

    def max(self, x: RecordedArray, /, *, axis: Axis = None, keepdims: bool_ = False) -> RecordedArray:
        return self._reduce("max", x, axis, keepdims, NUMERIC)

    def mean(self, x: RecordedArray, /, *, axis: Axis = None, keepdims: bool_ = False) -> RecordedArray:
        return self._reduce("mean", x, axis, keepdims, FLOATING)

    def min(self, x: RecordedArray, /, *, axis: Axis = None, keepdims: bool_ = False) -> RecordedArray:
        return self._reduce("min", x, axis, keepdims, NUMERIC)

    def sum(
        self,
        x: RecordedArray,
        /,
        *,
        axis: Axis = None,
        dtype: RecordedDType | None = None,
        keepdims: bool_ = False,
    ) -> RecordedArray:
        self._record.check("sum", x)
        given = {} if dtype is None else {"dtype": dtype}
        if dtype is None:
            # A sum of integers has the default integer dtype, which here is int64, as on most libraries.
            dtype = self.int64 if x.dtype.kind == "integral" else x.dtype
        elif _as_dtype(dtype).kind != x.dtype.kind:
            raise DTypeError(f"sum of {x.dtype} as {dtype}: cast with xp.astype first.")
        return self._reduce("sum", x, axis, keepdims, NUMERIC, dtype, **given)

    def _reduce(
        self,
        function: str,
        x: RecordedArray,
        axis: Axis,
        keepdims: bool_,
        kinds: frozenset[str],
        answer: RecordedDType | None = None,
        **options: Any,
    ) -> RecordedArray:
        self._record.check(function, x)
        _require(function, x, kinds)
        if function in ("argmax", "max", "min") and any(x.shape[i] == 0 for i in shapes.reduced_axes(x.shape, axis)):
            raise ShapeError(f"{function} of nothing has no value: shape {x.shape}, axis={axis}.")
        shape = shapes.reduced(x.shape, axis, keepdims)
        return self._record.note(function, (x,), shape, answer or x.dtype, axis=axis, keepdims=keepdims, **options)

    # shape and selection

    def broadcast_to(self, x: RecordedArray, /, shape: Shape) -> RecordedArray:
        self._record.check("broadcast_to", x)
        shape = shapes.broadcast_to(x.shape, shapes.as_shape(shape))
        return self._record.note("broadcast_to", (x,), shape, x.dtype, shape=shape)

    def concat(self, arrays: list[RecordedArray] | tuple[RecordedArray, ...], /, *, axis: int = 0) -> RecordedArray:
        self._record.check("concat", *arrays)
        shape = shapes.concatenated([x.shape for x in arrays], axis)
        return self._record.note("concat", arrays, shape, promoted([x.dtype for x in arrays]), axis=axis)

    def matrix_transpose(self, x: RecordedArray, /) -> RecordedArray:
        self._record.check("matrix_transpose", x)
        if x.ndim < 2:
            raise ShapeError(f"matrix_transpose takes arrays of two dimensions or more; the shape is {x.shape}.")
        shape = (*x.shape[:-2], x.shape[-1], x.shape[-2])
        return self._record.note("matrix_transpose", (x,), shape, x.dtype)

    def reshape(self, x: RecordedArray, /, shape: Shape) -> RecordedArray:
        self._record.check("reshape", x)
        shape = shapes.reshaped(x.shape, shapes.as_shape(shape))
        return self._record.note("reshape", (x,), shape, x.dtype, shape=shape)

    def stack(self, arrays: list[RecordedArray] | tuple[RecordedArray, ...], /, *, axis: int = 0) -> RecordedArray:
        self._record.check("stack", *arrays)
        shape = shapes.stacked([x.shape for x in arrays], axis)
        return self._record.note("stack", arrays, shape, promoted([x.dtype for x in arrays]), axis=axis)

    def take(self, x: RecordedArray, indices: RecordedArray, /, *, axis: int) -> RecordedArray:
        self._record.check("take", x, indices)
        _require("take, for its indices,", indices, frozenset({"integral"}))
        if indices.ndim != 1:
            raise ShapeError(f"take chooses by a 1-d array of numbers; the shape of its indices is {indices.shape}.")
        at = shapes.as_axis(axis, x.ndim)
        shape = (*x.shape[:at], *indices.shape, *x.shape[at + 1 :])
        return self._record.note("take", (x, indices), shape, x.dtype, axis=axis)

    # creation and dtypes

    def arange(self, n: int, /, *, dtype: RecordedDType, device: Any) -> RecordedArray:
        _check_device("arange", device)
        if _as_dtype(dtype).kind not in NUMERIC:
            raise DTypeError(f"arange counts in numbers, not in {dtype}.")
        (length,) = shapes.as_shape((n,))
        return self._record.note("arange", (), (max(length, 0),), dtype, n=length, dtype=dtype)

    def asarray(
        self,
        x: Any,
        /,
        *,
        dtype: RecordedDType | None = None,
        device: Any = None,
        copy: bool_ | None = None,
    ) -> RecordedArray:
        if isinstance(x, RecordedArray):
            self._record.check("asarray", x)
            if dtype not in (None, x.dtype) or device not in (None, DEVICE):
                raise DTypeError(
                    "asarray of an array changes neither its dtype, which is astype's work, nor its device."
                )
            return self._record.note("asarray", (x,), x.shape, x.dtype, copy=copy)
        _check_device("asarray", device)
        return self._record.note("asarray", (), _constant_shape(x, _as_dtype(dtype)), _as_dtype(dtype), value=x)

    def astype(self, x: RecordedArray, dtype: RecordedDType, /) -> RecordedArray:
        self._record.check("astype", x)
        return self._record.note("astype", (x,), x.shape, _as_dtype(dtype), dtype=dtype)

    def full(self, shape: Shape, value: float, *, dtype: RecordedDType, device: Any) -> RecordedArray:
        _check_device("full", device)
        value = as_scalar(value, _as_dtype(dtype))
        return self._record.note("full", (), shapes.as_shape(shape), dtype, shape=shape, value=value, dtype=dtype)

    def isdtype(self, dtype: RecordedDType, kind: str | tuple[str, ...]) -> bool_:
        return not GROUPS[_as_dtype(dtype).kind].isdisjoint(kind if isinstance(kind, tuple) else (kind,))

    def ones_like(self, x: RecordedArray, /) -> RecordedArray:
        self._record.check("ones_like", x)
        return self._record.note("ones_like", (x,), x.shape, x.dtype)

    def zeros(self, shape: Shape, *, dtype: RecordedDType, device: Any) -> RecordedArray:
        _check_device("zeros", device)
        return self._record.note("zeros", (), shapes.as_shape(shape), _as_dtype(dtype), shape=shape, dtype=dtype)

    def zeros_like(self, x: RecordedArray, /) -> RecordedArray:
        self._record.check("zeros_like", x)
        return self._record.note("zeros_like", (x,), x.shape, x.dtype)


def _require(function: str, x: RecordedArray, kinds: frozenset[str]) -> None:
    if x.dtype.kind not in kinds:
        raise DTypeError(f"{function} takes {' or '.join(sorted(kinds))} arrays, not {x.dtype}.")


def _as_dtype(dtype: object) -> RecordedDType:
    if not isinstance(dtype, RecordedDType):
        raise DTypeError(f"{dtype!r} is no dtype of the recording; take x.dtype, or xp.float32 and its like.")
    return dtype


def _check_device(function: str, device: object) -> None:
    if device is not DEVICE:
        raise RecordingError(
            f"{function} was given device={device!r}. Every array is created on the device of the others: "
            "device=device_of(x)."
        )


def _constant_shape(value: Any, dtype: RecordedDType) -> Shape:
    """The shape of a constant made of Python numbers and lists of lists of them."""
    if not isinstance(value, list | tuple):
        as_scalar(value, dtype)
        return ()
    inner = {_constant_shape(v, dtype) for v in value}
    if len(inner) > 1:
        raise ShapeError(f"The rows of the constant {value!r} are of several lengths.")
    return (len(value), *(inner.pop() if inner else ()))
