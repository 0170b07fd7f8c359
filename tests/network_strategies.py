"""Small networks of every kind, drawn by hypothesis, as descriptions that any backend can build.

Engines are compared on them one step at a time: depth, widths, activations, norms, dropout, graphs in which values are
used more than once, losses, optimisers, clipping, frozen parameters, weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import xbp

ACTIVATIONS = {
    "relu": xbp.ReLU(),
    "leaky": xbp.LeakyReLU(0.1),
    "elu": xbp.ELU(0.7),
    "gelu": xbp.GELU(),
    "gelu_tanh": xbp.GELU(approximate="tanh"),
    "silu": xbp.SiLU(),
    "softplus": xbp.Softplus(1.5),
    "sigmoid": xbp.Sigmoid(),
    "tanh": xbp.Tanh(),
    "softmax": xbp.Softmax(),
    "identity": xbp.Identity(),
    "dropout": xbp.Dropout(0.4),
}
NORMS = {"layer": xbp.LayerNorm, "batch": xbp.BatchNorm}

# With the kind of targets that each takes.
LOSSES = {
    "softmax": (xbp.SoftmaxCrossEntropy(), "labels"),
    "smoothed": (xbp.SoftmaxCrossEntropy(label_smoothing=0.1), "labels"),
    "soft": (xbp.SoftmaxCrossEntropy(), "probabilities"),
    "sigmoid": (xbp.SigmoidCrossEntropy(), "bits"),
    "squared": (xbp.MeanSquaredError(), "numbers"),
    "absolute": (xbp.MeanAbsoluteError(), "numbers"),
    "huber": (xbp.Huber(0.8), "numbers"),
    "quantile": (xbp.Quantile(0.3), "numbers"),
    "quantiles": (xbp.Quantile((0.1, 0.5, 0.9)), "numbers"),
    "poisson": (xbp.PoissonNLL(), "counts"),
    "gaussian": (xbp.GaussianNLL(), "halved"),
}
OPTIMIZERS = {
    "sgd": xbp.SGD(0.02),
    "momentum": xbp.SGD(0.01, momentum=0.9, weight_decay=0.01),
    "nesterov": xbp.SGD(0.01, momentum=0.9, nesterov=True),
    # With a large eps: a gradient that is zero but for rounding would otherwise decide about a whole step.
    "adagrad": xbp.AdaGrad(0.05, eps=1e-2),
    "rmsprop": xbp.RMSProp(0.01, eps=1e-2),
    "adam": xbp.Adam(0.01, eps=1e-2),
    "adam_l2": xbp.Adam(0.01, eps=1e-2, weight_decay=0.02, decay=lambda name: name.endswith("W")),
    "adamw": xbp.AdamW(0.01, eps=1e-2),
}


@dataclass(frozen=True)
class Described:
    """A network and its training, as names and numbers.

    layers    names of ACTIVATIONS or NORMS, or widths of affine layers, between the first affine layer and the last
    graph     whether values are used more than once, and rows come as two inputs
    frozen    whether the first layer does not learn
    """

    inputs: int = 5
    width: int = 4
    layers: tuple[str | int, ...] = ("relu",)
    outputs: int = 3
    loss: str = "softmax"
    optimizer: str = "sgd"
    dtype: str = "float32"
    graph: bool = False
    weighted: bool = False
    bias: bool = True
    clip_norm: float | None = None
    frozen: bool = False

    @property
    def smallest(self) -> int:
        """The fewest rows of a batch: a row alone has no variance."""
        return 2 if "batch" in self.layers else 1


def build(described: Described, backend: Any = "numpy") -> tuple[Any, Any, Any, dict[str, Any]]:
    """(model, loss, optimiser, options of a Trainer). One seed, so that all backends start with the same numbers."""
    layers: list[Any] = [xbp.Affine(described.inputs, described.width, bias=described.bias)]
    width = described.width
    for part in described.layers:
        layers.append(_layer(part, width))
        width = part if isinstance(part, int) else width
    end = xbp.Affine(width, described.outputs)
    same = {"backend": backend, "dtype": described.dtype, "seed": 3}
    if described.graph:
        model: Any = xbp.Graph(_with_fan_out(layers, end, width), inputs=["x", "z"], output="last", **same)
    else:
        model = xbp.Network([*layers, end], **same)
    options = {"clip_norm": described.clip_norm}
    if described.frozen:
        options["trainable"] = lambda name: not name.startswith(("0.", "n0."))
    return model, LOSSES[described.loss][0], OPTIMIZERS[described.optimizer], options


def _layer(part: str | int, width: int) -> Any:
    if isinstance(part, int):
        return xbp.Affine(width, part)
    return NORMS[part](width) if part in NORMS else ACTIVATIONS[part]


def _with_fan_out(layers: list[Any], end: Any, width: int) -> dict[str, tuple[Any, ...]]:
    """The layers in a row; what they make is used twice, and one sum is its own partner."""
    nodes = {f"n{i}": (layer, f"n{i - 1}" if i else "x") for i, layer in enumerate(layers)}
    tip = f"n{len(layers) - 1}"
    return nodes | {
        "side": (xbp.Affine(2, width, bias=False), "z"),
        "sum": (xbp.Add(), tip, "side"),
        "product": (xbp.Mul(), "sum", tip),
        "twice": (xbp.Add(), "product", "product"),
        "tame": (xbp.Tanh(), "twice"),  # products grow with the square
        "last": (end, "tame"),
    }


def trainer(described: Described, engine: str, backend: Any = "numpy", **options: Any) -> Any:
    """A new Trainer of the network that is described."""
    model, loss, optimizer, own = build(described, backend)
    return xbp.Trainer(model, loss=loss, optimizer=optimizer, engine=engine, **own, **options)


def batch(described: Described, n: int, seed: int) -> tuple[Any, np.ndarray, np.ndarray | None]:
    """(x, t, w) on the host: x a mapping for a graph, w None where rows have no weights."""
    rng = np.random.default_rng([seed, n])
    x: Any = rng.normal(size=(n, described.inputs)).astype(described.dtype)
    if described.graph:
        x = {"x": x, "z": rng.normal(size=(n, 2)).astype(described.dtype)}
    w = None
    if described.weighted:
        w = rng.uniform(0.5, 2.0, n).astype(described.dtype)
        w[seed % n] = 0.0
    return x, _targets(described, n, rng), w


def _targets(described: Described, n: int, rng: np.random.Generator) -> np.ndarray:
    kind, k = LOSSES[described.loss][1], described.outputs
    if kind == "labels":
        return rng.integers(0, k, n, dtype=np.int32)
    if kind == "probabilities":
        t = rng.dirichlet(np.ones(k), n)
    elif kind == "bits":
        t = rng.integers(0, 2, (n, k))
    elif kind == "counts":
        t = rng.poisson(1.5, (n, k))
    else:
        t = rng.normal(size=(n, k // 2 if kind == "halved" else k))
    return t.astype(described.dtype)


@st.composite
def networks(draw: Any, dtypes: tuple[str, ...] = ("float32", "float64")) -> Described:
    """Any of all these."""
    parts = st.one_of(st.sampled_from([*ACTIVATIONS, *NORMS]), st.integers(1, 7))
    loss = draw(st.sampled_from(sorted(LOSSES)))
    outputs = {"gaussian": 4, "quantiles": 3}.get(loss, 0) or draw(st.integers(1, 4))
    return Described(
        inputs=draw(st.integers(1, 6)),
        width=draw(st.integers(1, 7)),
        layers=tuple(draw(st.lists(parts, max_size=4))),
        outputs=outputs,
        loss=loss,
        optimizer=draw(st.sampled_from(sorted(OPTIMIZERS))),
        dtype=draw(st.sampled_from(dtypes)),
        graph=draw(st.booleans()),
        weighted=draw(st.booleans()),
        bias=draw(st.booleans()),
        clip_norm=draw(st.sampled_from([None, 0.1, 10.0])),
        frozen=draw(st.booleans()),
    )
