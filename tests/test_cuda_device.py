"""The engine `graph` on a CUDA device: what it computes, bit by bit and step by step; what it moves; where it computes.

What needs no device (kernels, plans, descriptors) has its own tests, which run everywhere.
"""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

import xbp
from engine_networks import CASES, STARTED, Trained, assert_close, assert_trees_close, put
from training_helpers import assert_same, backend_or_skip, blobs, classifier, trainer_for
from xbp.errors import MemoryExceeded
from xbp.program import PRECISIONS
from xbp.recording import flat
from xbp.testing import check_engine

pytestmark = pytest.mark.cuda

ENGINE = "graph"
DTYPES = ("float32", "float64")
REPLAYS = 1000
FEW = [c for c in CASES if c.name in ("deep-adam", "weights", "clipped", "dropout", "batch-norm", "two-inputs")]
# Without a kink: near one, rounding decides about a whole row.
SMOOTH = [c for c in CASES if c.name in ("weights", "layer-norm", "gaussian", "fan-out")]


@pytest.fixture(params=["one block", "launches"])
def backend(request, monkeypatch):
    """CuPy; steps of few multiplications are one block, as they are by themselves, or launches, as larger ones are."""
    found = backend_or_skip("cupy")
    assert ENGINE in found.engines, "its libraries cannot be loaded: `xbp doctor` says why"
    if request.param == "launches":
        monkeypatch.setattr("xbp_cupy.graph.plans.SMALL", -1)
    with found.active():
        yield found


only_launches = pytest.mark.parametrize("backend", ["launches"], indirect=True)


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


in_both = pytest.mark.parametrize("dtype", DTYPES)


def runner_for(trained, backend, tree=None):
    runner = backend.compile(trained.program, ENGINE)
    runner.load(put(backend, trained.tree if tree is None else tree, trained.dtype))
    return runner


def stepped(runner, trained, backend, rows, step):
    batch = [put(backend, part, trained.dtype) for part in trained.batch(rows)]
    scalars = {name: v[0] for name, v in trained.scalars(step).items()}
    return runner.step(*batch, put(backend, scalars, trained.dtype))


def ran(runner, trained, backend, index, first=STARTED):
    """The losses of steps over rows `index`, on the host."""
    every = [trained.scalars(first + k) for k in range(len(index))]
    tables = {name: np.concatenate([s[name] for s in every]) for name in every[0]}
    data = [put(backend, part, trained.dtype) for part in trained.batch(slice(None))]
    return backend.to_host(runner.run(*data, backend.asarray(index), put(backend, tables, trained.dtype)))


def on_host(backend, runner):
    return {name: backend.to_host(a) for name, a in flat(runner.read()).items()}


def rows_of(case, steps, seed=2):
    return np.random.default_rng(seed).integers(0, 40, (steps, case.rows)).astype(np.int32)


# --- what a step computes ---------------------------------------------------------------------------------------------


@in_both
@pytest.mark.parametrize("engine", [ENGINE, "eager"])
def test_the_engine_passes_the_check_for_engines(backend, engine, dtype):
    check_engine(backend, engine, dtype=dtype)


@in_both
@by_name(CASES)
def test_a_step_of_everything_is_the_interpreters(backend, case, dtype):
    trained = Trained(case, dtype)
    runner = runner_for(trained, backend)
    tree = trained.tree
    for step, size in enumerate([case.rows, max(1, case.rows - 3), case.rows], STARTED):
        rows = slice(0, size)
        tree, loss = trained.expected(tree, trained.batch(rows), step)
        assert_close(backend.to_host(stepped(runner, trained, backend, rows, step)), loss, dtype, "loss")
        assert_trees_close(backend, runner.read(), tree, dtype)
        runner.load(put(backend, tree, dtype))


@in_both
@by_name(SMOOTH)
def test_from_twenty_states_along_a_training_a_step_is_the_interpreters(backend, case, dtype):
    trained = Trained(case, dtype)
    runner = runner_for(trained, backend)
    tree, index = trained.tree, rows_of(case, 200)
    for k, rows in enumerate(index):
        step = STARTED + k
        before = tree
        tree, loss = trained.expected(tree, trained.batch(rows), step)
        if k % 10 == 0:
            runner.load(put(backend, before, dtype))
            found = stepped(runner, trained, backend, rows, step)
            assert_close(backend.to_host(found), loss, dtype, f"loss of step {step}")
            assert_trees_close(backend, runner.read(), tree, dtype)


