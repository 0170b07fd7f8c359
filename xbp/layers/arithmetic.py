"""The two nodes of the first computational graphs: addition and multiplication of two inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import ShapeError
from ..kernels import add, mul
from ..typing import Array, Namespace
from .base import Layer, Mode, Result, RowShape

__all__ = ["Add", "Arithmetic", "Mul"]


@dataclass(frozen=True)
class Arithmetic(Layer):
    """Two inputs that broadcast against each other."""

    kernel: ClassVar[Any]
    arity = 2

    def output_shape(self, *shapes: RowShape) -> RowShape:
        a, b = shapes
        if a is None or b is None:
            return None
        width = max(len(a), len(b))
        pairs = zip((1,) * (width - len(a)) + a, (1,) * (width - len(b)) + b, strict=True)
        if any(m != n and 1 not in (m, n) for m, n in pairs):
            raise ShapeError(
                f"{type(self).__name__} gets rows of shapes {a} and {b}, which do not broadcast to each other."
            )
        pairs = zip((1,) * (width - len(a)) + a, (1,) * (width - len(b)) + b, strict=True)
        return tuple(n if m == 1 else m for m, n in pairs)

    def forward(  # type: ignore[override]  # two inputs where the base has one
        self,
        a: Array,
        b: Array,
        /,
        *,
        params: Mapping[str, Array],
        buffers: Mapping[str, Array],
        mode: Mode,
        xp: Namespace,
    ) -> Result:
        return Result(*self.kernel.forward(a, b, xp=xp))

    def backward(
        self, dy: Array, cache: Any, /, *, xp: Namespace, input_gradient: bool = True
    ) -> tuple[tuple[Array, ...] | None, dict[str, Array]]:
        return (self.kernel.backward(dy, cache, xp=xp) if input_gradient else None), {}


class Add(Arithmetic):
    """y = a + b. See `xbp.kernels.add`."""

    kernel: ClassVar[Any] = add


class Mul(Arithmetic):
    """y = a b, element by element. See `xbp.kernels.mul`."""

    kernel: ClassVar[Any] = mul
