"""Whole trainings on the CUDA engine, whose kernels a processor runs: fit, resume, Ctrl-C, pieces, prediction."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

import network_strategies as ns
import xbp
from graph_engine_helpers import assert_bits, assert_near, device, go
from network_strategies import Described
from processor import Processor
from training_helpers import assert_same, blobs
from xbp.backend import _registered, register_backend
from xbp.program import PRECISIONS
from xbp.recording import flat
from xbp.testing import check_engine
from xbp_cupy.graph.runner import GraphFunction, GraphRunner

DESCRIBED = Described(inputs=6, layers=("batch", "relu", "dropout"), optimizer="adam", weighted=True)
SIMPLE = Described(inputs=6, width=8, layers=("relu", 5, "relu"), optimizer="adam")


class Hosted(type(xbp.get_backend("numpy"))):
    """NumPy with the CUDA engine on a processor; `devices` are those that were made, newest last."""

    engines = ("graph", "eager")
    precisions = PRECISIONS

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.devices = []
        self.kind = Processor

    def _device(self):
        self.devices.append(device(self.kind))
        return self.devices[-1]

    def compile(self, program, engine):
        if engine != "graph":
            return super().compile(program, engine)
        return GraphRunner(program, self._device())

    def function(self, program, engine):
        if engine != "graph":
            return super().function(program, engine)
        return GraphFunction(program, self._device())


@pytest.fixture
def hosted():
    """The backend, also by its name."""
    made = Hosted("hosted", np, device="cpu", version=np.__version__)
    register_backend("hosted", lambda device: made)
    yield made
    del _registered["hosted"]


@pytest.fixture(params=["launches", "one block"])
def way(request, monkeypatch):
    go(monkeypatch, request.param)
    return request.param


def tree_of(trainer):
    return {name: np.array(a) for name, a in flat(trainer._tree()).items()}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_check_for_engines(hosted, way, dtype):
    check_engine("hosted", "graph", dtype=dtype)
    assert hosted.devices


def test_a_training_with_ragged_batches(hosted, way):
    """As the eager engine trains, epoch by epoch, with validation in between."""
    x, t = blobs(n=118)
    weights = np.linspace(0.5, 1.5, 118)
    histories = []
    for backend, engine in ((hosted, "graph"), ("numpy", "eager")):
        trainer = ns.trainer(DESCRIBED, engine, backend, metrics=["accuracy"])
        trainer.fit(x, t, epochs=3, batch_size=25, sample_weight=weights, validation=(x[:30], t[:30]))
        assert trainer.engine == engine
        histories.append(trainer.history)
    assert histories[0].keys() == histories[1].keys() >= {"loss", "val_loss", "val_accuracy"}
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(histories[0][name], histories[1][name], rtol=1e-4)


def test_five_epochs_and_five_are_ten(hosted, way, tmp_path):
    """Bit for bit, also through a file."""
    x, t = blobs(n=118)
    data = {"batch_size": 25, "validation": (x[:30], t[:30])}
    whole, first = (ns.trainer(DESCRIBED, "graph", hosted) for _ in range(2))
    whole.fit(x, t, epochs=10, **data)
    first.fit(x, t, epochs=5, **data)
    first.save(tmp_path / "half.safetensors")
    second = xbp.Trainer.load(tmp_path / "half.safetensors", backend=hosted)
    history = second.fit(x, t, epochs=5, **data)
    assert (history, second.epoch, second.steps, second.engine) == (whole.history, 10, whole.steps, "graph")
    assert_bits(tree_of(second), tree_of(whole))
    first.fit(x, t, epochs=5, **data)
    assert_bits(tree_of(first), tree_of(whole))


def test_steps_are_the_run(hosted, way):
    x, t = blobs(n=64)
    one, many = ns.trainer(SIMPLE, "graph", hosted), ns.trainer(SIMPLE, "graph", hosted)
    many.fit(x, t, epochs=1, batch_size=16, shuffle=False)
    losses = [one.step(x[i : i + 16], t[i : i + 16]) for i in range(0, 64, 16)]
    assert_bits(tree_of(one), tree_of(many))
    assert len({float(a) for a in losses}) == 4


def test_pieces_of_batches(hosted):
    described = Described(layers=("relu", "dropout", 4, "tanh"), optimizer="momentum", weighted=True)
    graph, eager = (
        ns.trainer(described, engine, backend, accumulate=3)
        for engine, backend in (("graph", hosted), ("eager", "numpy"))
    )
    for seed in range(3):
        x, t, w = ns.batch(described, 8, seed)
        assert_near({"loss": graph.step(x, t, w)}, {"loss": eager.step(x, t, w)}, "float32", {"float32": 1e-4})
    assert graph.engine == "graph"
    assert_near(tree_of(graph), tree_of(eager), "float32", {"float32": 1e-4})


def test_prediction_and_evaluation_during_a_training(hosted, way):
    """They see the values after the last whole step, and disturb nothing."""
    x, t = blobs(n=64)
    seen = []

    class Look(xbp.callbacks.Callback):
        def on_epoch_end(self, trainer, *rest):
            seen.append((np.array(trainer.model.predict(x)), trainer.evaluate(x, t)["loss"], tree_of(trainer)))

    watched, alone = (ns.trainer(SIMPLE, "graph", hosted) for _ in range(2))
    watched.fit(x, t, epochs=3, batch_size=20, callbacks=[Look()])
    alone.fit(x, t, epochs=3, batch_size=20)
    assert_bits(tree_of(watched), tree_of(alone))
    assert watched.history == alone.history
    assert len(seen) == 3
    for scores, loss, tree in seen:
        plain = ns.trainer(SIMPLE, "eager")
        plain.model.load_params({k.removeprefix("params."): a for k, a in tree.items() if k.startswith("params.")})
        np.testing.assert_allclose(scores, plain.model.predict(x), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(loss, plain.evaluate(x, t)["loss"], rtol=1e-5)
    assert len({loss for _, loss, _ in seen}) == 3


def test_what_the_user_assigns_is_seen(hosted, way):
    trainer = ns.trainer(SIMPLE, "graph", hosted)
    x, t, w = ns.batch(SIMPLE, 6, 0)
    start = {name: np.array(a) for name, a in trainer.model.params.items()}
    first = np.array(trainer.step(x, t, w))
    trainer.model.load_params(start)
    assert trainer.step(x, t, w) == first
    trainer.model.params["0.W"] = np.zeros_like(start["0.W"])
    trainer.lr = 0.0
    trainer.step(x, t, w)
    assert not trainer.model.params["0.W"].any()


def test_batches_with_and_without_weights_share_one_state(hosted, way):
    graph, eager = ns.trainer(SIMPLE, "graph", hosted), ns.trainer(SIMPLE, "eager")
    for seed in range(4):
        x, t, _ = ns.batch(SIMPLE, 9, seed)
        w = np.linspace(0, 1, 9, dtype=np.float32) if seed % 2 else None
        found, wanted = graph.step(x, t, w), eager.step(x, t, w)
        assert_near({"loss": found}, {"loss": wanted}, "float32", {"float32": 1e-4})
    assert (int(graph._tree()["state"]["step"]), len(graph._engine._runners)) == (4, 2)


@pytest.mark.parametrize("precision", ["tf32", "mixed-bfloat16", "mixed-float16"])
def test_trainings_in_other_precisions(hosted, precision):
    """They end where float32 does, within what half precision leaves of it."""
    x, t = blobs(n=118)
    ends = {}
    for p in ("float32", precision):
        model = ns.build(SIMPLE, hosted)[0]
        trainer = xbp.Trainer(
            model, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(1e-2), engine="graph", precision=p
        )
        trainer.fit(x, t, epochs=4, batch_size=25)
        assert trainer.engine == "graph"
        ends[p] = trainer.history["loss"]
    assert ends["float32"][-1] < ends["float32"][0]
    np.testing.assert_allclose(ends[precision], ends["float32"], rtol=1e-6 if precision == "tf32" else 0.05)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


class Pressing(Processor):
    """Presses Ctrl-C when it is given its launch or product of that number."""

    at = -1
    queued = 0

    def _queue(self, run):
        super()._queue(run)
        if type(self).queued == type(self).at:
            type(self).at = -1
            os.kill(os.getpid(), signal.SIGINT)
        type(self).queued += 1


def pressing(hosted, at):
    hosted.kind = type("Pressing", (Pressing,), {"at": at})
    return hosted


def launches_of_a_step(hosted, x, t):
    hosted.kind = type("Counting", (Pressing,), {})
    trainer = ns.trainer(SIMPLE, "graph", hosted)
    before = tree_of(trainer)
    loss = trainer.step(x, t)
    return hosted.kind.queued, before, tree_of(trainer), loss


def test_ctrl_c_between_the_launches_of_a_first_step_leaves_whole_steps(hosted, monkeypatch):
    go(monkeypatch, "launches")
    x, t, _ = ns.batch(SIMPLE, 9, 0)
    count, before, after, _ = launches_of_a_step(hosted, x, t)
    assert count > 8
    taken = []
    for at in range(count):
        trainer = ns.trainer(SIMPLE, "graph", pressing(hosted, at))
        with pytest.raises(KeyboardInterrupt):
            trainer.step(x, t)
        found = tree_of(trainer)
        taken.append(not np.array_equal(found["params.0.W"], before["params.0.W"]))
        assert_bits(found, after if taken[-1] else before)
    assert taken == [False] + [True] * (count - 1)  # only before the first launch that belongs to the step is it early


@pytest.mark.parametrize("at", [3, 25, 60])
def test_ctrl_c_during_fit_leaves_whole_steps(hosted, at, way):
    x, t = blobs(n=118)
    trainer = ns.trainer(SIMPLE, "graph", pressing(hosted, at if way == "launches" else at // 10))
    trainer.fit(x, t, epochs=1000, batch_size=25)
    assert (trainer.stop_reason, trainer.engine) == ("interrupted", "graph")
    assert 0 < trainer.steps == int(trainer._tree()["state"]["step"]) < 1000
    hosted.kind = Processor
    again = ns.trainer(SIMPLE, "graph", hosted)
    for epoch in range(trainer.epoch + 1):
        order = xbp.random.epoch_order(3, epoch, 118)
        for start in range(0, 118, 25):
            if again.steps < trainer.steps:
                again.step(x[order[start : start + 25]], t[order[start : start + 25]])
    assert again.steps == trainer.steps
    assert_bits(tree_of(again), tree_of(trainer))
    assert_same(dict(again.model.params), dict(trainer.model.params))


def test_a_step_that_cannot_be_captured_does_not_leave_a_capture_open(hosted, monkeypatch):
    """What cannot be captured raises, and the next step is as if nothing had been."""
    go(monkeypatch, "launches")
    trainer = ns.trainer(SIMPLE, "graph", hosted)
    x, t, _ = ns.batch(SIMPLE, 9, 0)
    trainer.step(x, t)
    trainer.step(x, t)
    (processor,) = [d for d in hosted.devices if d.graphs]
    before = tree_of(trainer)
    with pytest.raises(ZeroDivisionError):
        processor.captured(lambda: 1 / 0)
    assert_bits(tree_of(trainer), before)
    trainer.step(x, t)
    assert trainer.engine == "graph"
