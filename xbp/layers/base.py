"""What a layer is: sizes, options and the names of its parameters, with a forward and a backward that call a kernel.

A layer holds no array, so it can be shared, printed, compared and saved freely; a network may use it twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Integral
from typing import Any, ClassVar, NamedTuple

from ..errors import ShapeError
from ..initializers import Initializer
from ..typing import Array, Namespace, Scalar

__all__ = ["Layer", "Mode", "Parameter", "Result", "RowShape", "positive_int"]

RowShape = tuple[int, ...] | None
"""The shape of one row (all axes but the batch's), None while nothing has fixed it yet."""


@dataclass(frozen=True)
class Parameter:
    """What a layer asks the network to keep for it: a shape, and initial values (None: chosen by what comes next)."""

    shape: tuple[int, ...]
    init: Initializer | None


class Mode(NamedTuple):
    """How a forward pass is run. `key` and `first_row` are for layers that draw numbers, in training."""

    train: bool = False
    key: Array | None = None  # (), int32
    first_row: Scalar = 0


class Result(NamedTuple):
    """What a layer's forward returns."""

    y: Array
    cache: Any
    buffers: Mapping[str, Array] = {}


@dataclass(frozen=True)
class Layer:
    """Base of all layers. A layer of your own is a frozen dataclass that overrides `forward` and `backward`.

    follows    the initialiser of an Affine whose output this layer squashes or bends: "he", "glorot", "lecun"; None
               where the layer is no activation
    random     whether forward draws numbers in training, so that it needs a key
    """

    follows: ClassVar[str | None] = None
    random: ClassVar[bool] = False
    arity: ClassVar[int] = 1

    def parameters(self) -> dict[str, Parameter]:
        """Arrays that training changes by gradient, by local name."""
        return {}

    def buffers(self) -> dict[str, Parameter]:
        """Arrays that forward changes in training (running statistics), by local name."""
        return {}

    def output_shape(self, *shapes: RowShape) -> RowShape:
        """The shape of an output row, given those of the inputs. Raises `ShapeError` where they do not fit."""
        return shapes[0]

    def forward(
        self, x: Array, /, *, params: Mapping[str, Array], buffers: Mapping[str, Array], mode: Mode, xp: Namespace
    ) -> Result:
        raise NotImplementedError(f"{type(self).__name__} has no forward. A layer overrides forward and backward.")

    def backward(
        self, dy: Array, cache: Any, /, *, xp: Namespace, input_gradient: bool = True
    ) -> tuple[Array | tuple[Array, ...] | None, dict[str, Array]]:
        """(dx, gradients by local name). dx is None, or anything, where `input_gradient` is False."""
        raise NotImplementedError(f"{type(self).__name__} has no backward. A layer overrides forward and backward.")

    def __str__(self) -> str:
        """The class and the options that differ from their defaults."""
        given = [f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if getattr(self, f.name) != f.default]
        return f"{type(self).__name__}({', '.join(given)})"


def positive_int(owner: object, name: str) -> None:
    """Check a field of a frozen dataclass that is a width, and make it a plain int; NumPy's integers are taken too."""
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ShapeError(f"{type(owner).__name__}: {name} must be a whole number of at least 1; it is {value!r}.")
    object.__setattr__(owner, name, int(value))
