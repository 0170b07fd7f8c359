"""Losses on scores of classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import DTypeError, LabelError, ShapeError
from ..kernels import sigmoid_cross_entropy, softmax_cross_entropy
from ..typing import Array, Namespace
from .base import Loss, all_true

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
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ValueError(
                f"SoftmaxCrossEntropy: label_smoothing is at least 0 and below 1; it is {self.label_smoothing!r}."
            )

    def prepare(self, t: Array, y_shape: tuple[int, ...], dtype: Any, *, xp: Namespace) -> Array:
        n, classes = y_shape
        if tuple(t.shape) == (n,):
            if not xp.isdtype(t.dtype, "integral"):
                raise LabelError(
                    f"Class labels must be integers in 0 ... {classes - 1}; they are {t.dtype}. "
                    "Convert them (astype), or give probabilities of shape (N, C)."
                )
            return t
        if tuple(t.shape) != (n, classes):
            raise ShapeError(
                f"SoftmaxCrossEntropy needs labels (N,) or probabilities (N, C), with N = {n} rows and C = {classes} outputs; "
                f"the targets have shape {tuple(t.shape)}."
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
        in_range = (t >= 0.0) & (t <= 1.0)
        total = xp.sum(t, axis=1)
        if not all_true(in_range, xp) or not all_true(xp.abs(total - 1.0) <= 1e-3, xp):
            raise LabelError("Class probabilities (N, C) must lie in [0, 1] and each row must sum to 1.")


class SigmoidCrossEntropy(Loss):
    """Binary cross entropy of the sigmoid of each score: K yes-or-no answers for each row, averaged over them.

    Targets (N, K), or (N,) for K = 1: 0 or 1, or probabilities between. See `xbp.kernels.sigmoid_cross_entropy`.
    """

    kernel: ClassVar[Any] = sigmoid_cross_entropy
    metrics = ("accuracy",)

    def check_values(self, t: Array, outputs: int, *, xp: Namespace) -> None:
        if t.shape[0] and not all_true((t >= 0.0) & (t <= 1.0), xp):
            raise LabelError(
                "SigmoidCrossEntropy needs targets between 0 and 1 (0 is no, 1 is yes); there are others, or NaN."
            )
