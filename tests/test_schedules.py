"""Schedules: their formulas, that they fall and rise where they promise, and that no join has a jump in it."""

from __future__ import annotations

import itertools
import math
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xbp.describe import build, describe
from xbp.errors import CheckpointError
from xbp.schedules import SCHEDULES, Cosine, Exponential, OneCycle, StepDecay, WarmUp, rate_at

TORCH = "PyTorch, the reference of this test, is not installed"

same_everywhere = settings(derandomize=True, database=None, deadline=None, max_examples=60)
rates = st.floats(1e-6, 10.0)
lengths = st.integers(1, 300)


@pytest.mark.parametrize(
    ("schedule", "step", "rate"),
    [
        (StepDecay(0.8, 10, 0.5), 0, 0.8),
        (StepDecay(0.8, 10, 0.5), 9, 0.8),
        (StepDecay(0.8, 10, 0.5), 10, 0.4),
        (StepDecay(0.8, 10, 0.5), 35, 0.1),
        (Exponential(0.8, 10, 0.5), 0, 0.8),
        (Exponential(0.8, 10, 0.5), 5, 0.8 / math.sqrt(2.0)),
        (Exponential(0.8, 10, 0.5), 30, 0.1),
        (Cosine(0.8, 10, 0.2), 0, 0.8),
        (Cosine(0.8, 10, 0.2), 5, 0.5),
        (Cosine(0.8, 10, 0.2), 10, 0.2),
        (Cosine(0.8, 10, 0.2), 10**9, 0.2),
        (Cosine(0.8, 10), 10, 0.0),
        (WarmUp(4, 0.8), 0, 0.2),
        (WarmUp(4, 0.8), 1, 0.4),
        (WarmUp(4, 0.8), 3, 0.8),
        (WarmUp(4, 0.8), 4, 0.8),
        (WarmUp(4, 0.8, start=0.4), 1, 0.6),
        (WarmUp(1, 0.8), 0, 0.8),
        (WarmUp(4, Cosine(0.8, 10)), 3, 0.8),
        (WarmUp(4, Cosine(0.8, 10)), 4, 0.8),
        (WarmUp(4, Cosine(0.8, 10)), 9, 0.4),
        (WarmUp(4, Cosine(0.8, 10)), 14, 0.0),
        (OneCycle(0.8, 11, warm=0.4, start_factor=8, final_factor=80), 0, 0.1),
        (OneCycle(0.8, 11, warm=0.4, start_factor=8, final_factor=80), 2, 0.45),
        (OneCycle(0.8, 11, warm=0.4, start_factor=8, final_factor=80), 4, 0.8),
        (OneCycle(0.8, 11, warm=0.4, start_factor=8, final_factor=80), 7, 0.405),
        (OneCycle(0.8, 11, warm=0.4, start_factor=8, final_factor=80), 10, 0.01),
        (OneCycle(0.8, 11, warm=0.4, start_factor=8, final_factor=80), 99, 0.01),
    ],
    ids=str,
)
def test_values_are_those_of_the_formula(schedule, step, rate):
    assert schedule(step) == pytest.approx(rate, rel=1e-12, abs=1e-15)
    assert type(schedule(step)) is float
    assert type(rate_at(schedule, step)) is float


def test_a_warm_up_goes_on_with_any_function():
    schedule = WarmUp(4, lambda step: 0.1 * (step + 1))
    assert [schedule(k) for k in (0, 3, 4, 6)] == pytest.approx([0.025, 0.1, 0.1, 0.3])


def test_a_rate_is_a_number_or_a_function():
    assert rate_at(0.25, 7) == 0.25
    assert rate_at(lambda step: np.float32(step), 7) == 7.0
    assert type(rate_at(lambda step: np.float32(step), 7)) is float


# Where PyTorch has the same formula.


def of_torch(torch, make, lr, steps):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    for _ in range(steps):
        yield optimizer.param_groups[0]["lr"]
        optimizer.step()  # PyTorch warns of a scheduler that goes first
        scheduler.step()


