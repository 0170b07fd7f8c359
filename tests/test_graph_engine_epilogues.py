"""Epilogues of products: every one accepted, each one declined, and all of them, with the interpreter's results."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import xbp
from engine_networks import STARTED, Case, Trained
from graph_engine_helpers import (
    assert_near,
    device,
    go,
    in_precision_of,
    interpreted,
    one_step,
    runner_on,
    scalars_of,
    trained,
    values_of,
    wanted_of,
)
from xbp.recording import flat, inputs_of
from xbp_cupy.graph.epilogues import with_epilogues
from xbp_cupy.graph.lowering import Lowered

# Widths that are no multiple of 128 bits of a mask: fewer, a few more, and many more.
LAYERS = [
    xbp.Affine(6, 130),
    xbp.ReLU(),
    xbp.Affine(130, 5),
    xbp.ReLU(),
    xbp.Affine(5, 33),
    xbp.ReLU(),
    xbp.Affine(33, 3),
]
FORWARD, BACK = "relu_aux_bias", "drelu_bgrad"
ALL = ["", "relu_bias", "relu_aux_bias", "bias", "drelu", "drelu_bgrad", "bgrada"]


@cache
def masked(dtype):
    return Trained(Case("masked", LAYERS, optimizer=xbp.SGD(0.05, momentum=0.9)), dtype)


@pytest.fixture(autouse=True)
def _launches(monkeypatch):
    go(monkeypatch, "launches")


def epilogues(runner):
    return [launch.product.epilogue for launch in runner.plan.launches if launch.product is not None]


def check(t, processor, sizes=(7, 1, 2)):
    """Steps against the interpreter; the runner."""
    runner = runner_on(processor, t)
    values = flat(t.tree)
    for step, n in enumerate(sizes, STARTED):
        wanted = wanted_of(t, slice(0, n), step, values)
        loss = one_step(runner, t, slice(0, n), step)
        values = values_of(runner)
        assert_near({**values, "loss": loss}, wanted, t.dtype)
    return runner


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_accepted(dtype):
    runner = check(masked(dtype), device())
    # Forward three masks and a bias; back three masks with the gradients of their biases, and that of the last bias
    # beside its weights' gradient; the gradients of the other weights are plain.
    assert sorted(epilogues(runner)) == sorted([FORWARD] * 3 + ["bias"] + [BACK] * 3 + ["bgrada"] + [""] * 3)
    assert runner._device.products == 3 * 11


@pytest.mark.parametrize("epilogue", ALL[1:])
def test_each_one_declined(epilogue):
    runner = check(masked("float32"), device(declined={epilogue}))
    found = epilogues(runner)
    assert epilogue not in found
    if epilogue == FORWARD:  # without masks there is nothing for the way back to take
        assert {"relu_bias", "bias", "bgrada"} == set(found) - {""}
    elif epilogue == BACK:
        assert found.count("drelu") == 3
        assert found.count("bgrada") >= 1
    elif epilogue == "bias":
        assert found.count(FORWARD) == 3


def test_all_declined():
    runner = check(masked("float32"), device(declined=ALL[1:]))
    assert set(epilogues(runner)) == {""}
    assert len(epilogues(runner)) == 11


@pytest.mark.parametrize("name", ["relu-sgd", "one-row", "two-inputs"])
def test_where_the_library_has_no_product_at_all(name):
    """What remains is kernels."""
    t = trained(name)
    processor = device(declined=ALL)
    runner = runner_on(processor, t)
    rows = slice(0, 1 if name == "one-row" else 7)
    loss = one_step(runner, t, rows)
    assert_near({**values_of(runner), "loss": loss}, wanted_of(t, rows), "float32")
    assert (epilogues(runner), processor.products) == ([], 0)


def test_one_after_the_other_declined():
    """relu_aux_bias, then relu_bias in its place, then bias in its."""
    runner = check(masked("float32"), device(declined={FORWARD, "relu_bias"}))
    assert {"bias", "bgrada"} == set(epilogues(runner)) - {""}
    runner = check(masked("float32"), device(declined={BACK, "drelu"}))
    assert {FORWARD, "bias", "bgrada"} == set(epilogues(runner)) - {""}


@pytest.mark.parametrize("name", ["deep-adam", "weights", "dropout", "two-inputs", "batch-norm", "fan-out", "binary"])
def test_the_networks_without_any(name):
    t = trained(name)
    processor = device(declined=ALL[1:])
    runner = runner_on(processor, t)
    loss = one_step(runner, t, slice(0, 7))
    assert_near({**values_of(runner), "loss": loss}, wanted_of(t, slice(0, 7)), "float32")
    assert set(epilogues(runner)) == {""}


def test_what_is_declined_for_one_batch_size_is_so_from_there_on():
    """The plan is made anew, graphs of the old one are gone, and values stay."""
    t = masked("float32")
    # By columns, the rows of the batch are n of the products that have masks.
    processor = device(declined=lambda product: product.epilogue == FORWARD and product.n == 1)
    runner = runner_on(processor, t)
    values = flat(t.tree)
    for step, n in enumerate((7, 7, 1, 7, 7, 1), STARTED):
        wanted = wanted_of(t, slice(0, n), step, values)
        loss = one_step(runner, t, slice(0, n), step)
        values = values_of(runner)
        assert_near({**values, "loss": loss}, wanted, "float32")
        assert (FORWARD in epilogues(runner)) == (step < STARTED + 2)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
@pytest.mark.parametrize("declined", [[], ALL[1:]], ids=["accepted", "declined"])
def test_in_half_precision(half, declined):
    t = masked("float32")
    program, tree = in_precision_of(t, f"mixed-{half}")
    runner = runner_on(device(declined=declined), t, program, tree)
    loss = one_step(runner, t, slice(0, 7))
    wanted = wanted_of(t, slice(0, 7), values=flat(tree), program=program)
    # Another order of summation sends a number to its other neighbour at worst: one rounding of the largest entries,
    # which layers before them spread; twice for the way there and back.
    limits = {"float32": 4 * {"bfloat16": 2.0**-8, "float16": 2.0**-11}[half]}
    assert_near({**values_of(runner), "loss": loss}, wanted, "float32", limits)
    products = [launch.product for launch in runner.plan.launches if launch.product is not None]
    assert {p.a.dtype for p in products} == {half}
    assert {p.d.dtype for p in products} == ({"float32"} if declined else {"float32", half})
    if not declined:
        assert epilogues(runner).count(FORWARD) == 3


@pytest.mark.parametrize("declined", [[], [BACK], ALL[1:]], ids=["accepted", "drelu", "declined"])
def test_a_relu_of_exactly_zero_lets_no_gradient_through(declined):
    t = masked("float32")
    tree = {s: {k: a.copy() for k, a in arrays.items()} for s, arrays in t.tree.items()}
    tree["params"]["0.W"][:, ::2] = 0.0  # half of the first layer's units are 0 whatever the rows
    tree["params"]["0.b"][::2] = 0.0
    for name, a in tree["state"].items():
        tree["state"][name] = np.zeros_like(a)
    runner = runner_on(device(declined=declined), t, tree=tree)
    loss = one_step(runner, t, slice(0, 7))
    found = values_of(runner)
    assert_near({**found, "loss": loss}, wanted_of(t, slice(0, 7), values=flat(tree)), "float32")
    assert not found["params.0.b"][::2].any()
    assert not found["params.0.W"][:, ::2].any()
    assert (found["params.0.b"] != tree["params"]["0.b"])[1::2].any()


def test_the_mask_of_a_relu_that_prediction_makes_is_not_kept():
    scores = masked("float32").recorded("scores")
    products = {op.options.get("epilogue", "") for op in with_epilogues(scores).operations if op.function != "matmul"}
    assert products == {"relu_bias", "bias"}


def test_masks_are_as_wide_as_the_library_wants_them():
    low = Lowered(masked("float32").program)
    masks = [launch.product for launch in low.launches if launch.product is not None and launch.product.aux_ld]
    assert sorted({p.aux_ld for p in masks}) == [128, 256]
    for p in masks:
        for n in (1, 7, 4096):
            product = p.at(n)
            assert product.aux_ld >= product.m
            assert product.aux_bytes <= low.places.blocks[p.beside[-1]].size.at(n)


def test_an_interpreter_knows_nothing_of_epilogues_and_need_not():
    """The pass leaves the program it is given alone."""
    t = masked("float32")
    before = str(t.program)
    with_epilogues(t.program)
    assert str(t.program) == before
    now = {f"scalars.{k}": v for k, v in scalars_of(t, STARTED).items()}
    assert interpreted(t.program, {**flat(t.tree), **inputs_of(*t.batch(slice(0, 7))), **now})
