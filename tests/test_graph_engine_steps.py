"""Steps of the CUDA engine, its kernels run on a processor: alone and many at a time, against the interpreter."""

from __future__ import annotations

import numpy as np
import pytest

from engine_networks import STARTED
from graph_engine_helpers import (
    assert_bits,
    assert_near,
    by_name,
    device,
    go,
    in_both,
    in_both_ways,
    one_step,
    poisoned,
    rows_of,
    runner_on,
    scalars_of,
    trained,
    values_of,
    wanted_of,
)
from xbp.recording import flat
from xbp_cupy.graph.runner import KEPT

# Not batch norm: the gradient of the bias before it is nothing but rounding, which Adam makes whole steps of.
SUBSET = pytest.mark.parametrize("name", ["deep-adam", "weights", "clipped", "dropout", "two-inputs"])


@by_name
@pytest.mark.parametrize(("dtype", "way"), [("float32", "launches"), ("float64", "launches"), ("float32", "one block")])
def test_a_step_is_the_interpreters(name, dtype, way, monkeypatch):
    """In either order of threads, with the same bits."""
    go(monkeypatch, way)
    t = trained(name, dtype)
    runners = [runner_on(device(backwards=backwards), t) for backwards in (False, True)]
    n = rows_of(t)
    values = flat(t.tree)
    for step, size in enumerate((n, n + 4, n), STARTED):  # other sizes of batches run the same code
        rows = slice(step, step + size)
        wanted = wanted_of(t, rows, step, values)
        found = []
        for runner in runners:
            loss = one_step(runner, t, rows, step)
            found.append({**values_of(runner), "loss": loss})
        assert_near(found[0], wanted, dtype)
        assert_bits(found[0], found[1])
        values = values_of(runners[0])


@by_name
@in_both_ways
def test_many_steps_are_single_steps(name, way, monkeypatch):
    """Bit for bit, also where the steps fill graphs of many: 1, 5 and 40 of them, and ragged batches between."""
    go(monkeypatch, way)
    t = trained(name)
    n = rows_of(t)
    one, many = (runner_on(device(), t) for _ in range(2))
    rng = np.random.default_rng(0)
    done = STARTED
    for count, size in ((1, n + 3), (1, n), (5, n), (40, n), (2, n + 3), (1, n)):
        index = rng.integers(0, 40, (count, size), dtype=np.int32)
        steps = range(done, done + count)
        table = {k: np.reshape(v, (count,)) for k, v in scalars_of(t, *steps).items()}
        losses = poisoned(many).run(*t.data, index, table)
        singles = [one_step(one, t, rows, step) for rows, step in zip(index, steps, strict=True)]
        assert_bits({"losses": losses}, {"losses": np.stack(singles)})
        assert_bits(values_of(many), values_of(one))
        done += count
    if way == "launches":
        processor = many._device
        # The first step of each batch size warms up; the others are graphs of 16 steps, and of one.
        assert processor.graphs == 3
        assert processor.replays == 5 + (2 + 8) + 2 + 1


@SUBSET
def test_batches_that_grow_and_come_again(name):
    """The arena grows, and graphs of other batch sizes may not use the old one."""
    t = trained(name)
    runner = runner_on(device(), t)
    values = flat(t.tree)
    for step, n in enumerate((2, 40, 3, 2, 17, 40), STARTED):
        rows = slice(0, n)
        wanted = wanted_of(t, rows, step, values)
        loss = one_step(runner, t, rows, step)
        values = values_of(runner)
        assert_near({**values, "loss": loss}, wanted, "float32")


@in_both_ways
def test_more_batch_sizes_than_are_kept(way, monkeypatch):
    go(monkeypatch, way)
    t = trained("deep-adam")
    runner = runner_on(device(), t)
    values = flat(t.tree)
    for step, n in enumerate([*range(2, KEPT + 5), 2, 3], STARTED):
        wanted = wanted_of(t, slice(0, n), step, values)
        loss = one_step(runner, t, slice(0, n), step)
        values = values_of(runner)
        assert_near({**values, "loss": loss}, wanted, "float32")
        assert len(runner._prepared) <= KEPT