@pytest.mark.parametrize(
    ("ours", "theirs", "lr", "steps"),
    [
        (StepDecay(0.3, 7, 0.5), lambda s, o: s.StepLR(o, 7, 0.5), 0.3, 40),
        (Exponential(0.3, 7, 0.5), lambda s, o: s.ExponentialLR(o, 0.5 ** (1 / 7)), 0.3, 40),
        (Cosine(0.3, 23, 0.01), lambda s, o: s.CosineAnnealingLR(o, 23, 0.01), 0.3, 24),
        # PyTorch's line starts at the fraction itself, ours one step up it: a rate of 0 would waste a step.
        (
            lambda step: WarmUp(8, 0.4, 0.1)(step - 1) if step else 0.1,
            lambda s, o: s.LinearLR(o, 0.25, 1.0, 8),
            0.4,
            20,
        ),
        # The peak is at step warm (steps - 1) here, at pct_start steps - 1 there.
        (
            OneCycle(0.3, 41, 0.25, 20.0, 2000.0),
            lambda s, o: s.OneCycleLR(
                o, 0.3, 41, pct_start=11 / 41, div_factor=20.0, final_div_factor=100.0, cycle_momentum=False
            ),
            0.3,
            41,
        ),
    ],
    ids=["step", "exponential", "cosine", "warm-up", "one-cycle"],
)
def test_schedules_are_those_of_pytorch(ours, theirs, lr, steps):
    torch = pytest.importorskip("torch", reason=TORCH)
    assert [ours(k) for k in range(steps)] == pytest.approx(list(of_torch(torch, theirs, lr, steps)), rel=1e-9)


# Everywhere.


def falls(values):
    return all(b <= a * (1 + 1e-12) for a, b in itertools.pairwise(values))


