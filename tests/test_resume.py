"""Stopping and going on: 5 + 5 epochs are 10, bit for bit, wherever it runs."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xbp
from training_helpers import BACKENDS, assert_same, backend_or_skip, blobs, classifier, host, line, trainer_for
from xbp.callbacks import EarlyStopping, ReduceLROnPlateau
from xbp.schedules import Cosine, WarmUp


def everything(trainer):
    tree = trainer._tree()
    return {section: host(trainer.model, arrays) for section, arrays in tree.items()}


def a_trainer(backend):
    model = classifier(backend, extra=[xbp.BatchNorm(16), xbp.Dropout(0.2)])
    return trainer_for(
        model,
        optimizer=xbp.AdamW(WarmUp(5, Cosine(0.02, 100)), decay=lambda name: name.endswith("W")),
        clip_norm=1.0,
        metrics=["top_k_accuracy"],
    )


@pytest.mark.parametrize("name", BACKENDS)
def test_five_and_five_epochs_are_ten(name, tmp_path):
    backend = backend_or_skip(name)
    x, t = blobs()
    data = {"batch_size": 13, "validation": (x[:30], t[:30])}
    whole = a_trainer(backend)
    whole.fit(x, t, epochs=10, **data)
    first = a_trainer(backend)
    first.fit(x, t, epochs=5, **data)
    first.save(tmp_path / "half.safetensors")
    second = xbp.Trainer.load(tmp_path / "half.safetensors", backend=backend)
    history = second.fit(x, t, epochs=5, **data)
    assert history == whole.history
    assert (second.epoch, second.steps) == (10, whole.steps)
    a, b = everything(whole), everything(second)
    for section in ("params", "buffers", "state"):
        assert_same(a[section], b[section])


def test_fitting_twice_is_fitting_once():
    x, t = blobs()
    whole, halves = a_trainer("numpy"), a_trainer("numpy")
    whole.fit(x, t, epochs=4)
    halves.fit(x, t, epochs=1)
    halves.fit(x, t, epochs=3)
    assert halves.history == whole.history
    assert_same(everything(whole)["params"], everything(halves)["params"])


def test_a_model_trained_on_one_backend_opens_on_any_other(tmp_path):
    x, t = blobs()
    trainer = a_trainer("numpy")
    trainer.fit(x, t, epochs=2)
    trainer.model.metadata["classes"] = ["a", "b", "c"]
    trainer.save(tmp_path / "model.safetensors")
    expected = trainer.model.predict(x)
    for name in ("torch", "jax", "strict"):
        model = xbp.Network.load(tmp_path / "model.safetensors", backend=backend_or_skip(name))
        assert model.backend.name == name
        assert model.metadata == {"classes": ["a", "b", "c"]}
        np.testing.assert_allclose(model.backend.to_host(model.predict(x)), expected, rtol=2e-5, atol=1e-6)


def test_the_file_is_safetensors_that_others_read_and_json_that_people_read(tmp_path):
    from safetensors.numpy import load_file

    model = classifier()
    model.save(tmp_path / "m.safetensors")
    arrays = load_file(tmp_path / "m.safetensors")
    assert_same(arrays, host(model, {**model.params, **model.buffers}))
    described = json.loads((tmp_path / "m.safetensors.json").read_text(encoding="utf-8"))
    assert "Affine" in json.dumps(described)


def test_a_graph_comes_back(tmp_path):
    graph = xbp.Graph(
        {
            "h": (xbp.Affine(6, 5), "x"), "s": (xbp.Add(), "h", "g"),
            "g": (xbp.Tanh(), "h"), "y": (xbp.Affine(5, 3), "s"),
        },
        inputs=["x"], output="y", backend="numpy",
    )  # fmt: skip
    x, t = blobs()
    trainer = trainer_for(graph)
    trainer.fit(x, t, epochs=2)
    trainer.save(tmp_path / "g.safetensors")
    again = xbp.Trainer.load(tmp_path / "g.safetensors", backend="numpy")
    np.testing.assert_array_equal(again.model.predict(x), graph.predict(x))
    with pytest.raises(xbp.CheckpointError, match=r"xbp\.Graph\.load"):
        xbp.Network.load(tmp_path / "g.safetensors")


def test_settings_come_back(tmp_path):
    model = classifier(dtype="float64")
    trainer = trainer_for(
        model, loss=xbp.SoftmaxCrossEntropy(label_smoothing=0.1), clip_norm=2.5, accumulate=2, trainable=["2.W"]
    )
    trainer.lr = 0.003
    trainer.save(tmp_path / "t")
    again = xbp.Trainer.load(tmp_path / "t", backend="numpy")
    assert again.loss == trainer.loss
    assert again.lr == 0.003
    assert again._step.clip_norm == 2.5
    assert again._step.accumulate == 2
    assert again._step.trainable == ("2.W",)
    assert again.engine == trainer.engine
    assert again.model.dtype == "float64"


def test_callbacks_decide_after_a_resume_as_without_one(tmp_path):
    x, t = blobs()
    held = (x[:40] + 3.0, t[:40])  # shifted, so that it soon gets worse

    def callbacks():
        return [EarlyStopping(patience=6), ReduceLROnPlateau(patience=2, factor=0.5)]

    whole = trainer_for(classifier())
    whole.fit(x, t, epochs=40, validation=held, callbacks=callbacks())
    assert whole.stop_reason == "early_stopping"
    first = trainer_for(classifier())
    stop_at = whole.epoch - 2
    # A fit that ends restores the best weights, so the first half must not: it watches without restoring.
    first.fit(x, t, epochs=stop_at, validation=held, callbacks=[ReduceLROnPlateau(patience=2, factor=0.5)])
    first.save(tmp_path / "t")
    second = xbp.Trainer.load(tmp_path / "t", backend="numpy")
    second.fit(x, t, epochs=40, validation=held, callbacks=callbacks())
    assert second.history == whole.history
    assert second.stop_reason == whole.stop_reason


def test_an_own_schedule_function_cannot_be_saved_and_says_so(tmp_path):
    trainer = trainer_for(classifier(), optimizer=xbp.SGD(lambda step: 0.1))
    with pytest.raises(xbp.CheckpointError, match="frozen dataclass"):
        trainer.save(tmp_path / "t")
    assert not (tmp_path / "t").exists()


def test_a_model_file_is_no_trainer_file(tmp_path):
    classifier().save(tmp_path / "m")
    with pytest.raises(xbp.CheckpointError, match=r"xbp\.Network\.load"):
        xbp.Trainer.load(tmp_path / "m")


def test_regression_resumes_with_float64(tmp_path):
    x, t = line()
    model = xbp.Network([xbp.Affine(4, 8), xbp.Tanh(), xbp.Affine(8, 2)], backend="numpy", dtype="float64")
    whole = xbp.Trainer(model, loss=xbp.MeanSquaredError(), optimizer=xbp.RMSProp(0.01), metrics=["r2"])
    whole.fit(x, t, epochs=2)
    whole.save(tmp_path / "t")
    again = xbp.Trainer.load(tmp_path / "t", backend="numpy")
    assert whole.fit(x, t, epochs=2) == again.fit(x, t, epochs=2)
