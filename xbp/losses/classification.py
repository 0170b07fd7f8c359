"""Losses on scores of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..describe import plain_number
from ..errors import DTypeError, LabelError, ShapeError
from ..kernels import sigmoid_cross_entropy, softmax_cross_entropy
from ..typing import Array, Namespace
from .base import Loss, all_true, first_refused

__all__ = ["SigmoidCrossEntropy", "SoftmaxCrossEntropy"]


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """Cross entropy of the softmax of each row of scores: one class of C for each row.

    Targets: integer labels (N,) in 0 ... C-1, or probabilities (N, C), one-hot or soft, in [0, 1] with sum 1.
    label_smoothing, in [0, 1), mixes the targets with equal probabilities. See `xbp.kernels.softmax_cross_entropy`.
    """

    kernel: ClassVar[Any] = softmax_cross_entropy
    metrics = ("accuracy",)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        plain_number(self, "label_smoothing", at_least=0, below=1)

    def prepare(self, t: Array, y_shape: tuple[int, ...], dtype: Any, *, xp: Namespace) -> Array:
        n, classes = y_shape
        if tuple(t.shape) == (n,):
            if not xp.isdtype(t.dtype, "integral"):
                raise LabelError(
                    f"Class labels must be integers in 0 ... {classes - 1}; they are {t.dtype}. "
                    "Convert them (astype), or give probabilities of shape (N, C)."
                )
            return _signed(t, xp)
        if tuple(t.shape) != (n, classes):
            raise ShapeError(
                f"SoftmaxCrossEntropy needs labels (N,) or probabilities (N, C), with N = {n} rows and "
                f"C = {classes} outputs; the targets have shape {tuple(t.shape)}."
            )
        if not xp.isdtype(t.dtype, ("real floating", "integral", "bool")):
            raise DTypeError(f"SoftmaxCrossEntropy: probabilities must be real numbers; they are {t.dtype}.")
        return t if t.dtype == dtype else xp.astype(t, dtype)

    def check_values(self, t: Array, outputs: int, *, xp: Namespace) -> None:
        if t.shape[0] == 0:
            return
        if t.ndim == 1:
            if not all_true((t >= 0) & (t < outputs), xp):
                low, high = int(xp.min(t)), int(xp.max(t))  # type: ignore[call-overload]  # 0-d arrays
                raise LabelError(
                    f"Class labels must lie in 0 ... {outputs - 1}, because the network has {outputs} outputs; "
                    f"they range from {low} to {high}."
                )
            return
        right = (t >= 0.0) & (t <= 1.0) & (xp.abs(xp.sum(t, axis=1, keepdims=True) - 1.0) <= 1e-3)
        if not all_true(right, xp):
            raise LabelError(
                "Class probabilities (N, C) must lie in [0, 1] and each row must sum to 1; "
                f"{first_refused(t, right, xp)}. Divide each row by its sum, or give integer labels of shape (N,)."
            )


class SigmoidCrossEntropy(Loss):
    """Binary cross entropy of the sigmoid of each score: K yes-or-no answers for each row, averaged over them.

    Targets (N, K), or (N,) for K = 1: 0 or 1, or probabilities between. See `xbp.kernels.sigmoid_cross_entropy`.
    """

    kernel: ClassVar[Any] = sigmoid_cross_entropy
    metrics = ("accuracy",)

    def check_values(self, t: Array, outputs: int, *, xp: Namespace) -> None:
        right = (t >= 0.0) & (t <= 1.0)
        if t.shape[0] and not all_true(right, xp):
            raise LabelError(
                f"SigmoidCrossEntropy needs targets between 0 (no) and 1 (yes); {first_refused(t, right, xp)}. "
                "Code the two answers as 0 and 1 first."
            )


def _signed(t: Array, xp: Namespace) -> Array:
    """Labels as int32 or int64: 8 bits do not hold every number of classes, and unsigned integers lack operations.

    A label too large for the signed type turns negative, and is refused like one.
    """
    if t.dtype == xp.int32 or t.dtype == xp.int64:
        return t
    return xp.astype(t, xp.int64 if str(t.dtype).endswith("uint64") else xp.int32)