@same_everywhere
@given(rates, lengths, st.floats(1e-3, 1.0))
def test_decays_fall_or_stay_and_meet_at_the_full_steps(lr, every, factor):
    stairs, slide = StepDecay(lr, every, factor), Exponential(lr, every, factor)
    values = [stairs(k) for k in range(0, 4 * every, max(1, every // 7))]
    assert falls(values)
    assert falls([slide(k) for k in range(0, 4 * every, max(1, every // 7))])
    for k in (0, every, 3 * every):
        assert stairs(k) == pytest.approx(slide(k), rel=1e-12)
    for k in range(2 * every):
        assert slide(k) <= stairs(k) * (1 + 1e-12)


@same_everywhere
@given(rates, lengths, st.floats(0.0, 1.0))
def test_cosine_falls_from_lr_to_final_and_is_symmetric(lr, steps, share):
    final = share * lr
    schedule = Cosine(lr, steps, final)
    values = [schedule(k) for k in range(steps + 3)]
    assert falls(values)
    assert values[0] == pytest.approx(lr)
    assert values[-3:] == pytest.approx([final] * 3, abs=1e-15)
    for k in range(steps + 1):
        assert values[k] + values[steps - k] == pytest.approx(lr + final, rel=1e-9)


@same_everywhere
@given(rates, lengths, lengths, st.floats(0.0, 1.0))
def test_warm_up_rises_in_equal_steps_and_joins_without_a_jump(lr, steps, after, share):
    then = Cosine(lr, after)
    schedule = WarmUp(steps, then, start=share * lr)
    rise = (1.0 - share) * lr / steps
    for k in range(steps):
        assert schedule(k) == pytest.approx(share * lr + (k + 1) * rise, rel=1e-9)
    assert schedule(steps - 1) == pytest.approx(schedule(steps), rel=1e-12)
    for k in range(0, after, max(1, after // 7)):
        assert schedule(steps + k) == then(k)


@same_everywhere
@given(rates, st.integers(2, 300), st.floats(0.05, 0.95), st.floats(1.0, 100.0), st.floats(1.0, 1e5))
def test_one_cycle_has_one_peak_and_no_jump(lr, steps, warm, start, final):
    schedule = OneCycle(lr, steps, warm, start, final)
    values = [schedule(k) for k in range(steps + 2)]
    assert values[0] == pytest.approx(lr / start)
    assert values[-3:] == pytest.approx([lr / final] * 3)
    assert max(values) <= lr * (1 + 1e-12)
    peak = warm * (steps - 1)
    up, down = values[: math.floor(peak) + 1], values[math.ceil(peak) :]
    assert falls(up[::-1])
    assert falls(down)
    # Half a cosine over n steps moves by at most pi / 2n of its height in one.
    shorter = min(peak, steps - 1 - peak)
    steepest = lr * math.pi / 2.0 / shorter
    assert all(abs(b - a) <= steepest * (1 + 1e-9) for a, b in itertools.pairwise(values))


@pytest.mark.parametrize("warm", [0.1, 0.3, 0.77])
def test_the_two_halves_of_one_cycle_meet_at_its_peak(warm):
    """Also where the peak lies between two steps; seen from close by, in a cycle of very many."""
    schedule = OneCycle(0.3, 10**7, warm)
    peak = math.floor(warm * (10**7 - 1))
    for step in (peak - 1, peak, peak + 1, peak + 2):
        assert schedule(step) == pytest.approx(0.3, rel=1e-10)


@pytest.mark.parametrize(
    "schedule",
    [
        StepDecay(0.1, 30),
        Exponential(0.1, 30, 0.5),
        Cosine(0.1, 100, 0.001),
        WarmUp(5, 0.1),
        WarmUp(5, WarmUp(3, Cosine(0.1, 100), start=0.05), start=0.01),
        OneCycle(0.1, 100),
    ],
    ids=str,
)
def test_a_description_becomes_the_same_schedule_again(schedule):
    again = build(describe(schedule), SCHEDULES)
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert [again(k) for k in range(120)] == [schedule(k) for k in range(120)]
    with pytest.raises(FrozenInstanceError):
        schedule.lr = 1.0


def test_a_function_inside_cannot_be_described():
    with pytest.raises(CheckpointError, match=r"frozen dataclass"):
        describe(WarmUp(5, lambda step: 0.1))


BAD = [
    *((c, {"lr": v}) for c in (StepDecay, Exponential, Cosine, OneCycle) for v in (-0.1, math.nan, math.inf, "fast")),
    *((c, {"every": v}) for c in (StepDecay, Exponential) for v in (0, -3, math.nan)),
    *((c, {"factor": v}) for c in (StepDecay, Exponential) for v in (0.0, -0.5, math.inf)),
    *((Cosine, {n: v}) for n, v in (("steps", 0), ("steps", -1), ("final", -0.1), ("final", math.nan))),
    *((WarmUp, {n: v}) for n, v in (("steps", 0), ("start", -0.1), ("then", -0.1), ("then", None))),
    *((OneCycle, {"steps": v}) for v in (1, 0)),
    *((OneCycle, {"warm": v}) for v in (0.0, 1.0, -0.5, math.nan)),
    *((OneCycle, {n: v}) for n in ("start_factor", "final_factor") for v in (0.0, -1.0, math.inf)),
]
GOOD = {
    StepDecay: {"lr": 0.1, "every": 10},
    Exponential: {"lr": 0.1, "every": 10},
    Cosine: {"lr": 0.1, "steps": 10},
    WarmUp: {"steps": 10, "then": 0.1},
    OneCycle: {"lr": 0.1, "steps": 10},
}


@pytest.mark.parametrize(("schedule", "options"), BAD, ids=lambda v: v.__name__ if isinstance(v, type) else str(v))
def test_bad_options_are_refused_with_name_and_value(schedule, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"^{schedule.__name__}: {name} must be ") as caught:
        schedule(**{**GOOD[schedule], **options})
    assert str(caught.value).endswith(f"it is {value!r}.")


def test_numpy_scalars_become_plain_numbers():
    schedule = Cosine(np.float32(0.5), np.int64(10), np.float64(0.125))
    assert (type(schedule.lr), type(schedule.steps), type(schedule.final)) == (float, int, float)
    assert schedule == Cosine(0.5, 10, 0.125)
    assert describe(schedule) == {"type": "Cosine", "lr": 0.5, "steps": 10, "final": 0.125}