@pytest.mark.parametrize("way", ["launches", "one block"])
def test_steps_that_are_now_small_and_now_large(way, monkeypatch):
    """One runner, whose batches run now as one kernel and now as launches."""
    t = trained("layer-norm")
    other = {"launches": "one block", "one block": "launches"}
    runner = runner_on(device(), t)
    values = flat(t.tree)
    for step, n in enumerate((4, 12, 5, 30), STARTED):
        go(monkeypatch, way)
        way = other[way]
        wanted = wanted_of(t, slice(0, n), step, values)
        loss = one_step(runner, t, slice(0, n), step)
        values = values_of(runner)
        assert_near({**values, "loss": loss}, wanted, "float32")


@by_name
def test_values_go_in_and_come_out(name):
    t = trained(name)
    runner = runner_on(device(), t)
    assert runner.engine == "graph"
    before = {s: {k: a.copy() for k, a in arrays.items()} for s, arrays in t.tree.items()}
    assert {s: set(a) for s, a in runner.read().items() if a} == {s: set(a) for s, a in t.tree.items() if a}
    assert_bits(values_of(runner), flat(before))
    first = one_step(runner, t, slice(0, rows_of(t)))
    after = values_of(runner)
    assert_bits(flat(t.tree), flat(before))  # what was loaded is left alone
    runner.load(t.tree)
    assert_bits(values_of(runner), flat(before))
    again = one_step(runner, t, slice(0, rows_of(t)))
    assert_bits({**values_of(runner), "loss": again}, {**after, "loss": first})


@in_both_ways
def test_a_loss_is_never_overwritten(way, monkeypatch):
    go(monkeypatch, way)
    t = trained("deep-adam")
    runner = runner_on(device(), t)
    index = np.arange(35, dtype=np.int32).reshape(5, 7)
    kept = []
    for step in range(STARTED, STARTED + 4):
        kept.append(one_step(runner, t, slice(0, 7), step))
        table = scalars_of(t, *range(step, step + 5))
        kept.append(runner.run(*t.data, index, table))
        kept += [np.array(a) for a in kept[-2:]]
    for loss, copy in zip(kept[0::4], kept[2::4], strict=True):
        assert_bits({"loss": loss}, {"loss": copy})
    for losses, copy in zip(kept[1::4], kept[3::4], strict=True):
        assert_bits({"losses": losses}, {"losses": copy})
    assert len({float(loss) for loss in kept[0::4]}) == 4


def given_odd(a):
    """The same entries, lying otherwise."""
    a = np.asarray(a)
    wide = np.repeat(a, 2, axis=0)
    shifted = np.zeros(a.nbytes + 64, np.uint8)
    start = -shifted.ctypes.data % 16 + a.itemsize  # on a border of its entries, and no better
    shifted = shifted[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    shifted[...] = a
    backwards = np.ascontiguousarray(a[::-1])[::-1]
    return [np.asfortranarray(a), wide[::2], shifted, backwards]


@in_both_ways
@in_both
def test_arrays_that_lie_oddly(way, dtype, monkeypatch):
    """And nothing that is given is written to."""
    go(monkeypatch, way)
    t = trained("weights", dtype)
    x, labels, w = t.batch(slice(0, 7))
    n_rows = len(t.data[1])
    index = np.arange(14).reshape(7, 2).T  # neither int32 nor in C order
    plain = runner_on(device(), t)
    loss = plain.step(x, labels, w, scalars_of(t, STARTED))
    table = scalars_of(t, STARTED + 1, STARTED + 2)
    losses = plain.run(*t.data, np.ascontiguousarray(index, dtype=np.int32), table)
    oddly = zip(*(given_odd(a) for a in (x, labels, w)), strict=True)
    whole = zip(*(given_odd(a) for a in t.data), strict=True)
    for batch, data in zip(oddly, whole, strict=True):
        copies = [a.copy() for a in (*batch, *data)]
        for a in (*batch, *data):
            a.flags.writeable = False
        runner = runner_on(device(), t)
        found = runner.step(*batch, scalars_of(t, STARTED))
        assert_bits({"loss": found, "losses": runner.run(*data, index, table)}, {"loss": loss, "losses": losses})
        assert_bits(values_of(runner), values_of(plain))
        for a, copy in zip((*batch, *data), copies, strict=True):
            np.testing.assert_array_equal(a, copy)
    assert n_rows == 40
