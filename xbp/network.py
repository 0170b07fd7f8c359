"""Network: layers one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from .backend import Backend
from .describe import build, describe
from .layers import Layer
from .model import Model
from .traversal import INPUT, plan_chain
from .typing import Array

__all__ = ["Network"]


class Network(Model):
    """A chain of layers that owns its parameters.

    layers     layers in order; the widths of neighbours are checked
    backend    a name ("auto", "numpy", "cupy:1", ...) or a Backend
    dtype      "float32" or "float64", for parameters and everything computed from them
    seed       of the initial weights, the order of the rows and the dropout masks, the same on every backend

    Parameters are named by the layer's position: "0.W", "0.b", "2.W", ...
    Raises `ShapeError` for widths that do not fit, `BackendUnavailable` and `DTypeError` for what cannot run here.
    """

    kind = "network"

    def __init__(
        self, layers: Iterable[Layer], *, backend: str | Backend = "auto", dtype: str = "float32", seed: int = 0
    ) -> None:
        if isinstance(layers, Layer) or not isinstance(layers, Iterable):
            raise TypeError(f"layers must be a list of layers; it is a {type(layers).__name__}. Write [{layers}].")
        self.layers = tuple(layers)
        super().__init__(plan_chain(self.layers), backend, dtype, seed)

    def backward(self, dy: Any, *, input_gradient: bool = False, accumulate: bool = False) -> Array | None:
        """Fill `grads` from the gradient dy (N, K) of the output; empties `cache`.

        input_gradient    also compute and return dx (N, D), which costs the first layer's largest product
        accumulate        add to the gradients of the last backward instead of replacing them

        Raises `CacheEmpty` without a forward before it, `ShapeError` where dy does not have the output's shape.
        """
        slopes = self._backward(dy, self.plan.wanted(self.params, input_gradient=input_gradient), accumulate)
        return slopes[INPUT] if input_gradient else None

    def __str__(self) -> str:
        """The structure: a line a layer with its output width and its number of parameters."""
        shapes = self.plan.row_shapes()
        rows = [("", "input", _width(self._input_width()), "")]
        for node in self.plan.nodes:
            count = sum(_size(self.params[full]) for _, full in node.params)
            rows.append((node.name, str(node.layer), _width(shapes[node.name]), f"{count:,}" if count else ""))
        total = sum(_size(a) for a in self.params.values())
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [
            f"{a:>{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}".rstrip() for a, b, c, d in rows
        ]
        head = f"Network on {self.backend.name}, {self.dtype}, seed {self.seed}, {total:,} parameters"
        return "\n".join([head, *lines])

    def _input_width(self) -> tuple[int, ...] | None:
        for layer in self.layers:
            width = getattr(layer, "in_features", getattr(layer, "size", None))
            if width is not None:
                return (width,)
        return None

    def __repr__(self) -> str:
        layers = ", ".join(map(str, self.layers))
        return f"Network([{layers}], backend={self.backend.name!r}, dtype={self.dtype!r}, seed={self.seed})"

    def _describe(self) -> dict[str, Any]:
        return {"layers": [describe(layer) for layer in self.layers]}

    @classmethod
    def _rebuild(cls, header: Mapping[str, Any], classes: Mapping[str, type], backend: str | Backend) -> Self:
        layers = [build(data, classes) for data in header["model"]["layers"]]
        return cls(layers, backend=backend, dtype=header["dtype"], seed=header["seed"])


def _size(a: Array) -> int:
    size = 1
    for n in a.shape:
        size *= n
    return size


def _width(shape: tuple[int, ...] | None) -> str:
    return "any" if shape is None else " x ".join(map(str, shape))
