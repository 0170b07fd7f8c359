"""Every kernel of a layer: its gradient on every space, its values against PyTorch and SciPy, its slope at the kinks.

A line of `CASES` is a kernel with options, inputs and the same function written with PyTorch; what is asked of one is
asked of all. Losses have a file of their own, and so has what happens at the ends of the number line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import strategies as make
from xbp.kernels import (
    add,
    affine,
    batch_norm,
    dropout,
    elu,
    erf,
    frozen_norm,
    gelu,
    identity,
    layer_norm,
    leaky_relu,
    mul,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from xbp.kernels.broadcasting import unbroadcast
from xbp.testing import assert_close, check_backward

TORCH = "PyTorch, the reference of this test, is not installed"
SCIPY = "SciPy, the reference of this test, is not installed"


@dataclass(frozen=True)
class Case:
    name: str
    kernel: Any
    arrays: Callable[[make.Sizes], make.Arrays]
    reference: Callable[..., Any]  # (torch.nn.functional, *arrays, *constants) -> y
    options: dict[str, Any] = field(default_factory=dict)
    constants: Callable[[make.Sizes], make.Arrays] = lambda s: ()  # further arguments, without gradient


def no_bias_forward(x: Any, W: Any, *, xp: Any) -> Any:
    return affine.forward(x, W, None, xp=xp)


no_bias = SimpleNamespace(forward=no_bias_forward, backward=lambda dy, c, *, xp: affine.backward(dy, c, xp=xp)[:2])

CASES = [
    Case("add", add, make.a_ND_b_ND, lambda F, a, b: a + b),
    Case("add-row", add, make.a_ND_b_D, lambda F, a, b: a + b),
    Case("add-outer", add, make.a_N1_b_1D, lambda F, a, b: a + b),
    Case("mul", mul, make.a_ND_b_ND, lambda F, a, b: a * b),
    Case("mul-row", mul, make.a_ND_b_D, lambda F, a, b: a * b),
    Case("mul-outer", mul, make.a_N1_b_1D, lambda F, a, b: a * b),
    Case("affine", affine, make.x_ND_W_DM_b_M, lambda F, x, W, b: F.linear(x, W.T, b)),
    Case("affine-no-bias", no_bias, make.x_ND_W_DM, lambda F, x, W: F.linear(x, W.T)),
    Case("identity", identity, make.x_ND, lambda F, x: x * 1.0),
    Case("relu", relu, make.x_ND_off_zero, lambda F, x: F.relu(x)),
    Case("leaky_relu", leaky_relu, make.x_ND_off_zero, lambda F, x: F.leaky_relu(x), {"negative_slope": 0.01}),
    Case("leaky_relu-0", leaky_relu, make.x_ND_off_zero, lambda F, x: F.leaky_relu(x, 0.0), {"negative_slope": 0.0}),
    Case("leaky_relu-2", leaky_relu, make.x_ND_off_zero, lambda F, x: F.leaky_relu(x, 2.0), {"negative_slope": 2.0}),
    Case("elu", elu, make.x_ND, lambda F, x: F.elu(x), {"alpha": 1.0}),
    Case("elu-1.7", elu, make.x_ND_off_zero, lambda F, x: F.elu(x, 1.7), {"alpha": 1.7}),
    Case("gelu", gelu, make.x_ND, lambda F, x: F.gelu(x), {"approximate": "none"}),
    Case("gelu-tanh", gelu, make.x_ND, lambda F, x: F.gelu(x, approximate="tanh"), {"approximate": "tanh"}),
    Case("sigmoid", sigmoid, make.x_ND, lambda F, x: F.sigmoid(x)),
    Case("silu", silu, make.x_ND, lambda F, x: F.silu(x)),
    Case("softmax", softmax, make.x_ND, lambda F, x: F.softmax(x, -1)),
    # PyTorch turns softplus into the identity beyond a threshold; ours has none.
    Case("softplus", softplus, make.x_ND, lambda F, x: F.softplus(x, 1.0, 100.0), {"beta": 1.0}),
    Case("softplus-3", softplus, make.x_ND, lambda F, x: F.softplus(x, 3.0, 100.0), {"beta": 3.0}),
    Case("tanh", tanh, make.x_ND, lambda F, x: F.tanh(x)),
    Case("dropout", dropout, make.x_ND, lambda F, x, keep: x * keep / (1 - 0.4), {"p": 0.4}, make.keep_ND),
    Case(
        "layer_norm",
        layer_norm,
        make.x_ND_g_D_b_D,
        lambda F, x, g, b: F.layer_norm(x, g.shape, g, b, 0.1),
        {"eps": 0.1},
    ),
    Case(
        "batch_norm",
        batch_norm,
        make.x_ND_g_D_b_D,
        lambda F, x, g, b: F.batch_norm(x, None, None, g, b, training=True, eps=0.1),
        {"eps": 0.1},
    ),
    Case(
        "frozen_norm",
        frozen_norm,
        make.x_ND_g_D_b_D,
        lambda F, x, g, b, m, v: F.batch_norm(x, m, v, g, b, training=False, eps=0.1),
        {"eps": 0.1},
        make.m_D_v_D,
    ),
]
ACTIVATIONS = [c for c in CASES if c.arrays in (make.x_ND, make.x_ND_off_zero) and c.name not in ("softmax", "dropout")]

by_name = {"argvalues": CASES, "ids": lambda case: case.name}


@pytest.mark.parametrize("case", **by_name)
def test_backward_is_the_gradient_of_forward(space, case):
    @make.for_all(space, make.sizes(space))
    def check(sizes):
        arrays = case.arrays(sizes)
        check_backward(
            case.kernel.forward,
            case.kernel.backward,
            (*arrays, *case.constants(sizes)),
            range(len(arrays)),
            space,
            sizes.rng,
            options=case.options,
        )


def against_torch(space, case, arrays, constants=()):
    """y and every gradient equal PyTorch's, for an upstream gradient that is no constant."""
    torch = pytest.importorskip("torch", reason=TORCH)
    tensors = [torch.tensor(a, requires_grad=True) for a in arrays]
    desired = case.reference(torch.nn.functional, *tensors, *map(torch.tensor, constants))
    dy = np.random.default_rng(5).normal(size=tuple(desired.shape))
    desired.backward(torch.tensor(dy))

    y, cache = case.kernel.forward(*map(space.put, (*arrays, *constants)), **case.options, xp=space.xp)
    grads = case.kernel.backward(space.put(dy), cache, **case.options, xp=space.xp)
    atol = 1e-13 if space.dtype == "float64" else 3e-6
    assert_close(y, desired.detach().numpy(), space, atol=atol)
    for g, tensor in zip(grads if isinstance(grads, tuple) else (grads,), tensors, strict=True):
        assert_close(g, tensor.grad.numpy(), space, atol=atol)


