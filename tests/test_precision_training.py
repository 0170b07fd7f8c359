"""Trainings in mixed precision: what is refused, learning as well as in float32, the loss scale, resuming."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

import xbp
from precision_helpers import AFFINE, HALVES, affine_and_back, in_both, interpreted, normal, recorded, same_bits
from test_engine_choice import Foreign
from training_helpers import assert_same, backend_or_skip, blobs, classifier, host, trainer_for
from xbp import scaling
from xbp.errors import DTypeError, RecordingError
from xbp.layers.base import Result
from xbp.program import in_precision, tf32
from xbp.recording import record, signature_of

MIXED = [f"mixed-{half}" for half in HALVES]
ENGINES = [("torch", "eager"), ("jax", "jit")]
on_each = pytest.mark.parametrize(("name", "engine"), ENGINES, ids=str)


def everything(trainer):
    return {section: host(trainer.model, arrays) for section, arrays in trainer._tree().items()}


def assert_all_same(a, b):
    for section in ("params", "buffers", "state"):
        assert_same(a[section], b[section])


# --- what can be had, and where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["tf32", "mixed-bfloat16", "mixed-float16"])
@pytest.mark.parametrize("name", ["numpy", "strict"])
def test_a_backend_without_it_names_those_that_have_it(name, precision):
    model = classifier(backend_or_skip(name))
    here = "torch" if any(b.name == "torch" and b.available for b in xbp.available_backends()) else ""
    has = "" if precision == "tf32" else f".*{here}"
    with pytest.raises(DTypeError, match=rf"Backend '{name}' has no precision '{precision}'\. It has: float32.{has}"):
        trainer_for(model, precision=precision)


def test_wrong_precisions_are_refused_before_anything_is_made():
    torch = backend_or_skip("torch")
    with pytest.raises(ValueError, match=r"Unknown precision 'mixed-bfloat61'\. Did you mean 'mixed-bfloat16'"):
        trainer_for(classifier(torch), precision="mixed-bfloat61")
    with pytest.raises(DTypeError, match="is for models of float32, and this one is of float64"):
        trainer_for(classifier(torch, dtype="float64"), precision="mixed-bfloat16")
    assert trainer_for(classifier(torch, dtype="float64")).precision == "float32"


@in_both
@pytest.mark.parametrize(("name", "engine"), [("torch", "eager"), ("jax", "eager"), ("jax", "jit")])
def test_a_trainer_steps_and_predicts_in_its_precision(name, engine, half):
    backend = backend_or_skip(name)
    x, t = blobs(32)
    trainer = trainer_for(classifier(backend), precision=f"mixed-{half}", engine=engine)
    trainer.step(x, t)
    assert (trainer.engine, trainer.precision) == (engine, f"mixed-{half}")
    assert f": {half}[N, 16] = astype(" in str(trainer.program)
    assert {str(a.dtype).rpartition(".")[2] for a in trainer.model.params.values()} == {"float32"}
    arrays = {f"params.{k}": backend.to_host(a) for k, a in trainer.model.params.items()} | {"x": x}
    scores = trainer._engine.program("scores", signature_of(x, None, None))
    wanted = interpreted(scores, arrays)["scores"]
    plain = interpreted(record("scores", replace(trainer._step, precision="float32"), trainer._tree(),
                               signature_of(x, None, None)), arrays)["scores"]  # fmt: skip
    found = backend.to_host(trainer.model.predict(x))
    assert np.abs(found - wanted).max() < 0.05 * np.abs(plain - wanted).max()


def test_tf32_marks_the_products_and_changes_no_number_where_there_is_none():
    program = recorded(affine_and_back, AFFINE)
    marked = tf32(program)
    assert str(marked).replace(", precision=tf32", "") == str(program)
    assert str(marked).count("precision=tf32") == 3
    assert str(in_precision(program, "tf32")) == str(marked)
    arrays = {name: normal(*(5 if n == "N" else n for n in shape)) for name, shape in AFFINE.items()}
    for name, a in interpreted(marked, arrays).items():
        same_bits(a, interpreted(program, arrays)[name])


def test_tf32_is_switched_on_while_a_step_runs_and_only_then():
    torch = pytest.importorskip("torch", reason="the switch is PyTorch's")
    from xbp_torch import products_of

    program = recorded(affine_and_back, AFFINE)
    with products_of(program, torch)():
        assert torch.get_float32_matmul_precision() == "highest"
    seen = []

    def fail():
        with products_of(tf32(program), torch)():
            seen.append(torch.get_float32_matmul_precision())
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fail()
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == "highest"
    assert "tf32" not in backend_or_skip("torch").precisions  # of a CPU


def test_what_cannot_be_recorded_has_no_precision_but_its_own():
    torch = backend_or_skip("torch")
    trainer = trainer_for(classifier(torch, extra=[Foreign()]), precision="mixed-bfloat16", engine="eager")
    x, t = blobs(16)
    with pytest.raises(RecordingError, match="cannot be recorded"):
        trainer.step(x, t)


# --- learning ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.data[order] / 16.0).astype(np.float32), data.target[order]


def accuracy(digits, name, engine, precision):
    x, t = digits
    layers = [xbp.Affine(64, 64), xbp.ReLU(), xbp.Affine(64, 32), xbp.ReLU(), xbp.Affine(32, 10)]
    net = xbp.Network(layers, backend=backend_or_skip(name), seed=0)
    trainer = trainer_for(net, optimizer=xbp.Adam(3e-3), metrics=["accuracy"], engine=engine, precision=precision)
    trainer.fit(x[:1000], t[:1000], epochs=15, batch_size=50)
    return trainer.evaluate(x[1000:], t[1000:])["accuracy"]


@on_each
def test_digits_are_learned_as_well_as_in_float32(name, engine, digits):
    wanted = accuracy(digits, name, engine, "float32")
    assert wanted > 0.94
    for precision in MIXED:
        assert abs(accuracy(digits, name, engine, precision) - wanted) <= 0.005, precision


@pytest.mark.parametrize("precision", MIXED)
@on_each
def test_pieces_of_a_batch_make_the_whole(name, engine, precision):
    x, t = blobs(40)
    w = np.random.default_rng(3).uniform(0.5, 2.0, 40).astype(np.float32)
    both = []
    for accumulate in (1, 3):
        model = classifier(backend_or_skip(name), extra=[xbp.LayerNorm(16), xbp.Dropout(0.3)])
        trainer = trainer_for(
            model, optimizer=xbp.SGD(0.1), accumulate=accumulate, clip_norm=1.0, engine=engine, precision=precision
        )
        loss = float(trainer.step(x, t, w))
        both.append({"loss": np.asarray(loss), **everything(trainer)["params"]})
    for key, a in both[0].items():
        # The products are those of the same rounded numbers; gradients arrive with another factor, so round elsewhere.
        np.testing.assert_allclose(both[1][key], a, rtol=0.01, atol=2e-3, err_msg=key)


@pytest.mark.parametrize("precision", MIXED)
@on_each
def test_two_and_two_epochs_are_four(name, engine, precision, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "INTERVAL", 7)  # so that the scale changes on the way

    def begin():
        model = classifier(backend_or_skip(name), extra=[xbp.BatchNorm(16), xbp.Dropout(0.2)])
        return trainer_for(model, clip_norm=1.0, engine=engine, precision=precision)

    x, t = blobs()
    data = {"batch_size": 13, "validation": (x[:30], t[:30])}
    whole, first = begin(), begin()
    whole.fit(x, t, epochs=4, **data)
    first.fit(x, t, epochs=2, **data)
    first.save(tmp_path / "half.safetensors")
    second = xbp.Trainer.load(tmp_path / "half.safetensors", backend=backend_or_skip(name))
    assert (second.precision, second.engine) == (precision, engine)
    assert second.fit(x, t, epochs=2, **data) == whole.history
    assert second.steps == whole.steps == 40
    assert_all_same(everything(second), everything(whole))
    if precision == "mixed-float16":
        assert everything(whole)["state"]["loss_scale"] > scaling.START


def test_a_checkpoint_opens_in_other_precisions(tmp_path, caplog):
    torch, (x, t) = backend_or_skip("torch"), blobs()
    half = trainer_for(classifier(torch), engine="eager", precision="mixed-float16")
    half.fit(x, t, epochs=1)
    half.save(tmp_path / "half")
    with caplog.at_level(logging.WARNING, logger="xbp.checkpoint"):
        plain = xbp.Trainer.load(tmp_path / "half", backend="numpy")
    assert "'mixed-float16', which backend 'numpy' does not have; the training goes on in float32" in caplog.text
    assert plain.precision == "float32"
    plain.fit(x, t, epochs=1)
    plain.save(tmp_path / "plain")
    again = xbp.Trainer.load(tmp_path / "plain", backend=torch, precision="mixed-float16")
    assert (again.precision, float(again._tree()["state"]["loss_scale"])) == ("mixed-float16", scaling.START)
    assert_same(everything(again)["params"], everything(plain)["params"])
    again.fit(x, t, epochs=1)
    assert again.steps == 12


# --- the loss scale ---------------------------------------------------------------------------------------------------


def state(factor, good, skipped=0):
    return {
        "loss_scale": np.asarray(factor, np.float32),
        "good_steps": np.asarray(good, np.int32),
        "skipped_steps": np.asarray(skipped, np.int32),
    }


@pytest.mark.parametrize(
    ("before", "taken", "after"),
    [
        (state(2.0**16, 0), True, state(2.0**16, 1)),
        (state(2.0**16, 1998), True, state(2.0**16, 1999)),
        (state(2.0**16, 1999, 5), True, state(2.0**17, 0, 5)),
        (state(2.0**16, 1999, 5), False, state(2.0**15, 0, 6)),
        (state(2.0**32, 1999), True, state(2.0**32, 0)),
        (state(2.0**-32, 3), False, state(2.0**-32, 0, 1)),
    ],
)
def test_the_scale_grows_slowly_and_falls_at_once(space, before, taken, after):
    given = {name: space.backend.asarray(a) for name, a in before.items()}
    taken = space.backend.asarray(np.asarray(taken))
    found = scaling.updated(given, taken, xp=space.xp)
    for name, a in after.items():
        np.testing.assert_array_equal(space.backend.to_host(found[name]), a, strict=True)


def test_one_entry_that_is_not_finite_is_enough(space):
    good = [np.ones((2, 3), np.float32), np.zeros(4, np.float32)]
    for bad in (None, math.inf, -math.inf, math.nan):
        arrays = [a.copy() for a in good]
        if bad is not None:
            arrays[1][2] = bad
        found = scaling.all_finite([space.backend.asarray(a) for a in arrays], xp=space.xp)
        assert bool(space.backend.to_host(found)) == (bad is None)


@pytest.mark.parametrize("accumulate", [1, 2])
@on_each
def test_an_overflow_skips_the_step_and_halves_the_scale(name, engine, accumulate):
    backend, (x, t) = backend_or_skip(name), blobs(60)
    extra = [] if accumulate > 1 else [xbp.BatchNorm(16)]
    model = classifier(backend, extra=extra)
    options = {"engine": engine, "precision": "mixed-float16", "accumulate": accumulate, "clip_norm": 10.0}
    trainer = trainer_for(model, optimizer=xbp.Adam(1e-2), **options)
    trainer._state["loss_scale"] = backend.asarray(np.asarray(2.0**30, np.float32))
    before = everything(trainer)
    loss = float(trainer.step(x, t))
    after = everything(trainer)
    assert math.isfinite(loss)
    assert_same(after["params"], before["params"])
    assert_same(after["buffers"], before["buffers"])
    assert (after["state"]["loss_scale"], after["state"]["skipped_steps"], trainer.steps) == (2.0**29, 1, 1)
    for key in before["state"].keys() - set(scaling.NAMES):
        np.testing.assert_array_equal(after["state"][key], before["state"][key], err_msg=key)
    history = trainer.fit(x, t, epochs=10, batch_size=20)  # overflows at first: no `NonFiniteLoss`
    now = everything(trainer)["state"]
    assert now["loss_scale"] <= 2.0**24
    assert now["skipped_steps"] >= 6
    assert now["step"] + now["skipped_steps"] == trainer.steps == 31
    assert history["loss"][-1] < 0.7 * loss
    trainer._recount()
    assert trainer.steps == 31


@on_each
def test_a_loss_that_is_not_finite_is_told_as_ever(name, engine):
    x, t = blobs(40)
    trainer = trainer_for(
        classifier(backend_or_skip(name)), optimizer=xbp.SGD(1e30), engine=engine, precision="mixed-float16"
    )
    before = everything(trainer)["params"]
    with pytest.raises(xbp.NonFiniteLoss):
        trainer.fit(x, t, epochs=3, batch_size=20)
    assert_same(everything(trainer)["params"], before)


@dataclass(frozen=True)
class Poisoned(xbp.Layer):
    """Identity, whose gradient is none."""

    def forward(self, x, /, *, params, buffers, mode, xp):
        return Result(x * 1.0, None)

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        return dy * math.nan, {}


def test_gradients_that_are_finite_at_no_scale_are_not_hidden():
    x, t = blobs(40)
    model = classifier(backend_or_skip("torch"), extra=[Poisoned()])
    before = host(model, model.params)
    trainer = trainer_for(model, precision="mixed-float16", engine="eager")
    with pytest.raises(xbp.NonFiniteLoss):
        trainer.fit(x, t, epochs=60, batch_size=40)
    assert trainer.steps >= 47  # halved from 2**16 to 2**-32 before
    assert_same(host(model, model.params), before)


def test_small_gradients_survive_in_float16_because_of_the_scale():
    """A share of 1e-7, as of rows with little weight: without a scale, float16 has no number for its gradients."""
    x, t = blobs(32)
    torch = backend_or_skip("torch")
    step = trainer_for(classifier(torch), precision="mixed-float16", engine="eager")._step
    tree = trainer_for(classifier(torch))._tree()
    batch = torch.asarray(x), torch.asarray(t.astype(np.int32))
    grads = {}
    for scale in (1.0, 2.0**16):
        program = record("piece", step, tree, signature_of(*batch, None))
        arrays = {f"params.{k}": torch.to_host(a) for k, a in tree["params"].items()} | {"x": x, "t": t.astype("i4")}
        now = {"share": np.float32(1e-7), "first_row": np.int32(0), "scale": np.float32(scale)}
        grads[scale] = interpreted(program, arrays | now)["grads.0.W"]
    plain = record("piece", replace(step, precision="float32"), tree, signature_of(*batch, None))
    wanted = interpreted(plain, arrays | now)["grads.0.W"]
    assert np.abs(grads[2.0**16] - wanted).max() < 0.01 * np.abs(wanted).max()
    assert np.abs(grads[1.0] - wanted).max() > 0.5 * np.abs(wanted).max()
