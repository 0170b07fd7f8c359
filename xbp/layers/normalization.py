"""Normalising layers: over the features of a row, or over the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..describe import plain_number
from ..errors import ShapeError
from ..initializers import Constant, Zeros
from ..kernels import batch_norm, frozen_norm, layer_norm
from ..typing import Array, Namespace
from .base import Layer, Mode, Parameter, Result, RowShape, positive_int

__all__ = ["BatchNorm", "LayerNorm"]


@dataclass(frozen=True)
class _Norm(Layer):
    size: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        positive_int(self, "size")
        plain_number(self, "eps", above=0)

    def parameters(self) -> dict[str, Parameter]:
        return {"gamma": Parameter((self.size,), Constant(1.0)), "beta": Parameter((self.size,), Zeros())}

    def output_shape(self, *shapes: RowShape) -> RowShape:
        if shapes[0] is not None and shapes[0] != (self.size,):
            raise ShapeError(
                f"{self} takes rows of width {self.size}, but gets rows of shape {shapes[0]}. "
                "Set size to the width of what comes before it."
            )
        return (self.size,)


@dataclass(frozen=True)
class LayerNorm(_Norm):
    """y = gamma (x - m) / sqrt(v + eps) + beta, m and v the mean and variance of each row.

    gamma and beta (size,) are learnt. See `xbp.kernels.layer_norm`.
    """

    def forward(
        self, x: Array, /, *, params: Mapping[str, Array], buffers: Mapping[str, Array], mode: Mode, xp: Namespace
    ) -> Result:
        return Result(*layer_norm.forward(x, params["gamma"], params["beta"], eps=self.eps, xp=xp))

    def backward(
        self, dy: Array, cache: Any, /, *, xp: Namespace, input_gradient: bool = True
    ) -> tuple[Array | None, dict[str, Array]]:
        dx, dg, db = layer_norm.backward(dy, cache, eps=self.eps, xp=xp)
        return dx, {"gamma": dg, "beta": db}


@dataclass(frozen=True)
class BatchNorm(_Norm):
    """y = gamma (x - m) / sqrt(v + eps) + beta, m and v the mean and variance of each column of the batch.

    gamma and beta (size,) are learnt. In prediction m and v are the running statistics, which each training batch moves
    by `momentum` (the variance is the unbiased one). A training batch of one row has no variance and is refused before
    the first step. See `xbp.kernels.batch_norm` and `xbp.kernels.frozen_norm`.
    """

    momentum: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        plain_number(self, "momentum", at_least=0, at_most=1)

    def buffers(self) -> dict[str, Parameter]:
        return {
            "running_mean": Parameter((self.size,), Zeros()),
            "running_var": Parameter((self.size,), Constant(1.0)),
        }

    def forward(
        self, x: Array, /, *, params: Mapping[str, Array], buffers: Mapping[str, Array], mode: Mode, xp: Namespace
    ) -> Result:
        g, b, mean, var = params["gamma"], params["beta"], buffers["running_mean"], buffers["running_var"]
        if not mode.train:
            return Result(*frozen_norm.forward(x, g, b, mean, var, eps=self.eps, xp=xp))
        if x.shape[0] < 2:
            raise ShapeError(
                f"BatchNorm cannot train on a batch of {x.shape[0]} row, which has no variance; use at least 2 rows."
            )
        y, cache = batch_norm.forward(x, g, b, eps=self.eps, xp=xp)
        unbiased = batch_norm.unbiased(cache.v, x, xp=xp)
        return Result(
            y,
            cache,
            {
                "running_mean": batch_norm.running(mean, cache.m, momentum=self.momentum),
                "running_var": batch_norm.running(var, unbiased, momentum=self.momentum),
            },
        )

    def backward(
        self, dy: Array, cache: Any, /, *, xp: Namespace, input_gradient: bool = True
    ) -> tuple[Array | None, dict[str, Array]]:
        kernel = frozen_norm if isinstance(cache, frozen_norm.Cache) else batch_norm
        dx, dg, db = kernel.backward(dy, cache, eps=self.eps, xp=xp)
        return dx, {"gamma": dg, "beta": db}
