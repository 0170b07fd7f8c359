"""Every kernel of a loss: gradients on every space, values against PyTorch and SciPy, and what weights mean.

A line of `CASES` is a loss with a kind of targets, and the loss of each row written with PyTorch. Weighting is then the
same for all: the weighted mean of the rows, where weight 2 is a row given twice and weight 0 a row left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st

import strategies as make
from xbp.kernels import (
    gaussian_nll,
    huber,
    mean_absolute_error,
    mean_squared_error,
    poisson_nll,
    quantile,
    sigmoid_cross_entropy,
    softmax_cross_entropy,
)
from xbp.testing import assert_close, check_backward

TORCH = "PyTorch, the reference of this test, is not installed"
SCIPY = "SciPy, the reference of this test, is not installed"


@dataclass(frozen=True)
class Case:
    name: str
    kernel: Any
    arrays: Callable[[make.Sizes], make.Arrays]  # y and t
    reference: Callable[..., Any]  # (torch.nn.functional, y, t) -> the loss of each row (N,)
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, space, y, t, w=None, dloss=1.0):
        """(loss, dy) in the space."""
        arrays = [None if a is None else space.put(a) for a in (y, t, w)]
        loss, cache = self.kernel.forward(*arrays, **self.options, xp=space.xp)
        return loss, self.kernel.backward(dloss, cache, **self.options, xp=space.xp)


def cross_entropy(name, arrays, smoothing=0.0):
    def reference(F, y, t):
        # PyTorch wants labels in int64.
        return F.cross_entropy(y, t.long() if t.ndim == 1 else t, reduction="none", label_smoothing=smoothing)

    return Case(name, softmax_cross_entropy, arrays, reference, {"label_smoothing": smoothing})


def pinball(F, y, t):
    """The tilted absolute error in another of its forms."""
    d = t - y
    return (0.5 * d.abs() + (d.new_tensor(LEVELS)[: d.shape[1]] - 0.5) * d).mean(1)


def levels_for(sizes: make.Sizes) -> make.Sizes:
    return make.Sizes(sizes.N, sizes.D, sizes.M, sizes.C, len(LEVELS), sizes.seed)


LEVELS = (0.1, 0.5, 0.8, 0.95)

CASES = [
    cross_entropy("softmax-labels", make.y_NC_t_N),
    cross_entropy("softmax-one_hot", make.y_NC_t_NC_one_hot),
    cross_entropy("softmax-soft", make.y_NC_t_NC_soft),
    cross_entropy("softmax-unnormalised", make.y_NC_t_NC_unnormalised),
    cross_entropy("softmax-labels-smoothed", make.y_NC_t_N, 0.1),
    cross_entropy("softmax-soft-smoothed", make.y_NC_t_NC_soft, 0.3),
    Case(
        "sigmoid-bits",
        sigmoid_cross_entropy,
        make.y_NK_t_NK_bits,
        lambda F, y, t: F.binary_cross_entropy_with_logits(y, t, reduction="none").mean(1),
    ),
    Case(
        "sigmoid-probabilities",
        sigmoid_cross_entropy,
        make.y_NK_t_NK_probabilities,
        lambda F, y, t: F.binary_cross_entropy_with_logits(y, t, reduction="none").mean(1),
    ),
    Case(
        "mean_squared_error",
        mean_squared_error,
        make.y_NK_t_NK,
        lambda F, y, t: F.mse_loss(y, t, reduction="none").mean(1),
    ),
    Case(
        "mean_absolute_error",
        mean_absolute_error,
        make.y_NK_t_NK_apart,
        lambda F, y, t: F.l1_loss(y, t, reduction="none").mean(1),
    ),
    Case(
        "huber",
        huber,
        make.y_NK_t_NK_apart,
        lambda F, y, t: F.huber_loss(y, t, reduction="none", delta=1.0).mean(1),
        {"delta": 1.0},
    ),
    Case(
        "huber-0.05",
        huber,
        make.y_NK_t_NK_apart,
        lambda F, y, t: F.huber_loss(y, t, reduction="none", delta=0.05).mean(1),
        {"delta": 0.05},
    ),
    Case(
        "quantile-0.3",
        quantile,
        make.y_NK_t_NK_apart,
        lambda F, y, t: (0.5 * (t - y).abs() - 0.2 * (t - y)).mean(1),
        {"q": (0.3,)},
    ),
    Case("quantile-several", quantile, lambda s: make.y_NK_t_NK_apart(levels_for(s)), pinball, {"q": LEVELS}),
    Case(
        "poisson_nll",
        poisson_nll,
        make.y_NK_t_NK_counts,
        lambda F, y, t: F.poisson_nll_loss(y, t, log_input=True, full=False, reduction="none").mean(1),
    ),
    Case(
        "gaussian_nll",
        gaussian_nll,
        make.y_N2K_t_NK,
        lambda F, y, t: F.gaussian_nll_loss(
            y[:, : t.shape[1]], t, y[:, t.shape[1] :].exp(), eps=1e-12, reduction="none"
        ).mean(1),
    ),
]

every_loss = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
LOSS = {case.name: case for case in CASES}


@every_loss
def test_backward_is_the_gradient_of_the_loss(space, case):
    @make.for_all(space, st.tuples(make.sizes(space), st.booleans()))
    def check(drawn):
        sizes, weighted = drawn
        y, t = case.arrays(sizes)
        w = make.w_N(sizes) if weighted else None
        # dloss, the gradient from above, is a random 0-d array here.
        check_backward(
            case.kernel.forward,
            case.kernel.backward,
            (y, t, w),
            (0,),
            space,
            sizes.rng,
            options=case.options,
        )


@every_loss
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_loss_and_gradient_are_those_of_pytorch(space, case, weighted):
    """Also times an upstream factor, a Python number or a 0-d array, which the article's layers ignored."""
    torch = pytest.importorskip("torch", reason=TORCH)
    y, t = case.arrays(make.TYPICAL)
    w = make.w_N(make.TYPICAL) if weighted else None
    tensor = torch.tensor(y, requires_grad=True)
    rows = case.reference(torch.nn.functional, tensor, torch.tensor(t))
    weights = torch.ones_like(rows) if w is None else torch.tensor(w)
    desired = (weights * rows).sum() / weights.sum()
    (-2.5 * desired).backward()

    tolerance = {"rtol": 1e-12, "atol": 1e-14} if space.dtype == "float64" else {"rtol": 1e-5, "atol": 1e-6}
    for dloss in (-2.5, space.put(np.asarray(-2.5))):
        loss, dy = case.run(space, y, t, w, dloss)
        assert_close(loss, desired.detach().numpy(), space, **tolerance)
        assert_close(dy, tensor.grad.numpy(), space, **tolerance)


