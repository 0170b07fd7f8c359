"""The engine `numba`: the step as machine code agrees with the interpreter, alone, in threads, from the cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as ns
import xbp
from engine_networks import CASES, TOLERANCE, Trained, assert_close, assert_trees_close
from network_strategies import Described
from training_helpers import assert_same, blobs
from xbp.data import prepare_batch
from xbp.program import Interpreter
from xbp.recording import flat, inputs_of, record, signature_of

pytest.importorskip("llvmlite", reason="the engine numba needs llvmlite: pip install 'xbp[numba]'")

from xbp_numpy.native import module, runner, threads
from xbp_numpy.native.runner import NativeFunction, NativeRunner

ROOT = Path(__file__).resolve().parent.parent
numpy = xbp.get_backend("numpy")


@pytest.fixture(autouse=True)
def stubborn_threads(monkeypatch):
    """Threads work together here however busy the machine is."""
    monkeypatch.setattr(threads, "CROWDED", 0.0)


def runner_of(trainer):
    return trainer._engine._current


def poisoned(runner, n):
    """The runner, with NaN (or -1) in every entry that a step has to write before it reads it."""
    prepared = runner._at(n)
    prepared.arena[...] = 0xFF
    return runner


# one step, against the interpreter


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_is_the_interpreters(case, dtype):
    trained = Trained(case, dtype)
    runner = numpy.compile(trained.program, "numba")
    assert isinstance(runner, NativeRunner)
    assert runner.engine == "numba"
    runner.load(trained.tree)
    tree = trained.tree
    for n in (case.rows, case.rows + 4, case.rows):  # other sizes of batches run the same code
        batch = trained.batch(slice(2, 2 + n))
        desired, loss = trained.expected(tree, batch, n)
        scalars = {name: value[0] for name, value in trained.scalars(n).items()}
        actual = poisoned(runner, n).step(*batch, scalars)
        assert_close(actual, loss, dtype, "loss")
        assert_trees_close(numpy, runner.read(), desired, dtype)
        tree = {s: {k: np.array(a) for k, a in arrays.items()} for s, arrays in runner.read().items()}


def step_of(described, n, seed):
    """(program, the tree before, the batch, scalars) of a training that has begun."""
    trainer = ns.trainer(described, "eager")
    for k in range(2):
        trainer.step(*ns.batch(described, max(n, 2), seed + k + 1))
    batch = prepare_batch(trainer.model, trainer.loss, *ns.batch(described, n, seed))
    tree = {s: {k: np.array(a) for k, a in arrays.items()} for s, arrays in trainer._tree().items()}
    return trainer, tree, batch, trainer._scalars.single(trainer.steps)


def assert_near(actual, desired, dtype, what):
    """As `assert_close`, where arrays of nothing but rounding errors count as zero."""
    desired, actual = np.asarray(desired), np.asarray(actual)
    assert (actual.shape, actual.dtype) == (desired.shape, desired.dtype), what
    if desired.dtype.kind == "f" and desired.size:
        error = np.abs(actual - desired).max()
        assert error <= TOLERANCE[dtype] * max(np.abs(desired).max(), 1e-2), (what, error)
    else:
        np.testing.assert_array_equal(actual, desired, err_msg=what)


def check_all_programs(described, n, seed):
    with np.errstate(all="ignore"):
        trainer, tree, batch, scalars = step_of(described, n, seed)
        program = record("step", trainer._step, tree, signature_of(*batch))
        now = {f"scalars.{k}": np.asarray(v) for k, v in scalars.items()}
        desired = Interpreter(program, np)({**flat(tree), **inputs_of(*batch), **now})
    if not all(np.isfinite(a).all() for a in desired.values()):
        return
    runner = NativeRunner(program, numpy)
    runner.load(tree)
    loss = poisoned(runner, n).step(*batch, scalars)
    actual = {**flat(runner.read()), "loss": loss}
    for name, value in desired.items():
        assert_near(actual[name], value, described.dtype, name)
    weights = flat({"params": tree["params"], "buffers": tree["buffers"]})
    x, t, w = batch
    for what, given_ in (("scores", (x, None, None)), ("sums", (x, t, w))):
        program = record(what, trainer._step, tree, signature_of(*given_))
        inputs = {**weights, **inputs_of(*given_)}
        desired, actual = Interpreter(program, np)(inputs), NativeFunction(program, numpy)(inputs)
        assert_near(actual[what], desired[what], described.dtype, what)


@settings(max_examples=20)
@given(ns.networks(), st.integers(1, 20), st.integers(0, 3))
def test_random_networks(described, n, seed):
    check_all_programs(described, max(n, described.smallest), seed)


@settings(max_examples=15)
@given(ns.networks(), st.integers(1, 20), st.integers(0, 3))
def test_random_networks_in_two_threads(described, n, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARED", 0)
        patch.setattr(threads, "available_threads", lambda: 2)
        check_all_programs(described, max(n, described.smallest), seed)


# products of all shapes


@settings(max_examples=25)
@given(
    rows=st.integers(1, 70),
    widths=st.lists(st.integers(1, 140), min_size=2, max_size=4),
    dtype=st.sampled_from(["float32", "float64"]),
    together=st.booleans(),
)
def test_products_of_any_width(rows, widths, dtype, together):
    described = Described(inputs=widths[0], width=widths[1], layers=tuple(widths[2:]), dtype=dtype, optimizer="sgd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SHARED", 0 if together else 10**12)
        patch.setattr(threads, "available_threads", lambda: 3 if together else 1)
        check_all_programs(described, rows, 0)


@pytest.mark.parametrize("width", [1024, 1100])  # rows that collide in the caches, and rows that do not
def test_wide_products(width):
    check_all_programs(Described(inputs=300, width=width, layers=("relu", 130), outputs=10), 40, 0)


@pytest.mark.parametrize("features", ["+avx,+avx2", "+sse2"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tiles_of_other_processors(features, dtype, monkeypatch):
    monkeypatch.setattr(runner, "features", lambda: features)
    check_all_programs(Described(inputs=50, width=77, layers=("relu", 130, "tanh", 5), dtype=dtype), 41, 0)


# whole trainings


def test_five_epochs_and_five_are_ten():
    x, t = blobs(n=118)
    described = Described(inputs=6, layers=("batch", "relu", "dropout"), optimizer="adam", weighted=True)
    whole, halves, eager = (ns.trainer(described, engine) for engine in ("numba", "numba", "eager"))
    weights = np.linspace(0.5, 1.5, 118)
    for trainer, times in ((whole, 1), (halves, 2), (eager, 1)):
        for _ in range(times):
            trainer.fit(x, t, epochs=10 // times, batch_size=25, sample_weight=weights, validation=(x[:30], t[:30]))
    assert whole.history == halves.history
    for section in ("params", "buffers", "state"):
        assert_same(whole._tree()[section], halves._tree()[section])
    np.testing.assert_allclose(whole.history["loss"], eager.history["loss"], rtol=1e-4)
    assert (whole.engine, halves.engine, eager.engine) == ("numba", "numba", "eager")
    assert isinstance(runner_of(whole), NativeRunner)


def test_steps_are_the_run():
    described = Described(inputs=6, layers=("relu", "dropout"), optimizer="momentum")
    x, t = blobs(n=64)
    one, many = ns.trainer(described, "numba"), ns.trainer(described, "numba")
    many.fit(x, t, epochs=1, batch_size=16, shuffle=False)
    losses = [one.step(x[i : i + 16], t[i : i + 16]) for i in range(0, 64, 16)]
    assert_same(dict(one.model.params), dict(many.model.params))
    assert len({float(a) for a in losses}) == 4


@pytest.mark.parametrize("loss", ["softmax", "squared"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("rows", [2, 100])
def test_the_number_of_threads_changes_no_bit(rows, weighted, loss, monkeypatch):
    layers = ("relu", "layer", 70, "gelu", "batch")
    described = Described(
        inputs=300, width=130, layers=layers, optimizer="adam", loss=loss, weighted=weighted, clip_norm=0.5
    )
    x, t, w = ns.batch(described, rows, 0)
    trees = []
    for count in (1, 2, 3):
        monkeypatch.setattr(threads, "available_threads", lambda count=count: count)
        trainer = ns.trainer(described, "numba", penalty=0.1)
        losses = [trainer.step(x, t, w) for _ in range(3)]
        assert runner_of(trainer)._native.module.parallel
        trees.append({k: np.array(a) for k, a in flat(trainer._tree()).items()} | {"losses": np.array(losses)})
    assert_same(trees[1], trees[0])
    assert_same(trees[2], trees[0])


@pytest.mark.parametrize("optimizer", [xbp.Adam(1e-2), xbp.SGD(0.1, momentum=0.9)])
def test_a_penalty_lets_new_weights_take_the_place_of_the_old(optimizer):
    net = xbp.Network([xbp.Affine(6, 8), xbp.ReLU(), xbp.Affine(8, 3)], backend="numpy", seed=0)
    loss = xbp.SoftmaxCrossEntropy()
    trainer = xbp.Trainer(net, loss=loss, optimizer=optimizer, penalty=0.1, engine="numba")
    trainer.step(*blobs(n=20))
    assert runner_of(trainer)._native.module.places.late == {}


def test_threads_that_are_kept_from_their_cores_work_alone_for_a_while(monkeypatch):
    team, now = threads.Team(), [100.0]
    monkeypatch.setattr(threads, "CROWDED", 0.9)
    monkeypatch.setattr(threads.time, "monotonic", lambda: now[0])

    def count():
        with team.together(2) as threads_there:
            return threads_there

    assert count() == 2
    waits = []
    for _ in range(7):
        team._wall, team._busy = 1.0, 0.8
        team._look()
        assert count() == 1
        waits.append(round(team._alone_until - now[0], 6))
        now[0] = team._alone_until
        assert count() == 2
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 6.4]
    team._wall, team._busy = 1.0, 0.95
    team._look()
    assert count() == 2
    assert (team._wall, team._busy, team._alone) == (0.0, 0.0, 0.2)


def test_trainings_in_four_threads_at_once():
    described = Described(inputs=300, width=130, layers=("relu", "dropout"), optimizer="adam")
    x, t, _ = ns.batch(described, 500, 0)

    def train(results, i):
        trainer = ns.trainer(described, "numba")
        trainer.fit(x, t, epochs=3, batch_size=64)
        results[i] = trainer

    alone: dict = {}
    train(alone, 0)
    together: dict = {}
    workers = [threading.Thread(target=train, args=(together, i)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(4):
        assert together[i].engine == "numba"
        assert together[i].history == alone[0].history
        assert_same(dict(together[i].model.params), dict(alone[0].model.params))


FORKED = """
import os, sys
import numpy as np, xbp
from xbp_numpy.native import threads
threads.available_threads = lambda: 2
x = np.random.default_rng(0).normal(size=(300, 200)).astype("float32")
t = np.arange(300, dtype="int32") % 5

