"""Networks and graphs as ONNX files, which other runtimes predict with.

What is exported is the recorded prediction: dropout is gone, batch norms use their running statistics. Parameters keep
their names, and the batch size is free.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import numpy as np

from .. import storage
from ..errors import ExchangeError, RecordingError, ShapeError, unknown_name
from ..graph import Graph
from ..layers import Layer
from ..layers.base import Result, RowShape
from ..libraries import need
from ..model import Model
from ..program import Program, RecordedArray, Recorder, RecordingNamespace, optimised
from ..training import Trainer
from ..traversal import Node, Plan, forward
from .lowering import Lowering
from .source import HasNetwork, model_of

__all__ = ["OPSET", "check_opset", "export_onnx", "onnx_bytes"]

OPSET = 18  # the oldest that has every operator which is used, so most runtimes read it
LARGEST = 2**31 - 2**16  # bytes that one file of Protocol Buffers holds, with room for what is not weights


def export_onnx(
    model: Model | Trainer | HasNetwork,
    path: str | Path,
    *,
    opset: int = OPSET,
    rows: Mapping[str, tuple[int, ...]] | tuple[int, ...] | None = None,
) -> None:
    """Write the prediction of a Network or Graph as an ONNX file, checked by onnx, whole or not at all.

    model    also the Trainer of one, or a fitted estimator of `xbp.estimators`, whose scores are written
    opset    version of ONNX's operators, 18 or later
    rows     shape of an input's rows (by name, for a graph of several), where no layer says how wide they are

    The graph's inputs are named as the model's, "x" for a Network; its output is "scores". Layers of your own are
    exported too, if they can be recorded: what they compute with xp is all that counts.
    Raises `NotCompiled` for an operation that ONNX lacks, `RecordingError` for a layer that cannot be recorded,
    `ShapeError` where the width of an input is not known, `CheckpointError` where the file cannot be written.
    """
    storage.write_bytes(path, onnx_bytes(model_of(model, "export_onnx"), opset=opset, rows=rows))


def onnx_bytes(
    model: Model | Trainer | HasNetwork,
    *,
    opset: int = OPSET,
    rows: Mapping[str, tuple[int, ...]] | tuple[int, ...] | None = None,
) -> bytes:
    """What `export_onnx` writes, for a runtime in the same process: `InferenceSession(onnx_bytes(net))`."""
    model = model_of(model, "onnx_bytes")
    onnx, opset = need("onnx", "export_onnx", "onnx"), check_opset(opset)
    held = {f"params.{n}": model.backend.to_host(a) for n, a in model.params.items()}
    held |= {f"buffers.{n}": model.backend.to_host(a) for n, a in model.buffers.items()}
    if sum(a.nbytes for a in held.values()) > LARGEST:
        raise ExchangeError("The weights take more than the 2 GiB that one ONNX file can hold.")
    program = _program(model, _widths(model, rows))
    held = {name: a for name, a in held.items() if name in program.inputs}
    called = {name: name.partition(".")[2] or name for name in program.inputs}
    if len(set(called.values())) < len(called):
        raise ExchangeError(
            "An input of the graph has the name of a parameter, which an ONNX graph has once: rename it."
        )
    lowering = Lowering(onnx, program, held, called)
    output = "scores"
    while output in model.plan.inputs:
        output += "_"
    lowering.output(program.outputs["scores"], output)
    made = _model(onnx, model, program, lowering, output, opset)
    onnx.checker.check_model(made, full_check=True)
    return cast(bytes, made.SerializeToString())


def check_opset(opset: int) -> int:
    """The version of ONNX's operators, if it is one that can be written; raises `ExchangeError`."""
    newest = need("onnx", "export_onnx", "onnx").defs.onnx_opset_version()
    if type(opset) is not int or not OPSET <= opset <= newest:
        raise ExchangeError(
            f"opset must be a whole number from {OPSET} to {newest}, which is the installed onnx's; it is {opset!r}."
        )
    return opset


def _model(onnx: Any, model: Model, program: Program, lowering: Lowering, output: str, opset: int) -> Any:
    helper = onnx.helper

    def info(name: str, value: Any) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(value.dtype.name))
        return helper.make_tensor_value_info(name, kind, [n if type(n) is int else str(n) for n in value.shape])

    inputs = [info(name.removeprefix("x."), v) for name, v in program.inputs.items() if name.partition(".")[0] == "x"]
    weights = [onnx.numpy_helper.from_array(a, name) for name, a in lowering.constants.items()]
    last = info(output, program.outputs["scores"])
    graph = helper.make_graph(lowering.nodes, model.kind, inputs, [last], weights, doc_string=str(model))
    imports = [helper.make_opsetid("", opset)]
    version = metadata.version("xbp")
    made = helper.make_model(
        graph,
        producer_name="xbp",
        producer_version=version,
        opset_imports=imports,
        ir_version=helper.find_min_ir_version_for(imports),
        doc_string=f"The prediction of a {model.kind} of xbp {version}, with the operators of opset {opset}.",
    )
    facts = {"opset": opset, "dtype": model.dtype, "xbp": version, "metadata": json.dumps(model.metadata, default=str)}
    helper.set_model_props(made, {name: str(value) for name, value in facts.items()})
    return made