# What weights mean.


@every_loss
def test_weights_are_repetitions(space, case):
    """A row of weight 2 is a row given twice, one of weight 0 is left out; if all are left out, the loss is 0."""
    counts = st.just([1, 2, 0]) if make.compiles(space) else st.lists(st.integers(0, 3), min_size=1, max_size=4)

    @make.for_all(space, counts)
    def check(drawn):
        repeat = np.array(drawn)
        y, t = case.arrays(make.Sizes(N=len(repeat), seed=7))
        loss, dy = case.run(space, y, t, repeat.astype(float))
        repeated, d_repeated = case.run(space, np.repeat(y, repeat, 0), np.repeat(t, repeat, 0))
        row = np.repeat(np.arange(len(repeat)), repeat)
        summed = np.zeros_like(y)
        np.add.at(summed, row, space.get(d_repeated))
        assert_close(loss, space.get(repeated), space, rtol=1e-5 if space.dtype == "float32" else 1e-12)
        assert_close(dy, summed, space, rtol=1e-5, atol=1e-6)


@every_loss
def test_only_the_proportions_of_weights_matter(space, case):
    y, t = case.arrays(make.TYPICAL)
    w = make.w_N(make.TYPICAL)
    loss, dy = case.run(space, y, t, w)
    scaled, d_scaled = case.run(space, y, t, w * 1024.0)
    assert_close(scaled, loss, space, rtol=0.0)
    assert_close(d_scaled, dy, space, rtol=0.0)


@every_loss
def test_no_weight_at_all_is_no_loss_and_no_gradient(space, case):
    y, t = case.arrays(make.TYPICAL)
    loss, dy = case.run(space, y, t, np.zeros(len(y)), -2.5)
    assert_close(loss, np.zeros(()), space)
    assert_close(dy, np.zeros_like(y), space)


@every_loss
def test_an_empty_batch_is_no_loss_and_an_empty_gradient(space, case):
    y, t = case.arrays(make.TYPICAL)
    for w in (None, np.zeros(0)):
        loss, dy = case.run(space, y[:0], t[:0], w)
        assert_close(loss, np.zeros(()), space)
        assert_close(dy, y[:0], space)


@every_loss
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_of_no_weight_does_not_count_whatever_it_holds(space, case, bad):
    y, t = case.arrays(make.TYPICAL)
    w = np.array([2.0, 0.0, 1.0])
    desired, d_desired = case.run(space, y, t, w)
    spoilt = y.copy()
    spoilt[1] = bad
    # The row's own loss may well be infinity minus infinity; only what remains of it is asked for here.
    with np.errstate(all="ignore"):
        loss, dy = case.run(space, spoilt, t, w)
    assert_close(loss, desired, space, rtol=0.0)
    assert_close(dy, d_desired, space, rtol=0.0)


@every_loss
def test_nan_in_a_row_that_counts_is_seen(space, case):
    y, t = case.arrays(make.TYPICAL)
    y[1] = math.nan
    loss, _ = case.run(space, y, t)
    assert_close(loss, np.asarray(math.nan), space)


# Against SciPy, where the loss has a meaning in terms of probabilities.


