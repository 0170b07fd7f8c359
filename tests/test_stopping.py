"""Every way in which a training ends: the reason is reported, the weights are whole, and the best are brought back."""

from __future__ import annotations

import io
import os
import signal
import threading
import time

import numpy as np
import pytest

import xbp
from training_helpers import BACKENDS, assert_same, backend_or_skip, blobs, classifier, host, line, trainer_for
from xbp.callbacks import (
    Callback,
    EarlyStopping,
    GradientNorm,
    Progress,
    ReduceLROnPlateau,
    TargetMetric,
    TimeLimit,
)


def shifted():
    """Training data, and validation data on which the training soon does worse."""
    x, t = blobs()
    return x, t, (x[:40] + 3.0, t[:40])


def test_epochs():
    x, t = blobs()
    trainer = trainer_for(classifier())
    trainer.fit(x, t, epochs=3)
    assert (trainer.stop_reason, trainer.epoch) == ("epochs", 3)
    assert trainer.fit(x, t, epochs=0) == trainer.history


def test_early_stopping_brings_the_best_weights_back():
    x, t, held = shifted()
    trainer = trainer_for(classifier())

    class Keep(Callback):
        seen: list = []  # noqa: RUF012  # one test, one list

        def on_epoch_end(self, view):
            self.seen.append(host(view.model, view.model.params))

    watch = Keep()
    history = trainer.fit(x, t, epochs=200, validation=held, callbacks=[EarlyStopping(patience=4), watch])
    best = int(np.argmin(history["val_loss"]))
    assert trainer.stop_reason == "early_stopping"
    assert trainer.epoch == best + 5 < 200
    assert_same(host(trainer.model, trainer.model.params), watch.seen[best])
    assert trainer.evaluate(*held)["loss"] == pytest.approx(min(history["val_loss"]), rel=1e-6)


def test_early_stopping_on_accuracy_looks_for_the_highest():
    x, t, held = shifted()
    trainer = trainer_for(classifier(), optimizer=xbp.SGD(0.0))
    trainer.fit(x, t, epochs=50, validation=held, callbacks=[EarlyStopping("val_accuracy", patience=3)])
    assert trainer.epoch == 4  # the first is the best, and nothing improves on it


def test_an_unknown_quantity_is_named_with_the_nearest():
    x, t, held = shifted()
    with pytest.raises(xbp.NameUnknown, match=r"'val_acc'.*Did you mean 'val_accuracy'"):
        trainer_for(classifier()).fit(x, t, validation=held, callbacks=[EarlyStopping("val_acc")])
    with pytest.raises(xbp.NameUnknown, match="mode"):
        EarlyStopping(mode="maximum")


def test_target():
    x, t = blobs()
    trainer = trainer_for(classifier())
    trainer.fit(x, t, epochs=200, callbacks=[TargetMetric(0.2)])
    assert trainer.stop_reason == "target_reached"
    assert trainer.history["loss"][-1] <= 0.2 < trainer.history["loss"][-2]


def test_time_limit_stops_inside_an_epoch():
    x, t = blobs(2000)
    trainer = trainer_for(classifier())
    begin = time.monotonic()
    trainer.fit(x, t, epochs=10**6, batch_size=1, callbacks=[TimeLimit(0.3)])
    assert trainer.stop_reason == "time_limit"
    assert time.monotonic() - begin < 30  # far from the days that the epochs would take
    assert trainer.steps > 0
    assert np.isfinite(trainer.evaluate(x, t)["loss"])


def test_gradient_norm():
    x, t = line()
    model = xbp.Network([xbp.Affine(4, 2)], backend="numpy", dtype="float64")
    trainer = xbp.Trainer(model, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.2))
    trainer.fit(x, t, epochs=5000, batch_size=80, callbacks=[GradientNorm(1e-4, every=5)])
    assert trainer.stop_reason == "gradient_norm"
    assert trainer.epoch % 5 == 0
    _, dy = trainer.loss.value_and_grad(model.forward(x), t)
    model.backward(dy)
    assert np.sqrt(sum((g * g).sum() for g in model.grads.values())) <= 1.0001e-4
    with pytest.raises(ValueError, match="no such fit"):
        trainer.gradient_norm()


