"""Trainings with every layer, loss and optimiser of xbp among them, and what the interpreter says of each.

An engine is given the state after some steps, takes one step of its own, and is compared with the interpreter on NumPy:
two long trainings would drift apart honestly, by rounding alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

import xbp
from xbp.data import prepare_batch
from xbp.program import Interpreter
from xbp.recording import flat, inputs_of, record, signature_of

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}  # relative to the largest entry of each array
STARTED = 3  # steps that the state has behind it


def dense(*middle, d=6, k=3, width=8):
    return [xbp.Affine(d, width), *middle, xbp.Affine(width, k)]


FAN_OUT = {
    "h": (xbp.Affine(6, 8), "x"),
    "a": (xbp.Tanh(), "h"),
    "b": (xbp.SiLU(), "h"),
    "sum": (xbp.Add(), "a", "b"),
    "product": (xbp.Mul(), "sum", "h"),
    "y": (xbp.Affine(8, 3), "product"),
}
TWO_INPUTS = {
    "p": (xbp.Affine(4, 5), "left"),
    "q": (xbp.Affine(3, 5), "right"),
    "s": (xbp.Add(), "p", "q"),
    "y": (xbp.Affine(5, 3), "s"),
}


@dataclass(frozen=True)
class Case:
    name: str
    layers: list[Any] | dict[str, Any]  # in a row, or the nodes of a graph
    loss: Any = field(default_factory=xbp.SoftmaxCrossEntropy)
    optimizer: Any = field(default_factory=lambda: xbp.SGD(0.05))
    targets: str = "labels"
    rows: int = 7
    weights: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self):
        return ["left", "right"] if self.layers is TWO_INPUTS else ["x"]

    def trainer(self, backend, dtype, engine):
        made = {"backend": backend, "dtype": dtype, "seed": 3}
        if isinstance(self.layers, dict):
            model = xbp.Graph(self.layers, inputs=self.inputs, output="y", **made)
        else:
            model = xbp.Network(self.layers, **made)
        metrics = ("accuracy",) if self.targets == "labels" else ()
        return xbp.Trainer(
            model, loss=self.loss, optimizer=self.optimizer, metrics=metrics, engine=engine, **self.options
        )

    def data(self, dtype, n=40):
        """(x, t, w) as a user has them."""
        rng = np.random.default_rng(5)
        if self.layers is TWO_INPUTS:
            x = {"left": rng.normal(size=(n, 4)).astype(dtype), "right": rng.normal(size=(n, 3)).astype(dtype)}
        else:
            x = rng.normal(size=(n, 6)).astype(dtype)
        w = rng.uniform(0.0, 2.0, n).astype(dtype) if self.weights else None
        if w is not None:
            w[1] = 0.0
        return x, targets(self.targets, n, rng), w


CROSS, SQUARES = xbp.SoftmaxCrossEntropy, xbp.MeanSquaredError
CASES = [
    Case("relu-sgd", dense(xbp.ReLU())),
    Case("deep-adam", dense(xbp.ReLU(), xbp.Affine(8, 8), xbp.ReLU()), CROSS(), xbp.Adam(1e-2)),
    Case("one-row", dense(xbp.ReLU()), CROSS(), xbp.Adam(1e-2), rows=1),
    Case("weights", dense(xbp.Tanh()), CROSS(label_smoothing=0.1), xbp.SGD(0.05, momentum=0.9), weights=True),
    Case("clipped", dense(xbp.ReLU()), CROSS(), xbp.AdamW(1e-2, weight_decay=0.1), options={"clip_norm": 0.05}),
    Case("nesterov", dense(xbp.LeakyReLU()), CROSS(), xbp.SGD(0.05, momentum=0.9, nesterov=True, weight_decay=0.01)),
    Case("probabilities", dense(xbp.Softplus()), CROSS(), xbp.RMSProp(1e-2), targets="probabilities"),
    Case("binary", dense(xbp.ELU(), k=1), xbp.SigmoidCrossEntropy(), xbp.AdaGrad(0.05), targets="bits"),
    Case("squares", dense(xbp.GELU()), SQUARES(), xbp.Adam(1e-2), targets="numbers"),
    Case("absolute", dense(xbp.GELU(approximate="tanh")), xbp.MeanAbsoluteError(), targets="numbers"),
    Case("huber", dense(xbp.SiLU()), xbp.Huber(0.7), targets="numbers", weights=True),
    Case("quantile", dense(xbp.Sigmoid()), xbp.Quantile((0.1, 0.5, 0.9)), xbp.Adam(1e-2), targets="column"),
    Case("counts", dense(xbp.Tanh()), xbp.PoissonNLL(), targets="counts"),
    Case("gaussian", dense(xbp.Tanh(), k=4), xbp.GaussianNLL(), xbp.Adam(1e-3), targets="pairs"),
    Case("dropout", dense(xbp.ReLU(), xbp.Dropout(0.4), xbp.Affine(8, 8), xbp.Dropout(0.2)), CROSS(), xbp.Adam(1e-2)),
    Case("layer-norm", dense(xbp.LayerNorm(8), xbp.ReLU()), CROSS(), xbp.Adam(1e-2)),
    Case("batch-norm", dense(xbp.Tanh(), xbp.BatchNorm(8), xbp.Identity()), CROSS(), xbp.Adam(1e-2), weights=True),
    Case("softmax", dense(xbp.Softmax(), width=5), SQUARES(), xbp.SGD(0.1), targets="numbers"),
    Case("fan-out", FAN_OUT, CROSS(), xbp.Adam(1e-2)),
    Case("penalty", dense(xbp.ReLU()), CROSS(), xbp.Adam(1e-2), weights=True, options={"penalty": 0.5}),
    Case("two-inputs", TWO_INPUTS, CROSS(), xbp.Adam(1e-2), options={"trainable": lambda name: name[0] != "q"}),
]


def targets(kind, n, rng):
    return {
        "labels": lambda: rng.integers(0, 3, n),
        "probabilities": lambda: rng.dirichlet(np.ones(3), n),
        "bits": lambda: rng.integers(0, 2, n),
        "numbers": lambda: rng.normal(size=(n, 3)),
        "column": lambda: rng.normal(size=(n, 1)),
        "pairs": lambda: rng.normal(size=(n, 2)),
        "counts": lambda: rng.poisson(2.0, (n, 3)).astype(float),
    }[kind]()


class Trained:
    """A case on NumPy in one dtype: its program, a state, data, and the oracle's answers.

    tree       parameters, buffers and state after some steps, on the host
    data       (x, t, w) of all rows
    """

    def __init__(self, case: Case, dtype: str) -> None:
        self.case, self.dtype = case, dtype
        self.trainer = case.trainer("numpy", dtype, "eager")
        self.data = prepare_batch(self.trainer.model, case.loss, *case.data(dtype))
        for start in range(STARTED):
            self.trainer.step(*self.batch(slice(start, start + max(2, case.rows))))
        self.tree = {s: {k: np.array(a) for k, a in arrays.items()} for s, arrays in self.trainer._tree().items()}
        self.program = self.recorded("step")

    def recorded(self, what):
        x, t, w = self.data
        look = signature_of(x, None if what == "scores" else t, None if what == "scores" else w)
        return record(what, self.trainer._step, self.tree, look)

    def batch(self, rows):
        x, t, w = self.data
        x = {k: a[rows] for k, a in x.items()} if isinstance(x, dict) else x[rows]
        return x, t[rows], None if w is None else w[rows]

    def scalars(self, step):
        return self.trainer._scalars.on_host(np.asarray([step]))

    def expected(self, tree, batch, step):
        """The oracle's (tree, loss) after one more step."""
        now = {f"scalars.{k}": v[0] for k, v in self.scalars(step).items()}
        now["scalars.lr"] = np.asarray(now["scalars.lr"], dtype=self.dtype)
        out = Interpreter(self.program, np)({**flat(tree), **inputs_of(*batch), **now})
        new = {s: {k: out.get(f"{s}.{k}", a) for k, a in arrays.items()} for s, arrays in tree.items()}
        return new, out["loss"]


def put(backend, value, dtype):
    """Host arrays, nested as they are, as arrays of the backend; floats in `dtype`."""
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: put(backend, v, dtype) for name, v in value.items()}
    a = np.asarray(value)
    return backend.asarray(a, dtype if a.dtype.kind == "f" else "int32" if a.dtype.kind == "i" else None)


def assert_close(actual, desired, dtype, what=""):
    """Equal dtype and shape, and values within the tolerance of the largest of them."""
    actual, desired = np.asarray(actual), np.asarray(desired)
    assert (actual.shape, actual.dtype.name) == (desired.shape, desired.dtype.name), what
    assert np.isfinite(desired).all(), what
    if desired.dtype.kind != "f":
        np.testing.assert_array_equal(actual, desired, err_msg=what)
    elif desired.size:
        scale = np.abs(desired).max()
        assert np.abs(actual - desired).max() <= TOLERANCE[dtype] * scale, (what, actual, desired)


def assert_trees_close(backend, actual, desired, dtype):
    assert {s: set(a) for s, a in actual.items()} == {s: set(a) for s, a in desired.items()}
    for section, arrays in desired.items():
        for name, a in arrays.items():
            assert_close(backend.to_host(actual[section][name]), a, dtype, f"{section} {name}")
