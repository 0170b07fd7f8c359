"""What a step needs of memory, told before it runs, and batches cut into pieces that fit into a limit."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as networks
import xbp
from engine_networks import CASES, Trained
from test_engine_choice import Foreign
from training_helpers import assert_same, backend_or_skip, blobs, classifier, host, line, trainer_for
from xbp.budget import needed, pieces_that_fit
from xbp.errors import MemoryExceeded, RecordingError
from xbp.program import Recorder, memory_of, readable
from xbp.program.fusion import fused
from xbp.program.places import Places

ENGINES = [("numpy", engine) for engine in xbp.get_backend("numpy").engines]
ENGINES += [("jax", "jit"), ("torch", "eager")]
on_each = pytest.mark.parametrize(("name", "engine"), ENGINES, ids=str)


def memory_for(trainer):
    return lambda what: trainer._run_engine().program(what).memory


def deep(backend="numpy", width=32, layers=4, extra=()):
    """A network whose values in between take more room than its parameters."""
    middle = [layer for _ in range(layers) for layer in (xbp.Affine(width, width), *extra, xbp.Tanh())]
    return xbp.Network([xbp.Affine(6, width), *middle, xbp.Affine(width, 3)], backend=backend, seed=0)


# --- the figure -------------------------------------------------------------------------------------------------------


def test_what_a_step_needs_is_the_sum_of_what_it_is_given_and_the_arena():
    trainer = trainer_for(classifier(), optimizer=xbp.Adam(1e-2))
    memory = trainer.program.memory
    parameters = 4 * (6 * 16 + 16 + 16 * 3 + 3)
    assert (memory.parameters, memory.buffers, memory.state) == (parameters, 0, 2 * parameters + 4)
    assert memory.gradients == 0
    for n in (1, 7, 100):
        assert memory.batch(n) == 4 * (n * 6 + n + 1)  # rows, labels, and the learning rate
        assert memory.between(n) == Places(fused(trainer.program)).plan(n)[1]
        assert memory.at(n) == 3 * parameters + 4 + memory.batch(n) + memory.between(n)
    assert memory.at(1000) > memory.at(100) > memory.at(10)


def test_it_is_what_machine_code_takes():
    backend = backend_or_skip("numpy")
    if "numba" not in backend.engines:
        pytest.skip(f"engine 'numba' needs {backend.extras['numba']}")
    trainer = trainer_for(deep(), engine="numba")
    x, t = blobs(64)
    trainer.step(x, t)
    module = trainer._engine._current._native.module
    taken = module.places.plan(64)[1]
    # Loops keep a little beside what every engine stores: sums of threads, copies of products' operands.
    assert trainer.program.memory.between(64) <= taken <= 1.5 * trainer.program.memory.between(64)


def test_it_prints_as_a_table():
    trainer = trainer_for(classifier(extra=[xbp.BatchNorm(16)]))
    assert str(trainer.program.memory).splitlines()[:5] == [
        "memory of program step",
        "parameters         780 B",
        "buffers            128 B",
        "state            1.5 KiB",
        "rows               batch     between      in all",
    ]
    assert [line_.split()[0] for line_ in str(trainer.program.memory).splitlines()[5:]] == ["1", "128", "4096"]


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (3 * 2**29, "1.5 GiB"), (2**50, "1024.0 TiB")],
)
def test_sizes_are_readable(size, text):
    assert readable(size) == text


@settings(max_examples=25)
@given(described=networks.networks(("float32", "float64")), n=st.integers(2, 50))
def test_a_step_never_needs_less_than_what_is_alive_at_one_moment(described, n):
    trainer = networks.trainer(described, "eager")
    trainer.step(*networks.batch(described, 3, 0))
    program = trainer.program
    width = {"float32": 4, "float64": 8}[described.dtype]
    products = [op for op in program.operations if op.function == "matmul"]
    least = max(width * math.prod(xbp.program.bound(op.result.shape, n)) for op in products)
    assert (
        least
        <= program.memory.between(n)
        <= sum(-(-8 * math.prod(xbp.program.bound(op.result.shape, n)) // 64) * 64 for op in program.operations)
    )


def test_programs_that_no_engine_plans_are_counted_one_operation_at_a_time():
    recorder = Recorder(batch=7)
    x, xp = recorder.input("x", ("N", 3)), recorder.xp
    pairs = xp.matmul(x, xp.matrix_transpose(x))  # grows with the square of the batch
    memory = memory_of(recorder.program("scores", {"y": xp.sum(xp.exp(pairs), axis=1)}))
    assert memory.at(100) == 4 * 300 + 2 * 40_000  # two matrices of pairs live together
    assert memory.at(1) == 12 + 2 * 64


def test_half_precision_takes_less():
    memory = {}
    for precision in ("float32", "mixed-bfloat16"):
        trainer = trainer_for(deep(backend_or_skip("torch"), width=64, layers=8), precision=precision, engine="eager")
        memory[precision] = trainer.program.memory
    assert memory["mixed-bfloat16"].parameters == memory["float32"].parameters
    assert memory["mixed-bfloat16"].between(4096) < 0.75 * memory["float32"].between(4096)


# --- how many pieces --------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(n=st.integers(1, 200), least=st.integers(1, 4), share=st.floats(0.0, 1.1))
def test_the_fewest_pieces_that_fit_are_taken(n, least, share):
    memory = memory_for(TRAINER)
    few, many = needed(memory, n, min(least, n)), min(needed(memory, n, k) for k in range(1, n + 1))
    limit = int(many + share * (few - many))
    fitting = [k for k in range(min(least, n), n + 1) if needed(memory, n, k) <= limit]
    if not fitting:
        with pytest.raises(MemoryExceeded):
            pieces_that_fit(limit, memory, n, least)
        return
    found = pieces_that_fit(limit, memory, n, least)
    assert needed(memory, n, found) <= limit
    assert found == fitting[0]


TRAINER = trainer_for(deep(width=8), engine="eager")


@on_each
def test_a_batch_that_does_not_fit_is_cut_and_steps_as_the_whole(name, engine, caplog):
    x, t = blobs(600)
    w = np.random.default_rng(3).uniform(0.5, 2.0, 600).astype(np.float32)
    trainers = [
        trainer_for(deep(backend_or_skip(name)), optimizer=xbp.SGD(0.1), clip_norm=1.0, engine=engine, **options)
        for options in ({}, {"memory_limit": LIMIT})
    ]
    with caplog.at_level(logging.INFO, logger="xbp.engine"):
        for trainer in trainers:
            trainer.fit(x, t, sample_weight=w, epochs=2, batch_size=250, shuffle=False)
    whole, cut = trainers
    assert (whole.accumulate, whole.engine) == (1, engine)
    memory = memory_for(cut)
    assert cut.accumulate > 1
    assert needed(memory, 250, cut.accumulate) <= LIMIT < needed(memory, 250, cut.accumulate - 1)
    assert cut.engine == engine
    (told,) = caplog.messages
    assert f"A step on 250 rows needs {readable(needed(memory, 250, 1))}" in told
    assert f"cut into {cut.accumulate} pieces" in told
    a, b = (host(trainer.model, trainer.model.params) for trainer in trainers)
    for key, value in a.items():
        np.testing.assert_allclose(b[key], value, rtol=2e-4, atol=2e-5, err_msg=key)
    np.testing.assert_allclose(cut.history["loss"], whole.history["loss"], rtol=1e-5)


LIMIT = 250_000


def test_as_many_pieces_as_were_asked_for_are_the_least():
    x, t = blobs(100)
    trainer = trainer_for(deep(), accumulate=3, memory_limit=10**9)
    assert trainer.accumulate == 3
    trainer.fit(x, t, batch_size=50)
    assert trainer.accumulate == 3


def test_larger_batches_are_cut_further_and_smaller_ones_stay_cut():
    x, t = blobs(600)
    trainer = trainer_for(deep(), memory_limit=LIMIT)
    seen = []
    for n in (10, 200, 600, 10):
        trainer.step(x[:n], t[:n])
        seen.append(trainer.accumulate)
    assert seen[0] == 1
    assert 1 < seen[1] < seen[2] == seen[3]


def test_values_are_those_of_accumulate_to_the_last_bit(tmp_path):
    x, t = blobs(600)
    limited = trainer_for(deep(), memory_limit=LIMIT)
    limited.fit(x, t, batch_size=250)
    cut = trainer_for(deep(), accumulate=limited.accumulate)
    cut.fit(x, t, batch_size=250)
    assert_same(host(limited.model, limited.model.params), host(cut.model, cut.model.params))
    limited.save(tmp_path / "t")
    again = xbp.Trainer.load(tmp_path / "t", backend="numpy")
    assert again.accumulate == limited.accumulate
    for trainer in (limited, again):
        trainer.fit(x, t, batch_size=250)
    assert_same(host(limited.model, limited.model.params), host(again.model, again.model.params))
    assert again._engine.memory_limit == LIMIT


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_not_even_one_row_fits_is_said_with_the_numbers_before_training():
    x, t = blobs(600)
    trainer = trainer_for(deep(), memory_limit=50_000)
    message = (
        r"A step on 250 rows needs \d+\.\d KiB: 17\.\d KiB of parameters, 0 B of buffers, .* of optimiser state.*"
        r"Cut into 250 pieces of one row, it needs .*memory_limit is 48\.8 KiB"
    )
    with pytest.raises(MemoryError, match=message):
        trainer.fit(x, t, batch_size=250)
    assert (trainer.steps, trainer.accumulate) == (0, 1)
    with pytest.raises(MemoryExceeded, match="A step on 1 row needs"):
        trainer.step(x[:1], t[:1])


def test_batch_norm_is_not_cut():
    x, t = blobs(600)
    trainer = trainer_for(deep(extra=[xbp.BatchNorm(32)]), memory_limit=LIMIT)
    trainer.step(x[:20], t[:20])  # fits as it is
    with pytest.raises(MemoryExceeded, match=r"With BatchNorm \(2, 5, 8, 11\) batches cannot be cut into pieces"):
        trainer.fit(x, t, batch_size=250)
    assert trainer.steps == 1


@pytest.mark.parametrize("limit", [0, -1, 1.5, "1 GB", True])
def test_a_limit_is_a_number_of_bytes(limit):
    with pytest.raises(ValueError, match="memory_limit must be a whole number of at least 1"):
        trainer_for(classifier(), memory_limit=limit)


def test_a_step_that_cannot_be_recorded_has_no_limit():
    x, t = blobs(20)
    trainer = trainer_for(classifier(extra=[Foreign()]), memory_limit=10**9)
    with pytest.raises(RecordingError, match="memory_limit= needs to record the step"):
        trainer.step(x, t)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_program_of_every_network_is_measured(case):
    trained = Trained(case, "float32")
    for what in ("step", "scores", "sums", "piece", "apply"):
        memory = trained.recorded(what).memory
        assert memory.at(64) >= memory.at(1) > memory.fixed
        assert (memory.gradients > 0) == (what == "apply")
        assert (memory.state > 0) == (what in ("step", "apply"))


def test_streams_are_cut_batch_by_batch():
    x, t = line(600, d=6, outputs=3)
    trainer = trainer_for(deep(), loss=xbp.MeanSquaredError(), memory_limit=LIMIT)
    trainer.fit([(x[:20], t[:20]), (x[:300], t[:300])])
    assert trainer.accumulate > 1
