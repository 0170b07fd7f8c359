"""`xbp export`: a model file as one that other programs read."""

from __future__ import annotations

from pathlib import Path

import typer

from ..graph import Graph
from ..interchange import OPSET, check_opset, export_onnx, export_safetensors
from ..model import Model
from ..network import Network
from ..storage import read_header
from .console import json_line, note
from .guard import option_errors
from .recipe import KEY

__all__ = ["export"]

FORMATS = {".onnx": "ONNX", ".safetensors": "a PyTorch state dict"}


def export(model: Path, out: Path, opset: int | None, as_json: bool) -> None:
    """Write the network of `model` to `out`, in the format that its suffix names."""
    kind = out.suffix.lower()
    if kind not in FORMATS:
        raise typer.BadParameter(f"{str(out)!r} should end in {' or '.join(FORMATS)}.", param_hint="FILE")
    if out.resolve() == model.resolve():
        raise typer.BadParameter(f"{str(out)!r} is the model itself. Name another file.", param_hint="FILE")
    if opset is not None and kind != ".onnx":
        raise typer.BadParameter("it is a version of ONNX's operators; FILE is not .onnx.", param_hint="--opset")
    kinds: dict[str, type[Model]] = {"network": Network, "graph": Graph}
    loaded = kinds.get(str(read_header(model).get("kind")), Network).load(model, backend="numpy")
    if kind == ".onnx":
        with option_errors("--opset"):
            opset = check_opset(OPSET if opset is None else opset)
        export_onnx(loaded, out, opset=opset)
    else:
        export_safetensors(loaded, out)
    if as_json:
        found = {"file": str(out), "format": FORMATS[kind], "opset": opset}
        json_line({**found, "model": str(model)})
    note(f"{out}: {FORMATS[kind]} of the {loaded.kind} in {model}{_scaled(loaded)}")


def _scaled(model: Model) -> str:
    """What whoever runs the file has to know of a model that `xbp train` made: rows come in scaled."""
    scaling = (model.metadata.get(KEY) or {}).get("scaling")
    return "" if not scaling else f"; it takes rows scaled as in training, see {KEY!r} in the model's description"