def train():
    net = xbp.Network([xbp.Affine(200, 180), xbp.ReLU(), xbp.Affine(180, 5)], backend="numpy")
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(1e-3), engine="numba")
    trainer.fit(x, t, epochs=2, batch_size=50)
    assert trainer.engine == "numba" and trainer._engine._current._native.module.parallel
    return trainer.history["loss"]

before = train()
child = os.fork()
if child == 0:
    os._exit(0 if train() == before else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert train() == before
print("survived")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_training_after_a_fork():
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "survived"), done.stderr


def test_limits_of_threads_are_kept(monkeypatch):
    limits = pytest.importorskip("threadpoolctl", reason="needs threadpoolctl to set limits")
    with limits.threadpool_limits(1):
        assert threads.available_threads() == 1
    # In a process of its own, because a BLAS reads the variable when it is loaded.
    code = "from xbp_numpy.native import threads; print(threads.available_threads())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "1", done.stderr


def test_ctrl_c_in_compiled_code_leaves_whole_steps():
    described = Described(inputs=300, width=200, layers=("relu", "dropout"), optimizer="adam")
    x, t, _ = ns.batch(described, 2000, 0)
    trainer = ns.trainer(described, "numba")
    trainer.step(x[:20], t[:20])  # compiled by now
    done = trainer.steps
    timers = []

    class Press(xbp.callbacks.Callback):
        def on_chunk_end(self, trainer):
            if not timers:  # from here on, the training is under way
                timers.append(threading.Timer(0.15, os.kill, (os.getpid(), signal.SIGINT)))
                timers[0].start()

    trainer.fit(x, t, epochs=100_000, batch_size=20, callbacks=[Press()])
    timers[0].join()
    assert (trainer.stop_reason, trainer.engine) == ("interrupted", "numba")
    assert done < trainer.steps == int(trainer._tree()["state"]["step"])
    again = ns.trainer(described, "numba")
    again.step(x[:20], t[:20])
    again.fit(x, t, epochs=trainer.epoch, batch_size=20)
    order = xbp.random.epoch_order(3, trainer.epoch, 2000)
    for k in range(trainer.steps - again.steps):
        again.step(x[order[20 * k : 20 * k + 20]], t[order[20 * k : 20 * k + 20]])
    assert_same(dict(trainer.model.params), dict(again.model.params))


