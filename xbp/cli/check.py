"""`xbp check`: the gradients of a described network against central differences, by the name of the parameter."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import typer

from ..backend import available_backends, get_backend
from ..errors import DTypeError
from ..layers import Layer
from ..losses import Loss, PoissonNLL, SigmoidCrossEntropy, SoftmaxCrossEntropy
from ..network import Network
from ..testing import GradientReport, check_gradients
from .console import json_line, note, show
from .guard import option_errors
from .names import activation_of_text, hidden_layers, hidden_widths, known_name, layers_of_text, loss_of_text

__all__ = ["Described", "check"]


@dataclass(frozen=True)
class Described:
    """A network in words: `layers`, or else widths and an activation."""

    layers: str | None
    hidden: str
    activation: str
    dropout: float
    inputs: int
    outputs: int

    def build(self) -> list[Layer]:
        if self.layers is not None:
            return layers_of_text(self.layers)
        bend = activation_of_text(self.activation)
        return hidden_layers(self.inputs, hidden_widths(self.hidden), self.outputs, bend, self.dropout)


def check(
    described: Described,
    loss_name: str,
    *,
    rows: int,
    entries: int,
    seed: int,
    tolerance: float | None,
    backend: str,
    device: str | None,
    dtype: str,
    as_json: bool,
) -> None:
    """Check one network on one backend, or with "all" on each one that runs here. Exits with 1 for a wrong gradient."""
    loss, layers = loss_of_text(loss_name), described.build()
    known_name("dtype", dtype, ("float32", "float64"), "--dtype")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise typer.BadParameter(f"must be a number above 0; it is {tolerance!r}.", param_hint="--tolerance")
    everywhere = backend == "all"
    reports: list[GradientReport] = []
    for name in [i.name for i in available_backends() if i.available] if everywhere else [backend]:
        found = get_backend(name, None if everywhere else device)
        try:
            network = Network(layers, backend=found, dtype=dtype, seed=seed)
        except DTypeError as error:
            if not everywhere:
                raise
            note(f"{name} is left out: {error}")
            continue
        x, t = _data(network, loss, rows, seed)
        report = check_gradients(network, x, t, loss=loss, tolerance=tolerance, entries=entries, seed=seed)
        reports.append(report)
        if not as_json:
            show(f"{network}\n{loss}, {rows} rows\n\n{report}\n")
    if as_json:
        json_line({"ok": all(r.ok for r in reports), "checks": [_plain(r) for r in reports]})
    wrong = [f"{r.backend}: the gradient of {row.name} is wrong" for r in reports for row in r.rows if not row.ok]
    if wrong:
        note("\n".join(wrong))
        raise typer.Exit(1)


def _data(network: Network, loss: Loss, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random rows that suit the network and the loss."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, _width(network))).astype(network.dtype)
    outputs = int(network.forward(x).shape[1])
    with option_errors("--loss"):
        width = loss.target_width(outputs)
    if isinstance(loss, SoftmaxCrossEntropy):
        return x, rng.integers(0, outputs, rows)
    if isinstance(loss, SigmoidCrossEntropy):
        return x, rng.integers(0, 2, (rows, width)).astype(network.dtype)
    if isinstance(loss, PoissonNLL):
        return x, rng.poisson(2.0, (rows, width)).astype(network.dtype)
    return x, rng.standard_normal((rows, width)).astype(network.dtype)


def _width(network: Network) -> int:
    """How many columns the first layer that says so takes."""
    for layer in network.layers:
        width = getattr(layer, "in_features", getattr(layer, "size", None))
        if isinstance(width, int):
            return width
    raise typer.BadParameter("there is no parameter in them to check. Add an affine:IN-OUT.", param_hint="--layers")


def _plain(report: GradientReport) -> dict[str, Any]:
    return {**asdict(report), "ok": report.ok}
