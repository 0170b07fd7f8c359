"""Activations: one kernel each, no parameters, the same shape out as in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from ..describe import plain_number
from ..errors import ShapeError, unknown_name
from ..kernels import elu, gelu, identity, leaky_relu, relu, sigmoid, silu, softmax, softplus, tanh
from ..typing import Array, Namespace
from .base import Layer, Mode, Result, RowShape

__all__ = [
    "ACTIVATIONS",
    "ELU",
    "GELU",
    "Activation",
    "Identity",
    "LeakyReLU",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Softplus",
    "Tanh",
    "get_activation",
]


@dataclass(frozen=True)
class Activation(Layer):
    """A layer that is a kernel: its dataclass fields are the kernel's options.

    One without options inherits everything, which also keeps `import xbp` quick: making a dataclass takes time.
    """

    kernel: ClassVar[Any]

    def options(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def forward(
        self, x: Array, /, *, params: Mapping[str, Array], buffers: Mapping[str, Array], mode: Mode, xp: Namespace
    ) -> Result:
        return Result(*self.kernel.forward(x, **self.options(), xp=xp))

    def backward(
        self, dy: Array, cache: Any, /, *, xp: Namespace, input_gradient: bool = True
    ) -> tuple[Array | None, dict[str, Array]]:
        return (self.kernel.backward(dy, cache, **self.options(), xp=xp) if input_gradient else None), {}


class ReLU(Activation):
    """y = max(x, 0); slope 0 at 0. See `xbp.kernels.relu`."""

    kernel: ClassVar[Any] = relu
    follows = "he"


@dataclass(frozen=True)
class LeakyReLU(Activation):
    """y = x where x > 0, else negative_slope x, with negative_slope >= 0. See `xbp.kernels.leaky_relu`."""

    kernel: ClassVar[Any] = leaky_relu
    follows = "he"
    negative_slope: float = 0.01

    def __post_init__(self) -> None:
        plain_number(self, "negative_slope", at_least=0)


@dataclass(frozen=True)
class ELU(Activation):
    """y = x where x > 0, else alpha (exp(x) - 1), with alpha > 0. See `xbp.kernels.elu`."""

    kernel: ClassVar[Any] = elu
    follows = "he"
    alpha: float = 1.0

    def __post_init__(self) -> None:
        plain_number(self, "alpha", above=0)


@dataclass(frozen=True)
class GELU(Activation):
    """y = x F(x), F the standard normal distribution function, exact ("none") or "tanh". See `xbp.kernels.gelu`."""

    kernel: ClassVar[Any] = gelu
    follows = "he"
    approximate: str = "none"

    def __post_init__(self) -> None:
        if self.approximate not in ("none", "tanh"):
            raise unknown_name("approximation of GELU", self.approximate, ("none", "tanh"))


class SiLU(Activation):
    """y = x sigmoid(x), also called swish. See `xbp.kernels.silu`."""

    kernel: ClassVar[Any] = silu
    follows = "he"


@dataclass(frozen=True)
class Softplus(Activation):
    """y = log(1 + exp(beta x)) / beta, with beta > 0. See `xbp.kernels.softplus`."""

    kernel: ClassVar[Any] = softplus
    follows = "he"
    beta: float = 1.0

    def __post_init__(self) -> None:
        plain_number(self, "beta", above=0)


class Sigmoid(Activation):
    """y = 1 / (1 + exp(-x)). See `xbp.kernels.sigmoid`."""

    kernel: ClassVar[Any] = sigmoid
    follows = "glorot"


class Tanh(Activation):
    """y = tanh x. See `xbp.kernels.tanh`."""

    kernel: ClassVar[Any] = tanh
    follows = "glorot"


class Softmax(Activation):
    """y_k = exp(x_k) / sum_j exp(x_j) in each row; not before SoftmaxCrossEntropy, which contains it.

    See `xbp.kernels.softmax`.
    """

    kernel: ClassVar[Any] = softmax
    follows = "glorot"

    def output_shape(self, *shapes: RowShape) -> RowShape:
        if shapes[0] == ():
            raise ShapeError("Softmax normalises the entries of a row, but its input has no axis but the batch's.")
        return shapes[0]


class Identity(Activation):
    """y = x: a linear output by name."""

    kernel: ClassVar[Any] = identity
    follows = "glorot"


ACTIVATIONS: dict[str, Activation] = {
    "elu": ELU(),
    "gelu": GELU(),
    "identity": Identity(),
    "leaky_relu": LeakyReLU(),
    "relu": ReLU(),
    "sigmoid": Sigmoid(),
    "silu": SiLU(),
    "softmax": Softmax(),
    "softplus": Softplus(),
    "tanh": Tanh(),
}


def get_activation(name: str) -> Activation:
    """The activation of that name with its default options. Raises `NameUnknown` with the nearest right name."""
    if name not in ACTIVATIONS:
        raise unknown_name("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
