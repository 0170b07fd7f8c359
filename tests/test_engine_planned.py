"""The engine `planned`: the eager step to the last bit, in memory that it takes once and cleans up after nobody."""

from __future__ import annotations

import signal
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as ns
import xbp
import xbp_numpy.planned_plan as planned_plan
import xbp_numpy.planned_schedule as planned_schedule
from array_memory import counted
from network_strategies import ACTIVATIONS, LOSSES, NORMS, OPTIMIZERS, Described
from training_helpers import assert_same, blobs
from xbp.errors import BackendUnavailable, NotCompiled
from xbp.program import DTYPES, Operation, Program, Value
from xbp.recording import record, signature_of

CASES = [
    *(Described(layers=("tanh", 6, name), optimizer="adam") for name in (*ACTIVATIONS, *NORMS)),
    *(Described(loss=name, outputs=4 if name == "gaussian" else 3, weighted=i % 2 == 0)
      for i, name in enumerate(LOSSES)),
    *(Described(optimizer=name, layers=("batch", "relu"), clip_norm=0.5) for name in OPTIMIZERS),
    Described(graph=True, layers=("gelu", "layer", "dropout"), weighted=True, dtype="float64", optimizer="adamw"),
    Described(frozen=True, layers=("batch", "sigmoid", 3), dtype="float64", loss="soft"),
    Described(bias=False, layers=(), optimizer="momentum"),
    Described(inputs=1, width=1, outputs=1, loss="squared", layers=("elu",)),
]  # fmt: skip
METRICS = {"labels": ["top_k_accuracy"], "probabilities": ["accuracy"], "bits": ["accuracy", "r2"]}


@pytest.fixture(autouse=True, scope="module")
def _fresh_arenas_hold_nan():
    """Whoever reads what this step has not written reads NaN, or -1."""
    with pytest.MonkeyPatch.context() as patch:
        aligned = planned_plan._aligned

        def poisoned(size):
            arena = aligned(size)
            arena[...] = 0xFF
            return arena

        patch.setattr(planned_plan, "_aligned", poisoned)
        yield


def both(described, **options):
    return ns.trainer(described, "planned", **options), ns.trainer(described, "eager", **options)


def runner_of(trainer):
    return trainer._engine._current


def assert_same_state(a, b):
    one, other = a._tree(), b._tree()
    assert one.keys() == other.keys()
    for section in one:
        assert_same(one[section], {k: np.asarray(v) for k, v in other[section].items()})


def step_both(planned, eager, described, n, steps=3):
    for seed in range(steps):
        if seed:
            runner_of(planned).arena[...] = 0xFF
        x, t, w = ns.batch(described, n, seed)
        loss = planned.step(x, t, w)
        with np.errstate(all="ignore"):  # some that are drawn diverge; they do so in the same way
            wanted = eager.step(x, t, w)
        np.testing.assert_array_equal(loss, wanted, strict=True)
        assert_same_state(planned, eager)
    assert planned.engine == "planned"


def numbers(described):
    return ["mae", "mse", "rmse", "r2"] if LOSSES[described.loss][1] in ("numbers", "counts", "halved") else []


@pytest.mark.parametrize("described", CASES, ids=repr)
def test_steps_scores_and_sums_are_the_eager_ones(described):
    metrics = METRICS.get(LOSSES[described.loss][1]) or numbers(described)
    planned, eager = both(described, metrics=metrics)
    step_both(planned, eager, described, 5)
    assert all(np.all(np.isfinite(a)) for a in planned.model.params.values())
    for n in (7, 2):
        x, t, w = ns.batch(described, n, 9)
        assert_same({"scores": planned.model.predict(x)}, {"scores": eager.model.predict(x)})
        np.testing.assert_equal(planned.evaluate(x, t, w), eager.evaluate(x, t, w))
    assert planned.engine == "planned"


@settings(max_examples=40)
@given(ns.networks(), st.integers(1, 6))
def test_random_networks_step_as_the_eager_ones(described, n):
    planned, eager = both(described)
    step_both(planned, eager, described, max(n, described.smallest), steps=2)
    x, t, w = ns.batch(described, 3, 9)
    with np.errstate(all="ignore"):
        np.testing.assert_equal(planned.evaluate(x, t, w), eager.evaluate(x, t, w))


# large arrays, in blocks


@settings(max_examples=40)
@given(ns.networks(), st.integers(1, 9), st.sampled_from([16, 64, 200]))
def test_random_networks_in_tiny_blocks_step_as_the_eager_ones(described, n, block):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planned_schedule, "BLOCK", block)
        patch.setattr(planned_schedule, "LARGE", 3)
        step_both(*both(described), described, max(n, described.smallest), steps=2)


