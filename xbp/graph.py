"""Graph: layers as the nodes of a directed acyclic graph, in which a value may be used several times."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, Self

from .backend import Backend
from .describe import build, describe
from .model import Model
from .traversal import plan_graph
from .typing import Array

__all__ = ["Graph"]


class Graph(Model):
    """A computational graph: {name: (layer, input, ...)}, in any order.

        Graph({"c": (Add(), "a", "b"), "d": (Add(), "b", "one"), "e": (Mul(), "c", "d")},
              inputs=["a", "b", "one"], output="e")

    inputs     names of the values that `forward` is given
    output     name of the value that `forward` returns
    backend, dtype, seed    as in `Network`

    The gradient of a value that several nodes read is the sum over them. Parameters are named "node.W".
    Raises `ShapeError` for a cycle or widths that do not fit, `NameUnknown` for a value that is nowhere made.
    """

    kind = "graph"

    def __init__(
        self,
        nodes: Mapping[str, tuple[Any, ...]],
        *,
        inputs: Iterable[str],
        output: str,
        backend: str | Backend = "auto",
        dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__(plan_graph(nodes, inputs, output), backend, dtype, seed)
        self._node_grads: dict[str, Array] = {}

    @property
    def node_grads(self) -> Mapping[str, Array]:
        """The gradient of every node of the last `backward` (and of the inputs, where it was asked for), by name."""
        return MappingProxyType(self._node_grads)

    def backward(self, dy: Any, *, input_gradient: bool = False, accumulate: bool = False) -> dict[str, Array] | None:
        """Fill `grads` and `node_grads` from the gradient of the output; empties `cache`.

        input_gradient    also compute and return the gradients of the inputs, by name
        accumulate        add to the gradients of the last backward instead of replacing them
        """
        wanted = self.plan.all_values() | (frozenset(self.plan.inputs) if input_gradient else frozenset())
        slopes = self._backward(dy, wanted, accumulate, keep=True)
        self._node_grads = slopes
        if not input_gradient:
            return None
        return {name: slopes[name] for name in self.plan.inputs if name in slopes}

    def __str__(self) -> str:
        lines = [f"{n.name} = {n.layer}({', '.join(n.inputs)})" for n in self.plan.nodes]
        head = f"Graph of {', '.join(self.plan.inputs)} on {self.backend.name}, {self.dtype}, seed {self.seed}"
        return "\n".join([head, *lines, f"output {self.plan.output}"])

    def _describe(self) -> dict[str, Any]:
        return {
            "nodes": [[n.name, describe(n.layer), list(n.inputs)] for n in self.plan.nodes],
            "inputs": list(self.plan.inputs),
            "output": self.plan.output,
        }

    @classmethod
    def _rebuild(cls, header: Mapping[str, Any], classes: Mapping[str, type], backend: str | Backend) -> Self:
        model = header["model"]
        nodes = {name: (build(layer, classes), *inputs) for name, layer, inputs in model["nodes"]}
        return cls(
            nodes,
            inputs=model["inputs"],
            output=model["output"],
            backend=backend,
            dtype=header["dtype"],
            seed=header["seed"],
        )
