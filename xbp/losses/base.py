"""What a loss is: a kernel with its options, and the rules for the targets that it takes.

Targets come in several forms (labels, one-hot rows, columns of numbers). `prepare` brings them to the one form that the
kernel computes with, from shapes and dtypes alone; `check_values` reads them, once, before training starts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from array_api_compat import array_namespace, is_array_api_obj

from ..backend import Backend
from ..errors import DataError, DTypeError, LabelError, ShapeError
from ..typing import Array, Namespace, Scalar, device_of

__all__ = ["Loss", "all_true", "first_refused"]


@dataclass(frozen=True)
class Loss:
    """Base of all losses. One of your own is a frozen dataclass with a `kernel`, or with `forward` and `backward`.

    kernel     a module with forward(y, t, w, *, xp, **options) -> (loss, cache) and backward(dloss, cache, ...)
    metrics    names of the metrics that `Trainer` reports with this loss in any case
    """

    kernel: ClassVar[Any]
    metrics: ClassVar[tuple[str, ...]] = ()

    def options(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def forward(self, y: Array, t: Array, w: Array | None, *, xp: Namespace) -> tuple[Array, Any]:
        """(loss (), cache) from scores y (N, K), prepared targets and weights (N,) or None."""
        loss, cache = self.kernel.forward(y, t, w, **self.options(), xp=xp)
        return loss, cache

    def backward(self, dloss: Scalar, cache: Any, *, xp: Namespace) -> Array:
        """dy (N, K), given the gradient with respect to the loss itself (1 unless losses are summed or scaled)."""
        dy: Array = self.kernel.backward(dloss, cache, **self.options(), xp=xp)
        return dy

    def value_and_grad(self, y: Array, t: Array, sample_weight: Array | None = None) -> tuple[Array, Array]:
        """(loss (), dy like y), from arrays of one library; shapes and label range are checked.

        Raises `ShapeError`, `DTypeError`, `LabelError` as `fit` does.
        """
        known: bool = is_array_api_obj(y)  # kept apart: as a guard it would hide that y is an Array
        if not known:
            raise DTypeError(f"y must be an array of an Array API library; it is a {type(y).__name__}.")
        xp: Namespace = array_namespace(y)
        if not xp.isdtype(y.dtype, "real floating"):
            raise DTypeError(
                f"y must be floating scores, so that they have a gradient; it is {y.dtype}. Convert it (astype)."
            )
        if y.ndim != 2:
            raise ShapeError(f"y must be (N, K), N rows of K scores; its shape is {tuple(y.shape)}.")
        t = self.prepare(_beside("t", t, y, xp), tuple(y.shape), y.dtype, xp=xp)
        self.check_values(t, int(y.shape[1]), xp=xp)
        w = sample_weight
        if w is not None:
            w = xp.astype(_beside("sample_weight", w, y, xp), y.dtype)
            if tuple(w.shape) != (y.shape[0],):
                raise ShapeError(
                    f"sample_weight must have shape ({y.shape[0]},), one number a row; it is {tuple(w.shape)}."
                )
            if not all_true(xp.isfinite(w) & (w >= 0.0), xp):
                low, high = float(xp.min(w)), float(xp.max(w))  # type: ignore[arg-type]  # 0-d arrays
                raise DataError(f"sample_weight must be finite and not negative; it ranges from {low} to {high}.")
        loss, cache = self.forward(y, t, w, xp=xp)
        return loss, self.backward(1.0, cache, xp=xp)

    def target_width(self, outputs: int) -> int:
        """The number of target columns for a network with that many outputs. Raises `ShapeError` where none fits."""
        return outputs

    def prepare(self, t: Array, y_shape: tuple[int, ...], dtype: Any, *, xp: Namespace) -> Array:
        """The targets (N, K) in the scores' dtype. Shapes and dtypes are checked, values are not looked at."""
        n, width = y_shape[0], self.target_width(y_shape[1])
        if tuple(t.shape) == (n,) and width == 1:
            t = xp.reshape(t, (n, 1))  # never left to broadcasting: (N,) against (N, 1) would give (N, N)
        if tuple(t.shape) != (n, width):
            one = " or (N,)" if width == 1 else ""
            raise ShapeError(
                f"{type(self).__name__} needs targets of shape (N, {width}){one}, for {y_shape[1]} outputs and "
                f"N = {n} rows; they have shape {tuple(t.shape)}."
            )
        if not xp.isdtype(t.dtype, ("real floating", "integral", "bool")):
            raise DTypeError(f"{type(self).__name__} needs real numbers as targets; they are {t.dtype}.")
        return t if t.dtype == dtype else xp.astype(t, dtype)

    def check_values(self, t: Array, outputs: int, *, xp: Namespace) -> None:
        """Refuse prepared targets whose values the loss cannot read. Waits for the device."""
        if not all_true(xp.isfinite(t), xp):
            raise LabelError(
                f"{type(self).__name__} needs finite targets; {first_refused(t, xp.isfinite(t), xp)}. "
                "Remove or fill such rows first."
            )


def _beside(name: str, value: Any, y: Array, xp: Namespace) -> Array:
    """`value` as real numbers in y's library, on y's device where it comes as a list."""
    given: bool = is_array_api_obj(value)
    if given and array_namespace(value) is not xp:
        raise DTypeError(
            f"{name} is an array of {Backend.library_of(value)}, y one of {Backend.library_of(y)}. "
            "All arguments must be of one library; convert one of them."
        )
    try:
        a: Array = value if given else xp.asarray(value, device=device_of(y))
    except Exception as error:  # each library refuses in its own way
        raise DTypeError(
            f"{name} must be an array or a regular list of numbers; it is {value!r:.80} ({error})."
        ) from error
    if not xp.isdtype(a.dtype, ("real floating", "integral", "bool")):
        raise DTypeError(f"{name} must hold real numbers; its dtype is {a.dtype}.")
    return a


def first_refused(t: Array, right: Array, xp: Namespace) -> str:
    """The first row of t (N, K) where not all of `right` (N, K) or (N, 1) holds, in words. Waits for the device."""
    row = int(xp.argmax(xp.astype(~xp.all(right, axis=1), xp.int32)))  # type: ignore[call-overload]  # a 0-d array
    width = int(t.shape[1])
    values = [f"{float(t[row, k]):g}" for k in range(min(width, 10))]  # type: ignore[arg-type]  # 0-d arrays
    return f"row {row} (counted from 0) is [{', '.join(values)}{', ...' if width > 10 else ''}]"


def all_true(condition: Array, xp: Namespace) -> bool:
    """Whether all entries hold, as a Python bool. Waits for the device."""
    return bool(xp.all(condition))
