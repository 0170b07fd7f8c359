"""The machine code of the engine `numba`: where it is kept, what is not compiled, and what it leaves alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import network_strategies as ns
import xbp
from network_strategies import Described
from training_helpers import assert_same, blobs
from xbp.data import prepare_batch
from xbp.errors import NotCompiled
from xbp.program import Recorder, optimised
from xbp.recording import record, signature_of

pytest.importorskip("llvmlite", reason="the engine numba needs llvmlite: pip install 'xbp[numba]'")

from xbp_numpy.native import compiler, runner, threads

ROOT = Path(__file__).resolve().parent.parent
numpy = xbp.get_backend("numpy")


# the cache


def test_code_is_found_again_and_damage_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setenv("XBP_CACHE_DIR", str(tmp_path / "cache"))
    made = []
    make = compiler._made
    monkeypatch.setattr(compiler, "_made", lambda *args: made.append(1) or make(*args))
    described = Described(layers=("tanh", 9))
    x, t, w = ns.batch(described, 5, 0)

    def loss():
        runner._ready.clear()  # another process has to look into the folder
        return float(ns.trainer(described, "numba").step(x, t, w))

    first = loss()
    assert len(made) == 1
    assert loss() == first
    assert len(made) == 1
    (file,) = (tmp_path / "cache").glob("*.o")
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    code = file.read_bytes()
    file.write_bytes(code[:-7])
    assert loss() == first  # cut off: made anew, and whole again
    assert len(made) == 2
    assert file.read_bytes() == code
    file.chmod(0o666)
    assert loss() == first  # anybody might have written it
    assert len(made) == 3
    monkeypatch.setenv("XBP_CACHE_DIR", "")
    assert loss() == first
    assert len(made) == 4
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XBP_CACHE_DIR", str(blocked))
    assert loss() == first


def test_who_trains_the_same_network_again_finds_its_code(monkeypatch):
    x, t = blobs(n=64)

    def trained(**options):
        trainer = ns.trainer(Described(inputs=6, **options), "numba")
        trainer.fit(x, t, epochs=2, batch_size=16)
        return trainer, trainer._engine._current._native

    first, code = trained()
    scores = first.model.predict(x)
    monkeypatch.setattr(runner, "compiled", lambda text: pytest.fail("compiled anew"))
    again, same = trained()
    assert same.module is code.module
    assert again.history == first.history
    assert_same(dict(again.model.params), dict(first.model.params))
    np.testing.assert_array_equal(again.model.predict(x), scores)
    monkeypatch.undo()
    _, wider = trained(width=5)
    assert wider.module is not code.module
    monkeypatch.setattr(runner, "READY", 1)
    trained(width=6)
    assert len(runner._ready) == 1


def test_a_new_process_compiles_the_same_code(tmp_path):
    code = (
        "import numpy as np, xbp;"
        "n = xbp.Network([xbp.Affine(9, 8), xbp.GELU(), xbp.Affine(8, 3)], backend='numpy');"
        "t = xbp.Trainer(n, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(), clip_norm=1.0, engine='numba');"
        "t.step(np.ones((4, 9), 'f4'), np.zeros(4, 'i4'))"
    )
    for seed in ("1", "2"):
        env = {**os.environ, "XBP_CACHE_DIR": str(tmp_path), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code], env=env, check=True, cwd=ROOT)
    assert len(list(tmp_path.glob("*.o"))) == 1


# what is refused, and what is left alone


@pytest.mark.parametrize("engine", ["numba", "planned"])
def test_functions_leave_their_inputs_alone(engine):
    described = Described(layers=("relu", "batch", "dropout"), optimizer="adam", weighted=True)
    trainer = ns.trainer(described, "eager")
    x, t, w = prepare_batch(trainer.model, trainer.loss, *ns.batch(described, 6, 0))
    tree = trainer._tree()
    for what in ("step", "scores", "sums", "piece", "apply"):
        look = signature_of(x, None, None) if what == "scores" else signature_of(x, t, w)
        program = record(what, trainer._step, tree, look)
        rng = np.random.default_rng(0)
        inputs = {
            name: rng.uniform(0.1, 1.0, v.shape if "N" not in str(v.shape) else (6, *v.shape[1:])).astype(v.dtype.name)
            for name, v in program.inputs.items()
        }
        before = {name: a.copy() for name, a in inputs.items()}
        outputs = numpy.function(program, engine)(inputs)
        assert_same(inputs, before)
        for name, a in outputs.items():
            assert not any(np.shares_memory(a, b) for b in inputs.values()), (what, name)


@pytest.mark.parametrize("engine", ["numba", "planned", "eager"])
def test_what_keep_best_remembers_survives_steps_in_pieces(engine):
    described = Described(layers=("relu",), optimizer="adam")
    trainer = ns.trainer(described, engine, accumulate=2)
    x, t, w = ns.batch(described, 12, 0)
    trainer.step(x, t, w)
    trainer.keep_best()
    kept = {name: np.array(a) for name, a in trainer.model.params.items()}
    for _ in range(3):
        trainer.step(x, t, w)
        trainer.restore_best()
        assert_same(dict(trainer.model.params), kept)
    assert trainer.engine == engine


@pytest.mark.parametrize("engine", ["numba", "planned", "eager"])
def test_predictions_of_odd_inputs(engine):
    graph = xbp.Graph(
        {"h": (xbp.Affine(4, 3), "a"), "d": (xbp.Add(), "h", "b")}, inputs=["a", "b"], output="d", backend="numpy"
    )
    trainer = xbp.Trainer(graph, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.1), engine=engine)
    rng = np.random.default_rng(0)
    a, b, t = (rng.normal(size=(10, k)).astype("float32") for k in (4, 3, 3))
    trainer.step({"a": a, "b": b}, t)
    W, bias = (np.asarray(graph.params[f"h.{k}"]) for k in "Wb")
    for given_ in ({"a": a, "b": b[:1]}, {"a": a[:1], "b": b}, {"a": a, "b": b[0]}, {"a": a, "b": b}):
        np.testing.assert_allclose(graph.predict(given_), given_["a"] @ W + bias + given_["b"], rtol=1e-5, atol=1e-6)
    net = xbp.Network([xbp.Affine(20, 100), xbp.ReLU(), xbp.Affine(100, 5)], backend="numpy")
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine=engine)
    trainer.step(np.ones((3, 20), "float32"), np.zeros(3, "int32"))
    assert net.predict(np.ones((0, 20), "float32")).shape == (0, 5)
    assert trainer.engine == engine


def formula(make, *shapes):
    recorder = Recorder(65521)
    inputs = [recorder.input(f"i{k}", shape, dtype) for k, (shape, dtype) in enumerate(shapes)]
    return optimised(recorder.program("formula", {"o": make(recorder.xp, *inputs)}))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda xp, x, i: xp.argmax(x, axis=0), "along rows"),
        (lambda xp, x, i: xp.argmax(x), "along rows"),
        (lambda xp, x, i: xp.take(x, i, axis=1), "out of range"),
        (lambda xp, x, i: xp.sum(xp.reshape(x, (-1, 3, 2)), axis=1), "reduce rows or columns"),
        (lambda xp, x, i: xp.matmul(x, xp.matrix_transpose(x)), "square of the batch"),
    ],
)
def test_what_is_not_compiled_is_refused(make, message):
    program = formula(make, (("N", 6), "float32"), ((4,), "int32"))
    with pytest.raises(NotCompiled, match=message):
        numpy.function(program, "numba")


def test_a_helper_that_cannot_be_had_is_done_without(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("can't start new thread")

    described = Described(inputs=300, width=130, layers=("relu",))
    x, t, w = ns.batch(described, 30, 0)
    monkeypatch.setattr(threads, "available_threads", lambda: 2)
    with_helper = ns.trainer(described, "numba").step(x, t, w)
    monkeypatch.setattr(threads, "_team", None)
    monkeypatch.setattr(threads.threading, "Thread", refuse)
    assert ns.trainer(described, "numba").step(x, t, w) == with_helper


def test_a_new_value_waits_where_the_old_one_is_read_for_many_entries():
    recorder = Recorder(5)
    xp = recorder.xp
    p = recorder.input("params.p", (6, 4))
    x, t = recorder.input("x", ("N", 2)), recorder.input("t", ("N",), "int32")
    new = p * xp.reshape(p, (24,))[:4]  # every row of the new value reads the first one of the old
    loss = xp.sum(x) + xp.sum(xp.astype(t, x.dtype))
    program = optimised(recorder.program("step", {"params.p": new, "loss": loss}))
    start = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    runner = xbp.get_backend("numpy").compile(program, "numba")
    runner.load({"params": {"p": start}, "buffers": {}, "state": {}})
    runner.step(np.ones((3, 2), np.float32), np.zeros(3, np.int32), None, {})
    np.testing.assert_array_equal(runner.read()["params"]["p"], start * start[0])
