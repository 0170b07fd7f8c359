"""Every optimiser beside PyTorch's, and the parameters and gradients that both are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from xbp import SGD, AdaGrad, Adam, AdamW, Optimizer, RMSProp

TORCH = "PyTorch, the reference of this test, is not installed"
STEPS = 30


@dataclass(frozen=True)
class Case:
    name: str
    ours: Optimizer
    theirs: Callable[[Any, Any], Any]  # (torch.optim, parameters) -> optimiser


CASES = [
    Case("sgd", SGD(0.1), lambda o, p: o.SGD(p, lr=0.1)),
    Case("sgd-decay", SGD(0.1, weight_decay=0.3), lambda o, p: o.SGD(p, lr=0.1, weight_decay=0.3)),
    Case("momentum", SGD(0.1, momentum=0.9), lambda o, p: o.SGD(p, lr=0.1, momentum=0.9)),
    Case(
        "momentum-decay",
        SGD(0.1, momentum=0.5, weight_decay=0.3),
        lambda o, p: o.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.3),
    ),
    Case(
        "nesterov",
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    Case("adagrad", AdaGrad(0.1), lambda o, p: o.Adagrad(p, lr=0.1)),
    Case(
        "adagrad-decay",
        AdaGrad(0.1, eps=1e-3, weight_decay=0.3),
        lambda o, p: o.Adagrad(p, lr=0.1, eps=1e-3, weight_decay=0.3),
    ),
    Case("rmsprop", RMSProp(0.01), lambda o, p: o.RMSprop(p, lr=0.01)),
    Case(
        "rmsprop-decay",
        RMSProp(0.01, alpha=0.9, eps=1e-3, weight_decay=0.3),
        lambda o, p: o.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3, weight_decay=0.3),
    ),
    Case("adam", Adam(0.01), lambda o, p: o.Adam(p, lr=0.01)),
    Case(
        "adam-decay",
        Adam(0.01, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.3),
        lambda o, p: o.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
    ),
    Case("adam-beta1-0", Adam(0.01, beta1=0.0), lambda o, p: o.Adam(p, lr=0.01, betas=(0.0, 0.999))),
    Case("adamw", AdamW(0.01), lambda o, p: o.AdamW(p, lr=0.01)),
    Case("adamw-decay", AdamW(0.01, weight_decay=0.3), lambda o, p: o.AdamW(p, lr=0.01, weight_decay=0.3)),
]
ONE_EACH = [c for c in CASES if c.name in ("sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw")]
FLOATS = [("float32", 2e-6), ("float64", 1e-13)]


def start():
    rng = np.random.default_rng(0)
    return {"0.W": rng.normal(size=(3, 2)), "0.b": rng.normal(size=(2,))}


def slopes():
    """Gradients of thirty steps, from the size of one hundredth to that of a hundred, some of them exactly 0."""
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        size = 10.0 ** rng.uniform(-2.0, 2.0)
        yield {n: size * rng.normal(size=p.shape) * (rng.random(p.shape) < 0.9) for n, p in start().items()}


def put(space, arrays, dtype=None):
    return {n: space.put(np.asarray(a).astype(dtype or space.dtype)) for n, a in arrays.items()}


def pairs(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)
