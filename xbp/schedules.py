"""Learning rates as functions of the step: f(step) -> float, with the steps counted from 0.

A schedule runs on the host before the step, and its value enters the step as an input, so a recorded step serves every
rate. Any callable will do; those here are frozen dataclasses, so that they can be written into a checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from .describe import plain_number

__all__ = ["SCHEDULES", "Cosine", "Exponential", "OneCycle", "Schedule", "StepDecay", "WarmUp", "rate_at"]

Schedule: TypeAlias = Callable[[int], float]


def rate_at(lr: float | Schedule, step: int) -> float:
    """The rate that a number or a schedule gives at a step."""
    if not callable(lr):
        return float(lr)
    value = lr(step)
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(f"The schedule {lr!r} gave {value!r} at step {step}; a rate is a finite number of at least 0.")
    return rate


@dataclass(frozen=True)
class StepDecay:
    """lr * factor^floor(step / every): a fall by `factor` each `every` steps."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        plain_number(self, "lr", at_least=0)
        plain_number(self, "every", at_least=1)
        plain_number(self, "factor", above=0)

    def __call__(self, step: int) -> float:
        return float(self.lr * self.factor ** (step // self.every))


@dataclass(frozen=True)
class Exponential:
    """lr * factor^(step / every): the same fall as `StepDecay`, smoothly."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        plain_number(self, "lr", at_least=0)
        plain_number(self, "every", at_least=1)
        plain_number(self, "factor", above=0)

    def __call__(self, step: int) -> float:
        return float(self.lr * self.factor ** (step / self.every))


@dataclass(frozen=True)
class Cosine:
    """final + (lr - final) (1 + cos(pi step / steps)) / 2, and `final` from then on. Loshchilov, Hutter, ICLR 2017."""

    lr: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        plain_number(self, "lr", at_least=0)
        plain_number(self, "steps", at_least=1)
        plain_number(self, "final", at_least=0)

    def __call__(self, step: int) -> float:
        progress = min(step / self.steps, 1.0)
        return self.final + (self.lr - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class WarmUp:
    """A straight line from `start` to what `then` gives at its own step 0, over `steps` steps; afterwards `then`.

    `then` is a number or another schedule, whose steps are counted from the end of the warm-up.
    """

    steps: int
    then: float | Schedule
    start: float = 0.0

    def __post_init__(self) -> None:
        plain_number(self, "steps", at_least=1)
        plain_number(self, "start", at_least=0)
        if not callable(self.then):
            plain_number(self, "then", at_least=0, kind="a schedule, or a finite number")

    def __call__(self, step: int) -> float:
        if step >= self.steps:
            return rate_at(self.then, step - self.steps)
        top = rate_at(self.then, 0)
        return self.start + (top - self.start) * (step + 1) / self.steps


@dataclass(frozen=True)
class OneCycle:
    """Up along half a cosine from lr / start_factor to lr, then down to lr / final_factor at the last of `steps` steps.

    `warm` is the share of the steps that go up. Smith, Topin, "Super-convergence", arXiv:1708.07120 (2017).
    """

    lr: float
    steps: int
    warm: float = 0.3
    start_factor: float = 25.0
    final_factor: float = 1e4

    def __post_init__(self) -> None:
        plain_number(self, "lr", at_least=0)
        plain_number(self, "steps", at_least=2)
        plain_number(self, "warm", above=0, below=1)
        plain_number(self, "start_factor", above=0)
        plain_number(self, "final_factor", above=0)

    def __call__(self, step: int) -> float:
        last = self.steps - 1
        peak = self.warm * last
        low, high, progress = self.lr / self.start_factor, self.lr, min(step, last) / peak
        if step > peak:
            low, high = self.lr, self.lr / self.final_factor
            progress = (min(step, last) - peak) / (last - peak)
        return low + (high - low) * 0.5 * (1.0 - math.cos(math.pi * progress))


SCHEDULES: dict[str, type] = {c.__name__: c for c in (StepDecay, Exponential, Cosine, WarmUp, OneCycle)}