@pytest.mark.parametrize("case", **by_name)
def test_values_and_gradients_are_those_of_pytorch(space, case):
    against_torch(space, case, case.arrays(make.TYPICAL), case.constants(make.TYPICAL))


@pytest.mark.parametrize("case", ACTIVATIONS, ids=lambda case: case.name)
def test_activations_are_those_of_pytorch_far_out_and_at_zero(space, case):
    against_torch(space, case, (make.grid(-30.0, 30.0),))


@pytest.mark.parametrize(
    ("kernel", "options", "slopes"),
    [
        (relu, {}, (0.0, 0.0, 1.0)),
        (leaky_relu, {"negative_slope": 0.25}, (0.25, 0.25, 1.0)),
        (elu, {"alpha": 1.5}, (1.5, 1.5, 1.0)),
        (gelu, {"approximate": "none"}, (0.5, 0.5, 0.5)),
        (gelu, {"approximate": "tanh"}, (0.5, 0.5, 0.5)),
        (silu, {}, (0.5, 0.5, 0.5)),
        (softplus, {"beta": 4.0}, (0.5, 0.5, 0.5)),
    ],
    ids=["relu", "leaky_relu", "elu", "gelu", "gelu-tanh", "silu", "softplus"],
)
def test_slopes_left_of_zero_at_both_zeros_and_right_of_zero(space, kernel, options, slopes):
    x = np.array([[-1e-30] * 4, [0.0, -0.0] * 2, [1e-30] * 4])
    dy = np.resize([2.0, -3.0], (3, 4))
    y, cache = kernel.forward(space.put(x), **options, xp=space.xp)
    dx = kernel.backward(space.put(dy), cache, **options, xp=space.xp)
    at_zero = math.log(2.0) / 4.0 if kernel is softplus else 0.0
    assert_close(y, np.full((3, 4), at_zero), space, atol=1e-29)
    assert_close(dx, dy * np.array(slopes)[:, None], space)


# The error function, and what else SciPy knows.


