"""What an optimiser refuses, how it is described, rules of your own, and clipping."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import numpy as np
import pytest

from optimizer_cases import CASES, FLOATS, TORCH, Case, pairs, put, start
from xbp import SGD, AdaGrad, Adam, AdamW, Optimizer, RMSProp
from xbp.describe import build, describe
from xbp.errors import CheckpointError, DTypeError, NameUnknown, ShapeError
from xbp.optimizers import OPTIMIZERS, clip_by_global_norm, get_optimizer, global_norm
from xbp.schedules import SCHEDULES, Cosine, WarmUp
from xbp.testing import assert_close

# What is refused.


def refused(space, error, match, params, grads, state=None, optimizer=None):
    optimizer = optimizer or Adam()
    params = put(space, params)
    with pytest.raises(error, match=match):
        optimizer.update(params, grads, optimizer.init(params) if state is None else state)


def test_a_missing_gradient_is_named(space):
    grads = put(space, {"0.W": start()["0.W"], "1.b": np.ones(2)})
    refused(space, ShapeError, r"'0\.b' has no gradient\. Gradients given: 0\.W, 1\.b\.", start(), grads)
    refused(space, ShapeError, r"Gradients given: none\.", start(), {})


def test_a_gradient_of_another_shape_is_refused_even_if_it_would_broadcast(space):
    grads = put(space, start()) | put(space, {"0.b": np.ones((1, 2))})
    refused(space, ShapeError, r"gradient of '0\.b' has shape \(1, 2\), the parameter \(2,\)", start(), grads)


@pytest.mark.not_in("jax", "strict-no_float64", reason="they have one floating dtype only")
def test_a_gradient_of_another_dtype_is_refused(space):
    params, grads = put(space, start(), "float32"), put(space, start(), "float64")
    with pytest.raises(DTypeError, match=r"gradient of '0\.W' is .*float64, the parameter .*float32.*astype"):
        SGD(0.1).update(params, grads, SGD(0.1).init(params))


def test_the_state_of_another_optimiser_is_refused(space):
    params = put(space, start())
    match = r"no 'm\.0\.W', which Adam needs .*optimizer\.init\(params\).*State given: step, v\.0\.W, v\.0\.b\."
    refused(space, ShapeError, match, start(), params, RMSProp().init(params))
    refused(space, ShapeError, r"no 'step'.*State given: none\.", start(), params, {})


def test_nothing_to_optimise_is_refused():
    with pytest.raises(ShapeError, match=r"SGD: there is no parameter to optimise"):
        SGD().init({})


BAD = [
    *((c, {"lr": v}) for c in OPTIMIZERS.values() for v in (-0.1, math.nan, math.inf, None, "fast", True)),
    *((c, {"weight_decay": v}) for c in OPTIMIZERS.values() for v in (-0.1, math.nan, math.inf, None, "much")),
    *((c, {"decay": v}) for c in OPTIMIZERS.values() for v in (3, 0.5, True)),
    *((SGD, {"momentum": v}) for v in (-0.1, 1.0, 1.5, math.nan, "yes")),
    *((RMSProp, {"alpha": v}) for v in (-0.1, 1.0, math.nan, None)),
    *((c, {b: v}) for c in (Adam, AdamW) for b in ("beta1", "beta2") for v in (-0.1, 1.0, math.nan, (0.9, 0.999))),
    *((c, {"eps": v}) for c in (AdaGrad, RMSProp, Adam, AdamW) for v in (-1e-8, math.nan, math.inf, None)),
]


@pytest.mark.parametrize(("optimizer", "options"), BAD, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))
def test_bad_options_are_refused_with_name_and_value(optimizer, options):
    ((name, value),) = options.items()
    error = TypeError if name == "decay" else ValueError
    with pytest.raises(error) as caught:
        optimizer(**options)
    message = str(caught.value)
    assert message.startswith(f"{optimizer.__name__}: {name} ")
    assert message.endswith(f"it is {value!r}.")


def test_the_ends_of_the_options_are_allowed():
    SGD(0.0, weight_decay=0.0)
    SGD(1, momentum=0)
    RMSProp(alpha=0.0, eps=0.0)
    Adam(beta1=0.0, beta2=0.0, eps=0)


def test_nesterov_without_momentum_is_refused():
    with pytest.raises(ValueError, match=r"SGD: nesterov=True needs a momentum above 0"):
        SGD(0.1, nesterov=True)


def test_unknown_names_get_the_nearest():
    with pytest.raises(
        NameUnknown, match=r"Unknown optimiser 'adamm'\. Did you mean 'adam'\? Known: adagrad, adam, adamw"
    ):
        get_optimizer("adamm")
    assert get_optimizer("rmsprop") is RMSProp


# What it is: a frozen description.


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS.values()), ids=lambda c: c.__name__)
def test_equal_options_make_equal_optimisers_and_none_can_be_changed(optimizer):
    assert optimizer(lr=0.5) == optimizer(lr=0.5)
    assert hash(optimizer(lr=0.5)) == hash(optimizer(lr=0.5))
    assert optimizer(lr=0.5) != optimizer(lr=0.25)
    assert len({c(lr=0.5) for c in OPTIMIZERS.values()}) == len(OPTIMIZERS)
    with pytest.raises(FrozenInstanceError):
        optimizer().lr = 1.0
    assert replace(optimizer(), lr=0.125).lr == 0.125


def test_plain_descent_keeps_no_state_and_with_momentum_it_does():
    assert SGD(0.1).slots == ()
    assert SGD(0.1, momentum=0.9).slots == ("v",)
    assert replace(SGD(0.1, momentum=0.9), momentum=0.0).slots == ()
    assert SGD.slots == ("v",)


@pairs([*CASES, Case("scheduled", SGD(WarmUp(3, Cosine(0.1, 9)), decay=("0.W",)), lambda o, p: None)])
def test_a_description_becomes_the_same_optimiser_again(case):
    classes = {c.__name__: c for c in OPTIMIZERS.values()} | SCHEDULES
    assert build(describe(case.ours), classes) == case.ours


def test_functions_cannot_be_described():
    with pytest.raises(CheckpointError, match=r"frozen dataclass"):
        describe(SGD(lambda step: 0.1))


@dataclass(frozen=True)
class SignDescent(Optimizer):
    """A rule as a user would write it: a rate, no state, no decay."""

    lr: float = 0.1

    def rule(self, p, g, slots, t, lr, decay, xp):
        assert decay == 0.0
        return p - lr * xp.sign(g), ()


@dataclass(frozen=True)
class Averaged(Optimizer):
    """A rule with a slot, a schedule and decay."""

    slots = ("sum",)
    lr: Any = 0.1
    weight_decay: float = 0.0
    decay: Any = None

    def rule(self, p, g, slots, t, lr, decay, xp):
        total = slots[0] + g + decay * p
        return p - lr * total / t, (total,)


def test_a_rule_of_your_own_needs_no_more_than_rate_slots_and_rule(space):
    params = put(space, {"w": [1.0, -2.0]})
    moved, state = SignDescent(0.5).update(params, put(space, {"w": [9.0, -9.0]}), SignDescent(0.5).init(params))
    assert_close(moved["w"], np.array([0.5, -1.5]), space)
    assert list(state) == ["step"]

    mine = Averaged(lambda step: 1.0, weight_decay=0.5, decay=["w"])
    state = mine.init(params)
    for desired in ([-9.5, 9.0], [-17.375, 17.25]):  # 1 - 10.5 / 1, then -9.5 - 15.75 / 2
        params, state = mine.update(params, put(space, {"w": [10.0, -10.0]}), state)
        assert_close(params["w"], np.array(desired), space, rtol=1e-6)
    assert list(state) == ["step", "sum.w"]
    with pytest.raises(ValueError, match=r"SignDescent: lr must be"):
        SignDescent(-1.0)


def test_a_rule_that_is_not_written_says_so():
    @dataclass(frozen=True)
    class Empty(Optimizer):
        lr: float = 0.1

    with pytest.raises(NotImplementedError, match=r"Empty has no rule"):
        Empty().update({"w": np.ones(2)}, {"w": np.ones(2)}, Empty().init({"w": np.ones(2)}))


# Clipping.


@pytest.mark.parametrize("max_norm", [1e-3, 1.0, 3.0, 1e3])
def test_clipping_is_that_of_pytorch(space, max_norm):
    torch = pytest.importorskip("torch", reason=TORCH)
    tensors = [torch.nn.Parameter(torch.tensor(p)) for p in start().values()]
    for tensor in tensors:
        tensor.grad = tensor.detach().clone()
    norm = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    for dtype in space.dtypes:
        grads = put(space, start(), dtype)
        assert_close(global_norm(grads, xp=space.xp), np.asarray(norm.detach()), space, rtol=FLOATS[0][1], dtype=dtype)
        clipped = clip_by_global_norm(grads, max_norm, xp=space.xp)
        for n, tensor in zip(grads, tensors, strict=True):
            # PyTorch adds 10^-6 to the norm that it divides by.
            assert_close(clipped[n], tensor.grad.numpy(), space, rtol=3e-6, dtype=dtype)
        total = float(space.get(global_norm(clipped, xp=space.xp)))
        assert total == pytest.approx(min(max_norm, float(norm)), rel=1e-6)


def test_clipping_leaves_short_gradients_as_they_are_and_zero_is_one(space):
    short = put(space, {"w": [3.0, 4.0], "b": [[0.0]]})
    for max_norm in (5.0, 6.0):  # the norm is 5
        for n, g in clip_by_global_norm(short, max_norm, xp=space.xp).items():
            assert_close(g, space.get(short[n]), space, rtol=0.0)
    zero = put(space, {"w": np.zeros(3), "b": np.zeros((0, 2))})
    assert_close(global_norm(zero, xp=space.xp), np.asarray(0.0), space)
    for n, g in clip_by_global_norm(zero, 1.0, xp=space.xp).items():
        assert_close(g, space.get(zero[n]), space, rtol=0.0)


def test_clipping_scales_all_gradients_together(space):
    clipped = clip_by_global_norm(put(space, {"w": [30.0, 0.0], "b": [[-40.0]]}), 5.0, xp=space.xp)
    assert_close(clipped["w"], np.array([3.0, 0.0]), space, rtol=1e-6)
    assert_close(clipped["b"], np.array([[-4.0]]), space, rtol=1e-6)
