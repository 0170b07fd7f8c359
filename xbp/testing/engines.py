"""Engines against the interpreter: the check for whoever writes one.

A step from the same state has to give the same loss, parameters, buffers and optimiser state. One step at a time: two
long trainings drift apart honestly, by rounding alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backend import Backend, get_backend
from ..layers import GELU, Affine, BatchNorm, Dropout, LayerNorm, ReLU
from ..losses import SoftmaxCrossEntropy
from ..network import Network
from ..optimizers import Adam
from ..program import Interpreter
from ..recording import flat, inputs_of
from ..training import Trainer

__all__ = ["check_engine"]

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
BATCHES = (7, 4, 7, 2)  # sizes that come and go, as the last batch of an epoch does


def check_engine(backend: str | Backend, engine: str, *, dtype: str = "float32") -> None:
    """Train a small network on the engine, and compare each step with the interpreter's on NumPy.

    The network has norms, dropout, weights and clipping; the error of an array is taken relative to its largest entry,
    1e-5 in float32 and 1e-12 in float64. Raises `AssertionError` with the name of the array that differs, or where the
    engine gave up and another one ran.
    """
    backend = get_backend(backend)
    mixing = Affine(8, 8, bias=False)  # BatchNorm would take a bias away, and leave rounding as its gradient
    layers = [Affine(6, 8), LayerNorm(8), GELU(), Dropout(0.3), mixing, BatchNorm(8), ReLU(), Affine(8, 3)]
    net = Network(layers, backend=backend, dtype=dtype, seed=0)
    # A large eps: gradients that are zero but for rounding would otherwise decide about whole steps.
    rule = Adam(1e-2, eps=1e-2)
    trainer = Trainer(net, loss=SoftmaxCrossEntropy(0.1), optimizer=rule, clip_norm=0.5, engine=engine)
    rng = np.random.default_rng(0)
    for step, n in enumerate(BATCHES):
        x, w = rng.normal(size=(n, 6)).astype(dtype), rng.uniform(0.5, 2.0, n).astype(dtype)
        t = rng.integers(0, 3, n).astype(np.int32)
        before = _on_host(trainer)
        scalars = {f"scalars.{name}": v[0] for name, v in trainer._scalars.on_host(np.asarray([step])).items()}
        scalars["scalars.lr"] = np.asarray(scalars["scalars.lr"], dtype=dtype)
        loss = backend.to_host(trainer.step(x, t, w))
        if trainer.engine != engine:
            raise AssertionError(f"Engine {engine!r} of {backend!r} gave up; the step ran on {trainer.engine!r}.")
        arrays: Any = {**before, **inputs_of(x, t, w), **scalars}  # type: ignore[arg-type]  # NumPy's are arrays
        wanted = Interpreter(trainer.program, np, device="cpu")(arrays)  # type: ignore[arg-type]  # as above
        found = {**_on_host(trainer), "loss": loss}
        for name, value in wanted.items():
            _compare(f"{name} after step {step + 1}, of {n} rows", found[name], np.asarray(value), dtype)


def _on_host(trainer: Trainer) -> dict[str, np.ndarray]:
    tree = trainer._tree()  # the newest values, whoever holds them
    return {name: trainer.backend.to_host(a) for name, a in flat(tree).items()}


def _compare(what: str, found: np.ndarray, wanted: np.ndarray, dtype: str) -> None:
    if found.shape != wanted.shape or found.dtype != wanted.dtype:
        raise AssertionError(f"{what}: {found.dtype}{found.shape}, where {wanted.dtype}{wanted.shape} is right.")
    error = float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))
    limit = TOLERANCE[dtype] * max(float(np.abs(wanted).max(initial=0.0)), 1e-2)
    if not error <= limit:
        raise AssertionError(f"{what} differs from the interpreter's by {error:.1e}; {limit:.1e} is allowed.")
