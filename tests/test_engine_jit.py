"""The engine `jit` of JAX: every step is the interpreter's, many steps are as many single ones, nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from engine_networks import CASES, STARTED, TOLERANCE, Trained, assert_close, assert_trees_close, put
from training_helpers import assert_same, blobs, host
from xbp.errors import BackendUnavailable
from xbp.program import Interpreter
from xbp.recording import flat, inputs_of
from xbp.testing import space

SPACES = [("jax", "float32"), ("jax-x64", "float64")]
FEW = [c for c in CASES if c.name in ("deep-adam", "weights", "dropout", "batch-norm", "two-inputs")]


@pytest.fixture(params=SPACES, ids="-".join)
def jax(request):
    """(backend, dtype) with x64 off and on."""
    name, dtype = request.param
    try:
        found = space(name)
        backend = found.backend
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with found.active():
        yield backend, dtype


def by_name(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


def runner_for(trained, backend):
    runner = backend.compile(trained.program, "jit")
    assert runner.engine == "jit"
    runner.load(put(backend, trained.tree, trained.dtype))
    return runner


def one_step(runner, trained, backend, rows, step):
    batch = put_batch(backend, trained, rows)
    scalars = {name: v[0] for name, v in trained.scalars(step).items()}
    return runner.step(*batch, put(backend, scalars, trained.dtype))


def put_batch(backend, trained, rows):
    return [put(backend, part, trained.dtype) for part in trained.batch(rows)]


def tables(backend, trained, steps):
    every = [trained.scalars(step) for step in steps]
    return put(backend, {name: np.concatenate([s[name] for s in every]) for name in every[0]}, trained.dtype)


@by_name(CASES)
def test_a_step_is_the_interpreters(case, jax):
    backend, dtype = jax
    trained = Trained(case, dtype)
    runner = runner_for(trained, backend)
    tree, sizes = trained.tree, [case.rows] + [case.rows - 3] * (case in FEW)  # the last batch of an epoch is smaller
    for step, size in enumerate(sizes, STARTED):
        rows = slice(0, size)
        tree, loss = trained.expected(tree, trained.batch(rows), step)
        found = one_step(runner, trained, backend, rows, step)
        assert backend.owns(found)
        assert_close(backend.to_host(found), loss, dtype, "loss")
        assert_trees_close(backend, runner.read(), tree, dtype)
        runner.load(put(backend, tree, dtype))


@by_name(CASES)
def test_scores_and_sums_are_the_interpreters(case, jax):
    backend, dtype = jax
    trained = Trained(case, dtype)
    x, t, w = trained.data
    for what, batch in [("sums", (x, t, w)), ("scores", (x,))][: 1 + (case in FEW)]:
        program = trained.recorded(what)
        given = {**flat({s: trained.tree[s] for s in ("params", "buffers")}), **inputs_of(*batch)}
        desired = Interpreter(program, np)(given)
        actual = backend.function(program, "jit")(put(backend, given, dtype))
        assert actual.keys() == desired.keys() == {what}
        assert_close(backend.to_host(actual[what]), desired[what], dtype, what)


@by_name(FEW)
@pytest.mark.parametrize("count", [1, 9])
def test_a_run_is_as_many_steps(case, jax, count):
    backend, dtype = jax
    trained = Trained(case, dtype)
    index = np.random.default_rng(2).integers(0, 40, (count, case.rows)).astype(np.int32)
    ran, stepped = runner_for(trained, backend), runner_for(trained, backend)
    steps = range(STARTED, STARTED + count)
    losses = ran.run(*put_batch(backend, trained, slice(None)), backend.asarray(index), tables(backend, trained, steps))
    one_by_one = [one_step(stepped, trained, backend, index[i], step) for i, step in enumerate(steps)]
    assert losses.shape == (count,)
    many = 10 * TOLERANCE[dtype]  # what rounding has become after some steps
    np.testing.assert_allclose(backend.to_host(losses), [backend.to_host(loss) for loss in one_by_one], rtol=many)
    a, b = flat(ran.read()), flat(stepped.read())
    for name in a:
        np.testing.assert_allclose(backend.to_host(a[name]), backend.to_host(b[name]), rtol=many, atol=many)


@by_name(FEW)
@pytest.mark.parametrize("cuts", [(1,) * 12, (9, 2, 1)], ids=str)
def test_how_steps_are_cut_into_runs_changes_no_bit(case, jax, cuts):
    backend, dtype = jax
    trained = Trained(case, dtype)
    index = np.random.default_rng(2).integers(0, 40, (12, case.rows)).astype(np.int32)
    data = put_batch(backend, trained, slice(None))

    def run_in(parts):
        runner, at, losses = runner_for(trained, backend), 0, []
        for n in parts:
            now = tables(backend, trained, range(STARTED + at, STARTED + at + n))
            losses.append(backend.to_host(runner.run(*data, backend.asarray(index[at : at + n]), now)))
            at += n
        return np.concatenate(losses), {name: backend.to_host(a) for name, a in flat(runner.read()).items()}

    (losses, arrays), (losses_cut, arrays_cut) = run_in((12,)), run_in(cuts)
    np.testing.assert_array_equal(losses_cut, losses)
    assert_same(arrays_cut, arrays)


@by_name(FEW)
def test_five_and_five_epochs_are_ten(case, jax):
    backend, dtype = jax
    x, t, w = case.data(dtype)
    whole, halves = (case.trainer(backend, dtype, "auto") for _ in range(2))
    whole.fit(x, t, sample_weight=w, epochs=10, batch_size=case.rows)
    for _ in range(2):
        halves.fit(x, t, sample_weight=w, epochs=5, batch_size=case.rows)
    assert whole.engine == halves.engine == "jit"
    assert whole.steps == halves.steps == 60
    assert halves.history == whole.history
    for section, arrays in whole._tree().items():
        assert_same(host(halves.model, halves._tree()[section]), host(whole.model, arrays))
    eager = case.trainer("numpy", dtype, "eager")
    eager.fit(x, t, sample_weight=w, epochs=10, batch_size=case.rows)
    np.testing.assert_allclose(whole.history["loss"], eager.history["loss"], rtol=1e-3)


def test_what_is_given_and_what_was_returned_stay_as_they_are(jax):
    backend, dtype = jax
    trained = Trained(CASES[1], dtype)
    tree = put(backend, trained.tree, dtype)
    runner = backend.compile(trained.program, "jit")
    runner.load(tree)
    rows = slice(0, 7)
    first = one_step(runner, trained, backend, rows, STARTED)
    before = float(first)
    read = runner.read()
    held = {name: np.asarray(a) for name, a in flat(read).items()}  # on a CPU NumPy looks into the very memory
    kept = {name: a.copy() for name, a in held.items()}
    index = backend.asarray(np.arange(14, dtype=np.int32).reshape(2, 7))
    losses = runner.run(*put_batch(backend, trained, slice(None)), index, tables(backend, trained, (4, 5)))
    pair = backend.to_host(losses)
    one_step(runner, trained, backend, rows, 6)
    assert float(first) == before
    np.testing.assert_array_equal(backend.to_host(losses), pair)
    assert_same(held, kept)
    for section, arrays in trained.tree.items():
        for name, a in arrays.items():
            np.testing.assert_array_equal(backend.to_host(tree[section][name]), a)


def test_parameters_are_there_after_every_step_and_copies_outlive_it(jax):
    backend, dtype = jax
    trainer = CASES[1].trainer(backend, dtype, "auto")
    x, t, _ = CASES[1].data(dtype)
    seen = []
    for _ in range(3):
        trainer.step(x[:7], t[:7])
        seen.append(host(trainer.model, trainer.model.params))
        trainer.keep_best()
    trainer.step(x[:7], t[:7])
    assert not np.array_equal(seen[2]["0.W"], backend.to_host(trainer.model.params["0.W"]))
    assert trainer.restore_best()
    assert_same(host(trainer.model, trainer.model.params), seen[2])
    assert trainer.engine == "jit"


def test_few_lengths_of_a_run_are_compiled(jax):
    backend, dtype = jax
    trained = Trained(CASES[4], dtype)  # no other test runs it
    runner = runner_for(trained, backend)
    data = put_batch(backend, trained, slice(None))
    before = runner._run._cache_size()
    for count in (1, 2, 4, 8, 16, 32, 64, 1, 2):
        index = backend.asarray(np.zeros((count, 7), dtype=np.int32))
        runner.run(*data, index, tables(backend, trained, range(count)))
    assert runner._run._cache_size() - before == 2


def test_an_interrupt_after_a_step_finds_its_values(jax):
    """Donated arrays are gone when a step returns: wherever Ctrl-C strikes, somebody has to hold the new ones."""
    backend, dtype = jax
    trained = Trained(CASES[0], dtype)
    runner = runner_for(trained, backend)
    compiled = runner._step

    def struck(*args):
        out = compiled(*args)
        newest.append(out)
        return out

    newest = []
    runner._step = struck
    one_step(runner, trained, backend, slice(0, 7), STARTED)
    read = flat(runner.read())
    for name, a in zip(trained.program.updates, newest[-1][0], strict=True):
        assert read[name] is a


def test_a_loop_of_a_fixed_length_gives_the_same(jax):
    """As off the CPU, where a loop whose length is open would ask the host after every step."""
    backend, dtype = jax
    module = pytest.importorskip("xbp_jax.jit", reason="the JAX backend is not on the path")
    trained = Trained(CASES[1], dtype)
    index = backend.asarray(np.arange(35, dtype=np.int32).reshape(5, 7))
    results = []
    for any_count in (True, False):
        runner = module.JitRunner(trained.program, backend._jax, backend.xp, any_count=any_count)
        runner.load(put(backend, trained.tree, dtype))
        losses = runner.run(*put_batch(backend, trained, slice(None)), index, tables(backend, trained, range(3, 8)))
        results.append((backend.to_host(losses), runner.read()))
    np.testing.assert_allclose(*(losses for losses, _ in results), rtol=TOLERANCE[dtype])
    desired = {s: {k: backend.to_host(a) for k, a in arrays.items()} for s, arrays in results[0][1].items()}
    assert_trees_close(backend, results[1][1], desired, dtype)


def test_weights_and_none_share_one_training(jax):
    backend, dtype = jax
    x, t = blobs(30)
    model = xbp.Network([xbp.Affine(6, 3)], backend=backend, dtype=dtype)
    trainer = xbp.Trainer(model, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(1e-2))
    plain = xbp.Network([xbp.Affine(6, 3)], backend="numpy", dtype=dtype)
    other = xbp.Trainer(plain, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(1e-2), engine="eager")
    x, w = x.astype(dtype), np.linspace(0.0, 1.0, 10).astype(dtype)
    for weight in (None, w, None, w):
        a = trainer.step(x[:10], t[:10], weight)
        b = other.step(x[:10], t[:10], weight)
        np.testing.assert_allclose(backend.to_host(a), b, rtol=100 * TOLERANCE[dtype])
    assert (trainer.engine, len(trainer._engine._runners)) == ("jit", 2)


def test_an_engine_that_jax_does_not_have_is_refused(jax):
    backend, dtype = jax
    assert backend.engines == ("jit", "eager")
    for method in (backend.compile, backend.function):
        with pytest.raises(BackendUnavailable, match=r"no engine 'numba'\. It has: jit, eager"):
            method(Trained(CASES[0], dtype).program, "numba")
