"""Every kernel that the CUDA engine generates, compiled by NVIDIA's compiler: no spills, no stack, no device."""

from __future__ import annotations

import numpy as np
import pytest

from graph_engine_helpers import by_name, in_precision_of, trained
from test_engine_planned_programs import FORMULAS, program_of
from test_graph_engine_programs import ASKEW, PROGRAMS, REFUSED, made_of, without
from xbp.errors import BackendUnavailable
from xbp.program import Recorder, optimised
from xbp_cupy import nvrtc
from xbp_cupy.graph.plans import Plan
from xbp_cupy.graph.runner import GraphFunction, GraphRunner

pytestmark = pytest.mark.nvrtc
ARCH = "sm_90"


@pytest.fixture(autouse=True)
def _compiler():
    try:
        nvrtc.version()
    except BackendUnavailable as error:
        pytest.skip(f"CUDA's compiler is needed: {error}")


def check(text, kernels=None):
    """The text compiles as it would on a device, and nothing has to leave the registers."""
    if "__global__" not in text:  # nothing but products
        assert not kernels
        return
    cubin = nvrtc.compiled(text, ARCH)
    assert cubin.spilled == 0
    assert {name: r.stack for name, r in cubin.kernels.items() if r.stack} == {}
    if kernels is not None:
        assert set(cubin.kernels) == set(kernels)


class Anywhere:
    """A device that compiles nothing."""

    def memory(self, size, *, zeroed=False):
        return _NOWHERE

    def view(self, memory, offset, shape, dtype, strides):
        return np.empty(0)

    def compiled(self, text):
        return None


class _Nowhere:
    address = 0


_NOWHERE = _Nowhere()


def runner(t, precision):
    return GraphRunner(in_precision_of(t, precision)[0], Anywhere())


def names_of(plan):
    return {x.name for x in plan.launches if x.product is None} | {"point"}


in_every_dtype = pytest.mark.parametrize(
    ("precision", "dtype"),
    [("float32", "float32"), ("float32", "float64"), ("mixed-bfloat16", "float32"), ("mixed-float16", "float32")],
    ids=["float32", "float64", "mixed-bfloat16", "mixed-float16"],
)


@by_name
@in_every_dtype
def test_kernels_of_a_step(name, precision, dtype):
    plan = runner(trained(name, dtype), precision).plan
    check(plan.text(), names_of(plan))


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *((name, "float32") for name in ("deep-adam", "clipped", "dropout", "layer-norm", "batch-norm", "gaussian")),
        ("deep-adam", "mixed-bfloat16"),
        ("batch-norm", "mixed-float16"),
    ],
)
def test_kernels_of_a_step_with_wide_indices(name, precision):
    plan = runner(trained(name), precision).plan
    check(plan.text(wide=True), names_of(plan))


@by_name
@in_every_dtype
def test_a_step_as_one_kernel(name, precision, dtype):
    """One block, for which a thread may have 255 registers."""
    check(runner(trained(name, dtype), precision).one_block.text())


@by_name
@in_every_dtype
def test_kernels_of_functions(name, precision, dtype):
    plain = (precision, dtype) == ("float32", "float32")
    whats = ["scores", "sums", "piece", "apply"] if plain else ["sums"]  # others are parts of steps, seen above
    for what in whats:
        program, _ = in_precision_of(trained(name, dtype), precision, what)
        check(GraphFunction(program, Anywhere()).plan.text())


@by_name
@pytest.mark.parametrize("precision", ["float32", "mixed-bfloat16"])
def test_kernels_that_take_the_place_of_epilogues(name, precision):
    program, _ = in_precision_of(trained(name), precision)
    plan = Plan(program, Anywhere(), in_place=True)
    while asked := {
        x.product.request for x in plan.launches if x.product and not x.product.request.startswith("plain")
    }:
        plan.decline(asked)
    check(plan.text())


@pytest.mark.parametrize("name", ["reductions", "whole numbers", "powers", "joined", "where of several shapes"])
def test_kernels_of_odd_formulas(name):
    program = program_of(without(FORMULAS[name], REFUSED.get(name, {})))
    check(GraphFunction(program, Anywhere()).plan.text())


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernels_of_odd_programs(name):
    check(GraphFunction(made_of(PROGRAMS[name]), Anywhere()).plan.text())


def test_kernels_of_results_that_lie_askew():
    check(GraphFunction(made_of(ASKEW["rows of a constant shape"]), Anywhere()).plan.text())


@pytest.mark.parametrize("width", [5, 1024, 1025])
@pytest.mark.parametrize("wide", [False, True], ids=["narrow", "wide"])
def test_kernels_of_rows_of_any_length(width, wide):
    def formula(xp, x, b):
        e = xp.exp(x - xp.max(x, axis=1, keepdims=True))
        y = e / xp.sum(e, axis=1, keepdims=True)
        return [y, xp.sum(y * b, axis=0), xp.argmax(x, axis=1), xp.sum(x), xp.all(x > 0.0), xp.min(x, axis=0)]

    program = made_of(formula, {"x": ("N", width), "b": (width,)})
    check(GraphFunction(program, Anywhere()).plan.text(wide=wide))


def test_kernels_of_many_operands():
    recorder = Recorder(65521)
    xp, names = recorder.xp, [f"params.p{k}" for k in range(60)]
    owned = [recorder.input(name, (3,)) for name in names]
    x, _ = recorder.input("x", ("N", 3)), recorder.input("t", ("N",), "int32")
    mean = xp.mean(x, axis=0)
    new = {name: p - mean * 0.5 for name, p in zip(names, owned, strict=True)}
    plan = GraphRunner(optimised(recorder.program("step", {**new, "loss": xp.sum(mean)})), Anywhere()).plan
    check(plan.text(), names_of(plan))