def test_plateau_reduces_the_rate():
    x, t = blobs()
    trainer = trainer_for(classifier(), optimizer=xbp.SGD(0.0))
    trainer.lr = 1e-30  # nothing moves, so nothing improves
    trainer.fit(x, t, epochs=7, callbacks=[ReduceLROnPlateau("loss", factor=0.5, patience=2, min_delta=1.0)])
    assert trainer.history["lr"] == [1e-30] * 3 + [0.5e-30] * 2 + [0.25e-30] * 2


class Signal(Callback):
    """Ctrl-C, pressed after a number of chunks."""

    def __init__(self, after=2):
        self.left = after

    def on_chunk_end(self, trainer):
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)


@pytest.mark.parametrize("name", BACKENDS)
def test_ctrl_c_leaves_whole_steps(name):
    x, t = blobs(400)
    trainer = trainer_for(classifier(backend_or_skip(name)))
    trainer.fit(x, t, epochs=100, batch_size=2, callbacks=[Signal()])
    assert trainer.stop_reason == "interrupted"
    assert 0 < trainer.steps < 200 * 100
    again = trainer_for(classifier(trainer.model.backend))
    order = xbp.random.epoch_order(0, 0, 400)
    for k in range(trainer.steps):
        rows = order[2 * k : 2 * k + 2]
        again.step(x[rows], t[rows])
    assert_same(host(again.model, again.model.params), host(trainer.model, trainer.model.params))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_is_obeyed_at_once():
    class Twice(Callback):
        def on_chunk_end(self, trainer):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    x, t = blobs()
    trainer = trainer_for(classifier())
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(x, t, epochs=5, callbacks=[Twice()])
    assert np.isfinite(trainer.evaluate(x, t)["loss"])


def test_fit_works_in_a_thread():
    x, t = blobs()
    trainer = trainer_for(classifier())
    worker = threading.Thread(target=trainer.fit, args=(x, t))
    worker.start()
    worker.join()
    assert trainer.stop_reason == "epochs"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_non_finite_loss_stops_and_the_weights_of_before_come_back(name):
    x, t = line(64)
    model = xbp.Network([xbp.Affine(4, 2)], backend=backend_or_skip(name))
    trainer = xbp.Trainer(model, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.01, momentum=0.9))
    trainer.fit(x, t, epochs=2, batch_size=4)
    before, state = host(model, model.params), host(model, trainer._tree()["state"])
    trainer.lr = 1e12
    refused = pytest.raises(xbp.NonFiniteLoss, match=r"step \d+ of epoch 3, with lr=1e\+12.*smaller lr")
    with refused, np.errstate(over="ignore", invalid="ignore"):
        trainer.fit(x, t, epochs=3, batch_size=4)
    assert trainer.stop_reason == "non_finite_loss"
    assert (trainer.epoch, trainer.steps) == (2, 32)
    assert_same(host(model, model.params), before)
    assert_same(host(model, trainer._tree()["state"]), state)
    trainer.lr = 0.01
    trainer.fit(x, t, epochs=1, batch_size=4)
    assert np.isfinite(trainer.history["loss"]).all()


def test_an_error_in_a_callback_leaves_a_usable_model():
    class Broken(Callback):
        def on_epoch_end(self, trainer):
            raise RuntimeError("disk of the callback is full")

    x, t = blobs()
    trainer = trainer_for(classifier())
    with pytest.raises(RuntimeError, match="disk of the callback"):
        trainer.fit(x, t, epochs=3, callbacks=[Broken()])
    assert trainer.evaluate(x, t)["accuracy"] > 0.3
    assert trainer.fit(x, t)["loss"][-1] < trainer.history["loss"][0]


def test_progress_writes_a_line_an_epoch_and_redraws_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    x, t = blobs()
    for stream, redraws in ((io.StringIO(), False), (Terminal(), True)):
        trainer_for(classifier()).fit(x, t, epochs=2, validation=(x, t), callbacks=[Progress(stream)])
        text = stream.getvalue()
        assert text.count("\n") == 2
        assert "epoch 2/2  loss " in text
        assert "val_accuracy " in text
        assert ("\r" in text) is redraws


def test_what_is_no_callback_is_refused():
    x, t = blobs()
    with pytest.raises(TypeError, match=r"Give instances"):
        trainer_for(classifier()).fit(x, t, callbacks=[EarlyStopping])