def test_losses_are_the_negative_log_likelihoods_of_scipy(space):
    stats = pytest.importorskip("scipy.stats", reason=SCIPY)
    special = pytest.importorskip("scipy.special", reason=SCIPY)
    rtol = 1e-12 if space.dtype == "float64" else 1e-5

    y, t = make.y_NC_t_NC_soft(make.TYPICAL)
    loss, _ = LOSS["softmax-soft"].run(space, y, t)
    assert_close(loss, -np.asarray((t * special.log_softmax(y, axis=1)).sum(1).mean()), space, rtol=rtol)

    y, t = make.y_NK_t_NK_probabilities(make.TYPICAL)
    loss, _ = LOSS["sigmoid-probabilities"].run(space, y, t)
    p = special.expit(y)
    assert_close(loss, -np.asarray((special.xlogy(t, p) + special.xlog1py(1.0 - t, -p)).mean()), space, rtol=rtol)

    y, t = make.y_NK_t_NK_counts(make.TYPICAL)
    loss, _ = LOSS["poisson_nll"].run(space, y, t)
    log_likelihood = stats.poisson.logpmf(t, np.exp(y)) + special.gammaln(t + 1.0)  # without the term log t!
    assert_close(loss, -np.asarray(log_likelihood.mean()), space, rtol=rtol)

    y, t = make.y_N2K_t_NK(make.TYPICAL)
    loss, _ = LOSS["gaussian_nll"].run(space, y, t)
    m, v = np.split(y, 2, axis=1)
    log_likelihood = stats.norm.logpdf(t, m, np.exp(v / 2.0)) + 0.5 * math.log(2.0 * math.pi)
    assert_close(loss, -np.asarray(log_likelihood.mean()), space, rtol=rtol)


def test_quantile_loss_is_least_at_the_quantile(space):
    """Of 0 ... 11, the 0.75-quantile lies between 8 and 9: the slope of a constant prediction turns there."""
    case = Case("quantile-0.75", quantile, make.y_NK_t_NK, pinball, {"q": (0.75,)})
    t = np.arange(12.0).reshape(3, 4)
    for guess, slope in ((8.5, 0.0), (6.5, -1.0 / 6.0), (10.5, 1.0 / 6.0)):
        _, dy = case.run(space, np.full((3, 4), guess), t)
        np.testing.assert_allclose(space.get(dy).sum(), slope, atol=1e-6)


# Kinks, labels.


@pytest.mark.parametrize("name", ["mean_absolute_error", "quantile-0.3", "huber", "mean_squared_error"])
def test_slope_is_zero_where_the_prediction_is_right(space, name):
    y = np.resize([1.5, 0.0], (3, 4))
    loss, dy = LOSS[name].run(space, y, y)
    assert_close(loss, np.zeros(()), space)
    assert_close(dy, np.zeros((3, 4)), space)


def test_huber_meets_its_line_at_the_threshold(space):
    y, t = np.resize([1.0, -1.0, 3.0, 0.5], (3, 4)), np.zeros((3, 4))
    loss, dy = LOSS["huber"].run(space, y, t)
    assert_close(loss, np.asarray((0.5 + 0.5 + 2.5 + 0.125) / 4.0), space)
    assert_close(dy, np.resize([1.0, -1.0, 1.0, 0.5], (3, 4)) / 12.0, space)


@pytest.mark.parametrize("name", ["softmax-labels", "softmax-labels-smoothed"])
@pytest.mark.parametrize("label", [-1, 4, 1000])
def test_a_label_out_of_range_makes_its_row_nan_and_no_other(space, name, label):
    """-1 is not the last class, as it was in one of the articles."""
    y, t = make.y_NC_t_N(make.TYPICAL)
    desired, d_desired = LOSS[name].run(space, y, t)
    wrong = t.copy()
    wrong[1] = label
    loss, dy = LOSS[name].run(space, y, wrong)
    assert_close(loss, np.asarray(math.nan), space)
    others = [0, 2]
    np.testing.assert_array_equal(space.get(dy)[others], space.get(d_desired)[others])
    without = np.array([1.0, 0.0, 1.0])
    assert_close(LOSS[name].run(space, y, wrong, without)[0], space.get(LOSS[name].run(space, y, t, without)[0]), space)
    assert np.isfinite(space.get(desired))


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "int32", "int64"])
def test_labels_may_be_integers_of_any_width(space, dtype):
    y, t = make.y_NC_t_N(make.TYPICAL)
    loss, dy = LOSS["softmax-labels"].run(space, y, t.astype(dtype))
    desired, d_desired = LOSS["softmax-labels"].run(space, y, t)
    assert_close(loss, desired, space, rtol=0.0)
    assert_close(dy, d_desired, space, rtol=0.0)


def test_labels_and_their_one_hot_vectors_are_the_same(space):
    y, labels = make.y_NC_t_N(make.TYPICAL)
    _, one_hot = make.y_NC_t_NC_one_hot(make.TYPICAL)
    loss, dy = LOSS["softmax-labels"].run(space, y, labels)
    same, d_same = LOSS["softmax-one_hot"].run(space, y, one_hot)
    assert_close(same, loss, space)
    assert_close(d_same, dy, space)
