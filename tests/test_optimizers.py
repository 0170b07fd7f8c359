"""Every optimiser against PyTorch's, on every space; weight decay, rates; and that it is a pure rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer_cases import CASES, FLOATS, ONE_EACH, STEPS, TORCH, pairs, put, slopes, start
from xbp import SGD, AdaGrad, Adam, AdamW, RMSProp
from xbp.describe import describe
from xbp.optimizers import OPTIMIZERS, selects
from xbp.schedules import Cosine
from xbp.testing import assert_close


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
    for dtype in space.dtypes[-1:] if space.name == "jax-x64" else space.dtypes:  # space jax has float32 already
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
