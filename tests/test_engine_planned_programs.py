"""The engine `planned` on programs that no network of xbp has: whatever can be recorded is run to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xbp
import xbp_numpy.planned_schedule as planned_schedule
from xbp.program import Interpreter, Recorder, optimised

BATCH = 65521
DTYPES = ["float32", "float64"]


@pytest.fixture(params=["whole", "blocks"], autouse=True)
def _blocks(request, monkeypatch):
    if request.param == "blocks":
        monkeypatch.setattr(planned_schedule, "BLOCK", 48)
        monkeypatch.setattr(planned_schedule, "LARGE", 4)


def program_of(formula, name="scores", dtype="float32", **outputs):
    """The program of formula(xp, a, b, v, k): a and b (N, 4), v (4,), k int32 (N,)."""
    recorder = Recorder(BATCH)
    a, b = (recorder.input(f"x.{n}", ("N", 4), dtype) for n in "ab")
    v, k = recorder.input("params.v", (4,), dtype), recorder.input("x.k", ("N",), "int32")
    made = formula(recorder.xp, a, b, v, k)
    return optimised(recorder.program(name, {f"out.{i}": y for i, y in enumerate(made)}))


def inputs_of(n, dtype, seed=0):
    rng = np.random.default_rng([n, seed])
    a, b = rng.normal(size=(2, n, 4)).astype(dtype)
    a[0, :2] = (0.0, -0.0)
    k = rng.integers(-(2**31), 2**31 - 1, n, dtype=np.int32)
    return {"x.a": a, "x.b": b, "params.v": rng.uniform(0.5, 2.0, 4).astype(dtype), "x.k": k}


def assert_as_interpreted(program, dtype, sizes=(1, 7, 20, 7)):
    function = xbp.get_backend("numpy").function(program, "planned")
    oracle = Interpreter(program, np, device="cpu")
    for seed, n in enumerate(sizes):
        given_ = inputs_of(n, dtype, seed)
        before = {name: a.copy() for name, a in given_.items()}
        out, wanted = function(given_), oracle(given_)
        assert list(out) == list(wanted)
        for name, value in out.items():
            expected = np.asarray(wanted[name])
            assert (value.dtype, value.shape) == (expected.dtype, expected.shape)
            bits = f"u{value.itemsize}"
            np.testing.assert_array_equal(
                np.ascontiguousarray(value).view(bits), np.ascontiguousarray(expected).view(bits)
            )
        for name, a in given_.items():
            np.testing.assert_array_equal(a, before[name])


FORMULAS = {
    "where over its second choice": lambda xp, a, b, v, k: [xp.where(a > 0.0, a, a * b), a],
    "where over its first choice": lambda xp, a, b, v, k: [xp.where(a > 0.0, a * b, b)],
    "where of what lives on": lambda xp, a, b, v, k: [c := xp.exp(a), d := xp.exp(b), xp.where(c > d, c, d)],
    "where of one thing": lambda xp, a, b, v, k: [xp.where(a > 0.0, c := a * b, c)],
    "where with zeros": lambda xp, a, b, v, k: [
        xp.where(a > 0.1, a, 0.0),
        xp.where(a > 0.1, 0.0, a),
        xp.where(a > 0.1, a, -0.0),
        xp.where(a > 0.1, -0.0, a),
        xp.where(a > 0.1, xp.exp(a), float("nan")),
    ],
    "where of several shapes": lambda xp, a, b, v, k: [
        xp.where(xp.max(a, axis=1, keepdims=True) > 1.0, a * 2.0, v),
        xp.where(v > 1.0, b, 3.0),
        xp.where(a > 0.0, xp.sum(b), b),
    ],
    "where of whole and logical numbers": lambda xp, a, b, v, k: [
        xp.where(k > 0, k, -7),
        xp.where(a > 0.0, b > 0.0, b < -1.0),
        xp.where(k > 0, k > 9, k < -9),
    ],
    "powers": lambda xp, a, b, v, k: [
        *(xp.abs(a) ** e for e in (2, 2.0, 0.5, -1.0, 1, 3, 1.5, 0)),
        xp.abs(a) ** b,
        xp.sum(v) ** 2.0,
    ],
    "one array in two lays": lambda xp, a, b, v, k: [
        c := xp.matmul(xp.matrix_transpose(a), b),
        c + xp.matrix_transpose(c),
        xp.exp(c) * xp.matrix_transpose(xp.exp(c)),
    ],
    "one array in two lays, in one chain": lambda xp, a, b, v, k: [
        ((c := xp.matmul(xp.matrix_transpose(a), b)) * v + xp.matrix_transpose(c)) * c,
    ],
    "results that lie as odd operands do": lambda xp, a, b, v, k: [
        xp.sum(xp.exp(xp.matrix_transpose(a)), axis=0),
        xp.sum(xp.exp(xp.matrix_transpose(a)), axis=1),
        xp.sum(xp.astype(xp.matrix_transpose(a) * 2.0, xp.float64)),
        xp.matmul(xp.matrix_transpose(a) + 1.0, b),
    ],
    "rows that no view has": lambda xp, a, b, v, k: [
        xp.reshape(xp.matrix_transpose(xp.exp(a)), (-1,)),
        xp.reshape(a[:, :2], (-1,)) * 2.0,
        xp.reshape(xp.broadcast_to(v, a.shape), (-1,)),
    ],
    "parts": lambda xp, a, b, v, k: [
        xp.exp(a)[:, 1:3] * xp.exp(a)[:, :2],
        (a * 2.0)[:, 0] + b[:, -1],
        xp.exp(v)[2] * a,
        v[::-1] + a,
        a[:, None, :] * b[..., None],
    ],
    "joined": lambda xp, a, b, v, k: [
        xp.concat([a, b * 2.0, a], axis=1),
        xp.concat([a, b], axis=-1) * 2.0,
        xp.concat([v, v * 2.0]),
        xp.stack([a, b], axis=1),
        xp.stack([a, b], axis=-1),
        xp.stack([xp.sum(a), xp.sum(b)]),
        xp.take(v, xp.asarray([3, 0, 0], dtype=xp.int32, device=v.device), axis=0),
        xp.take(a, xp.asarray([2, 1], dtype=xp.int64, device=v.device), axis=1),
    ],
    "reductions": lambda xp, a, b, v, k: [
        *(f(a, axis=axis, keepdims=keep) for f in (xp.sum, xp.mean, xp.max, xp.min)
          for axis in (None, 0, 1, -1, (0, 1)) for keep in (False, True)),
        *(xp.all(a > -1.0, axis=axis) for axis in (None, 0, 1)),
        *(xp.argmax(a, axis=axis) for axis in (None, 0, 1)),
        xp.sum(k),
        xp.sum(xp.broadcast_to(v, a.shape)),
        xp.sum(xp.ones_like(a) * 0.1, axis=0),
    ],
    "whole numbers": lambda xp, a, b, v, k: [
        k * 2146121005 ^ (k >> 16 & 65535),
        ~k | 5,
        xp.arange(a.shape[0], dtype=xp.int32, device=a.device) + k,
        xp.astype(k, xp.int64) * 7,
        xp.astype(a * 9.0, xp.int32),
        xp.astype(k > 0, a.dtype) * a[:, 0],
        ~(a > 0.0) & (b > 0.0),
    ],
    "what depends on no input": lambda xp, a, b, v, k: [
        xp.sum(xp.ones_like(a[:, 0])),
        xp.ones_like(a) * 3.0,
        xp.matmul(xp.ones_like(a), xp.matrix_transpose(b)),
        xp.zeros_like(a) * b + 1.0,
        a / (xp.sum(xp.ones_like(a[:, :1])) - 0.5),
    ],
    "inputs as outputs": lambda xp, a, b, v, k: [a, v, xp.matrix_transpose(b), a[:, 1]],
    "products": lambda xp, a, b, v, k: [
        xp.matmul(a, v),
        xp.matmul(v, v),
        xp.matmul(xp.matrix_transpose(a), a),
        xp.matmul(a[:, :, None], b[:, None, :]),
        xp.matmul(xp.exp(a), xp.matrix_transpose(xp.exp(a))),
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # the oracle's powers of 0
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMULAS)
def test_functions_are_the_interpreters(name, dtype):
    assert_as_interpreted(program_of(FORMULAS[name], dtype=dtype), dtype)


UNARY = ["exp", "tanh", "expm1", "sqrt", "abs", "sign", "neg"]
BINARY = ["add", "sub", "mul", "max", "min", "where", "row", "column", "turn"]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # what is drawn may overflow, in the same place
@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(UNARY + BINARY), st.integers(0, 30), st.integers(0, 30)), min_size=1),
    st.sets(st.integers(0, 30), max_size=3),
    st.integers(2, 9),
)
def test_random_chains(steps, kept, n):
    """Values used at any distance, so that places are given away at every moment at which they may be."""

    def formula(xp, a, b, v, k):
        made = [a, b]
        for name, i, j in steps:
            x, y = made[i % len(made)], made[j % len(made)]
            made.append(_applied(xp, name, x, y, v))
        return [made[i % len(made)] for i in kept] + [made[-1]]

    assert_as_interpreted(program_of(formula), "float32", (n,))


def _applied(xp, name, x, y, v):
    if name in ("exp", "tanh", "expm1", "sign"):
        return getattr(xp, name)(xp.minimum(x, 3.0))
    return {
        "sqrt": lambda: xp.sqrt(xp.abs(x)),
        "abs": lambda: xp.abs(x),
        "neg": lambda: -x,
        "add": lambda: x + y,
        "sub": lambda: x - y,
        "mul": lambda: x * y,
        "max": lambda: xp.maximum(x, y),
        "min": lambda: xp.minimum(x, 0.5),
        "where": lambda: xp.where(x > y, x, y),
        "row": lambda: x * xp.sum(y, axis=0) + v,
        "column": lambda: x - xp.max(y, axis=1, keepdims=True),
        "turn": lambda: xp.matmul(x, xp.matmul(xp.matrix_transpose(x), y)),
    }[name]()


def runner_of(formula, names):
    """A runner whose step makes new values of `names`, arrays (6, 4), and a loss."""
    recorder = Recorder(BATCH)
    owned = {name: recorder.input(name, (6, 4)) for name in names}
    x, t = recorder.input("x", ("N", 4)), recorder.input("t", ("N",), "int32")
    new, loss = formula(recorder.xp, *owned.values(), x)
    program = optimised(recorder.program("step", {**dict(zip(names, new, strict=True)), "loss": loss}))
    assert t.shape == (BATCH,)
    return xbp.get_backend("numpy").compile(program, "planned"), Interpreter(program, np, device="cpu")


@pytest.mark.parametrize(
    "formula",
    [
        lambda xp, p, q, x: ([p * 2.0, q + 1.0], xp.sum(xp.matmul(x, xp.matrix_transpose(p)))),
        lambda xp, p, q, x: ([p * 2.0, q + p], xp.sum(q * p)),
        lambda xp, p, q, x: ([q, p], xp.sum(x)),
        lambda xp, p, q, x: ([q * 1.5, p], xp.sum(x)),
        lambda xp, p, q, x: ([p + 1.0, p], xp.sum(p)),
        lambda xp, p, q, x: ([c := p * 0.5, c], xp.sum(c)),
        lambda xp, p, q, x: (
            [c := xp.exp(-p), xp.matmul(c, xp.matmul(xp.matrix_transpose(p), q))],
            xp.sum(c) + xp.sum(p),
        ),
        lambda xp, p, q, x: ([p * xp.reshape(p, (24,))[:4], q * q[0, :]], xp.sum(x)),
        lambda xp, p, q, x: ([xp.zeros_like(p), xp.broadcast_to(xp.sum(q, axis=0), q.shape)], xp.sum(x)),
        lambda xp, p, q, x: ([xp.where(p > 0.0, 1.0, p) - p, xp.tanh(q) * q + p], xp.sum(p * p) + xp.sum(x)),
    ],
)
def test_new_values_never_hide_old_ones_that_are_still_read(formula):
    names = ("params.p", "params.q")
    runner, oracle = runner_of(formula, names)
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(6, 4)).astype(np.float32) for name in names}
    runner.load({"params": {name[7:]: a for name, a in values.items()}, "buffers": {}, "state": {}})
    t = np.zeros(5, dtype=np.int32)
    for _ in range(3):
        x = rng.normal(size=(5, 4)).astype(np.float32)
        loss = runner.step(x, t, None, {})
        values = oracle({**values, "x": x, "t": t})
        np.testing.assert_array_equal(loss, values.pop("loss"), strict=True)
        for name, a in runner.read()["params"].items():
            np.testing.assert_array_equal(a, values[f"params.{name}"], strict=True)
