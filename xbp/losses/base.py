"""What a loss is: a kernel with its options, and the rules for the targets that it takes.

Targets come in several forms (labels, one-hot rows, columns of numbers). `prepare` brings them to the one form that the
kernel computes with, from shapes and dtypes alone; `check_values` reads them, once, before training starts.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from array_api_compat import array_namespace, is_array_api_obj

from ..errors import DTypeError, LabelError, ShapeError
from ..typing import Array, Namespace, Scalar

__all__ = ["Loss", "all_true"]


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
        if y.ndim != 2 or not xp.isdtype(y.dtype, "real floating"):
            raise ShapeError(f"y must be a floating (N, K) array of scores; it is {y.dtype} {tuple(y.shape)}.")
        device = getattr(y, "device", None)
        given: bool = is_array_api_obj(t)
        t = t if given else xp.asarray(t, device=device)
        t = self.prepare(t, tuple(y.shape), y.dtype, xp=xp)
        self.check_values(t, int(y.shape[1]), xp=xp)
        w = sample_weight
        if w is not None:
            w = xp.asarray(w, dtype=y.dtype, device=device)
            if tuple(w.shape) != (y.shape[0],):
                raise ShapeError(
                    f"sample_weight must have shape ({y.shape[0]},), one number a row; it is {tuple(w.shape)}."
                )
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
                f"{type(self).__name__} needs targets of shape (N, {width}){one}, for {y_shape[1]} outputs and N = {n} rows; "
                f"they have shape {tuple(t.shape)}."
            )
        if not xp.isdtype(t.dtype, ("real floating", "integral", "bool")):
            raise DTypeError(f"{type(self).__name__} needs real numbers as targets; they are {t.dtype}.")
        return t if t.dtype == dtype else xp.astype(t, dtype)

    def check_values(self, t: Array, outputs: int, *, xp: Namespace) -> None:
        """Refuse prepared targets whose values the loss cannot read. Waits for the device."""
        if not all_true(xp.isfinite(t), xp):
            raise LabelError(f"{type(self).__name__}: the targets contain NaN or infinity.")


def all_true(condition: Array, xp: Namespace) -> bool:
    """Whether all entries hold, as a Python bool. Waits for the device."""
    return bool(xp.all(condition))