# --- what is recorded -------------------------------------------------------------------------------------------------


class _Namespace(RecordingNamespace):
    """With the one function of ONNX that the standard lacks; kernels ask a namespace for it."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(recorder)
        self._noted = recorder

    def erfc(self, x: RecordedArray) -> RecordedArray:
        return self._noted.note("erfc", (x,), x.shape, x.dtype)


class _Named(Layer):
    """A layer whose operations are noted under its name."""

    def __init__(self, name: str, layer: Layer, recorder: Recorder) -> None:
        object.__setattr__(self, "_about", (name, layer, recorder))

    def parameters(self) -> Any:
        return self._layer.parameters()

    def buffers(self) -> Any:
        return self._layer.buffers()

    @property
    def _layer(self) -> Layer:
        layer: Layer = object.__getattribute__(self, "_about")[1]
        return layer

    def forward(self, *x: Any, **rest: Any) -> Result:
        name, layer, recorder = object.__getattribute__(self, "_about")
        with recorder.within(f"{name} {type(layer).__name__}.forward"):
            result: Result = layer.forward(*x, **rest)
        return result


def _program(model: Model, rows: Mapping[str, tuple[int, ...]]) -> Program:
    """The prediction as operations. Recorded at two batch sizes, of which it must not depend."""
    if all(type(node.layer).__module__.startswith("xbp.") for node in model.plan.nodes):
        return _recorded(model, rows, 65521)
    try:
        program, other = (_recorded(model, rows, n) for n in (65521, 65523))
    except Exception as error:  # somebody else's code may fail in any way
        raise RecordingError(
            f"A layer cannot be recorded ({type(error).__name__}: {error}). Compute with functions of xp alone, as the "
            "layers of xbp do."
        ) from error
    if str(program) != str(other):
        raise RecordingError(
            "A layer computes with the number of rows, x.shape[0], which the file would keep for every batch. Count "
            "rows as an array: xp.sum(xp.ones_like(x[:, 0]))."
        )
    return program


def _recorded(model: Model, rows: Mapping[str, tuple[int, ...]], n: int) -> Program:
    recorder = Recorder(n)
    if model.dtype == "float32":  # for float64 the formula stays, which is exact where runtimes have no Erf
        recorder.xp = _Namespace(recorder)
    weights: dict[str, dict[str, Any]] = {"params": {}, "buffers": {}}
    for section, arrays in (("params", model.params), ("buffers", model.buffers)):
        for name, a in arrays.items():
            weights[section][name] = recorder.input(f"{section}.{name}", tuple(a.shape), model.dtype)
    names = {v: f"x.{v}" if isinstance(model, Graph) else "x" for v in model.plan.inputs}
    x: Any = {v: recorder.input(names[v], ("N", *rows[v]), model.dtype) for v in model.plan.inputs}
    plan = model.plan
    nodes = tuple(Node(node.name, _Named(node.name, node.layer, recorder), node.inputs) for node in plan.nodes)
    named = Plan(nodes, plan.inputs, plan.output)
    xp = cast(Any, recorder.xp)
    y = forward(named, weights["params"], weights["buffers"], x, xp=xp, keep=False).y
    return optimised(recorder.program("scores", {"scores": cast(Any, y)}))


def _widths(model: Model, rows: Mapping[str, tuple[int, ...]] | tuple[int, ...] | None) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs' rows: as given, else as the layers take them that they reach."""
    plan = model.plan
    given: dict[str, RowShape] = {}
    if isinstance(rows, tuple):
        given = dict.fromkeys(plan.inputs, rows)
    elif rows is not None:
        given = dict(rows)
    for name in given:
        if name not in plan.inputs:
            raise unknown_name("input in rows=", name, plan.inputs)
    known = {v: shape for v, shape in plan.row_shapes(given).items() if shape is not None}
    for node in reversed(plan.nodes):
        width = getattr(node.layer, "in_features", getattr(node.layer, "size", None))
        if isinstance(width, int):
            known.setdefault(node.inputs[0], (width,))
        elif node.layer.arity == 1 and node.name in known and node.layer.output_shape(None) is None:
            known.setdefault(node.inputs[0], known[node.name])  # a layer that keeps the shape, as activations do
    missing = [v for v in plan.inputs if v not in known]
    if missing:
        raise ShapeError(
            f"No layer says how wide the rows of {', '.join(map(repr, missing))} are. Give their shape without the "
            f"batch, rows={{{missing[0]!r}: (10,)}}."
        )
    plan.row_shapes({v: known[v] for v in plan.inputs})
    return {v: known[v] for v in plan.inputs}
