"""The CUDA engine on programs that no network of xbp has, its kernels run on a processor, against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_engine_helpers import (
    assert_bits,
    assert_near,
    device,
    function_on,
    go,
    in_both_ways,
    interpreted,
    one_step,
    poisoned,
    runner_on,
    trained,
    values_of,
)
from test_engine_planned_programs import BINARY, FORMULAS, UNARY, _applied, program_of
from test_engine_planned_programs import inputs_of as odd_inputs
from xbp.errors import NotCompiled
from xbp.program import Recorder, optimised
from xbp_cupy.graph import plans
from xbp_cupy.graph.lowering import MOST_POINTERS
from xbp_cupy.graph.runner import GraphRunner

BATCH = 65521
SHAPES = {"x": ("N", 4), "W": (6, 4), "Q": (6, 6), "b": (4,), "c": (6,)}
# What is not compiled, by its number among the formula's results: it runs on another engine.
REFUSED = {
    "parts": {4: "repeated along an inner axis"},
    "joined": {6: "take", 7: "take"},
    "reductions": {43: "argmax", 44: "argmax"},
    "what depends on no input": {2: "square of the batch"},
    "products": {3: "stacks of matrices", 4: "square of the batch"},
}


def assert_alike(found, wanted, dtype):
    """Within rounding, where numbers are; NaN and infinities where they are."""
    odd = {name: ~np.isfinite(a) for name, a in wanted.items() if np.asarray(a).dtype.kind == "f"}
    for name, where in odd.items():
        np.testing.assert_array_equal(np.asarray(found[name])[where], np.asarray(wanted[name])[where], name)
    tame = [{k: np.where(odd[k], 0, a) if k in odd else a for k, a in arrays.items()} for arrays in (found, wanted)]
    assert_near(*({k: np.asarray(a, np.asarray(wanted[k]).dtype) for k, a in arrays.items()} for arrays in tame), dtype)
    assert {k: a.dtype for k, a in found.items()} == {k: np.asarray(a).dtype for k, a in wanted.items()}


def check(program, inputs, dtype="float32", sizes=(1, 7, 300)):
    """The function against the interpreter, with the same bits in either order of threads."""
    functions = [function_on(device(backwards=backwards), program) for backwards in (False, True)]
    for n in sizes:
        given_ = inputs(n)
        found = [function(given_) for function in functions]
        assert_alike(found[0], interpreted(program, given_), dtype)
        assert_bits(*found)
    return functions[0]


# --- formulas that another engine is tested with ----------------------------------------------------------------------


def without(formula, numbers):
    def rest(xp, a, b, v, k):
        return [y for i, y in enumerate(formula(xp, a, b, v, k)) if i not in numbers]

    return rest


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas(name):
    program = program_of(without(FORMULAS[name], REFUSED.get(name, {})))
    check(program, lambda n: odd_inputs(n, "float32", n), sizes=(1, 7, 20))


@pytest.mark.parametrize("name", ["reductions", "whole numbers", "where of several shapes", "powers"])
def test_formulas_in_float64(name):
    program = program_of(without(FORMULAS[name], REFUSED.get(name, {})), dtype="float64")
    check(program, lambda n: odd_inputs(n, "float64", n), "float64", sizes=(7,))


@pytest.mark.parametrize(("name", "number"), [(name, k) for name, numbers in REFUSED.items() for k in numbers])
def test_what_is_refused_says_why(name, number):
    def one(xp, a, b, v, k):
        return [FORMULAS[name](xp, a, b, v, k)[number]]

    with pytest.raises(NotCompiled, match=REFUSED[name][number]):
        function_on(device(), program_of(one)).plan.text()


@settings(max_examples=12, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from(UNARY + BINARY), st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=9
    ),
    st.sets(st.integers(0, 30), max_size=3),
    st.integers(2, 9),
)
def test_random_chains(steps, kept, n):
    def formula(xp, a, b, v, k):
        made = [a, b]
        for name, i, j in steps:
            made.append(xp.tanh(_applied(xp, name, made[i % len(made)], made[j % len(made)], v)))
        return [made[i % len(made)] for i in kept] + [made[-1]]

    def inputs(n):  # without borders at which rounding decides
        return {k: a + np.float32(0.01) if a.dtype.kind == "f" else a for k, a in odd_inputs(n, "float32").items()}

    program = program_of(formula)
    try:
        function = function_on(device(), program)
    except NotCompiled:
        return
    found, wanted = function(inputs(n)), interpreted(program, inputs(n))
    assert_alike(found, {k: np.asarray(a) for k, a in wanted.items()}, "float32")


# --- reductions of every kind -----------------------------------------------------------------------------------------

PROGRAMS = {
    "rows of a constant shape": lambda xp, x, W, Q, b, c: [
        xp.sum(xp.exp(W), axis=1, keepdims=True), W / xp.sqrt(xp.sum(W * W, axis=1, keepdims=True)),
    ],
    "columns of a constant shape": lambda xp, x, W, Q, b, c: [
        xp.sum(xp.exp(W), axis=0), W / xp.sqrt(xp.sum(W * W, axis=0)), xp.max(W, axis=0),
    ],
    "everything": lambda xp, x, W, Q, b, c: [
        xp.all(x > -9.0), xp.sum(x), xp.sum(W), xp.max(x), xp.min(x), xp.mean(x), xp.all(W > 0.0), xp.mean(W),
    ],
    "all at once": lambda xp, x, W, Q, b, c: [
        x - xp.mean(x), x - xp.mean(x, axis=0), x - xp.mean(x, axis=1, keepdims=True),
        xp.exp(x - xp.max(x, axis=0)) / xp.sum(x * x, axis=1, keepdims=True),
    ],
    "one after the other": lambda xp, x, W, Q, b, c: [
        xp.sum(xp.sum(x * x, axis=1)), xp.mean(xp.max(x, axis=1)), xp.sum(xp.sum(x * x, axis=0)),
    ],
    "vectors": lambda xp, x, W, Q, b, c: [
        xp.sum(b), b / xp.sum(b), xp.argmax(b, axis=0), s := x[:, 0] * 2.0, s - xp.max(s), xp.sum(s),
        s * xp.sum(x * x, axis=1), xp.argmax(x, axis=1),
    ],
    "joined": lambda xp, x, W, Q, b, c: [
        xp.stack([b, b * 2.0]), xp.concat([c, b]), xp.stack([xp.sum(x), xp.sum(W)]), xp.concat([x, x * 2.0, x], axis=1),
        xp.asarray([1.5, -2.0, 0.0, 3.0], dtype=xp.float32, device=x.device) * x,
    ],
    "products": lambda xp, x, W, Q, b, c: [
        xp.matmul(x, b), xp.matmul(W, b), xp.matmul(b, b), xp.matmul(xp.matrix_transpose(x), x),
        xp.matmul(b, xp.matrix_transpose(W)), xp.matmul(xp.matrix_transpose(W), Q),
        xp.matmul(x, xp.matrix_transpose(W)),
    ],
}  # fmt: skip
ASKEW = {  # a result of a line that lies along the other axis
    "rows of a constant shape": lambda xp, x, W, Q, b, c: [xp.sum(xp.exp(W), axis=1)],
    "and used as such": lambda xp, x, W, Q, b, c: [xp.sum(W * W, axis=1) * c],
    "of a square": lambda xp, x, W, Q, b, c: [Q / xp.sum(Q * Q, axis=1), Q - xp.max(Q, axis=1)],
    "and then all": lambda xp, x, W, Q, b, c: [xp.sum(xp.sqrt(xp.sum(W * W, axis=1)))],
    "argmax": lambda xp, x, W, Q, b, c: [xp.argmax(W, axis=1)],
    "the batch across": lambda xp, x, W, Q, b, c: [xp.sum(xp.exp(xp.matrix_transpose(x)), axis=0)],
    "along the batch across": lambda xp, x, W, Q, b, c: [xp.sum(xp.exp(xp.matrix_transpose(x)), axis=1)],
    "three axes": lambda xp, x, W, Q, b, c: [xp.sum(xp.reshape(x, (-1, 2, 2)), axis=0)],
}


def made_of(formula, shapes=SHAPES):
    recorder = Recorder(BATCH)
    arrays = [recorder.input(name, shape) for name, shape in shapes.items()]
    return optimised(recorder.program("scores", {f"out.{i}": y for i, y in enumerate(formula(recorder.xp, *arrays))}))


def drawn(program, n):
    rng = np.random.default_rng(n)
    shapes = {name: tuple(n if d == BATCH else d for d in v.shape) for name, v in program.inputs.items()}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name):
    program = made_of(PROGRAMS[name])
    check(program, lambda n: drawn(program, n))


@pytest.mark.parametrize("name", ASKEW)
def test_results_of_lines_that_lie_askew_are_right_or_refused(name):
    program = made_of(ASKEW[name])
    try:
        function_on(device(), program).plan.text()
    except NotCompiled:
        return
    check(program, lambda n: drawn(program, n), sizes=(1, 7))


@pytest.mark.parametrize("width", [1, 3, 31, 33, 64, 257, 1024, 1025, 2050])
def test_rows_of_every_length(width):
    """One thread, a part of a warp, a warp, and a block for a row; and the columns of as many lines."""

    def formula(xp, x, b):
        e = xp.exp(x - xp.max(x, axis=1, keepdims=True))
        y = e / xp.sum(e, axis=1, keepdims=True)
        return [y, xp.sum(y * b, axis=0), xp.argmax(x, axis=1), xp.sum(x), xp.min(x, axis=0)]

    program = made_of(formula, {"x": ("N", width), "b": (width,)})
    check(program, lambda n: drawn(program, n), sizes=(1, 9, 40) if width < 1000 else (3,))


def test_many_blocks_add_up_in_order():
    """Sums over more entries than one block has threads: the last block to arrive adds up, whichever it is."""

    def formula(xp, x, y):
        return [xp.sum(x), xp.max(x * y), xp.all(x > -9.0), xp.mean(y), x - xp.sum(y, axis=0)]

    program = made_of(formula, {"x": ("N", 3), "y": ("N", 3)})
    function = check(program, lambda n: drawn(program, n), sizes=(7, 5000, 1))
    (launches,) = [[b.blocks(5000) for launch in function.plan.launches for b in launch.bodies]]
    assert max(launches) > 8
    assert len(function.plan.lowered.zeroed) == 4


def test_more_entries_than_blocks_can_have_at_once():
    program = made_of(lambda xp, x: [xp.exp(x), xp.sum(x)], {"x": ("N", 4)})
    check(program, lambda n: drawn(program, n), sizes=(300_000,))


# --- new values in the places of old ones -----------------------------------------------------------------------------

UPDATES = [
    lambda xp, p, q, x: ([p * 2.0, q + 1.0], xp.sum(xp.matmul(x, xp.matrix_transpose(p)))),
    lambda xp, p, q, x: ([p * 2.0, q + p], xp.sum(q * p)),
    lambda xp, p, q, x: ([q * 1.5, p + 0.5], xp.sum(x)),
    lambda xp, p, q, x: ([q * 1.5, p * q], xp.sum(x) + xp.sum(p)),
    lambda xp, p, q, x: ([c := xp.exp(-p), xp.matmul(c, xp.matmul(xp.matrix_transpose(p), q))], xp.sum(c) + xp.sum(p)),
    lambda xp, p, q, x: ([p * xp.reshape(p, (24,))[:4], q * q[0, :]], xp.sum(x)),
    lambda xp, p, q, x: ([xp.zeros_like(p), xp.broadcast_to(xp.sum(q, axis=0), q.shape) + 0.0 * q], xp.sum(x)),
    lambda xp, p, q, x: ([xp.where(p > 0.0, 1.0, p) - p, xp.tanh(q) * q + p], xp.sum(p * p) + xp.sum(x)),
    lambda xp, p, q, x: ([p - xp.sum(p, axis=0), q - xp.max(q, axis=1, keepdims=True)], xp.sum(x)),
    lambda xp, p, q, x: ([p / xp.sum(p * p), q / xp.sum(p * q)], xp.sum(x) * xp.sum(q)),
    lambda xp, p, q, x: (
        [p + xp.matmul(q, xp.matmul(xp.matrix_transpose(x), x)), q + xp.matmul(p, p[:4, :])],
        xp.sum(x),
    ),
    lambda xp, p, q, x: ([q, p], xp.sum(x)),
]


@in_both_ways
@pytest.mark.parametrize("number", range(len(UPDATES)))
def test_new_values_never_hide_old_ones_that_are_still_read(number, way, monkeypatch):
    go(monkeypatch, way)
    recorder = Recorder(BATCH)
    p, q = (recorder.input(f"params.{name}", (6, 4)) for name in "pq")
    x, _ = recorder.input("x", ("N", 4)), recorder.input("t", ("N",), "int32")
    (new_p, new_q), loss = UPDATES[number](recorder.xp, p, q, x)
    program = optimised(recorder.program("step", {"params.p": new_p, "params.q": new_q, "loss": loss}))
    if number == len(UPDATES) - 1:
        with pytest.raises(NotCompiled, match="view of another value"):
            GraphRunner(program, device())
        return
    runners = [GraphRunner(program, device(backwards=backwards)) for backwards in (False, True)]
    rng = np.random.default_rng(0)
    values = {f"params.{name}": rng.normal(size=(6, 4)).astype(np.float32) for name in "pq"}
    for runner in runners:
        runner.load({"params": {name[7:]: a for name, a in values.items()}, "buffers": {}, "state": {}})
    t = np.zeros(5, dtype=np.int32)
    for _ in range(3):
        x = rng.normal(size=(5, 4)).astype(np.float32)
        found = []
        for runner in runners:
            loss = poisoned(runner).step(x, t, None, {})
            found.append({**values_of(runner), "loss": loss})
        wanted = interpreted(program, {**values, "x": x, "t": t})
        assert_bits(*found)
        assert_near(found[0], {**values, **wanted}, "float32")
        values = values_of(runners[0])


# --- many operands, wide indices --------------------------------------------------------------------------------------


@in_both_ways
def test_a_launch_of_many_operands_is_split(way, monkeypatch):
    """A kernel's parameters are limited, and a network of many parameters has one launch for their updates."""
    go(monkeypatch, way)
    recorder = Recorder(BATCH)
    xp, names = recorder.xp, [f"params.p{k}" for k in range(600)]
    owned = [recorder.input(name, (3,)) for name in names]
    x, _ = recorder.input("x", ("N", 3)), recorder.input("t", ("N",), "int32")
    mean = xp.mean(x, axis=0)
    new = {name: p - mean * 0.5 for name, p in zip(names, owned, strict=True)}
    program = optimised(recorder.program("step", {**new, "loss": xp.sum(mean)}))
    runner = GraphRunner(program, device())
    pointers = [len(launch.places) for launch in runner.plan.launches]
    assert max(pointers) <= MOST_POINTERS
    assert len(pointers) >= 3
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=3).astype(np.float32) for name in names}
    runner.load({"params": {name[7:]: a for name, a in values.items()}, "buffers": {}, "state": {}})
    x, t = rng.normal(size=(9, 3)).astype(np.float32), np.zeros(9, np.int32)
    loss = runner.step(x, t, None, {})
    assert_near({**values_of(runner), "loss": loss}, interpreted(program, {**values, "x": x, "t": t}), "float32")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("deep-adam", "float32"), ("batch-norm", "float64"), ("dropout", "float32"), ("softmax", "float32")],
)
def test_wide_indices_give_the_same(name, dtype, monkeypatch):
    """Indices of 64 bits, which arrays of more than 2^31 bytes need."""
    go(monkeypatch, "launches")
    t = trained(name, dtype)
    found = []
    for wide in (plans.WIDE, -1):
        monkeypatch.setattr(plans, "WIDE", wide)
        processor = device()
        runner = runner_on(processor, t)
        loss = one_step(runner, t, slice(0, 7))
        found.append({**values_of(runner), "loss": loss})
        assert any("typedef long long index_t" in text for text in processor.texts) == (wide == -1)
    assert_bits(*found)
