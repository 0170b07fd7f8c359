"""The affine layer, the one that learns most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ShapeError
from ..initializers import Initializer, Zeros, get_initializer
from ..kernels import affine
from ..typing import Array, Namespace
from .base import Layer, Mode, Parameter, Result, RowShape, positive_int

__all__ = ["Affine"]


@dataclass(frozen=True)
class Affine(Layer):
    """y = x W + b, with W (in_features, out_features) and b (out_features,).

    in_features     width D of the input, x (N, D)
    out_features    width M of the output, y (N, M)
    bias            False leaves b out
    init            of W: a name ("he", "glorot", "lecun", "normal", "zeros", ...) or an initialiser; None takes the one
                    that suits the activation that comes next
    bias_init       of b; zeros

    Raises `ShapeError` for widths that are no positive whole numbers. See `xbp.kernels.affine` for the gradients.
    """

    in_features: int
    out_features: int
    bias: bool = True
    init: str | Initializer | None = None
    bias_init: str | Initializer = Zeros()

    def __post_init__(self) -> None:
        for name in ("in_features", "out_features"):
            positive_int(self, name)
        for init in (self.init, self.bias_init):
            if init is not None:
                get_initializer(init)

    def parameters(self) -> dict[str, Parameter]:
        init = None if self.init is None else get_initializer(self.init)
        W = {"W": Parameter((self.in_features, self.out_features), init)}
        return W | ({"b": Parameter((self.out_features,), get_initializer(self.bias_init))} if self.bias else {})

    def output_shape(self, *shapes: RowShape) -> RowShape:
        if shapes[0] is not None and shapes[0] != (self.in_features,):
            raise ShapeError(
                f"{self} takes rows of width {self.in_features}, but gets rows of shape {shapes[0]}. "
                "Set in_features to the width of what comes before it"
                + (", and flatten each row first (x.reshape(len(x), -1))." if len(shapes[0]) > 1 else ".")
            )
        return (self.out_features,)

    def forward(
        self, x: Array, /, *, params: Mapping[str, Array], buffers: Mapping[str, Array], mode: Mode, xp: Namespace
    ) -> Result:
        return Result(*affine.forward(x, params["W"], params.get("b"), xp=xp))

    def backward(
        self, dy: Array, cache: Any, /, *, xp: Namespace, input_gradient: bool = True
    ) -> tuple[Array | None, dict[str, Array]]:
        dx, dW, db = affine.backward(dy, cache, xp=xp, need_dx=input_gradient)
        return dx, {"W": dW, "b": db} if self.bias else {"W": dW}
