"""Where the CUDA engine ends: texts without kernels, repeated factors, numbers beyond 32 bits, a failing compiler."""

from __future__ import annotations

import logging

import numpy as np
import pytest

import xbp
from graph_engine_helpers import device
from processor import Processor
from test_graph_engine_training import Hosted
from xbp.errors import MemoryExceeded, NotCompiled
from xbp.program import Interpreter, Recorder, optimised
from xbp.recording import Kind, Signature, record
from xbp_cupy.graph import plans
from xbp_cupy.graph.lowering import Lowered
from xbp_cupy.graph.runner import GraphFunction


def test_scores_that_are_products_alone():
    net = xbp.Network([xbp.Affine(8, 16), xbp.ReLU(), xbp.Affine(16, 3)], backend="numpy", seed=0)
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="eager")
    look = Signature((("", Kind((8,), "float32")),), None, None)
    program = record("scores", trainer._step, trainer._tree(), look)
    assert all(launch.product for launch in Lowered(program, in_place=False).launches)
    x = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    found = GraphFunction(program, device())({**{f"params.{n}": a for n, a in net.params.items()}, "x": x})
    np.testing.assert_allclose(found["scores"], net.predict(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("repeated", ["left", "right"])
def test_a_factor_that_repeats_its_entries_is_refused(repeated):
    recorder = Recorder(5)
    xp = recorder.xp
    x, w = recorder.input("x", ("N", 1)), recorder.input("w", (4, 4))
    wide = xp.broadcast_to(x, (x.shape[0], 4))
    narrow = xp.broadcast_to(w[:, :1], (4, 4))
    y = xp.matmul(wide, w) if repeated == "left" else xp.matmul(x * w[0, :], narrow)
    program = optimised(recorder.program("formula", {"y": y}))
    with pytest.raises(NotCompiled, match="repeats its entries"):
        GraphFunction(program, device())


def test_a_walk_longer_than_any_array_counts_with_64_bits():
    recorder = Recorder(5)
    xp = recorder.xp
    x, b = recorder.input("x", ("N", 1)), recorder.input("b", (40_000,))
    program = optimised(recorder.program("formula", {"y": xp.sum(x + b)}))
    low = Lowered(program, in_place=False)
    assert low.longest(65_536) == 65_536 * 40_000 > plans.WIDE  # its arrays have no more than 65,536 entries
    assert low.longest(5) < plans.WIDE


def test_one_block_takes_no_long_walks():
    net = xbp.Network([xbp.LayerNorm(4096)], backend="numpy", seed=0)
    trainer = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.1), engine="eager")
    block = plans.OneBlock(trainer.program, device(), lambda low: (low.launches, ""), 1)
    assert block.fits(1)
    assert not block.fits(8192)


class Unlucky(Processor):
    def compiled(self, text):
        raise NotCompiled("nvrtc: no such device")


class Full(Processor):
    def memory(self, size, *, zeroed=False):
        if size > 2000:
            raise MemoryExceeded(f"The device has no {size} bytes.")
        return super().memory(size, zeroed=zeroed)


def hosted(kind):
    device()  # skips where nothing compiles
    backend = Hosted("hosted", np, device="cpu", version=np.__version__)
    backend.kind = kind
    net = xbp.Network([xbp.Affine(6, 8), xbp.Tanh(), xbp.Affine(8, 3)], backend=backend, seed=0)
    return xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="graph")


@pytest.mark.falls_back
def test_what_does_not_compile_runs_on_the_next_engine_before_the_first_step(caplog):
    trainer = hosted(Unlucky)
    x, t = np.random.default_rng(0).normal(size=(40, 6)), np.arange(40) % 3
    with caplog.at_level(logging.WARNING, "xbp.engine"):
        history = trainer.fit(x, t, epochs=2)
    assert trainer.engine == "eager"
    assert "no such device" in caplog.text
    assert len(history["loss"]) == 2


def test_too_little_memory_is_said_and_not_given_to_another_engine():
    trainer = hosted(Full)
    with pytest.raises(MemoryExceeded, match=r"has no \d+ bytes"):
        trainer.fit(np.zeros((400, 6)), np.zeros(400, int), batch_size=400)
    assert trainer.engine == "graph"


def test_the_interpreter_agrees_on_the_longest_walk():
    recorder = Recorder(5)
    xp = recorder.xp
    x, b = recorder.input("x", ("N", 1)), recorder.input("b", (700,))
    program = optimised(recorder.program("formula", {"y": xp.sum(x + b, axis=1)}))
    arrays = {"x": np.ones((9, 1), np.float32), "b": np.arange(700, dtype=np.float32)}
    found = GraphFunction(program, device())(arrays)["y"]
    np.testing.assert_allclose(found, Interpreter(program, np)(arrays)["y"], rtol=1e-6)
