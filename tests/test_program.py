"""Programs can be read and compared, every pass keeps the bits, and the interpreter does what the formula does."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from xbp.program import Interpreter, Program, Recorder, Value, optimised
from xbp.program.passes import renumbered, simplified, without_copies, without_dead

BATCH = 65521


def program_of(formula, batch=BATCH):
    """The program of formula(xp, x, v, k): x float32 (N, 4), v float32 (4,), k int32 (N,)."""
    recorder = Recorder(batch)
    x, v, k = recorder.input("x", ("N", 4)), recorder.input("v", (4,)), recorder.input("k", ("N",), "int32")
    made = formula(recorder.xp, x, v, k)
    return recorder.program("tried", {f"y{i}": y for i, y in enumerate(made if isinstance(made, tuple) else (made,))})


def arrays(n=5):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 4)).astype("float32")
    x[0, :2] = (0.0, -0.0)
    return {"x": x, "v": rng.normal(size=4).astype("float32"), "k": rng.integers(-(2**31), 2**31 - 1, n, dtype="int32")}


def interpreted(program, n=5):
    return Interpreter(program, np, device="cpu")(arrays(n))


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        one, other = np.asarray(a[name]), np.asarray(b[name])
        assert (one.shape, one.dtype) == (other.shape, other.dtype), name
        assert one.tobytes() == other.tobytes(), name


def functions(program):
    return [op.function for op in program.operations]


# what a program is


def test_a_program_can_be_read():
    recorder = Recorder(BATCH)
    x, W = recorder.input("x", ("N", 3)), recorder.input("params.W", (3, 2))
    with recorder.within("0 Affine.forward"):
        y = recorder.xp.matmul(x, W)
        with recorder.within("1 ReLU.forward"):
            y = recorder.xp.maximum(y, 0.0)
        y = recorder.xp.sum(y, axis=0)
    program = recorder.program("step", {"params.W": W * 0.5, "y": y})
    assert str(program) == (
        "program step\n"
        "input x: float32[N, 3]\n"
        "input params.W: float32[3, 2]\n"
        "# 0 Affine.forward\n"
        "%0: float32[N, 2] = matmul(x, params.W)\n"
        "# 1 ReLU.forward\n"
        "%1: float32[N, 2] = maximum(%0, 0.0)\n"
        "# 0 Affine.forward\n"
        "%2: float32[2] = sum(%1, axis=0, keepdims=False)\n"
        "# \n"
        "%3: float32[3, 2] = multiply(params.W, 0.5)\n"
        "output params.W = %3\n"
        "output y = %2"
    )
    assert program.updates == ("params.W",)
    assert program.symbolic == ("x", 0, 1)
    assert [op.operands for op in program.operations[:2]] == [tuple(program.inputs.values()), (value(program, 0),)]


def value(program, number) -> Value:
    return program.operations[number].result


def test_the_batch_size_is_read_off_the_inputs():
    recorder = Recorder(BATCH)
    xp, x = recorder.xp, recorder.input("x", (2, "N"))
    doubled = recorder.program("tried", {"y": xp.concat([x, x], axis=0)})
    assert doubled.batch_size({"x": np.zeros((2, 7))}) == 7
    flat = xp.reshape(recorder.input("z", ("N", 3)), (-1,))
    inner = Program("tried", {"flat": flat.value}, (), {"y": flat.value})
    assert inner.symbolic == ("flat", 0, 3)
    assert inner.batch_size({"flat": np.zeros(21)}) == 7
    alone = Recorder(BATCH)
    fixed = alone.program("tried", {"y": alone.input("a", (3,)) * 2.0})
    assert (fixed.symbolic, fixed.batch_size({"a": np.zeros(3)})) == (None, 1)


def test_the_hash_knows_constants_shapes_and_outputs_and_no_origins():
    def hash_of(formula, origin=""):
        recorder = Recorder(BATCH)
        with recorder.within(origin):
            y = formula(recorder.xp, recorder.input("x", ("N", 4)))
        return recorder.program("tried", {"y": y}).hash

    plain = hash_of(lambda xp, x: x * 2.0)
    assert plain == hash_of(lambda xp, x: x * 2.0) == hash_of(lambda xp, x: x * 2.0, "0 Mine.forward")
    assert len(plain) == 64
    others = [
        lambda xp, x: x * 3.0,
        lambda xp, x: 2.0 * x,
        lambda xp, x: x + 2.0,
        lambda xp, x: x * 2.0000000000000004,
        lambda xp, x: x * 0.0,
        lambda xp, x: x * -0.0,
        lambda xp, x: xp.sum(x, axis=0),
        lambda xp, x: xp.sum(x, axis=1),
        lambda xp, x: x[:, :2],
        lambda xp, x: x[:, 2:],
    ]
    assert len({plain, *map(hash_of, others)}) == 1 + len(others)


HASH = """
import numpy as np, xbp
net = xbp.Network([xbp.Affine(3, 4), xbp.LayerNorm(4), xbp.Affine(4, 2)], backend="numpy", seed=0)
trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(0.1), engine="planned")
trainer.step(np.ones((5, 3), "float32"), np.zeros(5, "int32"))
print(trainer.program.hash)
"""


def test_the_hash_is_the_same_in_every_process():
    hashes = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", HASH],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        hashes.add(done.stdout)
    assert len(hashes) == 1
    assert len(hashes.pop().strip()) == 64


# passes


def test_simplified_has_one_form_for_each_thing():
    recorder = Recorder(BATCH)
    xp, x, k = recorder.xp, recorder.input("x", ("N", 4)), recorder.input("k", ("N",), "int32")
    made = (
        *(xp.zeros((4,), dtype=x.dtype, device=x.device), xp.zeros_like(k), xp.ones_like(x > 0.0)),
        *(xp.sum(x, axis=-1), xp.max(x, axis=(1, -2), keepdims=True), x[:, None, :], x[..., None]),
    )
    program = simplified(recorder.program("tried", {f"y{i}": y for i, y in enumerate(made)}))
    forms = [(op.function, op.arguments, dict(op.options)) for op in program.operations if op.function != "greater"]
    (_, x), *_ = program.inputs.items()
    assert forms == [
        ("full", (), {"shape": (4,), "value": 0.0}),
        ("full", (), {"shape": (BATCH,), "value": 0}),
        ("full", (), {"shape": (BATCH, 4), "value": True}),
        ("sum", (x,), {"axis": (1,), "keepdims": False}),
        ("max", (x,), {"axis": (0, 1), "keepdims": True}),
        ("reshape", (x,), {"shape": (BATCH, 1, 4)}),
        ("reshape", (x,), {"shape": (BATCH, 4, 1)}),
    ]
    assert [type(form[2]["value"]) for form in forms[:3]] == [float, int, bool]


@pytest.mark.parametrize(
    "formula",
    [
        lambda xp, x, v, k: xp.reshape(x, x.shape),
        lambda xp, x, v, k: xp.broadcast_to(x, x.shape),
        lambda xp, x, v, k: x[:, :],
        lambda xp, x, v, k: x[...],
        lambda xp, x, v, k: xp.astype(x, x.dtype),
        lambda xp, x, v, k: xp.asarray(x, copy=True),
        lambda xp, x, v, k: xp.matrix_transpose(xp.matrix_transpose(x)),
        lambda xp, x, v, k: x * 1.0,
        lambda xp, x, v, k: 1.0 * x,
        lambda xp, x, v, k: x / 1.0,
        lambda xp, x, v, k: x - 0.0,
        lambda xp, x, v, k: k + 0,
        lambda xp, x, v, k: k * 1,
    ],
)
def test_what_does_nothing_is_skipped(formula):
    program = program_of(formula)
    after = optimised(program)
    assert functions(after) == []
    assert after.outputs["y0"] in after.inputs.values()
    assert_same_bits(interpreted(after), interpreted(program))


@pytest.mark.parametrize(
    "formula",
    [
        lambda xp, x, v, k: x + 0.0,  # -0.0 becomes 0.0
        lambda xp, x, v, k: 0.0 - x,
        lambda xp, x, v, k: 1.0 / v,
        lambda xp, x, v, k: x * -1.0,
        lambda xp, x, v, k: x * 0.0,
        lambda xp, x, v, k: xp.matrix_transpose(xp.reshape(x, (4, -1))),
        lambda xp, x, v, k: xp.astype(k, xp.int64),
    ],
)
def test_what_does_something_stays(formula):
    program = program_of(formula)
    assert functions(optimised(program)) == functions(program)
    assert_same_bits(interpreted(optimised(program)), interpreted(program))


def test_rows_are_counted_without_adding():
    def formula(xp, x, v, k):
        ones = xp.ones_like(x[:, :1])
        return xp.sum(ones), xp.sum(ones, axis=0), xp.sum(xp.ones_like(x), axis=0), xp.sum(xp.ones_like(x))

    program = program_of(formula)
    after = optimised(program)
    assert [str(op) for op in after.operations] == [
        "%0: float32[] = full(shape=(), value=N)",
        "%1: float32[1] = full(shape=(1,), value=N)",
        "%2: float32[N, 4] = full(shape=(N, 4), value=1.0)",
        "%3: float32[4] = full(shape=(4,), value=N)",
        "%4: float32[] = sum(%2, axis=(0, 1), keepdims=False)",  # 4 N, which is no batch size
    ]
    for n in (1, 6):
        assert_same_bits(interpreted(after, n), interpreted(program, n))


def test_copies_are_computed_once():
    program = program_of(lambda xp, x, v, k: (xp.exp(x) * v, xp.exp(x) * v, xp.exp(x) + v))
    after = without_copies(program)
    assert functions(after) == ["exp", "multiply", "add"]
    assert after.outputs["y0"] is after.outputs["y1"]
    assert_same_bits(interpreted(after), interpreted(program))


def test_what_only_looks_alike_is_computed_twice():
    def formula(xp, x, v, k):
        return (
            *(x * 0.0, x * -0.0, x**1.0, x**1),
            *(xp.sum(x, axis=0), xp.sum(x, axis=1), xp.sum(x, axis=0, keepdims=True)),
            *(x - v, v - x, x[:, 0], x[:, 1], xp.astype(x, xp.int32), xp.astype(x, xp.int64)),
            *(xp.sum(k), xp.sum(k, dtype=xp.int32), xp.sum(x), xp.sum(x, dtype=xp.float64)),
            *(xp.zeros_like(x[:, 0]), xp.ones_like(x[:, 0]), xp.zeros_like(k), xp.zeros_like(v)),
            xp.zeros_like(xp.astype(k, xp.int64)),
        )

    program = program_of(formula)
    after = optimised(program)
    assert len(set(after.outputs.values())) == len(program.outputs)
    assert_same_bits(interpreted(after), interpreted(program))


def test_what_nobody_needs_is_left_out():
    program = program_of(lambda xp, x, v, k: (xp.exp(x), xp.tanh(xp.exp(x)), xp.sqrt(x))[0])
    assert functions(program) == ["exp", "exp", "tanh", "sqrt"]
    assert functions(without_dead(program)) == ["exp"]
    assert without_dead(program).inputs == program.inputs


def test_values_are_numbered_by_their_place():
    program = renumbered(without_dead(program_of(lambda xp, x, v, k: (xp.exp(x), xp.tanh(x) * v)[1])))
    assert [op.result.name for op in program.operations] == ["%0", "%1"]
    assert str(program).endswith("%1: float32[N, 4] = multiply(%0, v)\noutput y0 = %1")
    one = program_of(lambda xp, x, v, k: (xp.exp(x), xp.tanh(x))[1])
    other = program_of(lambda xp, x, v, k: xp.tanh(x))
    assert one.hash != other.hash
    assert optimised(one).hash == optimised(other).hash


def test_origins_and_options_go_through_all_passes():
    recorder = Recorder(BATCH)
    k = recorder.input("k", ("N",), "int32")
    with recorder.within("0 Mine.forward"):
        y = recorder.xp.sum(k * 1, dtype=recorder.xp.int32, axis=-1)
    program = optimised(recorder.program("tried", {"y": y}))
    assert "# 0 Mine.forward\n%0: int32[] = sum(k, axis=(0,), keepdims=False, dtype=int32)\n" in str(program)


# the interpreter


def test_a_sum_keeps_the_dtype_that_was_asked_for():
    def formula(xp, x, v, k):
        return xp.sum(k, dtype=xp.int32), xp.sum(k, dtype=xp.int64), xp.sum(k), xp.sum(x, axis=1, dtype=xp.float64)

    program, given = program_of(formula), arrays()
    with np.errstate(over="ignore"):
        wanted = formula(np, given["x"], given["v"], given["k"])
        for tried in (program, optimised(program)):
            out = interpreted(tried)
            assert_same_bits(out, {f"y{i}": y for i, y in enumerate(wanted)})
            assert {name: v.dtype.name for name, v in tried.outputs.items()} == {
                n: y.dtype.name for n, y in out.items()
            }
    assert [y.dtype.name for y in wanted] == ["int32", "int64", "int64", "float64"]


FORMULAS = {
    "operators": lambda xp, x, v, k: (x + v, x - 2.0, 2.0 * x, 1.0 / x, xp.abs(x) ** 0.5, -x, x == v, x != v, x <= 0.0),
    "bits": lambda xp, x, v, k: (k & 7, k | 7, k ^ 7, ~k, k >> 3, (x > 0.0) & (v > 0.0), ~(x > 0.0)),
    "choices": lambda xp, x, v, k: (xp.where(x > 0.0, x, 0.0), xp.take(x, xp.argmax(x, axis=1), axis=1), x[1:3, ::2]),
    "joined": lambda xp, x, v, k: (xp.concat([x, x], axis=1), xp.stack([x, x]), xp.stack([v, v], axis=-1)),
    "shapes": lambda xp, x, v, k: (xp.reshape(x, (-1, 2)), xp.broadcast_to(v, x.shape), xp.matrix_transpose(x)[0, :]),
    "made": lambda xp, x, v, k: (
        xp.asarray([[1.0, 2.0], [3.0, 4.0]], dtype=xp.float64, device=x.device),
        xp.asarray(7, dtype=xp.int64, device=x.device),
        xp.full((2, 3), -1, dtype=xp.int32, device=x.device),
        xp.zeros(x.shape, dtype=xp.bool, device=x.device),
        xp.arange(x.shape[0], dtype=xp.int32, device=x.device),
    ),
    "reduced": lambda xp, x, v, k: tuple(
        f(x, axis=axis) for f in (xp.sum, xp.mean, xp.max, xp.min, xp.argmax) for axis in (None, 0, 1, -1)
    ),
}


@pytest.mark.parametrize("formula", FORMULAS.values(), ids=FORMULAS)
def test_the_interpreter_does_what_the_formula_does(formula):
    program, given = program_of(formula, batch=5), arrays()
    with np.errstate(all="ignore"):
        wanted = {f"y{i}": y for i, y in enumerate(formula(np, given["x"], given["v"], given["k"]))}
        assert_same_bits(interpreted(program), wanted)
        assert_same_bits(interpreted(optimised(program)), wanted)


def test_the_interpreter_takes_any_batch_size():
    program = optimised(
        program_of(lambda xp, x, v, k: (xp.broadcast_to(v, x.shape), xp.zeros_like(k), xp.sum(x, axis=0)))
    )
    run = Interpreter(program, np, device="cpu")
    assert [run(arrays(n))["y0"].shape for n in (1, 3, 1000)] == [(1, 4), (3, 4), (1000, 4)]


def test_the_interpreter_lets_go_of_what_nobody_reads_any_more():
    seen = []

    def exp(x):
        y = np.exp(x)
        seen.append(weakref.ref(y))
        return y

    def tanh(x):
        assert [ref() is None for ref in seen] == [True, False]
        return np.tanh(x)

    def formula(xp, x, v, k):
        a, b = xp.sum(xp.exp(x)), xp.exp(v)
        return xp.tanh(a), b

    names = {n: getattr(np, n) for n in ("bool", "float32", "float64", "int32", "int64", "sum")}
    out = Interpreter(program_of(formula), SimpleNamespace(exp=exp, tanh=tanh, **names))(arrays())
    assert len(seen) == 2
    assert out["y1"] is seen[1]()