@only_launches
@by_name(FEW)
def test_a_thousand_replays_are_bit_for_bit_the_launches_without_a_graph(backend, case):
    from xbp_cupy.graph.cuda import Cuda
    from xbp_cupy.graph.runner import GraphRunner

    class Graphs(Cuda):
        count = 0

        def captured(self, run):
            self.count += 1
            return super().captured(run)

    class Plain(Cuda):
        """Launches every time what a graph would replay."""

        def captured(self, run):
            return run

    cupy = pytest.importorskip("cupy", reason="CUDA: CuPy is not installed")
    trained = Trained(case, "float32")
    index = rows_of(case, REPLAYS)
    found = []
    graphs, plain = (kind(cupy, backend.device.id) for kind in (Graphs, Plain))
    for device in (graphs, plain):  # the graphs first: they find algorithms, which the other then takes too
        runner = GraphRunner(trained.program, device)
        runner.load(put(backend, trained.tree, "float32"))
        losses = ran(runner, trained, backend, index)
        assert np.isfinite(losses).all()
        found.append({"losses": losses, **on_host(backend, runner)})
    assert graphs.count >= 2, "one of a step, one of many"
    assert_same(*found)


@by_name(FEW)
def test_how_steps_are_cut_into_calls_changes_no_bit(backend, case):
    trained = Trained(case, "float32")
    index = rows_of(case, 100)
    found = []
    for cuts in ([100], [1] * 100, [33, 1, 50, 16]):
        runner, losses, at = runner_for(trained, backend), [], 0
        for n in cuts:
            losses.append(ran(runner, trained, backend, index[at : at + n], STARTED + at))
            at += n
        found.append({"losses": np.concatenate(losses), **on_host(backend, runner)})
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_a_large_network_takes_every_tile_and_every_border(backend):
    """Widths that no tile divides, more rows than a block of threads has, and a ragged last batch."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(1333, 301)).astype(np.float32), rng.integers(0, 37, 1333)
    losses = []
    for name, engine in ((backend, ENGINE), ("numpy", "eager")):
        net = xbp.Network([xbp.Affine(301, 517), xbp.ReLU(), xbp.Affine(517, 37)], backend=name, seed=0)
        trainer = trainer_for(net, optimizer=xbp.SGD(0.05), engine=engine)
        losses.append(trainer.fit(x, t, epochs=3, batch_size=500)["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.data[order] / 16.0).astype(np.float32), data.target[order]


def accuracy(digits, backend, engine, precision="float32"):
    x, t = digits
    layers = [xbp.Affine(64, 64), xbp.ReLU(), xbp.Affine(64, 32), xbp.ReLU(), xbp.Affine(32, 10)]
    net = xbp.Network(layers, backend=backend, seed=0)
    trainer = trainer_for(net, optimizer=xbp.Adam(3e-3), metrics=["accuracy"], engine=engine, precision=precision)
    trainer.fit(x[:1000], t[:1000], epochs=15, batch_size=50)
    assert trainer.engine == engine
    return trainer.evaluate(x[1000:], t[1000:])["accuracy"]


@pytest.mark.parametrize("engine", [ENGINE, "eager"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_digits_are_learned_as_on_numpy(backend, digits, precision, engine):
    wanted = accuracy(digits, "numpy", "eager")
    assert wanted > 0.94
    assert abs(accuracy(digits, backend, engine, precision) - wanted) <= 0.005


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "float32"])
def test_a_narrow_step_is_near_that_of_float32_and_another(backend, precision):
    """Were it the same to the last bit, it would not be what was asked for."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(64, 256)).astype(np.float32), rng.integers(0, 8, 64)
    losses = {}
    for p in ("float32", precision):
        net = xbp.Network([xbp.Affine(256, 128), xbp.Tanh(), xbp.Affine(128, 8)], backend=backend, seed=0)
        trainer = trainer_for(net, optimizer=xbp.SGD(0.01), engine=ENGINE, precision=p)
        losses[p] = float(backend.to_host(trainer.step(x, t)))
    apart = abs(losses[precision] - losses["float32"]) / losses["float32"]
    assert 0.0 < apart < 2e-2


# --- what moves, and what there is room for ---------------------------------------------------------------------------


