"""The engine `graph` on a CUDA device among other things: trainers beside it, threads, memory that is used again.

A captured graph knows addresses and nothing else. Whatever it touches has to stay where it is, and nobody else may get
it. The measure is always the same training left alone: every bit has to be equal.
"""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import xbp
from training_helpers import assert_same, backend_or_skip, blobs, classifier, host, trainer_for

pytestmark = pytest.mark.cuda

ENGINE = "graph"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(params=["one block", "launches"])
def backend(request, monkeypatch):
    """CuPy; steps of few multiplications are one block, as they are by themselves, or launches, as larger ones are."""
    found = backend_or_skip("cupy")
    assert ENGINE in found.engines, "its libraries cannot be loaded: `xbp doctor` says why"
    if request.param == "launches":
        monkeypatch.setattr("xbp_cupy.graph.plans.SMALL", -1)
    with found.active():
        yield found


def made(backend, seed=0):
    """A trainer with batch norm and dropout, so that buffers and keys count too."""
    extra = [xbp.BatchNorm(16), xbp.Dropout(0.2)]
    return trainer_for(classifier(backend, seed=seed, extra=extra), engine=ENGINE)


def everything(trainer):
    arrays = {**trainer.model.params, **trainer.model.buffers}
    return host(trainer.model, arrays)


def alone(backend, seed, work):
    """What a trainer ends at that nobody disturbs."""
    trainer = made(backend, seed)
    work(trainer)
    return everything(trainer)


def test_two_trainers_in_turn_are_two_trainers_one_after_the_other(backend):
    x, t = blobs(64)

    def work(trainer):
        for k in range(40):
            trainer.step(x[k : k + 16], t[k : k + 16])

    wanted = [alone(backend, seed, work) for seed in (0, 1)]
    both = [made(backend, seed) for seed in (0, 1)]
    for k in range(40):
        for trainer in both:
            trainer.step(x[k : k + 16], t[k : k + 16])
    for trainer, right in zip(both, wanted, strict=True):
        assert_same(everything(trainer), right)


def test_a_training_in_another_thread_is_the_same_training(backend):
    x, t = blobs(200)

    def work(trainer):
        trainer.fit(x, t, epochs=5, batch_size=16)

    wanted = alone(backend, 0, work)
    found, failed = [], []

    def run():
        try:
            found.append(alone(backend, 0, work))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failed, failed
    assert_same(found[0], wanted)


def test_a_trainer_goes_on_in_another_thread(backend):
    x, t = blobs(200)
    wanted = alone(backend, 0, lambda trainer: trainer.fit(x, t, epochs=6, batch_size=16))
    trainer = made(backend)
    for _ in range(3):
        thread = threading.Thread(target=trainer.fit, args=(x, t), kwargs={"epochs": 2, "batch_size": 16})
        thread.start()
        thread.join()
    assert trainer.epoch == 6
    assert_same(everything(trainer), wanted)


def test_two_threads_train_side_by_side(backend):
    x, t = blobs(200)

    def work(trainer):
        trainer.fit(x, t, epochs=10, batch_size=16)

    wanted = [alone(backend, seed, work) for seed in (0, 1)]
    found, failed = {}, []

    def run(seed):
        try:
            found[seed] = alone(backend, seed, work)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed
    for seed, right in enumerate(wanted):
        assert_same(found[seed], right)


def test_a_graph_outlives_everything_else(backend):
    """Others are collected, the pool gives its blocks back, and new arrays of NaN take every place that is free."""
    cupy = pytest.importorskip("cupy", reason="CUDA: CuPy is not installed")
    x, t = blobs(64)

    def work(trainer):
        for _ in range(30):
            trainer.step(x, t)
        trainer.fit(x, t, epochs=20, batch_size=16)

    wanted = alone(backend, 0, work)
    other, trainer = made(backend, 1), made(backend, 0)
    for _ in range(10):
        trainer.step(x, t)
        other.step(x, t)
    del other
    for round_ in range(4):
        gc.collect()
        backend.synchronize()
        cupy.get_default_memory_pool().free_all_blocks()
        poison = [cupy.full(2**k, cupy.nan, dtype=cupy.float32) for k in range(4, 22) for _ in range(3)]
        for _ in range(5):
            trainer.step(x, t)
        if round_ % 2:
            del poison
    trainer.fit(x, t, epochs=20, batch_size=16)
    assert_same(everything(trainer), wanted)