def test_erf_and_erfc_are_right_to_1e_15(space):
    special = pytest.importorskip("scipy.special", reason=SCIPY)
    x = make.grid(-7.0, 7.0)
    x[:6] = -40.0, 40.0, 1e-300, -1e-10, 5e-4, -5e-4
    atol = 1e-15 if space.dtype == "float64" else 1e-6
    assert_close(erf.erf(space.put(x), xp=space.xp), special.erf(x), space, rtol=0.0, atol=atol)
    assert_close(erf.erfc(space.put(x), xp=space.xp), special.erfc(x), space, rtol=0.0, atol=atol)


def test_erfc_keeps_its_relative_accuracy_in_the_tail(space):
    special = pytest.importorskip("scipy.special", reason=SCIPY)
    x = make.grid(0.0, 5.0)
    # x^2 is rounded before the exponential, which makes its rounding error x^2 times as large.
    rtol = 5e-15 if space.dtype == "float64" else 4e-6
    assert_close(erf.erfc(space.put(x), xp=space.xp), special.erfc(x), space, rtol=rtol)


def test_sigmoid_has_both_tails(space):
    special = pytest.importorskip("scipy.special", reason=SCIPY)
    x = make.grid(-80.0, 80.0)
    y, _ = sigmoid.forward(space.put(x), xp=space.xp)
    assert_close(y, special.expit(x), space, rtol=1e-15 if space.dtype == "float64" else 1e-6)


def test_softplus_keeps_its_left_tail_and_its_slope_is_the_sigmoid(space):
    special = pytest.importorskip("scipy.special", reason=SCIPY)
    x = make.grid(-40.0, 40.0)
    y, cache = softplus.forward(space.put(x), beta=2.0, xp=space.xp)
    dx = softplus.backward(space.put(np.ones_like(x)), cache, beta=2.0, xp=space.xp)
    rtol = 1e-14 if space.dtype == "float64" else 1e-5
    assert_close(y, -special.log_expit(-2.0 * x) / 2.0, space, rtol=rtol)
    assert_close(dx, special.expit(2.0 * x), space, rtol=rtol)


@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4)], ids=str)
def test_softmax_is_scipys_along_the_last_axis_of_any_shape(space, shape):
    special = pytest.importorskip("scipy.special", reason=SCIPY)
    x = np.random.default_rng(0).normal(size=shape) * 10.0
    y, _ = softmax.forward(space.put(x), xp=space.xp)
    rtol = 1e-13 if space.dtype == "float64" else 1e-5
    assert_close(y, special.softmax(x, axis=-1), space, rtol=rtol)
    assert_close(
        softmax.log_softmax(space.put(x), xp=space.xp), special.log_softmax(x, axis=-1), space, rtol=rtol, atol=rtol
    )


def test_softmax_of_the_article_is_no_plain_normalisation(space):
    """Scores 9.1 and 0.9 do not become 0.91 and 0.09."""
    y, _ = softmax.forward(space.put(np.array([[9.1, 0.9]])), xp=space.xp)
    p = 1.0 / (1.0 + math.exp(-8.2))
    assert_close(y, np.array([[p, 1.0 - p]]), space, rtol=1e-5 if space.dtype == "float32" else 1e-12)


# Products, normalisation, dropout.


def test_affine_is_the_broadcasting_sum_of_its_docstring(space):
    x, W, b = make.x_ND_W_DM_b_M(make.TYPICAL)
    dy = np.random.default_rng(2).normal(size=(x.shape[0], b.size))
    y, cache = affine.forward(*map(space.put, (x, W, b)), xp=space.xp)
    dx, dW, db = affine.backward(space.put(dy), cache, xp=space.xp)
    atol = 1e-14 if space.dtype == "float64" else 1e-6
    assert_close(y, (x[:, :, None] * W[None]).sum(1) + b, space, atol=atol)
    assert_close(dx, (dy[:, None, :] * W[None]).sum(2), space, atol=atol)
    assert_close(dW, (x[:, :, None] * dy[:, None, :]).sum(0), space, atol=atol)
    assert_close(db, dy.sum(0), space, atol=atol)


def test_affine_leaves_out_dx_on_request(space):
    x, W, b = make.x_ND_W_DM_b_M(make.TYPICAL)
    y, cache = affine.forward(*map(space.put, (x, W, b)), xp=space.xp)
    dx, dW, db = affine.backward(y, cache, xp=space.xp, need_dx=False)
    _, dW_, db_ = affine.backward(y, cache, xp=space.xp)
    assert dx is None
    assert_close(dW, dW_, space, rtol=0.0)
    assert_close(db, db_, space, rtol=0.0)


