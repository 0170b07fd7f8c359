"""The CUDA engine in half precision, its kernels run on a processor: conversions bit for bit, and whole steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_engine_helpers import (
    assert_bits,
    assert_near,
    by_name,
    device,
    function_on,
    go,
    in_both_ways,
    in_precision_of,
    interpreted,
    one_step,
    poisoned,
    rows_of,
    run_kernel,
    runner_on,
    scalars_of,
    trained,
    values_of,
    wanted_of,
)
from processor import dtype_of
from xbp.recording import flat, inputs_of

HALVES = ["bfloat16", "float16"]
EPSILON = {"bfloat16": 2.0**-8, "float16": 2.0**-11}  # the largest error of rounding, relative to the number
# The engine and the interpreter round the same numbers, but for sums in another order: where one of those lies at the
# border between two halves, it is sent to the other neighbour, which is two roundings away.
LIMITS = {half: {"float32": 2 * EPSILON[half]} for half in HALVES}
TYPES = {"bfloat16": ("bfloat_t", "to_bfloat"), "float16": ("half_t", "to_half")}
in_halves = pytest.mark.parametrize("half", HALVES)

KERNELS = """
extern "C" __global__ void __launch_bounds__(THREADS) widened(const {t} *__restrict__ a, float *__restrict__ b, int n) {
    for (int i = threadIdx.x; i < n; i += THREADS) b[i] = loaded(a[i]);
}
extern "C" __global__ void __launch_bounds__(THREADS) rounded(const float *__restrict__ a, {t} *__restrict__ b, int n) {
    for (int i = threadIdx.x; i < n; i += THREADS) b[i] = {to}(a[i]);
}
extern "C" __global__ void __launch_bounds__(THREADS) stored(const float *__restrict__ a, {t} *__restrict__ b, int n) {
    for (int i = threadIdx.x; i < n; i += THREADS) store(&b[i], a[i]);
}
"""


def converted(half, name, a):
    """The array through a kernel of the prelude."""
    kernels = KERNELS.replace("{t}", TYPES[half][0]).replace("{to}", TYPES[half][1])
    target = np.zeros(a.shape, np.float32 if name == "widened" else np.uint16)
    run_kernel(device(), kernels, name, [a, target], [a.size])
    return target if name == "widened" else target.view(dtype_of(half))


def assert_same_numbers(found, wanted):
    """Bit for bit; a NaN is any NaN."""
    nan = np.isnan(wanted.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(found.astype(np.float32)), nan)
    bits = f"u{wanted.itemsize}"
    np.testing.assert_array_equal(found.view(bits)[~nan], wanted.view(bits)[~nan])


@in_halves
def test_every_half_as_a_float(half):
    every = np.arange(2**16, dtype=np.uint16)
    assert_same_numbers(converted(half, "widened", every), every.view(dtype_of(half)).astype(np.float32))


@in_halves
def test_every_half_comes_back(half):
    every = np.arange(2**16, dtype=np.uint16)
    again = converted(half, "rounded", converted(half, "widened", every))
    assert_same_numbers(again, every.view(dtype_of(half)))


def floats_to_round():
    """What is hard: subnormals of either width, ties and their neighbours, the largest numbers, NaN of any kind."""
    every = np.arange(2**16, dtype=np.uint32)
    bfloats = np.concatenate([(every << 16) + low for low in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF)])
    halves = every.astype(np.uint16).view(np.float16).astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        between = (halves[:-1].astype(np.float64) + halves[1:].astype(np.float64)) / 2
        ties = between.astype(np.float32)
        around = [np.nextafter(ties, np.float32(s)) for s in (-np.inf, np.inf)]
    rng = np.random.default_rng(0)
    random = rng.integers(0, 2**32, 200_000, dtype=np.uint32)
    odd = np.array(
        [0.0, -0.0, 65504, 65519.996, 65520, 65536, 3.4e38, 3.3961775e38, 1e-45, 2.98e-8, 2.99e-8], np.float32
    )
    parts = [bfloats.view(np.float32), halves, ties, *around, random.view(np.float32), odd, -odd]
    return np.concatenate([*parts, np.array([np.inf, -np.inf, np.nan], np.float32)])


@in_halves
@pytest.mark.parametrize("name", ["rounded", "stored"])
def test_floats_are_rounded_as_numpy_rounds_them(half, name):
    a = floats_to_round()
    with np.errstate(all="ignore"):
        wanted = a.astype(dtype_of(half))
    assert_same_numbers(converted(half, name, a), wanted)


@in_halves
@settings(max_examples=10)
@given(st.lists(st.floats(width=32), min_size=1, max_size=300))
def test_floats_of_hypothesis(half, numbers):
    a = np.array(numbers, np.float32)
    with np.errstate(all="ignore"):
        wanted = a.astype(dtype_of(half))
    assert_same_numbers(converted(half, "rounded", a), wanted)


# --- whole steps ------------------------------------------------------------------------------------------------------


@in_halves
@by_name
def test_a_step_is_the_interpreters(name, half, monkeypatch):
    go(monkeypatch, "launches")
    t = trained(name)
    program, tree = in_precision_of(t, f"mixed-{half}")
    rows = slice(3, 3 + rows_of(t))
    wanted = wanted_of(t, rows, values=flat(tree), program=program)
    found = []
    for backwards in (False, True):
        runner = runner_on(device(backwards=backwards), t, program, tree)
        loss = one_step(runner, t, rows)
        found.append({**values_of(runner), "loss": loss})
    assert_bits(*found)
    assert_near(found[0], wanted, "float32", LIMITS[half])
    if name == "relu-sgd":  # were nothing rounded, these numbers would be others
        plain = wanted_of(t, rows)
        assert max(np.abs(plain[k] - found[0][k]).max() / np.abs(plain[k]).max() for k in plain if plain[k].size) > (
            EPSILON[half] / 64
        )


@in_halves
@pytest.mark.parametrize("name", ["deep-adam", "batch-norm", "dropout"])
def test_a_step_in_one_block_is_the_interpreters(name, half, monkeypatch):
    go(monkeypatch, "one block")
    t = trained(name)
    program, tree = in_precision_of(t, f"mixed-{half}")
    runner = runner_on(device(), t, program, tree)
    loss = one_step(runner, t, slice(0, 7))
    wanted = wanted_of(t, slice(0, 7), values=flat(tree), program=program)
    assert_near({**values_of(runner), "loss": loss}, wanted, "float32", LIMITS[half])


@by_name
def test_the_permission_for_tf32_reaches_products_and_nothing_else(name, monkeypatch):
    """The processor has no tf32 and computes in float32: the same numbers, from products that may be coarser."""
    go(monkeypatch, "launches")
    t = trained(name)
    program, tree = in_precision_of(t, "tf32")
    runner, plain = runner_on(device(), t, program, tree), runner_on(device(), t)
    products = [[launch.product for launch in r.plan.launches if launch.product is not None] for r in (runner, plain)]
    assert [{p.compute for p in of} for of in products] == [{"tf32"}, {"float32"}]
    assert runner.plan.text() == plain.plan.text()
    losses = [one_step(r, t, slice(0, rows_of(t))) for r in (runner, plain)]
    assert_bits({**values_of(runner), "loss": losses[0]}, {**values_of(plain), "loss": losses[1]})


@in_both_ways
def test_a_scale_that_is_too_large_keeps_the_values_and_is_halved(way, monkeypatch):
    """Loss scaling in kernels: float16 overflows, the step is left out, and the next one is smaller."""
    go(monkeypatch, way)
    t = trained("deep-adam")
    program, tree = in_precision_of(t, "mixed-float16")
    state = tree["state"]
    (name,) = [n for n, a in state.items() if n not in t.tree["state"] and a.dtype.kind == "f"]
    tree = {**tree, "state": {**state, name: np.full_like(state[name], 2.0**30)}}
    runner = runner_on(device(), t, program, tree)
    loss = one_step(runner, t, slice(0, 7))
    found = {**values_of(runner), "loss": loss}
    wanted = wanted_of(t, slice(0, 7), values=flat(tree), program=program)
    assert_near({f"state.{name}": found[f"state.{name}"]}, {f"state.{name}": wanted[f"state.{name}"]}, "float32")
    assert found[f"state.{name}"] < 2.0**30
    params = flat({"params": tree["params"]})
    assert_bits({k: found[k] for k in params}, params)
    assert np.isfinite(loss)


@in_halves
def test_many_steps_are_single_steps(half, monkeypatch):
    go(monkeypatch, "launches")
    t = trained("dropout")
    program, tree = in_precision_of(t, f"mixed-{half}")
    one, many = (runner_on(device(), t, program, tree) for _ in range(2))
    index = np.random.default_rng(0).integers(0, 40, (20, 7), dtype=np.int32)
    losses = many.run(*t.data, index, scalars_of(t, *range(20)))
    singles = [poisoned(one).step(*t.batch(rows), scalars_of(t, k)) for k, rows in enumerate(index)]
    assert_bits({**values_of(many), "loss": losses}, {**values_of(one), "loss": np.stack(singles)})


@in_halves
@pytest.mark.parametrize("what", ["scores", "sums", "piece"])
@pytest.mark.parametrize("name", ["deep-adam", "batch-norm", "two-inputs"])
def test_functions_in_half_precision(name, what, half):
    t = trained(name)
    program, tree = in_precision_of(t, f"mixed-{half}", what)
    x, labels, w = t.batch(slice(0, 7))
    arrays = {**flat(tree), **inputs_of(x, labels, w), **{f"scalars.{k}": v for k, v in scalars_of(t, 4).items()}}
    arrays |= {"share": np.float32(0.25), "first_row": np.int32(3), "scale": np.float32(256.0)}
    given_ = {n: np.asarray(arrays[n]) for n in program.inputs}
    assert_near(function_on(device(), program)(given_), interpreted(program, given_), "float32", LIMITS[half])
