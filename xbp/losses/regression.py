"""Losses on numbers, counts and distributions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..describe import plain_number
from ..errors import LabelError, ShapeError
from ..kernels import gaussian_nll, huber, mean_absolute_error, mean_squared_error, poisson_nll, quantile
from ..typing import Array, Namespace
from .base import Loss, all_true, first_refused

__all__ = ["GaussianNLL", "Huber", "MeanAbsoluteError", "MeanSquaredError", "PoissonNLL", "Quantile"]


class MeanSquaredError(Loss):
    """Mean over the K outputs of (y - t)^2, without one half. Targets (N, K), or (N,) for K = 1.

    See `xbp.kernels.mean_squared_error`.
    """

    kernel: ClassVar[Any] = mean_squared_error


class MeanAbsoluteError(Loss):
    """Mean over the K outputs of |y - t|. Targets (N, K), or (N,) for K = 1. See `xbp.kernels.mean_absolute_error`."""

    kernel: ClassVar[Any] = mean_absolute_error


@dataclass(frozen=True)
class Huber(Loss):
    """Squared near 0, straight beyond delta > 0. Targets (N, K), or (N,) for K = 1. See `xbp.kernels.huber`."""

    kernel: ClassVar[Any] = huber
    delta: float = 1.0

    def __post_init__(self) -> None:
        plain_number(self, "delta", above=0)


@dataclass(frozen=True)
class Quantile(Loss):
    """Pinball loss, whose minimum is the q-quantile: q one number in (0, 1), or K of them for K outputs.

    Targets (N, K); (N, 1) or (N,) serve all of several quantiles. See `xbp.kernels.quantile`.
    """

    kernel: ClassVar[Any] = quantile
    q: float | tuple[float, ...] = 0.5

    def __post_init__(self) -> None:
        several = isinstance(self.q, Iterable) and not isinstance(self.q, str)
        try:
            levels = tuple(map(float, self.q if several else (self.q,)))  # type: ignore[arg-type]  # narrowed by several
        except (TypeError, ValueError):
            levels = ()
        if not levels or not all(0.0 < value < 1.0 for value in levels):
            raise ValueError(f"Quantile: q must be a number between 0 and 1, or several of them; it is {self.q!r}.")
        object.__setattr__(self, "q", levels if several else levels[0])

    def options(self) -> dict[str, Any]:
        return {"q": self.q if isinstance(self.q, tuple) else (self.q,)}

    def target_width(self, outputs: int) -> int:
        if isinstance(self.q, tuple) and len(self.q) not in (1, outputs):
            raise ShapeError(
                f"Quantile has {len(self.q)} levels q, so the network needs as many outputs; it has {outputs}."
            )
        return outputs

    def prepare(self, t: Array, y_shape: tuple[int, ...], dtype: Any, *, xp: Namespace) -> Array:
        n, outputs = y_shape[0], self.target_width(y_shape[1])
        if isinstance(self.q, tuple) and outputs > 1 and tuple(t.shape) in ((n,), (n, 1)):
            t = xp.broadcast_to(xp.reshape(t, (n, 1)), (n, outputs))  # one observation, several of its quantiles
        return super().prepare(t, y_shape, dtype, xp=xp)


class PoissonNLL(Loss):
    """Counts t from log-rates y: exp(y) - t y. Targets (N, K) of at least 0. See `xbp.kernels.poisson_nll`."""

    kernel: ClassVar[Any] = poisson_nll

    def check_values(self, t: Array, outputs: int, *, xp: Namespace) -> None:
        super().check_values(t, outputs, xp=xp)
        if t.shape[0] and not all_true(t >= 0.0, xp):
            raise LabelError(f"PoissonNLL needs counts of at least 0 as targets; {first_refused(t, t >= 0.0, xp)}.")


class GaussianNLL(Loss):
    """Means and log-variances of normal targets: y (N, 2K) holds K means, then K log-variances; targets (N, K).

    See `xbp.kernels.gaussian_nll`.
    """

    kernel: ClassVar[Any] = gaussian_nll

    def target_width(self, outputs: int) -> int:
        if outputs % 2:
            raise ShapeError(
                f"GaussianNLL needs two outputs a target, a mean and a log-variance; the network has {outputs} outputs."
            )
        return outputs // 2
