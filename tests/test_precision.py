"""Mixed precision: what the pass does to a program, and what it computes, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as networks
from precision_helpers import (
    AFFINE,
    EPSILON,
    affine_and_back,
    arrays_of,
    by_name,
    in_both,
    interpreted,
    normal,
    programs,
    recorded,
    rounded,
    same_bits,
    trained,
)  # fmt: skip
from xbp import scaling
from xbp.errors import DTypeError
from xbp.program import DTYPES, Recorder, in_precision, mixed, optimised
from xbp.program.fusion import fused
from xbp.recording import flat, inputs_of, record, signature_of

# --- what it does, by hand --------------------------------------------------------------------------------------------


TEXT = """\
program formula
input x: float32[N, 3]
input params.0.W: float32[3, 2]
input params.0.b: float32[2]
input dy: float32[N, 2]
%0: float16[N, 3] = astype(x, dtype=float16)
%1: float16[3, 2] = astype(params.0.W, dtype=float16)
%2: float32[N, 2] = matmul(%0, %1)
%3: float16[2] = astype(params.0.b, dtype=float16)
%4: float32[2] = astype(%3, dtype=float32)
%5: float32[N, 2] = add(%2, %4)
%6: float16[3, N] = matrix_transpose(%0)
%7: float16[N, 2] = astype(dy, dtype=float16)
%8: float32[3, 2] = matmul(%6, %7)
%9: float32[3, 2] = multiply(0.5, %8)
%10: float32[3, 2] = subtract(params.0.W, %9)
%11: float32[N, 2] = astype(%7, dtype=float32)
%12: float32[2] = sum(%11, axis=(0,), keepdims=False)
%13: float32[2] = multiply(0.5, %12)
%14: float32[2] = subtract(params.0.b, %13)
%15: float16[2, 3] = matrix_transpose(%1)
%16: float32[N, 3] = matmul(%7, %15)
output h = %5
output params.0.W = %10
output params.0.b = %14
output dx = %16"""


def test_everything_is_rounded_once_and_read_rounded_but_for_parameters():
    assert str(mixed(recorded(affine_and_back, AFFINE), "float16")) == TEXT


@in_both
def test_an_affine_layer_by_hand(half):
    x, W, b, dy = (normal(*(5 if n == "N" else n for n in shape)) for shape in AFFINE.values())
    found = interpreted(mixed(recorded(affine_and_back, AFFINE), half), dict(zip(AFFINE, (x, W, b, dy), strict=True)))
    x_, W_, b_, dy_ = (rounded(a, half) for a in (x, W, b, dy))
    same_bits(found["h"], x_ @ W_ + b_)
    same_bits(found["params.0.W"], W - np.float32(0.5) * (x_.T @ dy_))
    same_bits(found["params.0.b"], b - np.float32(0.5) * dy_.sum(axis=0))
    same_bits(found["dx"], dy_ @ W_.T)


@in_both
def test_ties_go_to_the_even_neighbour_and_products_are_exact(half):
    program = mixed(recorded(lambda xp, x, y: {"z": xp.matmul(x, y)}, {"x": ("N", 1), "y": (1, 1)}), half)
    step = 2 * EPSILON[half]  # from 1 to the next number
    x = np.asarray([[1 + step / 2], [1 + 3 * step / 2], [1 + step / 2 * 1.01]], np.float32)
    y = np.asarray([[1 + step]], np.float32)
    z = interpreted(program, {"x": x, "y": y})["z"]
    exact = np.asarray([[1.0], [1 + 2 * step], [1 + step]]) * (1 + step)  # needs twice the digits, and keeps them
    same_bits(z, exact.astype(np.float32))


@in_both
def test_a_relu_masks_by_what_the_next_product_reads(half):
    def formula(xp, h, W, dy):
        y = xp.maximum(h, 0.0)
        return {"z": xp.matmul(y, W), "dh": xp.where(y > 0.0, dy, 0.0), "total": xp.sum(y, axis=0)}

    program = mixed(recorded(formula, {"h": ("N", 2), "params.W": (2, 2), "dy": ("N", 2)}), half)
    h, W, dy = np.asarray([[1e-9, 1.0001]], np.float32), normal(2, 2), np.ones((1, 2), np.float32)
    out = interpreted(program, {"h": h, "params.W": W, "dy": dy})
    gone = half == "float16"  # 1e-9 is 0 there
    same_bits(out["dh"], np.asarray([[0.0 if gone else 1.0, 1.0]], np.float32))
    same_bits(out["total"], rounded(h, half)[0])


@in_both
def test_views_are_views_of_the_one_rounded_array(half):
    def formula(xp, x, W):
        y = xp.exp(x)
        flat_y = xp.reshape(y, (-1, 6))
        return {
            "a": xp.matmul(flat_y, W),
            "b": xp.matmul(xp.matrix_transpose(flat_y), flat_y),
            "c": xp.matmul(y[:, 0, :], W[:3, :]),
            "mean": xp.mean(xp.reshape(y, (-1, 3)), axis=0),
            "y": y,
        }

    inputs = {"x": ("N", 2, 3), "W": (6, 4)}
    program = in_precision(recorded(formula, inputs), f"mixed-{half}")
    narrowing = [op for op in program.operations if op.function == "astype" and op.result.dtype.name == half]
    assert len(narrowing) == 2  # y and W, once each
    x, W = normal(5, 2, 3), normal(6, 4)
    out = interpreted(program, {"x": x, "W": W})
    y, W_ = rounded(np.exp(x), half), rounded(W, half)
    same_bits(out["a"], y.reshape(-1, 6) @ W_)
    same_bits(out["b"], y.reshape(-1, 6).T @ y.reshape(-1, 6))
    same_bits(out["c"], y[:, 0, :] @ W_[:3])
    same_bits(out["mean"], y.reshape(-1, 3).mean(axis=0))
    same_bits(out["y"], np.exp(x))  # outputs are not rounded


@in_both
def test_a_vector_made_on_the_way_is_a_bias_too_and_a_matrix_is_none(half):
    def formula(xp, x, W, v, r):
        p = xp.matmul(x, W)
        s = xp.exp(v)
        return {"a": s + p, "b": p + r, "s": s * 1.5}

    program = mixed(recorded(formula, {"x": ("N", 3), "W": (3, 2), "v": (2,), "r": ("N", 2)}), half)
    x, W, v, r = normal(4, 3), normal(3, 2), normal(2), normal(4, 2)
    out = interpreted(program, {"x": x, "W": W, "v": v, "r": r})
    p, s = rounded(x, half) @ rounded(W, half), rounded(np.exp(v), half)
    same_bits(out["a"], s + p)
    same_bits(out["b"], p + r)
    same_bits(out["s"], s * np.float32(1.5))


def test_what_holds_no_product_of_float32_stays_as_it_is():
    def formula(xp, x):
        return {"y": xp.sum(x * x, axis=0)}

    program = recorded(formula, {"x": ("N", 3)})
    assert str(mixed(program, "bfloat16")) == str(program)
    recorder = Recorder(batch=7)
    x = recorder.input("x", ("N", 3), "float64")
    program = optimised(recorder.program("wide", {"y": recorder.xp.matmul(recorder.xp.matrix_transpose(x), x)}))
    assert str(in_precision(program, "mixed-float16")) == str(program)


# --- the passes around it ---------------------------------------------------------------------------------------------


def cast_twice(first, second):
    recorder = Recorder(batch=3)
    x = recorder.input("x", ("N",), first.name)
    xp = recorder.xp
    return optimised(recorder.program("casts", {"y": xp.astype(xp.astype(x, second), first)}))


def test_widening_and_narrowing_again_is_nothing_and_the_other_way_round_is_rounding():
    f16, b16, f32 = (DTYPES[n] for n in ("float16", "bfloat16", "float32"))
    assert [len(cast_twice(*pair).operations) for pair in ((f16, f32), (b16, f32), (f32, f16), (f16, b16))] == [
        0, 0, 2, 2,
    ]  # fmt: skip


def test_the_two_half_dtypes_do_not_mix():
    recorder = Recorder(batch=3)
    a, b = recorder.input("a", ("N",), "float16"), recorder.input("b", ("N",), "bfloat16")
    with pytest.raises(DTypeError, match="float16 and bfloat16 do not mix: neither"):
        a + b
    assert (a + recorder.input("c", ("N",), "float32")).dtype.name == "float32"
    assert not hasattr(recorder.xp, "float16")  # formulas cannot ask for it


# --- on the networks of the suite -------------------------------------------------------------------------------------


@in_both
@by_name
def test_properties_of_the_pass(case, half):
    for what, program in programs(trained(case), f"mixed-{half}").items():
        made = {op.result: op for op in program.operations}
        assert what == "apply" or "matmul" in {op.function for op in program.operations}
        for op in program.operations:
            if op.function == "matmul":
                assert [v.dtype.name for v in (*op.operands, op.result)] == [half, half, "float32"]
            elif op.function == "astype":
                inner = made.get(op.operands[0])
                assert inner is None or inner.function != "astype" or inner.result.dtype.name != "float32"
            elif op.result.dtype.name == half:
                assert op.function in ("reshape", "matrix_transpose", "getitem", "broadcast_to")
        assert half not in {v.dtype.name for v in (*program.inputs.values(), *program.outputs.values())}
        assert str(optimised(program)) == str(program)


@by_name
def test_what_is_rounded_is_stored_in_half_the_width_only(case):
    program = programs(trained(case), "mixed-bfloat16")["step"]
    plan = fused(program)
    casts = [op for op in program.operations if op.function == "astype"]
    widened = {op.result for op in casts if op.operands[0].dtype.name == "bfloat16"}
    wide = {op.operands[0] for op in casts if op.result.dtype.name == "bfloat16"} & plan.makers.keys()
    assert widened
    assert widened.isdisjoint(plan.stored)
    assert {plan.makers[v].function for v in wide & plan.stored.keys()} <= {"matmul"}  # which come from elsewhere


@by_name
def test_the_text_is_the_same_at_any_batch_size(case, monkeypatch):
    first = {what: str(p) for what, p in programs(trained(case), "mixed-bfloat16").items()}
    monkeypatch.setattr("xbp.recording.BATCH", 65543)
    assert {what: str(p) for what, p in programs(trained(case), "mixed-bfloat16").items()} == first


@in_both
@by_name
def test_a_step_is_close_to_the_one_in_float32(case, half):
    precision = f"mixed-{half}"
    found = interpreted(programs(trained(case), precision)["step"], arrays_of(trained(case), precision))
    wanted = interpreted(trained(case).program, arrays_of(trained(case), "float32"))
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=8 * EPSILON[half])
    for name in scaling.NAMES if half == "float16" else ():
        found.pop(f"state.{name}", None)
    assert found.keys() == wanted.keys()
    assert {a.dtype for a in found.values()} <= {np.dtype(np.float32), np.dtype(np.int32)}


# --- on random networks -----------------------------------------------------------------------------------------------


SMOOTH = ("softmax", "smoothed", "soft", "sigmoid", "squared", "huber")  # others' gradients jump, or grow with exp


def is_tame(described):
    """Norms are left out: what is nearly constant they blow up, with its rounding."""
    return described.loss in SMOOTH and not {"layer", "batch"} & set(described.layers)


@in_both
@settings(max_examples=25)
@given(described=networks.networks(("float32",)).filter(is_tame), n=st.integers(2, 9), seed=st.integers(0, 99))
def test_gradients_are_those_of_float32_within_what_rounding_allows(half, described, n, seed):
    trainer = networks.trainer(described, "eager")
    x, t, w = trainer._gate.passed(*networks.batch(described, n, seed))
    exact, mixed_ = [
        record("piece", replace(trainer._step, precision=p), trainer._tree(), signature_of(x, t, w))
        for p in ("float32", f"mixed-{half}")
    ]
    keys = {f"scalars.{k}": v for k, v in trainer._scalars.single(0).items() if k != "lr"}
    arrays = {**flat(trainer._tree()), **inputs_of(x, t, w), **keys}
    arrays |= {"share": np.float32(1.0), "first_row": np.int32(0), "scale": np.float32(16.0)}

    def gradients(program, given_):
        out = interpreted(program, given_)
        return np.concatenate([out[name].reshape(-1) for name in exact.outputs if name.startswith("grads.")])

    def nudged(seed_):
        """Inputs and parameters, each entry as far away as rounding could move it: how much does that matter?"""
        rng = np.random.default_rng(seed_)
        return {
            k: (a * (1 + EPSILON[half] * rng.choice([-1, 1], a.shape))).astype(np.float32)
            if k.partition(".")[0] in ("x", "params")
            else a
            for k, a in arrays.items()
        }

    wanted = gradients(exact, arrays)
    moved = max(np.linalg.norm(gradients(exact, nudged(i)) - wanted) for i in range(3))
    error = np.linalg.norm(gradients(mixed_, arrays) - wanted)
    assert error <= 20 * (moved + EPSILON[half] * (np.linalg.norm(wanted) + 0.01))