@pytest.mark.parametrize("optimizer", ["sgd", "nesterov", "adam_l2", "rmsprop", "adamw"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_blocks_change_no_bit(optimizer, dtype):
    layers = ("batch", "elu", 150, "dropout", "gelu", "layer", "softplus", "leaky")
    described = Described(
        inputs=310, width=300, layers=layers, optimizer=optimizer, dtype=dtype, graph=True, clip_norm=1.0
    )
    planned, eager = both(described)
    step_both(planned, eager, described, 333)
    plan = runner_of(planned)._plan(333)
    blocked = [unit for unit in plan._schedule.units if unit.blocked]
    assert len(blocked) > 10
    assert max(len(unit.operations) for unit in blocked) > 20  # the error function of one GELU
    assert any(plan._values.get(op.result) is None for unit in blocked for op in unit.operations)


def test_a_row_longer_than_a_block_is_a_block():
    described = Described(inputs=3, width=70_000, layers=("tanh", "dropout", "relu", 1), outputs=2)
    planned, eager = both(described)
    step_both(planned, eager, described, 3, steps=2)


# what the runner owns


def test_whole_trainings_in_two_halves():
    x, t = blobs(n=118)
    described = Described(inputs=6, layers=("batch", "relu", "dropout"), optimizer="adam")
    (planned, eager), halves = both(described), ns.trainer(described, "planned")
    for trainer in (planned, eager):
        trainer.fit(x, t, epochs=10, batch_size=25, validation=(x[:30], t[:30]))
    for _ in range(2):
        halves.fit(x, t, epochs=5, batch_size=25, validation=(x[:30], t[:30]))
    assert planned.history == eager.history == halves.history
    assert_same_state(planned, eager)
    assert_same_state(halves, eager)
    assert (planned.engine, eager.engine, halves.engine) == ("planned", "eager", "planned")


def test_a_loss_is_not_overwritten_and_loaded_arrays_are_not_written_to():
    described = Described()
    trainer = ns.trainer(described, "planned")
    first = {name: np.array(a) for name, a in trainer.model.params.items()}
    held = dict(trainer.model.params)
    x, t, w = ns.batch(described, 4, 0)
    losses = [trainer.step(x, t, w) for _ in range(3)]
    assert len(set(map(float, losses))) == 3
    assert_same(held, first)
    trainer.model.load_params(first)
    again = trainer.step(x, t, w)
    assert again == losses[0]


def test_batches_of_many_sizes_share_the_arena():
    described = Described(layers=(30, "relu"), optimizer="adam")
    planned, eager = both(described)
    arenas = set()
    for n in (9, 3, 1, 7, 2, 8, 9, 3):
        x, t, w = ns.batch(described, n, n)
        assert planned.step(x, t, w) == eager.step(x, t, w)
        arenas.add(id(runner_of(planned).arena))
    assert_same_state(planned, eager)
    assert len(arenas) == 1
    assert len(runner_of(planned)._plans) <= 4


def test_large_inputs_are_read_where_they_lie_and_odd_ones_are_copied():
    described = Described(inputs=200, width=8)
    planned, eager = both(described)
    a, b, c = (ns.batch(described, 60, seed) for seed in range(3))
    assert a[0].nbytes > planned_plan.COPIED
    for x, t, w in (a, b, a, c):
        assert planned.step(x, t, w) == eager.step(x, t, w)
        assert runner_of(planned)._plan(60)._given["x"][1] is x
        x[...] += 0.5  # the next use sees what is there then
    wide = np.zeros((60, 400), dtype=np.float32)
    wide[:, ::2] = a[0]
    planned.step(wide[:, ::2], a[1], a[2])
    eager.step(wide[:, ::2], a[1], a[2])
    for section in ("params", "state"):  # the eager step takes the columns as they lie, and sums in another order
        for name, value in planned._tree()[section].items():
            np.testing.assert_allclose(value, eager._tree()[section][name], rtol=1e-5, atol=1e-6)
    assert planned.engine == "planned"


def test_pieces_of_batches_are_functions_of_the_engine():
    described = Described(layers=("relu", "dropout", 4, "tanh"), optimizer="momentum", weighted=True)
    planned, eager = both(described, accumulate=3)
    for seed in range(3):
        x, t, w = ns.batch(described, 8, seed)
        assert planned.step(x, t, w) == eager.step(x, t, w)
    assert_same_state(planned, eager)
    assert planned.engine == "planned"


# memory


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_allocates_no_array(dtype):
    layers = ("batch", "elu", 64, "dropout", "gelu", "layer", "silu")
    described = Described(
        inputs=300, width=128, layers=layers, optimizer="adamw", clip_norm=1.0, weighted=True, dtype=dtype, graph=True
    )
    trainer = ns.trainer(described, "planned")
    x, t, w = ns.batch(described, 256, 0)
    trainer.step(x, t, w)
    runner, scalars = runner_of(trainer), trainer._scalars.single(1)
    assert runner.engine == "planned"
    with counted() as sizes:
        for _ in range(3):
            runner.step(x, t, w, scalars)
    assert max(sizes, default=0) <= 8  # numbers on their way into an array

    index = np.arange(300, dtype=np.int32).reshape(3, 100) % 256
    table = trainer._scalars.table(1, 3)
    runner.run(x, t, w, index, table)
    with counted() as sizes:
        losses = runner.run(x, t, w, index, table)
    # The losses and, once a run, the numbers of the rows of a batch.
    assert sorted(size for size in sizes if size > 8) == [losses.nbytes, 100 * np.dtype(np.intp).itemsize]

    eager = ns.trainer(described, "eager")
    eager.step(x, t, w)
    with counted() as sizes:
        runner_of(eager).step(x, t, w, scalars)
    assert sum(sizes) > 1_000_000  # the hook counts


def test_what_numpy_takes_for_its_own_loops_stays_small():
    """A loop over operands of several shapes takes a buffer of at most 8,192 entries an operand, and gives it back."""
    described = Described(inputs=300, width=400, layers=("batch", "gelu", 300, "dropout"), optimizer="adam")
    trainer = ns.trainer(described, "planned")
    x, t, w = ns.batch(described, 256, 0)
    trainer.step(x, t, w)
    runner, scalars = runner_of(trainer), trainer._scalars.single(1)
    tracemalloc.start()
    try:
        runner.step(x, t, w, scalars)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        runner.step(x, t, w, scalars)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert now - before < 500
    assert peak - before < 2 * 8192 * 4 + 2500
    assert runner.arena.nbytes > 1_000_000


# interrupts and threads


def steps_until_alarm(delay, runner, x, t, scalars):
    signal.setitimer(signal.ITIMER_REAL, delay)  # in here, so that a slow machine cannot be too late
    while True:
        runner.step(x, t, None, scalars)


def test_an_interrupt_leaves_whole_steps():
    described = Described(inputs=40, width=60, layers=("relu", 50), optimizer="adam")
    x, t, _ = ns.batch(described, 64, 0)
    trainer, twin = both(described)
    trainer.step(x, t)
    twin.step(x, t)

    def interrupt(number, frame):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    done, runner, scalars = 1, runner_of(trainer), trainer._scalars.single(1)
    try:
        for delay in np.linspace(0.0005, 0.004, 15):
            with pytest.raises(KeyboardInterrupt):
                steps_until_alarm(delay, runner, x, t, scalars)
            count = int(runner.read()["state"]["step"])
            for _ in range(count - done):
                runner_of(twin).step(x, t, None, scalars)
            done = count
            assert_same_state(trainer, twin)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert done > 15


def in_threads(*jobs):
    results, errors = {}, []

    def run(i, job):
        try:
            results[i] = job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=job) for job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    return [results[i] for i in range(len(jobs))]


def test_trainings_in_threads_do_not_meet():
    x, t = blobs(n=300)
    described = Described(inputs=6, width=200, layers=("gelu", "dropout", 150, "relu"), optimizer="adam")

    def train():
        trainer = ns.trainer(described, "planned")
        trainer.fit(x, t, epochs=2, batch_size=130)
        assert trainer.engine == "planned"
        return trainer

    alone = train()
    for trainer in in_threads(train, train, train):
        assert_same_state(trainer, alone)


def test_one_function_serves_several_threads():
    described = Described(inputs=50, width=200, layers=("gelu", "softmax", 100))
    trainer = ns.trainer(described, "planned")
    data = [ns.batch(described, 400, seed)[0] for seed in range(3)]
    x, t, w = ns.batch(described, 4, 0)
    trainer.step(x, t, w)
    wanted = [trainer.model.predict(rows) for rows in data]
    for _ in range(3):
        found = in_threads(*[lambda rows=rows: trainer.model.predict(rows) for rows in data])
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    assert trainer.engine == "planned"


# what is refused


def test_an_unknown_operation_is_named():
    x = Value("x", (3,), DTYPES["float32"])
    y = Value("%0", (3,), DTYPES["float32"])
    program = Program("scores", {"x": x}, (Operation("fft", (x,), {}, y, "1 Waves.forward"),), {"scores": y})
    backend = xbp.get_backend("numpy")
    for make in (backend.compile, backend.function):
        with pytest.raises(NotCompiled, match=r"no 'fft' .*1 Waves\.forward"):
            make(program, "planned")
        with pytest.raises(BackendUnavailable, match="no engine 'nonesuch'"):
            make(program, "nonesuch")


def test_it_is_what_auto_takes():
    trainer = ns.trainer(Described(), "auto")
    assert trainer.engine == xbp.get_backend("numpy").engines[0]
    assert "planned" in xbp.get_backend("numpy").engines
    x, t, w = ns.batch(Described(), 4, 0)
    look = signature_of(x, t, w)
    assert record("step", trainer._step, trainer._tree(), look).updates  # what a runner writes over