# what comes in


def test_arrays_of_any_layout_are_read_right():
    described = Described(inputs=40, width=30, layers=("relu",))
    x, t, w = ns.batch(described, 50, 0)
    plain, odd = ns.trainer(described, "numba"), ns.trainer(described, "numba")
    for given_ in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], x[::-1][::-1]):
        assert odd.step(given_, t, w) == plain.step(x, t, w)
    odd.fit(np.asfortranarray(x), t, epochs=2, batch_size=20)
    plain.fit(x, t, epochs=2, batch_size=20)
    assert_same(dict(odd.model.params), dict(plain.model.params))


def test_a_loss_is_not_overwritten():
    described = Described()
    trainer = ns.trainer(described, "numba")
    x, t, w = ns.batch(described, 4, 0)
    losses = [trainer.step(x, t, w) for _ in range(3)]
    assert len(set(map(float, losses))) == 3


def test_batches_with_and_without_weights_share_one_state():
    described = Described(optimizer="adam", layers=("relu",))
    numba, eager = ns.trainer(described, "numba"), ns.trainer(described, "eager")
    for seed in range(4):
        x, t, _ = ns.batch(described, 9, seed)
        w = np.linspace(0, 1, 9, dtype=np.float32) if seed % 2 else None
        assert_near(numba.step(x, t, w), eager.step(x, t, w), "float32", "loss")
    for name, value in eager.model.params.items():
        np.testing.assert_allclose(numba.model.params[name], value, rtol=1e-4, atol=1e-5)
    assert int(numba._tree()["state"]["step"]) == 4


def test_pieces_of_batches():
    described = Described(layers=("relu", "dropout", 4, "tanh"), optimizer="momentum", weighted=True)
    numba, eager = (ns.trainer(described, engine, accumulate=3) for engine in ("numba", "eager"))
    for seed in range(3):
        x, t, w = ns.batch(described, 8, seed)
        assert_near(numba.step(x, t, w), eager.step(x, t, w), "float32", "loss")
    assert numba.engine == "numba"


def test_what_the_user_assigns_is_seen():
    described = Described(layers=("relu",))
    trainer = ns.trainer(described, "numba")
    x, t, w = ns.batch(described, 6, 0)
    start = {name: np.array(a) for name, a in trainer.model.params.items()}
    first = trainer.step(x, t, w)
    trainer.model.load_params(start)
    assert trainer.step(x, t, w) == first
    trainer.model.params["0.W"] = np.zeros_like(start["0.W"])
    trainer.lr = 0.0
    trainer.step(x, t, w)
    assert not trainer.model.params["0.W"].any()
