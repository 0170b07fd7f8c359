"""What `fit`, `step` and `evaluate` promise: right numbers for any data, batch size, weighting and engine."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from training_helpers import BACKENDS, assert_same, backend_or_skip, blobs, classifier, host, line, trainer_for
from xbp.layers import Affine, BatchNorm, Dropout, ReLU


@pytest.mark.parametrize("name", BACKENDS)
def test_it_learns_and_results_are_arrays_of_the_backend(name):
    backend = backend_or_skip(name)
    x, t = blobs()
    trainer = trainer_for(classifier(backend))
    history = trainer.fit(x, t, epochs=15, batch_size=16, validation=(x, t))
    assert history["val_accuracy"][-1] > 0.97
    assert history["loss"][-1] < 0.3 * history["loss"][0]
    assert trainer.stop_reason == "epochs"
    scores = trainer.model.predict(x)
    assert backend.owns(scores)
    assert scores.dtype == backend.dtype("float32")
    loss = trainer.step(x[:8], t[:8])
    assert backend.owns(loss)
    assert loss.shape == ()


def test_fit_is_steps_over_the_permuted_rows():
    x, t = blobs(50)
    by_fit, by_step = trainer_for(classifier()), trainer_for(classifier())
    history = by_fit.fit(x, t, epochs=2, batch_size=16)
    for epoch in range(2):
        order = xbp.random.epoch_order(0, epoch, 50)
        losses = [by_step.step(x[order[i : i + 16]], t[order[i : i + 16]]) for i in range(0, 50, 16)]
        mean = np.average([float(v) for v in losses], weights=[16, 16, 16, 2])
        assert history["loss"][epoch] == pytest.approx(mean, rel=1e-6)
    assert_same(host(by_fit.model, by_fit.model.params), host(by_step.model, by_step.model.params))


def test_a_hand_written_loop_is_the_trainer():
    x, t = blobs(64)
    net, trainer = classifier(dtype="float64"), trainer_for(classifier(dtype="float64"), optimizer=xbp.SGD(0.1))
    trainer.fit(x, t, epochs=3, batch_size=64, shuffle=False)
    loss = xbp.SoftmaxCrossEntropy()
    for _ in range(3):
        _, dy = loss.value_and_grad(net.forward(x, train=True), t)
        net.backward(dy)
        for name in net.params:
            net.params[name] = net.params[name] - 0.1 * net.grads[name]
    for name in net.params:
        np.testing.assert_allclose(net.params[name], trainer.model.params[name], rtol=1e-12)


@pytest.mark.parametrize("name", BACKENDS)
def test_parameters_assigned_between_steps_are_seen(name):
    x, t = blobs(16)
    trainer = trainer_for(classifier(backend_or_skip(name)), optimizer=xbp.SGD(0.0))
    net = trainer.model
    before = float(net.backend.to_host(trainer.step(x, t)))
    for key in net.params:
        net.params[key] = net.params[key] * 0.0
    after = float(net.backend.to_host(trainer.step(x, t)))
    assert before != pytest.approx(np.log(3), rel=1e-4)
    assert after == pytest.approx(np.log(3), rel=1e-6)


def test_two_trainers_share_one_model():
    x, t = blobs(32)
    model = classifier()
    first, second = trainer_for(model, optimizer=xbp.SGD(0.1)), trainer_for(model, optimizer=xbp.SGD(0.1))
    alone = trainer_for(classifier(), optimizer=xbp.SGD(0.1))
    for trainer in (first, second, first, second):
        trainer.step(x, t)
        alone.step(x, t)
    assert_same(host(model, model.params), host(alone.model, alone.model.params))


@pytest.mark.parametrize("weighted", [False, True])
def test_accumulation_equals_the_large_batch(weighted):
    x, t = blobs(60)
    w = np.random.default_rng(0).random(60) if weighted else None
    models = []
    for pieces in (1, 4, 7):
        model = classifier(dtype="float64", extra=[Dropout(0.3)])
        trainer = trainer_for(model, optimizer=xbp.SGD(0.1), accumulate=pieces)
        history = trainer.fit(x, t, sample_weight=w, epochs=2, batch_size=25)
        models.append((host(model, model.params), history["loss"]))
    for params, losses in models[1:]:
        np.testing.assert_allclose(losses, models[0][1], rtol=1e-12)
        for name in params:
            np.testing.assert_allclose(params[name], models[0][0][name], rtol=1e-11, atol=1e-13)


def test_accumulation_with_a_piece_of_weight_zero():
    x, t = blobs(8)
    w = np.array([0, 0, 0, 0, 1.0, 1, 1, 1])
    cut, whole = (trainer_for(classifier(dtype="float64"), accumulate=n) for n in (2, 1))
    assert float(cut.step(x, t, w)) == pytest.approx(float(whole.step(x, t, w)), rel=1e-12)
    assert float(cut.step(x, t, w * 0)) == 0.0


def test_accumulation_is_refused_with_batch_norm():
    with pytest.raises(ValueError, match=r"accumulate=2.*BatchNorm.*LayerNorm"):
        trainer_for(classifier(extra=[BatchNorm(16)]), accumulate=2)


@pytest.mark.parametrize("trainable", [["2.W"], lambda name: name.startswith("2.")])
def test_frozen_parameters_stay(trainable):
    x, t = blobs()
    trainer = trainer_for(classifier(), trainable=trainable)
    before = host(trainer.model, trainer.model.params)
    trainer.fit(x, t, epochs=1)
    after = host(trainer.model, trainer.model.params)
    np.testing.assert_array_equal(before["0.W"], after["0.W"])
    assert (before["2.W"] != after["2.W"]).any()


def test_unknown_and_empty_choices_of_parameters_are_refused():
    with pytest.raises(xbp.NameUnknown, match=r"'2.w'.*'2.W'"):
        trainer_for(classifier(), trainable=["2.w"])
    with pytest.raises(ValueError, match="selects none"):
        trainer_for(classifier(), trainable=lambda name: False)


def test_sample_weight_is_repetition_and_zero_is_absence():
    x, t = blobs(20)
    counts = np.arange(20) % 3
    weighted = trainer_for(classifier(dtype="float64"), optimizer=xbp.SGD(0.1))
    repeated = trainer_for(classifier(dtype="float64"), optimizer=xbp.SGD(0.1))
    weighted.fit(x, t, sample_weight=counts, epochs=3, batch_size=20)
    repeated.fit(np.repeat(x, counts, 0), np.repeat(t, counts), epochs=3, batch_size=100)
    for name, value in weighted.model.params.items():
        np.testing.assert_allclose(value, repeated.model.params[name], rtol=1e-10)
    a = weighted.evaluate(x, t, counts)
    b = repeated.evaluate(np.repeat(x, counts, 0), np.repeat(t, counts))
    assert a == pytest.approx(b, rel=1e-10)


def test_the_ragged_last_batch_is_weighted_by_its_rows():
    x, t = blobs(10)
    trainer = trainer_for(classifier(dtype="float64"), optimizer=xbp.SGD(0.0))
    history = trainer.fit(x, t, epochs=1, batch_size=4)
    assert history["loss"][0] == pytest.approx(trainer.evaluate(x, t)["loss"], rel=1e-12)


@pytest.mark.parametrize("rows", [1, 7, 4096])
def test_evaluation_does_not_depend_on_its_chunks(rows, monkeypatch):
    x, t = blobs(50)
    w = np.random.default_rng(0).random(50)
    trainer = trainer_for(classifier(dtype="float64"), metrics=["top_k_accuracy"])
    expected = trainer.evaluate(x, t, w)
    monkeypatch.setattr("xbp.evaluation.EVALUATION_ROWS", rows)
    assert trainer.evaluate(x, t, w) == pytest.approx(expected, rel=1e-12)


def test_a_memory_map_trains_as_the_array_does(tmp_path, monkeypatch):
    x, t = blobs(90)
    path = tmp_path / "x.npy"
    np.save(path, x)
    monkeypatch.setattr("xbp.data.SHARD", 8 * 6 * 20)  # 20 rows a shard
    histories = []
    for data in (x, np.load(path, mmap_mode="r")):
        trainer = trainer_for(classifier())
        histories.append(trainer.fit(data, t, sample_weight=np.ones(90), epochs=3, batch_size=8, validation=(data, t)))
    assert histories[0] == histories[1]


def test_an_iterable_of_batches():
    x, t = blobs(48)
    batches = [(x[i : i + 16], t[i : i + 16]) for i in range(0, 48, 16)]
    a, b = trainer_for(classifier()), trainer_for(classifier())
    by_stream = a.fit(iter_again(batches), epochs=2)
    by_rows = b.fit(x, t, epochs=2, batch_size=16, shuffle=False)
    assert by_stream["loss"] == pytest.approx(by_rows["loss"], rel=1e-6)
    with pytest.raises(xbp.DataError, match="used up"):
        trainer_for(classifier()).fit((b for b in batches), epochs=2)


def test_a_stream_that_is_left_in_the_middle_is_no_epoch():
    class Enough(xbp.callbacks.Callback):
        def on_chunk_end(self, trainer):
            return "enough" if trainer.steps == 5 else None

    x, t = blobs(n=48)
    batches = [(x[i : i + 16], t[i : i + 16]) for i in range(0, 48, 16)]
    trainer = trainer_for(classifier())
    history = trainer.fit(iter_again(batches), epochs=4, callbacks=[Enough()])
    assert (trainer.stop_reason, trainer.steps, trainer.epoch) == ("enough", 5, 1)
    assert (len(history["loss"]), len(trainer.step_losses)) == (1, 2)


def iter_again(batches):
    class Loader:
        def __iter__(self):
            return iter(batches)

    return Loader()


def test_a_data_frame_like_object_and_lists_are_moved():
    class Frame:
        def __init__(self, a):
            self.a = a

        def __array__(self, dtype=None, copy=None):
            return np.asarray(self.a, dtype=dtype)

    x, t = blobs(30)
    reference = trainer_for(classifier()).fit(x, t)
    assert trainer_for(classifier()).fit(Frame(x), Frame(t)) == reference
    assert trainer_for(classifier()).fit(x.tolist(), t.tolist()) == reference


def test_the_rate_can_be_set_and_scheduled():
    x, t = blobs(32)
    scheduled = trainer_for(classifier(), optimizer=xbp.SGD(xbp.schedules.StepDecay(0.1, every=2, factor=0.5)))
    by_hand = trainer_for(classifier(), optimizer=xbp.SGD(0.1))
    history = scheduled.fit(x, t, epochs=4, batch_size=32)
    for rate in (0.1, 0.1, 0.05, 0.05):
        by_hand.lr = rate
        by_hand.fit(x, t, epochs=1, batch_size=32)
    assert history["lr"] == [0.1, 0.1, 0.05, 0.05]
    assert history == by_hand.history
    with pytest.raises(ValueError, match="-1"):
        by_hand.lr = -1


def test_clipping_bounds_the_step():
    x, t = blobs(16)
    trainer = trainer_for(classifier(dtype="float64"), optimizer=xbp.SGD(1.0), clip_norm=1e-3)
    before = host(trainer.model, trainer.model.params)
    trainer.step(x, t)
    moved = [trainer.model.params[n] - before[n] for n in before]
    assert np.sqrt(sum((m * m).sum() for m in moved)) == pytest.approx(1e-3, rel=1e-9)


@pytest.mark.parametrize("name", ["torch", "jax", "strict"])
def test_nothing_is_copied_inside_an_epoch(name):
    backend = backend_or_skip(name)
    x, t = blobs(60)
    trainer = trainer_for(classifier(backend, extra=[Dropout(0.2)]))
    trainer.fit(x, t, epochs=1)
    counts = []
    for epochs in (1, 3):
        before = (backend.transfers.to_device, backend.transfers.to_host)
        trainer.fit(x, t, epochs=epochs, batch_size=4)
        counts.append((backend.transfers.to_device - before[0], backend.transfers.to_host - before[1]))
    per_epoch = [(b - a) / 2 for a, b in zip(*counts, strict=True)]
    assert per_epoch == [3, 1]  # the order, the rates, the keys; one vector of losses: whatever the number of steps


def test_regression_with_several_outputs_and_weights():
    x, t = line()
    model = xbp.Network([Affine(4, 2)], backend="numpy", dtype="float64")
    trainer = xbp.Trainer(model, loss=xbp.MeanSquaredError(), optimizer=xbp.Adam(0.05), metrics=["r2", "mae"])
    history = trainer.fit(x, t, epochs=60, validation=(x, t, np.ones(len(x))))
    assert history["val_r2"][-1] > 0.999
    assert set(history) == {"loss", "val_loss", "val_r2", "val_mae", "lr"}


def test_a_graph_with_two_inputs_is_trained():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    graph = xbp.Graph(
        {"s": (xbp.Add(), "a", "b"), "h": (Affine(3, 8), "s"), "r": (ReLU(), "h"), "y": (Affine(8, 1), "r")},
        inputs=["a", "b"], output="y", backend="numpy",
    )  # fmt: skip
    trainer = xbp.Trainer(graph, loss=xbp.MeanSquaredError(), optimizer=xbp.Adam(0.01))
    history = trainer.fit({"a": a, "b": b}, (a + b).sum(1), epochs=30, batch_size=10)
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    with pytest.raises(xbp.ShapeError, match="a, b"):
        trainer.fit(a, a[:, 0])


def test_batch_statistics_are_used_in_training_and_running_ones_afterwards():
    x, t = blobs()
    trainer = trainer_for(classifier(extra=[BatchNorm(16)]))
    trainer.fit(x, t, epochs=5)
    mean = trainer.model.backend.to_host(trainer.model.buffers["1.running_mean"])
    assert np.abs(mean).max() > 0.1
    assert trainer.evaluate(x, t)["accuracy"] > 0.95
    with pytest.raises(xbp.ShapeError, match="one row"):
        trainer.fit(x[:33], t[:33], batch_size=32)
    with pytest.raises(xbp.ShapeError, match="one row"):
        trainer.step(x[:1], t[:1])


def test_a_squashed_output_before_the_loss_warns():
    model = xbp.Network([Affine(6, 3), xbp.Sigmoid()], backend="numpy")
    with pytest.warns(UserWarning, match=r"ends in Sigmoid\(\).*end the network in Affine"):
        trainer_for(model)
