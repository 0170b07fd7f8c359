"""Scikit-learn's losses and update rules, where they differ from those of xbp by a factor or in the place of a term.

They are written for the recorder as all of xbp's are, so every engine runs them, and from equal weights and batches a
training gives scikit-learn's numbers up to rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ..kernels.weighting import average, shares
from ..losses import Loss, PoissonNLL
from ..optimizers import Adam, Optimizer
from ..schedules import Schedule
from ..typing import Array, Namespace, Scalar

__all__ = ["AdamOfScikitLearn", "HalfPoissonDeviance", "Momentum", "Rescaled", "half_poisson_deviance"]


@dataclass(frozen=True)
class Rescaled(Loss):
    """`loss` with its value and its gradient multiplied, each by a factor of its own.

    They are two factors because scikit-learn reports the mean over the outputs of half the squared error, and descends
    along the gradient of their sum.
    """

    loss: Loss
    value: float = 1.0
    slope: float = 1.0

    def forward(self, y: Array, t: Array, w: Array | None, *, xp: Namespace) -> tuple[Array, Any]:
        value, cache = self.loss.forward(y, t, w, xp=xp)
        return value * self.value, cache

    def backward(self, dloss: Scalar, cache: Any, *, xp: Namespace) -> Array:
        return self.loss.backward(dloss * self.slope, cache, xp=xp)

    def target_width(self, outputs: int) -> int:
        return self.loss.target_width(outputs)

    def prepare(self, t: Array, y_shape: tuple[int, ...], dtype: Any, *, xp: Namespace) -> Array:
        return self.loss.prepare(t, y_shape, dtype, xp=xp)

    def check_values(self, t: Array, outputs: int, *, xp: Namespace) -> None:
        self.loss.check_values(t, outputs, xp=xp)


@dataclass(frozen=True)
class HalfPoissonDeviance(Rescaled):
    """sum_k t log t - t - t y + exp(y), from log-rates y: `PoissonNLL` and what makes it 0 at best."""

    def forward(self, y: Array, t: Array, w: Array | None, *, xp: Namespace) -> tuple[Array, Any]:
        value, cache = super().forward(y, t, w, xp=xp)
        rows = xp.sum(t * xp.log(xp.where(t > 0.0, t, 1.0)) - t, axis=1)
        return value + average(rows, shares(rows, w, xp=xp), xp=xp), cache


def half_poisson_deviance(outputs: int) -> HalfPoissonDeviance:
    return HalfPoissonDeviance(PoissonNLL(), float(outputs), float(outputs))


@dataclass(frozen=True)
class Momentum(Optimizer):
    """Gradient descent whose velocity remembers the rate of the step in which it was gained.

        v <- m v - lr g        p <- p + v            with nesterov: p <- p + m v - lr g

    `SGD` keeps the rate out of v, as PyTorch does: the same at a constant rate, another path where the rate falls.
    """

    slots = ("v",)
    lr: float | Schedule = 1e-3
    inertia: float = 0.9
    nesterov: bool = True

    def rule(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, decay: float, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        step = lr * g
        v = self.inertia * slots[0] - step
        return p + (self.inertia * v - step if self.nesterov else v), (v,)


@dataclass(frozen=True)
class AdamOfScikitLearn(Adam):
    """`Adam` with eps added before the correction for the start: p <- p - lr sqrt(c2) / c1 m / (sqrt(v) + eps).

    It is the second form of the paper's section 2; the two part where gradients are about as small as eps.
    """

    def _step(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        m = self.beta1 * slots[0] + (1.0 - self.beta1) * g
        v = self.beta2 * slots[1] + (1.0 - self.beta2) * (g * g)
        c1, c2 = (-xp.expm1(t * (math.log(beta) if beta else -math.inf)) for beta in (self.beta1, self.beta2))
        return p - lr * xp.sqrt(c2) / c1 * m / (xp.sqrt(v) + self.eps), (m, v)
