"""Initial values of parameters, drawn on the host in float64 so that a seed means the same on every backend.

A frozen description is called with a generator and a shape. The standard deviations follow from the widths:
D = fan-in (rows of W), M = fan-out (columns of W).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from .errors import ShapeError, unknown_name

__all__ = [
    "Constant",
    "Glorot",
    "He",
    "Initializer",
    "LeCun",
    "Normal",
    "Uniform",
    "Zeros",
    "get_initializer",
]

Shape = tuple[int, ...]


@runtime_checkable
class Initializer(Protocol):
    """Values (float64) of the given shape, drawn from the generator."""

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray: ...


def _fans(shape: Shape) -> tuple[int, int]:
    if len(shape) != 2:
        raise ShapeError(
            f"This initialiser needs a matrix (D, M), to read fan-in and fan-out from; the shape is {shape}."
        )
    return shape[0], shape[1]


def _spread(rng: np.random.Generator, shape: Shape, variance: float, uniform: bool) -> np.ndarray:
    if uniform:
        bound = math.sqrt(3.0 * variance)
        return rng.uniform(-bound, bound, shape)
    return rng.normal(0.0, math.sqrt(variance), shape)


@dataclass(frozen=True)
class He:
    """Variance 2 / D: keeps the size of the signal through ReLU and its kin. He et al., ICCV 2015."""

    uniform: bool = False

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return _spread(rng, shape, 2.0 / _fans(shape)[0], self.uniform)


@dataclass(frozen=True)
class Glorot:
    """Variance 2 / (D + M): for sigmoid, tanh, softmax and linear outputs. Glorot, Bengio, AISTATS 2010."""

    uniform: bool = False

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return _spread(rng, shape, 2.0 / sum(_fans(shape)), self.uniform)


@dataclass(frozen=True)
class LeCun:
    """Variance 1 / D: keeps the size of the signal through a unit of slope 1. LeCun et al. (1998)."""

    uniform: bool = False

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return _spread(rng, shape, 1.0 / _fans(shape)[0], self.uniform)


@dataclass(frozen=True)
class Normal:
    """Normal values with the given standard deviation and mean, whatever the widths."""

    std: float = 0.01
    mean: float = 0.0

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return rng.normal(self.mean, self.std, shape)


@dataclass(frozen=True)
class Uniform:
    """Uniform values between `low` and `high`."""

    low: float = -0.05
    high: float = 0.05

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return rng.uniform(self.low, self.high, shape)


@dataclass(frozen=True)
class Constant:
    """One value everywhere."""

    value: float

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return np.full(shape, self.value, dtype=np.float64)


@dataclass(frozen=True)
class Zeros:
    """Zeros: the start of biases."""

    def __call__(self, rng: np.random.Generator, shape: Shape) -> np.ndarray:
        return np.zeros(shape, dtype=np.float64)


BY_NAME: dict[str, Initializer] = {
    "he": He(),
    "he_uniform": He(uniform=True),
    "glorot": Glorot(),
    "glorot_uniform": Glorot(uniform=True),
    "lecun": LeCun(),
    "lecun_uniform": LeCun(uniform=True),
    "normal": Normal(),
    "uniform": Uniform(),
    "ones": Constant(1.0),
    "zeros": Zeros(),
}


def get_initializer(init: str | Initializer) -> Initializer:
    """The initialiser of that name, or the one given. Raises `NameUnknown` with the nearest right name."""
    if not isinstance(init, str):
        if not callable(init):
            raise TypeError(
                f"An initialiser is a name ({', '.join(BY_NAME)}) or a function (generator, shape); it is {init!r:.80}."
            )
        return init
    if init not in BY_NAME:
        raise unknown_name("initialiser", init, BY_NAME)
    return BY_NAME[init]
