"""The losses as users call them: value and gradient, every form of target that is taken, weights, and descriptions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import strategies as make
import xbp
from xbp.describe import build, describe
from xbp.errors import DataError, ShapeError
from xbp.losses import LOSSES, Loss
from xbp.testing import assert_close, check_backward

TORCH = "PyTorch, the reference of this test, is not installed"
LEVELS = (0.05, 0.25, 0.5, 0.95)


@dataclass(frozen=True)
class Case:
    name: str
    loss: Loss
    arrays: Callable[[make.Sizes], make.Arrays]  # y and t
    rows: Callable[..., Any]  # (torch.nn.functional, y, t) -> the loss of each row (N,)


def gaussian_rows(F, y, t):
    K = t.shape[1]
    # PyTorch wants the variance itself, and takes the same half of everything.
    return F.gaussian_nll_loss(y[:, :K], t, y[:, K:].exp(), eps=0.0, reduction="none").mean(1)


def quantile_rows(F, y, t):
    q = y.new_tensor(LEVELS)
    return ((t - y) * q).maximum((t - y) * (q - 1)).mean(1)


CASES = [
    Case(
        "softmax-labels",
        xbp.SoftmaxCrossEntropy(),
        make.y_NC_t_N,
        lambda F, y, t: F.cross_entropy(y, t.long(), reduction="none"),
    ),
    Case(
        "softmax-soft",
        xbp.SoftmaxCrossEntropy(),
        make.y_NC_t_NC_soft,
        lambda F, y, t: F.cross_entropy(y, t, reduction="none"),
    ),
    Case(
        "softmax-smoothed",
        xbp.SoftmaxCrossEntropy(label_smoothing=0.2),
        make.y_NC_t_N,
        lambda F, y, t: F.cross_entropy(y, t.long(), reduction="none", label_smoothing=0.2),
    ),
    Case(
        "sigmoid",
        xbp.SigmoidCrossEntropy(),
        make.y_NK_t_NK_probabilities,
        lambda F, y, t: F.binary_cross_entropy_with_logits(y, t, reduction="none").mean(1),
    ),
    Case(
        "squared",
        xbp.MeanSquaredError(),
        make.y_NK_t_NK,
        lambda F, y, t: F.mse_loss(y, t, reduction="none").mean(1),
    ),
    Case(
        "absolute",
        xbp.MeanAbsoluteError(),
        make.y_NK_t_NK_apart,
        lambda F, y, t: F.l1_loss(y, t, reduction="none").mean(1),
    ),
    Case(
        "huber",
        xbp.Huber(delta=0.5),
        make.y_NK_t_NK_apart,
        lambda F, y, t: F.huber_loss(y, t, delta=0.5, reduction="none").mean(1),
    ),
    Case("quantile", xbp.Quantile(LEVELS), make.y_NK_t_NK_apart, quantile_rows),
    Case(
        "poisson",
        xbp.PoissonNLL(),
        make.y_NK_t_NK_counts,
        lambda F, y, t: F.poisson_nll_loss(y, t, log_input=True, full=False, reduction="none").mean(1),
    ),
    Case("gaussian", xbp.GaussianNLL(), make.y_N2K_t_NK, gaussian_rows),
]
pairs = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def value_and_grad(space, loss, y, t, w=None):
    arrays = [None if a is None else space.put(a) for a in (y, t, w)]
    return loss.value_and_grad(*arrays)


@pairs
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_value_and_gradient_are_those_of_pytorch(space, case, weighted):
    torch = pytest.importorskip("torch", reason=TORCH)
    y, t = case.arrays(make.TYPICAL)
    w = make.w_N(make.TYPICAL) if weighted else np.ones(len(y))
    tensor = torch.tensor(y, requires_grad=True)
    rows = case.rows(torch.nn.functional, tensor, torch.tensor(t))
    desired = (rows * torch.tensor(w)).sum() / w.sum()
    desired.backward()
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-13)):
        if dtype not in space.dtypes or (space.name, dtype) == ("jax-x64", "float32"):
            continue  # space jax has float32 already
        targets = t if t.dtype.kind == "i" else t.astype(dtype)
        weights = w.astype(dtype) if weighted else None
        loss, dy = value_and_grad(space, case.loss, y.astype(dtype), targets, weights)
        assert_close(loss, desired.detach().numpy(), space, rtol=10 * tolerance, dtype=dtype)
        assert_close(dy, tensor.grad.numpy(), space, rtol=10 * tolerance, atol=tolerance, dtype=dtype)


@pairs
def test_gradient_follows_the_loss_and_any_factor_upstream(space, case):
    """The gradient from above is what the checker draws: no 1."""
    y, t = case.arrays(make.TYPICAL)
    w = make.w_N(make.TYPICAL)
    xp = space.xp
    prepared = space.get(case.loss.prepare(space.put(t), y.shape, space.dtype_of(space.dtype), xp=xp))

    def forward(y, t, w, *, xp):
        return case.loss.forward(y, t, w, xp=xp)

    check_backward(forward, case.loss.backward, (y, prepared, w), (0,), space, np.random.default_rng(0))
    _, cache = case.loss.forward(space.put(y), space.put(prepared), None, xp=xp)
    once = space.get(case.loss.backward(1.0, cache, xp=xp))
    for factor in (3.0, space.put(np.asarray(3.0))):
        assert_close(case.loss.backward(factor, cache, xp=xp), 3.0 * once, space, rtol=1e-6)


# Targets in every form.


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64"])
def test_labels_of_every_integer_type_are_right_for_many_classes(space, dtype):
    """300 classes do not fit into the 8 bits that labels up to 127 come in."""
    labels = np.array([0, 5, 100], dtype=dtype)
    y = np.random.default_rng(0).normal(size=(3, 300))
    loss, dy = value_and_grad(space, xbp.SoftmaxCrossEntropy(), y, labels)
    p = np.exp(y) / np.exp(y).sum(axis=1, keepdims=True)
    rtol = 1e-12 if space.dtype == "float64" else 1e-5
    assert_close(loss, np.asarray(-np.log(p[range(3), labels]).mean()), space, rtol=rtol)
    assert_close(dy, (p - np.eye(300)[labels]) / 3, space, rtol=rtol, atol=1e-8)


@pytest.mark.parametrize("form", ["list", "int32", "float", "bool", "int one-hot"])
def test_labels_and_probabilities_are_the_same_in_every_form(space, form):
    y, labels = make.y_NC_t_N(make.TYPICAL)
    one_hot = np.eye(y.shape[1])[labels]
    t = {
        "list": labels.tolist(),
        "int32": space.put(labels),
        "float": space.put(one_hot),
        "bool": space.put(one_hot > 0.5),
        "int one-hot": space.put(one_hot.astype(np.int32)),
    }[form]
    loss, dy = xbp.SoftmaxCrossEntropy().value_and_grad(space.put(y), t)
    desired, slope = value_and_grad(space, xbp.SoftmaxCrossEntropy(), y, labels)
    assert_close(loss, space.get(desired), space, rtol=0.0)
    assert_close(dy, space.get(slope), space, rtol=0.0)


ONE_COLUMN = [
    (xbp.MeanSquaredError(), [0.5, -1.0, 2.0], (3, 1)),
    (xbp.MeanAbsoluteError(), [0.5, -1.0, 2.0], (3, 1)),
    (xbp.Huber(), [0.5, -1.0, 2.0], (3, 1)),
    (xbp.Quantile(0.3), [0.5, -1.0, 2.0], (3, 1)),
    (xbp.Quantile((0.3,)), [0.5, -1.0, 2.0], (3, 1)),
    (xbp.SigmoidCrossEntropy(), [0.0, 1.0, 0.25], (3, 1)),
    (xbp.PoissonNLL(), [0.0, 3.0, 7.0], (3, 1)),
    (xbp.GaussianNLL(), [0.5, -1.0, 2.0], (3, 2)),
    (xbp.Quantile(LEVELS), [0.5, -1.0, 2.0], (3, 4)),  # one observation, three of its quantiles
]


@pytest.mark.parametrize(("loss", "t", "shape"), ONE_COLUMN, ids=str)
def test_one_column_may_come_as_a_column_a_row_of_numbers_or_a_list(space, loss, t, shape):
    y = np.random.default_rng(0).normal(size=shape)
    desired, slope = value_and_grad(space, loss, y, np.array(t)[:, None])
    assert desired.shape == ()
    assert slope.shape == shape  # and nothing of shape (N, N)
    for form in (space.put(np.array(t)), t, [[v] for v in t]):
        value, dy = loss.value_and_grad(space.put(y), form)
        assert_close(value, space.get(desired), space, rtol=0.0)
        assert_close(dy, space.get(slope), space, rtol=0.0)


def test_one_observation_serves_several_quantiles(space):
    """As many columns of the same number would."""
    y, t = np.random.default_rng(0).normal(size=(3, 4)), np.arange(3.0)
    loss = xbp.Quantile(LEVELS)
    ours = value_and_grad(space, loss, y, t)
    for a, b in zip(ours, value_and_grad(space, loss, y, np.stack([t] * 4, axis=1)), strict=True):
        assert_close(a, space.get(b), space, rtol=0.0)


def test_targets_are_cast_to_the_dtype_of_the_scores(space):
    y = space.put(np.ones((3, 1), dtype=np.float32))
    for t in (np.array([1, 3, 0], dtype=np.int32), np.array([True, False, True]), np.array([1.0, 3.0, 0.5])):
        loss, dy = xbp.MeanSquaredError().value_and_grad(y, space.put(t))
        desired = np.mean((1.0 - t.astype(float)) ** 2)
        assert_close(loss, np.asarray(desired), space, dtype="float32")
        assert dy.dtype == y.dtype


def test_an_empty_batch_costs_nothing(space):
    loss, dy = value_and_grad(space, xbp.MeanSquaredError(), np.zeros((0, 2)), np.zeros((0, 2)))
    assert_close(loss, np.asarray(0.0), space)
    assert_close(dy, np.zeros((0, 2)), space)
    loss, dy = value_and_grad(space, xbp.SoftmaxCrossEntropy(), np.zeros((0, 2)), np.zeros(0, dtype=np.int32))
    assert_close(loss, np.asarray(0.0), space)


# Weights.


@pairs
def test_weights_are_relative_and_a_weight_of_0_is_a_row_left_out(space, case):
    y, t = case.arrays(make.TYPICAL)
    plain = value_and_grad(space, case.loss, y, t)
    for w in (np.ones(len(y)), np.full(len(y), 7.0)):
        for a, b in zip(value_and_grad(space, case.loss, y, t, w), plain, strict=True):
            assert_close(a, space.get(b), space, rtol=1e-6, atol=1e-7)
    w = np.ones(len(y))
    w[1] = 0.0
    loss, dy = value_and_grad(space, case.loss, y, t, w)
    short, slope = case.loss.value_and_grad(y[w > 0], t[w > 0])  # on the host, in float64
    full = np.zeros_like(y)
    full[w > 0] = slope
    atol = 1e-7 if space.dtype == "float32" else 1e-14
    assert_close(loss, np.asarray(short), space, atol=10 * atol)
    assert_close(dy, full, space, atol=atol)


@pairs
def test_no_weight_at_all_is_loss_0_and_no_gradient(space, case):
    y, t = case.arrays(make.TYPICAL)
    loss, dy = value_and_grad(space, case.loss, y, t, np.zeros(len(y)))
    assert_close(loss, np.asarray(0.0), space)
    assert_close(dy, np.zeros_like(y), space)


def test_weights_may_be_integers_or_a_list_and_never_widen(space):
    y = space.put(np.array([[1.0], [2.0], [9.0]], dtype=np.float32))
    t = space.put(np.zeros((3, 1), dtype=np.float32))
    w = np.array([1.0, 3.0, 0.0])
    for weights in ([1, 3, 0], [1.0, 3.0, 0.0], space.put(w.astype(np.int32)), space.put(w)):
        loss, dy = xbp.MeanSquaredError().value_and_grad(y, t, weights)
        assert_close(loss, np.asarray(13.0 / 4.0), space, dtype="float32")
        assert_close(dy, np.array([[0.5], [3.0], [0.0]]), space, dtype="float32")


@pytest.mark.parametrize(
    ("w", "error", "match"),
    [
        (np.ones(4), ShapeError, r"sample_weight must have shape \(3,\), one number a row; it is \(4,\)"),
        (np.ones((3, 1)), ShapeError, r"it is \(3, 1\)"),
        (np.ones(()), ShapeError, r"it is \(\)"),
        (np.array([1.0, -2.0, 1.0]), DataError, r"finite and not negative; it ranges from -2\.0 to 1\.0"),
        (np.array([1.0, math.inf, 1.0]), DataError, r"it ranges from 1\.0 to inf"),
        (np.array([1.0, math.nan, 1.0]), DataError, r"it ranges from nan to nan"),
    ],
    ids=["too many", "a column", "a number", "negative", "infinite", "NaN"],
)
def test_wrong_weights_are_refused(space, w, error, match):
    with pytest.raises(error, match=match):
        value_and_grad(space, xbp.MeanSquaredError(), np.zeros((3, 1)), np.zeros((3, 1)), w)


# Descriptions.


@pytest.mark.parametrize(
    ("make_loss", "match"),
    [
        *((lambda v=v: xbp.SoftmaxCrossEntropy(v), f"label_smoothing must be .*at least 0 and below 1; it is {v!r}")
          for v in (-0.1, 1.0, math.nan, "much")),
        *((lambda v=v: xbp.Huber(v), f"Huber: delta must be a finite number above 0; it is {v!r}")
          for v in (0.0, -1.0, math.nan, math.inf, None)),
        *((lambda v=v: xbp.Quantile(v), "Quantile: q must be a number between 0 and 1, or several of them; it is ")
          for v in (0.0, 1.0, -0.5, math.nan, (), (0.5, 1.0), "half", None)),
    ],
)  # fmt: skip
def test_bad_options_are_refused(make_loss, match):
    with pytest.raises(ValueError, match=match):
        make_loss()


ALL = [
    *(c() for c in LOSSES.values()),
    xbp.SoftmaxCrossEntropy(0.1),
    xbp.Huber(2.0),
    xbp.Quantile(0.9),
    xbp.Quantile((0.1, 0.9)),
]


@pytest.mark.parametrize("loss", ALL, ids=str)
def test_a_description_becomes_the_same_loss_again(loss):
    again = build(describe(loss), LOSSES)
    assert again == loss
    assert hash(again) == hash(loss)
    assert type(again) is type(loss)
    assert len(set(ALL)) == len(ALL)


def test_options_are_plain_and_frozen():
    assert xbp.Quantile([0.1, 0.9]) == xbp.Quantile((0.1, 0.9)) == xbp.Quantile(np.array([0.1, 0.9]))
    assert type(xbp.Huber(np.float64(2.0)).delta) is float
    with pytest.raises(FrozenInstanceError):
        xbp.Huber().delta = 2.0


@pytest.mark.parametrize("loss", [xbp.Huber(np.float64(0.5)), xbp.SoftmaxCrossEntropy(np.float64(0.1))], ids=str)
def test_options_that_are_numpy_scalars_do_not_widen_float32(space, loss):
    y = space.put(np.ones((3, 4), dtype=np.float32))
    value, dy = loss.value_and_grad(y, space.put(np.eye(3, 4)))
    assert value.dtype == y.dtype
    assert dy.dtype == y.dtype


@dataclass(frozen=True)
class Power(Loss):
    """A loss as a user would write it: a kernel with an option, here |y - t|^p averaged over everything."""

    @staticmethod
    def _forward(y, t, w, *, p, xp):
        d = y - t
        weights = xp.ones_like(y[:, 0]) if w is None else w
        shares = weights / xp.sum(weights)
        return xp.sum(shares * xp.mean(xp.abs(d) ** p, axis=1)), (d, shares)

    @staticmethod
    def _backward(dloss, cache, *, p, xp):
        d, shares = cache
        return dloss * shares[:, None] * p * xp.abs(d) ** (p - 1.0) * xp.sign(d) / d.shape[1]

    kernel: ClassVar[Any] = SimpleNamespace(forward=_forward, backward=_backward)
    p: float = 3.0


def test_a_loss_of_your_own_is_a_kernel_with_options(space):
    y, t = make.y_NK_t_NK_apart(make.TYPICAL)
    for ours, theirs in ((Power(2.0), xbp.MeanSquaredError()), (Power(1.0), xbp.MeanAbsoluteError())):
        for a, b in zip(value_and_grad(space, ours, y, t), value_and_grad(space, theirs, y, t), strict=True):
            assert_close(a, space.get(b), space, rtol=1e-5, atol=1e-7)
    with pytest.raises(ShapeError, match=r"Power needs targets of shape \(N, 4\)"):
        value_and_grad(space, Power(), y, t[:, :1])
