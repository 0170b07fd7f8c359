"""Every optimiser against PyTorch's, on every space; what it refuses; and that it is the pure rule it says it is."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import numpy as np
import pytest

from xbp import SGD, AdaGrad, Adam, AdamW, Optimizer, RMSProp
from xbp.describe import build, describe
from xbp.errors import CheckpointError, DTypeError, NameUnknown, ShapeError
from xbp.optimizers import OPTIMIZERS, clip_by_global_norm, get_optimizer, global_norm, selects
from xbp.schedules import SCHEDULES, Cosine, WarmUp
from xbp.testing import assert_close

TORCH = "PyTorch, the reference of this test, is not installed"
STEPS = 30


@dataclass(frozen=True)
class Case:
    name: str
    ours: Optimizer
    theirs: Callable[[Any, Any], Any]  # (torch.optim, parameters) -> optimiser


CASES = [
    Case("sgd", SGD(0.1), lambda o, p: o.SGD(p, lr=0.1)),
    Case("sgd-decay", SGD(0.1, weight_decay=0.3), lambda o, p: o.SGD(p, lr=0.1, weight_decay=0.3)),
    Case("momentum", SGD(0.1, momentum=0.9), lambda o, p: o.SGD(p, lr=0.1, momentum=0.9)),
    Case(
        "momentum-decay",
        SGD(0.1, momentum=0.5, weight_decay=0.3),
        lambda o, p: o.SGD(p, lr=0.1, momentum=0.5, weight_decay=0.3),
    ),
    Case(
        "nesterov",
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    Case("adagrad", AdaGrad(0.1), lambda o, p: o.Adagrad(p, lr=0.1)),
    Case(
        "adagrad-decay",
        AdaGrad(0.1, eps=1e-3, weight_decay=0.3),
        lambda o, p: o.Adagrad(p, lr=0.1, eps=1e-3, weight_decay=0.3),
    ),
    Case("rmsprop", RMSProp(0.01), lambda o, p: o.RMSprop(p, lr=0.01)),
    Case(
        "rmsprop-decay",
        RMSProp(0.01, alpha=0.9, eps=1e-3, weight_decay=0.3),
        lambda o, p: o.RMSprop(p, lr=0.01, alpha=0.9, eps=1e-3, weight_decay=0.3),
    ),
    Case("adam", Adam(0.01), lambda o, p: o.Adam(p, lr=0.01)),
    Case(
        "adam-decay",
        Adam(0.01, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.3),
        lambda o, p: o.Adam(p, lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.3),
    ),
    Case("adam-beta1-0", Adam(0.01, beta1=0.0), lambda o, p: o.Adam(p, lr=0.01, betas=(0.0, 0.999))),
    Case("adamw", AdamW(0.01), lambda o, p: o.AdamW(p, lr=0.01)),
    Case("adamw-decay", AdamW(0.01, weight_decay=0.3), lambda o, p: o.AdamW(p, lr=0.01, weight_decay=0.3)),
]
ONE_EACH = [c for c in CASES if c.name in ("sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw")]
FLOATS = [("float32", 2e-6), ("float64", 1e-13)]


def start():
    rng = np.random.default_rng(0)
    return {"0.W": rng.normal(size=(3, 2)), "0.b": rng.normal(size=(2,))}


def slopes():
    """Gradients of thirty steps, from the size of one hundredth to that of a hundred, some of them exactly 0."""
    rng = np.random.default_rng(1)
    for _ in range(STEPS):
        size = 10.0 ** rng.uniform(-2.0, 2.0)
        yield {n: size * rng.normal(size=p.shape) * (rng.random(p.shape) < 0.9) for n, p in start().items()}


def put(space, arrays, dtype=None):
    return {n: space.put(np.asarray(a).astype(dtype or space.dtype)) for n, a in arrays.items()}


def pairs(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@pairs(CASES)
def test_thirty_steps_are_those_of_pytorch(space, case):
    torch = pytest.importorskip("torch", reason=TORCH)
    tensors = {n: torch.tensor(p, requires_grad=True) for n, p in start().items()}
    theirs = case.theirs(torch.optim, list(tensors.values()))
    for grads in slopes():
        for n, g in grads.items():
            tensors[n].grad = torch.tensor(g)
        theirs.step()
    for dtype, tolerance in FLOATS:
        if dtype not in space.dtypes or (space.name, dtype) == ("jax-x64", "float32"):
            continue  # space jax has float32 already
        params = put(space, start(), dtype)
        state = case.ours.init(params)
        for grads in slopes():
            params, state = case.ours.update(params, put(space, grads, dtype), state, xp=space.xp)
        for n, tensor in tensors.items():
            # Errors of the thirty steps add up, on the scale of the steps and not of the sum that they leave.
            scale = float(tensor.detach().abs().max())
            desired = tensor.detach().numpy()
            assert_close(params[n], desired, space, rtol=tolerance, atol=tolerance * max(1.0, scale), dtype=dtype)
        assert int(space.get(state["step"])) == STEPS


@pairs(CASES)
def test_state_keeps_names_shapes_and_dtypes_from_step_to_step(space, case):
    for dtype in space.dtypes:
        params = put(space, start(), dtype)
        state = case.ours.init(params)
        assert set(state) == {"step"} | {f"{s}.{n}" for s in case.ours.slots for n in params}
        for _ in range(2):
            for name, value in state.items():
                if name == "step":
                    assert_close(value, space.get(value).astype(np.int32), space, dtype="int32")
                    assert value.shape == ()
                else:
                    shape = start()[name.partition(".")[2]].shape
                    assert_close(value, np.broadcast_to(space.get(value), shape), space, dtype=dtype)
            grown, after = case.ours.update(params, put(space, next(slopes()), dtype), state)
            assert list(after) == list(state)
            assert list(grown) == list(params)
            params, state = grown, after


@pairs(CASES)
def test_the_first_state_is_zero(space, case):
    for name, value in case.ours.init(put(space, start())).items():
        assert not space.get(value).any(), name


@pairs(ONE_EACH)
def test_an_update_changes_none_of_its_arguments_and_gives_the_same_again(space, case):
    params, grads = put(space, start()), put(space, next(slopes()))
    state = case.ours.init(params)
    params, state = case.ours.update(params, grads, state)  # so that no state is zero
    mappings = (params, grads, state)
    before = [{n: space.get(a) for n, a in m.items()} for m in mappings]
    first = case.ours.update(*mappings)
    for held, mapping in zip(before, mappings, strict=True):
        assert list(held) == list(mapping)
        for n, a in mapping.items():
            np.testing.assert_array_equal(space.get(a), held[n])
    for ours, again in zip(first, case.ours.update(*mappings, xp=space.xp), strict=True):
        for n in ours:
            np.testing.assert_array_equal(space.get(ours[n]), space.get(again[n]))


@pairs(ONE_EACH)
def test_a_state_that_was_written_to_the_host_goes_on_bit_for_bit(space, case):
    steps = [put(space, g) for g in slopes()][:6]
    params = put(space, start())
    state = case.ours.init(params)
    for grads in steps[:3]:
        params, state = case.ours.update(params, grads, state)
    kept = {n: space.put(space.get(a)) for n, a in params.items()}
    resumed = {n: space.put(space.get(a)) for n, a in state.items()}
    for grads in steps[3:]:
        params, state = case.ours.update(params, grads, state)
        kept, resumed = case.ours.update(kept, grads, resumed)
    for n, a in params.items():
        np.testing.assert_array_equal(space.get(a), space.get(kept[n]))


# What it is for.


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(0.1),
        SGD(0.1, momentum=0.5),
        SGD(0.1, momentum=0.5, nesterov=True),
        AdaGrad(2.0),
        RMSProp(Cosine(0.2, 50)),
        Adam(Cosine(0.5, 50), beta1=0.5),
        AdamW(Cosine(0.5, 50), beta1=0.5, weight_decay=0.0),
    ],
    ids=lambda o: type(o).__name__,
)
def test_finds_the_bottom_of_a_parabola(space, optimizer):
    """(a - 3)^2 + 4 (b + 1)^2: the two directions differ in steepness."""
    bottom, steepness = put(space, {"w": [3.0, -1.0]})["w"], put(space, {"w": [2.0, 8.0]})["w"]
    params = put(space, {"w": [0.0, 0.0]})
    state = optimizer.init(params)
    for _ in range(50):
        grads = {"w": steepness * (params["w"] - bottom)}
        params, state = optimizer.update(params, grads, state)
    assert_close(params["w"], np.array([3.0, -1.0]), space, rtol=1e-3)


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(2e-3),
        SGD(2e-4, momentum=0.95),
        SGD(2e-4, momentum=0.95, nesterov=True),
        AdaGrad(0.5),
        RMSProp(Cosine(0.01, 5000)),
        Adam(Cosine(0.1, 5000)),
        AdamW(Cosine(0.1, 5000), weight_decay=0.0),
    ],
    ids=lambda o: type(o).__name__,
)
def test_walks_down_the_valley_of_rosenbrock(optimizer):
    params = {"p": np.array([-1.2, 1.0])}
    state = optimizer.init(params)
    for _ in range(5000):
        x, y = params["p"]
        slope = np.array([-2.0 * (1.0 - x) - 400.0 * x * (y - x * x), 200.0 * (y - x * x)])
        params, state = optimizer.update(params, {"p": slope}, state, xp=np)
    np.testing.assert_allclose(params["p"], [1.0, 1.0], atol=0.02)


@pytest.mark.parametrize("optimizer", [Adam(0.25), AdamW(0.25), Adam(0.25, beta1=0.5, beta2=0.9999)], ids=str)
def test_bias_correction_is_right_in_float32_from_the_first_step(space, optimizer):
    """With one gradient g all the time m / c1 is g and v / c2 is g^2, so every step is lr g / (|g| + eps).

    float32 1 - 0.999^t would miss the first of them by one part in 10^5.
    """
    g = np.array([1.0, -0.3, 20.0])
    zero, grads = put(space, {"w": np.zeros(3)}, "float32"), put(space, {"w": g}, "float32")
    state = optimizer.init(zero)
    for _ in range(20):
        moved, state = optimizer.update(zero, grads, state)
        assert_close(moved["w"], -0.25 * np.sign(g), space, rtol=1e-6, dtype="float32")


def test_bias_correction_fades_after_a_million_steps(space):
    """v = 1 and m = 1 are then what they say they are; the count is an int32 that float32 can hold."""
    optimizer = Adam(0.25)
    params, grads = put(space, {"w": np.zeros(2)}, "float32"), put(space, {"w": np.ones(2)}, "float32")
    state = {**optimizer.init(params), **put(space, {"m.w": np.ones(2), "v.w": np.ones(2)}, "float32")}
    state["step"] = space.put(np.asarray(9_999_999, dtype=np.int32))
    moved, state = optimizer.update(params, grads, state)
    assert_close(moved["w"], np.full(2, -0.25), space, rtol=1e-6, dtype="float32")
    assert int(space.get(state["step"])) == 10_000_000


def test_the_first_adagrad_step_has_the_size_of_the_rate(space):
    params = put(space, {"w": np.zeros(3)})
    moved, _ = AdaGrad(0.5).update(params, put(space, {"w": [3.0, -0.2, 0.0]}), AdaGrad(0.5).init(params))
    assert_close(moved["w"], np.array([-0.5, 0.5, 0.0]), space, rtol=1e-6)


# Weight decay.


@pytest.mark.parametrize(
    "optimizer", [SGD(0.1, weight_decay=0.5), AdamW(0.1, weight_decay=0.5)], ids=["l2", "decoupled"]
)
@pytest.mark.parametrize(
    ("decay", "falls"),
    [
        (None, ("0.W", "0.b")),
        (lambda name: name.endswith(".W"), ("0.W",)),
        (("0.b",), ("0.b",)),
        (frozenset({"0.W", "7.W"}), ("0.W",)),
        ("0.W", ("0.W",)),  # one name, not a collection of letters
        ((), ()),
    ],
    ids=["all", "predicate", "tuple", "frozenset", "string", "none"],
)
def test_decay_selects_the_parameters_that_shrink(space, optimizer, decay, falls):
    optimizer = replace(optimizer, decay=decay)
    params = put(space, start())
    zero = put(space, {n: np.zeros_like(p) for n, p in start().items()})
    moved, _ = optimizer.update(params, zero, optimizer.init(params))
    for n, p in start().items():
        assert_close(moved[n], p * (0.95 if n in falls else 1.0), space, rtol=1e-6)


def test_decay_is_l2_in_adam_and_decoupled_in_adamw(space):
    """At the first step L2 disappears in the normalisation, all but its sign; decoupled decay does not."""
    params = put(space, {"w": [10.0, -10.0]})
    grads = put(space, {"w": [1.0, 1.0]})
    for optimizer, desired in (
        (Adam(0.01, weight_decay=0.5), [10.0 - 0.01, -10.0 + 0.01]),
        (AdamW(0.01, weight_decay=0.5), [10.0 * 0.995 - 0.01, -10.0 * 0.995 - 0.01]),
    ):
        moved, _ = optimizer.update(params, grads, optimizer.init(params))
        assert_close(moved["w"], np.array(desired), space, rtol=1e-6)


def test_selects_takes_predicates_and_names():
    assert selects(None, "0.W")
    assert selects(["0.W"], "0.W")
    assert not selects(["0.W"], "0.b")
    assert selects("0.W", "0.W")
    assert not selects("10.W", "0.W")  # one name inside another
    assert selects(lambda n: n == "x", "x")


# The rate.


def test_own_schedule_is_asked_with_the_steps_from_0(space):
    asked = []

    def schedule(step):
        asked.append(step)
        return 0.5 / (1 + step)

    optimizer = SGD(schedule)
    params, grads = put(space, {"w": np.zeros(2)}), put(space, {"w": np.ones(2)})
    state = optimizer.init(params)
    for total in (0.5, 0.5 + 0.25, 0.5 + 0.25 + 0.5 / 3):
        params, state = optimizer.update(params, grads, state)
        assert_close(params["w"], np.full(2, -total), space)
    assert asked == [0, 1, 2]
    assert all(type(step) is int for step in asked)


def test_a_given_rate_goes_before_the_own_one_and_the_schedule_is_not_asked(space):
    def never(step):
        raise AssertionError("asked")

    params, grads = put(space, {"w": np.zeros(2)}), put(space, {"w": np.ones(2)})
    moved, _ = SGD(never).update(params, grads, SGD(never).init(params), lr=0.25)
    assert_close(moved["w"], np.full(2, -0.25), space)


@pairs(ONE_EACH)
def test_the_rate_may_be_a_number_or_a_0d_array_on_the_device(space, case):
    for dtype in space.dtypes:
        params, grads = put(space, start(), dtype), put(space, next(slopes()), dtype)
        state = case.ours.init(params)
        own, _ = case.ours.update(params, grads, state)
        rate = case.ours.lr
        for lr in (rate, np.float64(rate), space.put(np.asarray(rate, dtype=dtype))):
            moved, _ = case.ours.update(params, grads, state, lr=lr, xp=space.xp)
            for n, a in own.items():
                assert_close(moved[n], space.get(a), space, rtol=3e-7, dtype=dtype)


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS.values()), ids=lambda c: c.__name__)
def test_options_that_are_numpy_scalars_do_not_widen_float32(space, optimizer):
    """np.logspace makes rates of float64, and a float64 scalar would make the parameters float64."""
    plain = optimizer(lr=0.01, weight_decay=0.1)
    options = {n: np.float64(v) for n, v in vars(plain).items() if isinstance(v, float)}
    numpys = optimizer(**options)
    assert numpys == plain
    assert all(type(getattr(numpys, n)) is float for n in options)
    assert describe(numpys) == describe(plain)
    params = put(space, start(), "float32")
    moved, state = numpys.update(params, put(space, next(slopes()), "float32"), numpys.init(params))
    for n, a in moved.items():
        assert_close(a, space.get(a).astype(np.float32).reshape(start()[n].shape), space, dtype="float32")
    assert {str(a.dtype).rpartition(".")[2] for n, a in state.items() if n != "step"} <= {"float32"}


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


def test_a_gradient_of_another_dtype_is_refused(space):
    if len(space.dtypes) == 1:
        pytest.skip(f"space {space.name!r} has one floating dtype only")
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
