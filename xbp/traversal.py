"""Forward and backward over a directed acyclic graph of layers: the one traversal of xbp.

A chain is a graph in which every node has one input, so Network, Graph and the training step share these functions.
They are pure: arrays come in as arguments and go out as results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .errors import NameUnknown, ShapeError, unknown_name
from .layers import Layer, Mode
from .layers.base import RowShape
from .typing import Array, Inputs, Namespace, Scalar

__all__ = ["Node", "Passed", "Plan", "backward", "forward", "plan_chain", "plan_graph"]

INPUT = "x"  # the name of a chain's only input


@dataclass(frozen=True)
class Node:
    """A layer, the name of its output, and the names of its inputs."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    params: tuple[tuple[str, str], ...] = field(init=False)  # (local, full) names
    buffers: tuple[tuple[str, str], ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", tuple((p, f"{self.name}.{p}") for p in self.layer.parameters()))
        object.__setattr__(self, "buffers", tuple((b, f"{self.name}.{b}") for b in self.layer.buffers()))


@dataclass(frozen=True)
class Plan:
    """Nodes in an order in which every node comes after its inputs."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    output: str
    last_use: Mapping[str, str] = field(init=False, compare=False)  # value -> the node after which it is dead
    _fitting: set[tuple[RowShape, ...]] = field(init=False, compare=False, default_factory=set, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "last_use", {v: n.name for n in self.nodes for v in n.inputs if v != self.output})

    def random_nodes(self) -> list[str]:
        """Names of the nodes that draw numbers in training, which need a key each."""
        return [n.name for n in self.nodes if n.layer.random]

    def all_values(self) -> frozenset[str]:
        return frozenset(n.name for n in self.nodes)

    def wanted(self, trainable: Iterable[str], *, input_gradient: bool = False) -> frozenset[str]:
        """The values whose gradient has to be computed, so that each trainable parameter (and input) gets its own."""
        trained = set(trainable)
        wanted = set(self.inputs) if input_gradient else set()
        for node in self.nodes:
            if any(full in trained for _, full in node.params) or any(v in wanted for v in node.inputs):
                wanted.add(node.name)
        return frozenset(wanted)

    def check_rows(self, shapes: tuple[RowShape, ...]) -> None:
        """Raise `ShapeError` where inputs of these row shapes do not fit; shapes that once fitted are known."""
        if shapes not in self._fitting:
            self.row_shapes(dict(zip(self.inputs, shapes, strict=True)))
            self._fitting.add(shapes)

    def row_shapes(self, inputs: Mapping[str, RowShape] | None = None) -> dict[str, RowShape]:
        """The shape of a row of every value, None where nothing fixes it; `ShapeError` for widths that do not fit."""
        shapes: dict[str, RowShape] = {name: (inputs or {}).get(name) for name in self.inputs}
        for node in self.nodes:
            try:
                shapes[node.name] = node.layer.output_shape(*(shapes[v] for v in node.inputs))
            except ShapeError as error:
                raise ShapeError(f"Layer {node.name!r}, after {', '.join(map(repr, node.inputs))}: {error}") from None
        return shapes


class Passed(NamedTuple):
    """What a forward pass leaves."""

    y: Array
    caches: dict[str, Any]  # by node, {} where nothing is kept
    buffers: dict[str, Array]  # all of them, the changed ones new


def forward(
    plan: Plan,
    params: Mapping[str, Array],
    buffers: Mapping[str, Array],
    x: Inputs,
    *,
    xp: Namespace,
    train: bool = False,
    keys: Mapping[str, Any] | None = None,
    first_row: Scalar = 0,
    keep: bool = True,
) -> Passed:
    """The output of every node in order. Values that no later node reads are dropped at once."""
    values: dict[str, Array] = dict(x) if isinstance(x, Mapping) else {plan.inputs[0]: x}
    caches: dict[str, Any] = {}
    after = dict(buffers)
    for node in plan.nodes:
        mode = Mode(train, (keys or {}).get(node.name), first_row)
        result = node.layer.forward(
            *(values[v] for v in node.inputs),
            params={local: params[full] for local, full in node.params},
            buffers={local: buffers[full] for local, full in node.buffers},
            mode=mode,
            xp=xp,
        )
        values[node.name] = result.y
        if keep:
            caches[node.name] = result.cache
        after.update({f"{node.name}.{local}": value for local, value in result.buffers.items()})
        for v in node.inputs:
            if plan.last_use.get(v) == node.name:
                values.pop(v, None)
        del result  # with its cache, which would otherwise live through the next layer's forward
    return Passed(values[plan.output], caches, after)


def backward(
    plan: Plan,
    caches: dict[str, Any],
    dy: Array,
    *,
    wanted: frozenset[str],
    xp: Namespace,
    keep: bool = False,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """(gradients of parameters, gradients of values), in reverse order.

    keep    also return the gradients of the values between; without it only those of the inputs, and each other one is
            freed as soon as it has been used

    A value used several times gets the sum of its gradients. Each cache is taken out of `caches` as it is used, so that
    its arrays can be freed before the next layer's gradients are made.
    """
    slopes: dict[str, Array] = {plan.output: dy}
    grads: dict[str, Array] = {}
    for node in reversed(plan.nodes):
        cache = caches.pop(node.name)
        if node.name not in slopes or node.name not in wanted:
            continue  # nothing below it is wanted, or nothing above it reads it
        needed = any(v in wanted for v in node.inputs)
        arriving = slopes[node.name] if keep else slopes.pop(node.name)
        dx, local = node.layer.backward(arriving, cache, xp=xp, input_gradient=needed)
        grads.update({f"{node.name}.{name}": g for name, g in local.items()})
        if not needed or dx is None:
            continue
        for v, slope in zip(node.inputs, dx if isinstance(dx, tuple) else (dx,), strict=True):
            if v in wanted:
                slopes[v] = slopes[v] + slope if v in slopes else slope
    return grads, slopes


def plan_chain(layers: Iterable[Layer]) -> Plan:
    """Layers one after the other, named "0", "1", ... Raises `ShapeError` where neighbours do not fit."""
    nodes = []
    for i, layer in enumerate(layers):
        _check_layer(f"layers[{i}]", layer)
        if layer.arity != 1:
            raise ShapeError(
                f"layers[{i}] is {layer}, which takes {layer.arity} inputs. A Network is a chain; use xbp.Graph."
            )
        nodes.append(Node(str(i), layer, (str(i - 1) if i else INPUT,)))
    if not nodes:
        raise ShapeError("A Network needs at least one layer; the list of layers is empty.")
    plan = Plan(tuple(nodes), (INPUT,), nodes[-1].name)
    plan.row_shapes()
    return plan


def plan_graph(nodes: Mapping[str, Any], inputs: Iterable[str], output: str) -> Plan:
    """Nodes {name: (layer, input, ...)} in any order, sorted so that each comes after what it reads.

    Raises `NameUnknown` for a value that is nowhere made, `ShapeError` for a cycle or a wrong number of inputs.
    """
    if isinstance(inputs, str):
        raise TypeError(f"inputs must be a list of names; it is the string {inputs!r}. Write [{inputs!r}].")
    inputs = tuple(inputs)
    known = {*nodes, *inputs}
    if output not in known:
        raise unknown_name("output of the graph", output, known)
    if both := set(nodes) & set(inputs):
        raise NameUnknown(f"{sorted(both)} are both inputs and nodes of the graph; a name stands for one value.")
    waiting: dict[str, Node] = {}
    for name, given in nodes.items():
        if not isinstance(given, tuple | list) or not given:
            raise TypeError(f"Node {name!r} must be (layer, input, ...); it is {given!r:.80}.")
        layer, *sources = given
        _check_layer(f"node {name!r}", layer)
        if len(sources) != layer.arity:
            raise ShapeError(f"Node {name!r} is {layer}, which takes {layer.arity} inputs; it is given {len(sources)}.")
        for source in sources:
            if source not in known:
                raise unknown_name(f"input of node {name!r}:", source, known)
        waiting[name] = Node(name, layer, tuple(sources))
    done: list[Node] = []
    made = set(inputs)
    while waiting:
        ready = [n for n in waiting.values() if all(v in made for v in n.inputs)]
        if not ready:
            through = ", ".join(sorted(waiting))
            raise ShapeError(f"The graph has a cycle through {through}; a value cannot depend on itself.")
        for node in ready:
            done.append(waiting.pop(node.name))
            made.add(node.name)
    plan = Plan(tuple(done), inputs, output)
    plan.row_shapes()
    _check_use(plan)
    return plan


def _check_use(plan: Plan) -> None:
    """Raise for parameters that the output does not depend on: they would have no gradient."""
    read = {plan.output}
    for node in reversed(plan.nodes):
        if node.name in read:
            read.update(node.inputs)
        elif node.params:
            raise ShapeError(
                f"The output {plan.output!r} does not depend on node {node.name!r}, whose parameters could not learn "
                "then. Remove the node, or let the output read it."
            )


def _check_layer(where: str, layer: object) -> None:
    if isinstance(layer, type) and issubclass(layer, Layer):
        raise TypeError(f"{where} is the class {layer.__name__}; write {layer.__name__}(...) to make a layer of it.")
    if not isinstance(layer, Layer):
        raise TypeError(
            f"{where} is no layer but a {type(layer).__name__} ({layer!r:.80}). Layers derive from xbp.layers.Layer."
        )
