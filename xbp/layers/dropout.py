"""Dropout: units left out at random in training, all of them present in prediction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..describe import plain_number
from ..errors import ShapeError
from ..kernels import dropout
from ..random import keep_mask
from ..typing import Array, Namespace
from .base import Layer, Mode, Result, RowShape

__all__ = ["Dropout"]


@dataclass(frozen=True)
class Dropout(Layer):
    """y = x / (1 - p) where a unit is kept, else 0; y = x in prediction. p, in [0, 1), is the probability of dropping.

    The mask is drawn from the network's seed, the number of the step and the layer's position: the same on every
    backend, in every dtype and after a resume. See `xbp.kernels.dropout`.
    """

    random = True
    p: float = 0.5

    def __post_init__(self) -> None:
        plain_number(self, "p", at_least=0, below=1)

    def output_shape(self, *shapes: RowShape) -> RowShape:
        if shapes[0] is not None and len(shapes[0]) != 1:
            raise ShapeError(f"Dropout takes (N, D) batches, but gets rows of shape {shapes[0]}.")
        return shapes[0]

    def forward(
        self, x: Array, /, *, params: Mapping[str, Array], buffers: Mapping[str, Array], mode: Mode, xp: Namespace
    ) -> Result:
        if not mode.train or self.p == 0.0:
            return Result(x, None)
        if mode.key is None:
            raise ValueError("Dropout needs a key to draw its mask from; Network.forward(train=True) makes one.")
        keep = keep_mask(x, mode.key, mode.first_row, self.p, xp=xp)
        return Result(*dropout.forward(x, keep, p=self.p, xp=xp))

    def backward(
        self, dy: Array, cache: Any, /, *, xp: Namespace, input_gradient: bool = True
    ) -> tuple[Array | None, dict[str, Array]]:
        return (dy if cache is None else dropout.backward(dy, cache, p=self.p, xp=xp)), {}
