"""What a trainer does about its engine: falls back for a reason, asks a schedule in time, counts what was done."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pytest

import xbp
from training_helpers import assert_same, blobs, classifier, host, trainer_for
from xbp.errors import BackendUnavailable, NameUnknown
from xbp.layers.base import Result

ENGINES = xbp.get_backend("numpy").engines


@dataclass(frozen=True)
class Foreign(xbp.Layer):
    """tanh as somebody writes it who has only NumPy in mind."""

    def forward(self, x, /, *, params, buffers, mode, xp):
        y = np.tanh(x)
        return Result(y, y)

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        return dy * (1.0 - cache * cache), {}


@pytest.mark.falls_back
@pytest.mark.parametrize("engine", [e for e in ENGINES if e != "eager"])
def test_a_layer_that_cannot_be_recorded_runs_eagerly_and_says_why_once(engine, caplog):
    x, t = blobs()
    foreign, ours = (trainer_for(classifier(extra=[layer]), engine=e) for layer, e in
                     ((Foreign(), engine), (xbp.Tanh(), "eager")))  # fmt: skip
    ours.model.load_params(host(foreign.model, foreign.model.params))  # initial values suit what comes next
    with caplog.at_level(logging.WARNING, logger="xbp.engine"):
        for trainer in (foreign, ours):
            trainer.fit(x, t, epochs=2, batch_size=16, validation=(x, t))
            trainer.model.predict(x)
    assert (foreign.engine, len(caplog.records)) == ("eager", 1)
    assert "cannot be recorded (TypeError" in caplog.text
    np.testing.assert_allclose(foreign.history["loss"], ours.history["loss"], rtol=1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_schedule_is_asked_for_a_step_when_it_comes(engine):
    x, t = blobs()
    rates = [0.1, 0.2, 0.3]
    asked = []
    trainer = trainer_for(classifier(), optimizer=xbp.SGD(lambda s: asked.append(s) or rates[s]), engine=engine)
    for _ in rates:
        trainer.step(x[:8], t[:8])
    assert sorted(set(asked)) == [0, 1, 2]  # no more: there are no more rates


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_are_counted_by_what_was_done(engine, monkeypatch):
    x, t = blobs()
    trainer, twin = (trainer_for(classifier(), engine=engine) for _ in range(2))
    trainer.step(x[:8], t[:8])
    step = trainer._engine.step

    def interrupted(*args, **options):
        step(*args, **options)
        raise KeyboardInterrupt  # after the step, before anybody could count it

    monkeypatch.setattr(trainer._engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trainer.step(x[8:16], t[8:16])
    monkeypatch.undo()
    assert trainer.steps == 2
    for trained in (trainer, twin):
        while trained.steps < 3:
            rows = slice(8 * trained.steps, 8 * trained.steps + 8)
            trained.step(x[rows], t[rows])
    assert_same(host(trainer.model, trainer.model.params), host(twin.model, twin.model.params))


def test_an_engine_that_is_not_there_says_how_to_get_it(monkeypatch):
    backend = xbp.get_backend("numpy")
    monkeypatch.setattr(type(backend), "engines", ("planned", "eager"))
    with pytest.raises(BackendUnavailable, match=r"needs llvmlite, pip install 'xbp\[numba\]'"):
        trainer_for(classifier(backend), engine="numba")
    with pytest.raises(NameUnknown, match="Did you mean 'planned'"):
        trainer_for(classifier(backend), engine="plannd")
