"""Losses: frozen descriptions that check targets, shape them, and call a kernel that averages over the batch."""

from .base import Loss
from .classification import SigmoidCrossEntropy, SoftmaxCrossEntropy
from .regression import (
    GaussianNLL,
    Huber,
    MeanAbsoluteError,
    MeanSquaredError,
    PoissonNLL,
    Quantile,
)

__all__ = [
    "LOSSES",
    "GaussianNLL",
    "Huber",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "PoissonNLL",
    "Quantile",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
]

LOSSES: dict[str, type[Loss]] = {
    loss.__name__: loss
    for loss in (
        SoftmaxCrossEntropy, SigmoidCrossEntropy, MeanSquaredError, MeanAbsoluteError, Huber, Quantile, PoissonNLL,
        GaussianNLL,
    )
}  # fmt: skip
