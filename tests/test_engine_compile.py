"""The engine `compile` of PyTorch: compiled steps are the interpreter's, for every batch size, and nothing is lost."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from engine_networks import CASES, STARTED, Trained, assert_close, assert_trees_close, put
from training_helpers import assert_same, backend_or_skip, host
from xbp.errors import BackendUnavailable, NotCompiled
from xbp.program import Interpreter, Recorder
from xbp.recording import flat, inputs_of

pytestmark = [
    pytest.mark.slow,  # each compilation takes seconds
    # PyTorch's own modules, when TorchInductor is imported.
    pytest.mark.filterwarnings("ignore:.torch.jit.script.*is deprecated:DeprecationWarning"),
]
DTYPES = {"deep-adam": "float32", "dropout": "float32", "batch-norm": "float64", "two-inputs": "float64"}
FOUR = [c for c in CASES if c.name in DTYPES]


@pytest.fixture(scope="module")
def torch():
    backend = backend_or_skip("torch")
    try:
        importlib.import_module("xbp_torch.compiled").find_compiler(backend.device)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    return backend


@pytest.fixture(scope="module", params=FOUR, ids=lambda case: case.name)
def trained(request):
    return Trained(request.param, DTYPES[request.param.name])


def runner_for(trained, backend):
    runner = backend.compile(trained.program, "compile")
    assert runner.engine == "compile"
    runner.load(put(backend, trained.tree, trained.dtype))
    return runner


def one_step(runner, trained, backend, rows, step):
    batch = [put(backend, part, trained.dtype) for part in trained.batch(rows)]
    scalars = {name: v[0] for name, v in trained.scalars(step).items()}
    return runner.step(*batch, put(backend, scalars, trained.dtype))


def test_a_step_is_the_interpreters(torch, trained):
    runner, tree = runner_for(trained, torch), trained.tree
    for step, size in enumerate([7, 5, 7], STARTED):
        tree, loss = trained.expected(tree, trained.batch(slice(0, size)), step)
        found = one_step(runner, trained, torch, slice(0, size), step)
        assert torch.owns(found)
        assert_close(torch.to_host(found), loss, trained.dtype, "loss")
        assert_trees_close(torch, runner.read(), tree, trained.dtype)
        runner.load(put(torch, tree, trained.dtype))


def test_sums_are_the_interpreters(torch, trained):
    program = trained.recorded("sums")
    given = {**flat({s: trained.tree[s] for s in ("params", "buffers")}), **inputs_of(*trained.data)}
    desired = Interpreter(program, np)(given)["sums"]
    actual = torch.function(program, "compile")(put(torch, given, trained.dtype))
    assert actual.keys() == {"sums"}
    assert_close(torch.to_host(actual["sums"]), desired, trained.dtype, "sums")


def test_a_run_is_as_many_steps_bit_for_bit(torch, trained):
    index = np.random.default_rng(2).integers(0, 40, (5, 7)).astype(np.int32)
    ran, stepped, steps = runner_for(trained, torch), runner_for(trained, torch), range(STARTED, STARTED + 5)
    data = [put(torch, part, trained.dtype) for part in trained.batch(slice(None))]
    every = [trained.scalars(step) for step in steps]
    tables = {name: np.concatenate([s[name] for s in every]) for name in every[0]}
    losses = ran.run(*data, torch.asarray(index), put(torch, tables, trained.dtype))
    one_by_one = [one_step(stepped, trained, torch, index[i], step) for i, step in enumerate(steps)]
    np.testing.assert_array_equal(torch.to_host(losses), [torch.to_host(loss) for loss in one_by_one])
    a, b = flat(ran.read()), flat(stepped.read())
    for name in a:
        np.testing.assert_array_equal(torch.to_host(a[name]), torch.to_host(b[name]))


def test_five_and_five_epochs_are_ten(torch, trained):
    case = trained.case
    x, t, w = case.data(trained.dtype)
    whole, halves, eager = (case.trainer(torch, trained.dtype, engine) for engine in ("compile", "compile", "eager"))
    whole.fit(x, t, sample_weight=w, epochs=10, batch_size=7)
    for _ in range(2):
        halves.fit(x, t, sample_weight=w, epochs=5, batch_size=7)
    assert whole.engine == halves.engine == "compile"
    assert halves.history == whole.history
    for section, arrays in whole._tree().items():
        assert_same(host(halves.model, halves._tree()[section]), host(whole.model, arrays))
    eager.fit(x, t, sample_weight=w, epochs=10, batch_size=7)
    np.testing.assert_allclose(whole.history["loss"], eager.history["loss"], rtol=1e-3)
    assert eager.engine == "eager"


def test_many_batch_sizes_share_code_and_none_is_compiled_twice(torch, monkeypatch):
    small = Trained(CASES[0], "float32")
    module = importlib.import_module("xbp_torch.compiled")
    monkeypatch.setattr(module, "SIZES", 1)
    monkeypatch.setattr(module, "_compiled", {})
    runner, tree = runner_for(small, torch), small.tree
    for step, size in enumerate([7, 5, 3, 6, 7, 5], STARTED):
        tree, loss = small.expected(tree, small.batch(slice(0, size)), step)
        assert_close(torch.to_host(one_step(runner, small, torch, slice(0, size), step)), loss, "float32", "loss")
        assert_trees_close(torch, runner.read(), tree, "float32")
        runner.load(put(torch, tree, "float32"))
    graphs = importlib.import_module("torch._dynamo.utils").counters["stats"]["unique_graphs"]
    for size in (4, 6, 2):
        one_step(runner, small, torch, slice(0, size), 9)
    assert list(runner._code._own) == [7]
    assert importlib.import_module("torch._dynamo.utils").counters["stats"]["unique_graphs"] == graphs
    assert runner_for(small, torch)._code is runner._code


def test_losses_and_given_arrays_stay_and_rows_may_lie_anyhow(torch):
    trained = Trained(FOUR[0], DTYPES[FOUR[0].name])
    tree = put(torch, trained.tree, trained.dtype)
    runner = torch.compile(trained.program, "compile")
    runner.load(tree)
    x, t, _ = [put(torch, part, trained.dtype) for part in trained.batch(slice(0, 7))]
    scalars = put(torch, {name: v[0] for name, v in trained.scalars(STARTED).items()}, trained.dtype)
    first = runner.step(x, t, None, scalars)
    before = float(first)
    held = {name: torch.to_host(a) for name, a in flat(runner.read()).items()}
    for _ in range(3):
        runner.step(x, t, None, scalars)
    assert float(first) == before
    for name, a in flat(trained.tree).items():
        np.testing.assert_array_equal(torch.to_host(flat(tree)[name]), a)
    runner.load(tree)
    strided = x.T.contiguous().T
    assert not strided.is_contiguous()
    assert float(runner.step(strided, t, None, scalars)) == before
    assert_same({name: torch.to_host(a) for name, a in flat(runner.read()).items()}, held)


@pytest.mark.falls_back  # that is what it is about
def test_a_missing_compiler_is_named_before_training(torch, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(importlib.import_module("xbp_torch.compiled"), "_compiled", {})
    trained = Trained(FOUR[0], "float32")
    with pytest.raises(BackendUnavailable, match=r"C\+\+ compiler, and there is no 'no-such-compiler'.*apt install g"):
        torch.compile(trained.program, "compile")
    trainer = FOUR[0].trainer(torch, "float32", "compile")
    trainer.step(*FOUR[0].data("float32")[:2])
    assert trainer.engine == "eager"
    assert "C++ compiler" in caplog.text


def test_what_inductor_cannot_compile_is_said_so(torch, monkeypatch):
    inductor = importlib.import_module("torch._inductor")

    def fails(*args, **options):
        raise RuntimeError("a compiler that crashed")

    monkeypatch.setattr(inductor, "compile", fails)
    monkeypatch.setattr(importlib.import_module("xbp_torch.compiled"), "_compiled", {})
    recorder = Recorder()
    x = recorder.input("x", ("N", 3))
    program = recorder.program("scores", {"scores": x + 1.0})
    with pytest.raises(NotCompiled, match="RuntimeError: a compiler that crashed"):
        torch.function(program, "compile")({"x": torch.asarray(np.zeros((2, 3), dtype=np.float32))})


def test_an_engine_that_torch_does_not_have_is_refused(torch):
    assert torch.engines == ("eager", "compile")
    program = Trained(CASES[0], "float32").program
    for method in (torch.compile, torch.function):
        with pytest.raises(BackendUnavailable, match=r"no engine 'jit'\. It has: eager, compile"):
            method(program, "jit")