def test_batch_sizes_come_and_go(backend):
    """More sizes than are kept, growing and shrinking, with a ragged last batch in each epoch."""
    x, t = blobs(160)
    sizes = [16, 4, 32, 7, 64, 5, 9, 11, 13, 2, 160, 16, 4, 31, 100]
    twice = []
    for _ in range(2):
        trainer = made(backend)
        for n in sizes:
            trainer.fit(x, t, epochs=1, batch_size=n)
            for _ in range(3):
                trainer.step(x[:n], t[:n])
        twice.append(everything(trainer))
    assert_same(*twice)
    ours = xbp.get_backend("numpy")
    losses = []
    for where, engine in ((backend, ENGINE), (ours, "eager")):
        trainer = trainer_for(classifier(where), optimizer=xbp.SGD(0.02), engine=engine)
        for n in sizes:
            trainer.fit(x, t, epochs=1, batch_size=n)
        losses.append(trainer.history["loss"])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


def test_looking_between_steps_disturbs_nothing(backend):
    x, t = blobs(120)

    def work(trainer, look=lambda: None):
        for k in range(30):
            trainer.step(x[:16], t[:16])
            if k % 3 == 0:
                look()

    wanted = alone(backend, 0, work)
    trainer = made(backend)
    seen = []

    def look():
        before = everything(trainer)
        scores = backend.to_host(trainer.model.predict(x))
        trainer.evaluate(x[:50], t[:50])
        trainer.model.forward(x[:7])
        assert_same(everything(trainer), before)
        seen.append((before, scores))

    work(trainer, look)
    assert_same(everything(trainer), wanted)
    ours = classifier("numpy", extra=[xbp.BatchNorm(16), xbp.Dropout(0.2)])
    for values, scores in seen:
        ours.load_params({name: values[name] for name in ours.params})
        for name in ours.buffers:
            ours.buffers[name] = values[name]
        np.testing.assert_allclose(scores, ours.predict(x), rtol=1e-4, atol=1e-5)


def test_weights_set_between_steps_are_the_ones_that_train(backend):
    x, t = blobs(64)
    found = []
    for where, engine in ((backend, ENGINE), ("numpy", "eager")):
        trainer = trainer_for(classifier(where), optimizer=xbp.SGD(0.05), engine=engine)
        for _ in range(20):
            trainer.step(x, t)
        start = classifier("numpy", seed=5)
        trainer.model.load_params({name: np.array(a) for name, a in start.params.items()})
        for _ in range(3):
            trainer.step(x, t)
        found.append(everything(trainer))
    for name, a in found[0].items():
        np.testing.assert_allclose(a, found[1][name], rtol=1e-4, atol=1e-6)


# --- NVIDIA's own checks ----------------------------------------------------------------------------------------------

SHORT_RUN = """
import cupy
import numpy as np
import xbp
import xbp_cupy.graph.plans

cupy.cuda.set_allocator(None)  # each array by itself, so that what is read beyond its end is noticed
rng = np.random.default_rng(0)
x, t = rng.normal(size=(37, 6)).astype(np.float32), rng.integers(0, 3, 37)
layers = [xbp.Affine(6, 24), xbp.LayerNorm(24), xbp.ReLU(), xbp.Dropout(0.2), xbp.Affine(24, 3)]
for precision, small in (("float32", 2**18), ("float32", -1), ("mixed-bfloat16", -1)):
    xbp_cupy.graph.plans.SMALL = small  # below it a step is one block, above it a graph of launches
    net = xbp.Network(layers, backend="cupy", seed=0)
    trainer = xbp.Trainer(
        net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(1e-2), clip_norm=1.0, engine="graph",
        metrics=["accuracy"], precision=precision,
    )
    trainer.fit(x, t, epochs=2, batch_size=16)
    trainer.step(x[:5], t[:5])
    trainer.evaluate(x, t)
    net.predict(x)
    assert trainer.engine == "graph"
print("the run ended")
"""


@pytest.mark.slow
@pytest.mark.parametrize("check", ["memcheck", "initcheck", "racecheck", "synccheck"])
def test_the_sanitizer_finds_nothing_in_a_short_run(check, tmp_path):
    backend_or_skip("cupy")
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        pytest.skip("compute-sanitizer, of the CUDA toolkit, is not on the PATH")
    script = tmp_path / "short_run.py"
    script.write_text(SHORT_RUN, encoding="utf-8")
    folders = [str(ROOT), str(ROOT / "backends"), os.environ.get("PYTHONPATH", "")]
    # Its own folder: what algorithms were found to be fastest under a sanitizer is of no use to anybody.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, folders)), "XBP_CACHE_DIR": str(tmp_path)}
    command = [tool, "--tool", check, "--error-exitcode", "99", sys.executable, str(script)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=570, env=environment, cwd=tmp_path)
    said = run.stdout + run.stderr
    if "Device not supported" in said:
        pytest.skip("compute-sanitizer does not support this CUDA device")
    assert run.returncode == 0, said[-6000:]
    assert "the run ended" in run.stdout
    assert "ERROR SUMMARY: 0 errors" in said or "0 hazards" in said, said[-2000:]