def test_batch_norm_keeps_the_running_statistics_of_pytorch(space):
    torch = pytest.importorskip("torch", reason=TORCH)
    layer = torch.nn.BatchNorm1d(4, momentum=0.3, dtype=torch.float64)
    mean, var = space.put(np.zeros(4)), space.put(np.ones(4))
    for seed in range(3):
        (x,) = make.x_ND(make.Sizes(D=4, seed=seed))
        layer(torch.tensor(x))
        _, cache = batch_norm.forward(
            space.put(x), space.put(np.ones(4)), space.put(np.zeros(4)), eps=1e-5, xp=space.xp
        )
        mean = batch_norm.running(mean, cache.m, momentum=0.3)
        var = batch_norm.running(var, batch_norm.unbiased(cache.v, cache.x, xp=space.xp), momentum=0.3)
        assert_close(mean, layer.running_mean.numpy(), space, atol=1e-6 if space.dtype == "float32" else 1e-14)
        assert_close(var, layer.running_var.numpy(), space)


def test_batch_norm_predicts_as_it_trained_when_given_its_own_statistics(space):
    x, g, b = map(space.put, make.x_ND_g_D_b_D(make.TYPICAL))
    y, cache = batch_norm.forward(x, g, b, eps=1e-5, xp=space.xp)
    frozen, _ = frozen_norm.forward(x, g, b, cache.m, cache.v, eps=1e-5, xp=space.xp)
    assert_close(frozen, y, space, rtol=0.0)


@pytest.mark.parametrize("kernel", [layer_norm, batch_norm], ids=["layer_norm", "batch_norm"])
def test_normalising_what_is_constant_gives_the_shift_and_no_gradient(space, kernel):
    """The variance is 0, and only eps stands between the formula and 0 / 0."""
    x, g, b = np.full((3, 4), 7.0), np.full(4, 2.0), np.arange(4.0)
    y, cache = kernel.forward(*map(space.put, (x, g, b)), eps=1e-5, xp=space.xp)
    dx, dg, db = kernel.backward(space.put(np.ones((3, 4))), cache, eps=1e-5, xp=space.xp)
    assert_close(y, np.broadcast_to(b, (3, 4)), space)
    assert_close(dx, np.zeros((3, 4)), space)
    assert_close(dg, np.zeros(4), space)
    assert_close(db, np.full(4, 3.0), space)


def test_dropout_drops_where_told_and_scales_the_rest(space):
    keep = np.array([[True, False], [False, True]])
    x = np.array([[1.0, math.nan], [math.inf, -4.0]])
    y, cache = dropout.forward(space.put(x), space.put(keep), p=0.75, xp=space.xp)
    dx = dropout.backward(space.put(np.array([[1.0, 2.0], [3.0, 4.0]])), cache, p=0.75, xp=space.xp)
    assert_close(y, np.array([[4.0, 0.0], [0.0, -16.0]]), space)
    assert_close(dx, np.array([[4.0, 0.0], [0.0, 16.0]]), space)


# Broadcasting.


@pytest.mark.parametrize("kernel", [add, mul], ids=["add", "mul"])
def test_gradients_are_summed_back_to_the_shapes_of_the_operands(space, kernel):
    @make.for_all(space, st.tuples(make.broadcastable(), st.integers(0, 99)), examples=12)
    def check(drawn):
        (a_shape, b_shape), seed = drawn
        rng = np.random.default_rng(seed)
        operands = np.asarray(rng.normal(size=a_shape)), np.asarray(rng.normal(size=b_shape))
        check_backward(kernel.forward, kernel.backward, operands, (0, 1), space, rng)


def test_unbroadcast_is_the_sum_over_copies(space):
    """In whole numbers: each entry of the result counts how often the operand's entry was used."""

    @make.for_all(space, make.broadcastable(), examples=12)
    def check(shapes):
        shape, other = shapes
        full = np.broadcast_shapes(shape, other)
        result = unbroadcast(space.put(np.ones(full)), shape, xp=space.xp)
        copies = math.prod(full) // math.prod(shape)
        assert_close(result, np.full(shape, float(copies)), space)


def test_gradient_of_an_operand_without_entries_is_empty_and_of_its_partner_zero(space):
    a, b = space.put(np.ones((0, 3))), space.put(np.ones((1, 3)))
    y, cache = mul.forward(a, b, xp=space.xp)
    da, db = mul.backward(y, cache, xp=space.xp)
    assert_close(da, np.ones((0, 3)), space)
    assert_close(db, np.zeros((1, 3)), space)