class Watch(xbp.callbacks.Callback):
    """Transfers so far: after each chunk of steps, and after each epoch."""

    def __init__(self):
        self.chunks, self.epochs = [], []

    def on_chunk_end(self, trainer):
        self.chunks.append((trainer.epoch, dict(vars(trainer.model.backend.transfers))))

    def on_epoch_end(self, trainer):
        self.epochs.append(dict(vars(trainer.model.backend.transfers)))


# On PyTorch, too, where arrays of a CPU count as those of a device: so the test itself is tested everywhere.
@pytest.mark.parametrize(("name", "engine"), [("cupy", ENGINE), ("cupy", "eager"), ("torch", "eager")])
def test_nothing_moves_inside_an_epoch(name, engine):
    backend = backend_or_skip(name)
    x, t = blobs(4000)
    watch = Watch()
    trainer = trainer_for(classifier(backend), engine=engine)
    trainer.fit(x, t, epochs=4, batch_size=8, callbacks=[watch])
    for epoch in range(4):
        inside = [seen for number, seen in watch.chunks if number == epoch]
        assert all(seen == inside[0] for seen in inside), "something moved between two steps of an epoch"
    for before, after in zip(watch.epochs, watch.epochs[1:], strict=False):
        moved = {what: after[what] - before[what] for what in after}
        # The order of the rows and the rates go in; the losses of the steps, and one at the end, come out.
        assert moved == {"to_device": 2, "to_device_bytes": 4 * (4000 + 500), "to_host": 1, "to_host_bytes": 4 * 501}


@only_launches
def test_what_does_not_fit_says_how_much_there_is(backend):
    from xbp_cupy.graph.cuda import Cuda

    cupy = pytest.importorskip("cupy", reason="CUDA: CuPy is not installed")
    with pytest.raises(MemoryExceeded, match=r"no 1,125,899,906,842,624 bytes for a step: [\d,]+ of its [\d,]+ are"):
        Cuda(cupy, backend.device.id).memory(2**50)


def test_after_a_step_that_did_not_fit_a_smaller_one_does(backend):
    cupy = pytest.importorskip("cupy", reason="CUDA: CuPy is not installed")
    pool = cupy.get_default_memory_pool()
    x, t = blobs(2**16)
    undisturbed, trainer = (trainer_for(classifier(backend), engine=ENGINE) for _ in range(2))
    large, small = ((backend.asarray(x[:n]), backend.asarray(t[:n].astype(np.int32))) for n in (2**16, 16))
    for each in (undisturbed, trainer):
        each.step(*small)
    backend.synchronize()
    pool.free_all_blocks()
    pool.set_limit(size=pool.total_bytes() + 2**20)
    try:
        with pytest.raises(MemoryExceeded, match="bytes for a step"):
            trainer.step(*large)
    finally:
        pool.set_limit(size=0)
    for each in (undisturbed, trainer):
        each.step(*small)
    a, b = ({n: backend.to_host(v) for n, v in each.model.params.items()} for each in (undisturbed, trainer))
    assert_same(a, b)
    assert trainer.steps == 2


def test_a_limit_of_memory_cuts_batches_into_pieces(backend):
    x, t = blobs(512)
    whole = trainer_for(classifier(backend), engine=ENGINE)
    need = whole.program.memory
    cut = trainer_for(classifier(backend), engine=ENGINE, memory_limit=(need.at(512) + need.at(64)) // 2)
    losses = [float(backend.to_host(trainer.step(x, t))) for trainer in (whole, cut)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    for name, a in whole.model.params.items():
        np.testing.assert_allclose(backend.to_host(cut.model.params[name]), backend.to_host(a), rtol=1e-3, atol=1e-5)


def test_the_second_device_is_used_where_it_is_asked_for(backend):
    cupy = pytest.importorskip("cupy", reason="CUDA: CuPy is not installed")
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one CUDA device only")
    here = cupy.cuda.Device().id
    with cupy.cuda.Device(here):  # asking for a device by number makes it the thread's
        second = xbp.get_backend("cupy:1")
        check_engine(second, ENGINE)
        x, t = blobs(64)
        trainer = trainer_for(classifier(second), engine=ENGINE)
        cupy.cuda.Device(0).use()
        trainer.fit(x, t, epochs=2, batch_size=16)
        assert {a.device.id for a in trainer.model.params.values()} == {1}
        assert trainer.model.predict(x).device.id == 1
        assert cupy.cuda.Device().id == 0
