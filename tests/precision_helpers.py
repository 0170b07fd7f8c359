"""What the tests of mixed precision share: the oracle on NumPy with ml_dtypes, and the programs of the suite."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import ml_dtypes
import numpy as np
import pytest

from engine_networks import CASES, STARTED, Trained
from xbp import scaling
from xbp.program import Interpreter, Recorder, optimised
from xbp.recording import flat, inputs_of, record, signature_of

HALVES = ["bfloat16", "float16"]
EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # the largest error of rounding, relative to the number
in_both = pytest.mark.parametrize("half", HALVES)
by_name = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def numpy_dtype(name):
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


def interpreted(program, arrays):
    with np.errstate(all="ignore"):
        return Interpreter(program, np, device="cpu", dtype=numpy_dtype)(arrays)


def rounded(a, half):
    """To half the width and back."""
    return a.astype(numpy_dtype(half)).astype(np.float32)


def same_bits(a, b):
    np.testing.assert_array_equal(a, b, strict=True)


def normal(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def recorded(formula, inputs, *, name="formula"):
    """The program of formula(xp, *inputs) -> outputs by name, for inputs {name: shape}."""
    recorder = Recorder(batch=7)
    arrays = [recorder.input(n, shape) for n, shape in inputs.items()]
    return optimised(recorder.program(name, formula(recorder.xp, *arrays)))


def affine_and_back(xp, x, W, b, dy):
    h = xp.matmul(x, W) + b
    return {
        "h": h,
        "params.0.W": W - 0.5 * xp.matmul(xp.matrix_transpose(x), dy),
        "params.0.b": b - 0.5 * xp.sum(dy, axis=0),
        "dx": xp.matmul(dy, xp.matrix_transpose(W)),
    }


AFFINE = {"x": ("N", 3), "params.0.W": (3, 2), "params.0.b": (2,), "dy": ("N", 2)}


@cache
def _trained(name):
    return Trained(next(case for case in CASES if case.name == name), "float32")


def trained(case):
    """The training of a case, some steps on."""
    return _trained(case.name)


def programs(training, precision):
    """The programs of a training in this precision, by what they are for."""
    step = replace(training.trainer._step, precision=precision)
    x, t, w = training.data
    looks = {"scores": signature_of(x, None, None)}
    whats = ["step", "scores", "sums", "piece", "apply"]
    tree, look = tree_of(training, precision), signature_of(x, t, w)
    return {what: record(what, step, tree, looks.get(what, look)) for what in whats}


def tree_of(training, precision):
    extra = scaling.init(xp=np, device="cpu") if precision == "mixed-float16" else {}
    return {**training.tree, "state": training.tree["state"] | extra}


def arrays_of(training, precision, rows=None):
    """What the program of a step reads."""
    now = {f"scalars.{k}": v[0] for k, v in training.scalars(STARTED).items()}
    now["scalars.lr"] = np.asarray(now["scalars.lr"], np.float32)
    batch = training.batch(slice(0, rows or max(2, training.case.rows)))
    return {**flat(tree_of(training, precision)), **inputs_of(*batch), **now}
