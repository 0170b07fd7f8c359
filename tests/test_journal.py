"""The log and TensorBoard's files: one line and one point an epoch, with the numbers of the history."""

from __future__ import annotations

import ast
import logging
import sys
from pathlib import Path

import numpy as np
import pytest

import xbp
from xbp.errors import LibraryMissing
from xbp.journal import EpochLog, TensorBoard


def trained(*callbacks, epochs=3, trainer=None):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(96, 4)), rng.integers(0, 3, 96)
    if trainer is None:
        net = xbp.Network([xbp.Affine(4, 3)], backend="numpy")
        trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(0.1))
    trainer.fit(x, t, epochs=epochs, validation=(x, t), callbacks=callbacks)
    return trainer


def test_a_line_an_epoch_in_the_log(caplog):
    with caplog.at_level(logging.INFO, "xbp.training"):
        history = trained(EpochLog()).history
    lines = [r.getMessage() for r in caplog.records if r.name == "xbp.training" and r.levelno == logging.INFO]
    values = list(dict.fromkeys(line.rpartition(" (")[0] for line in lines))  # the fit has a log of its own
    assert len(values) == 3
    for i, line in enumerate(values):
        assert line.startswith(
            f"epoch {i + 1} of 3: loss {history['loss'][i]:.6g}, val_loss {history['val_loss'][i]:.6g}"
        )


def test_nothing_is_shown_by_default(capfd):
    trained(EpochLog())
    assert capfd.readouterr() == ("", "")
    assert any(isinstance(h, logging.NullHandler) for h in logging.getLogger("xbp").handlers)


def test_the_library_prints_nothing():
    """Where it writes is the user's choice. The estimators' `verbose` prints, because scikit-learn's does."""
    root = Path(xbp.__file__).parent
    for path in sorted(root.rglob("*.py")):
        if path.relative_to(root).parts[0] not in ("cli", "estimators"):
            names = (node.func for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
            assert not [f.lineno for f in names if isinstance(f, ast.Name) and f.id == "print"], path


def test_tensorboard_reads_the_history(tmp_path):
    pytest.importorskip("tensorboardX", reason="it writes the files: pip install 'xbp[tensorboard]'")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="reads them back")
    trainer = trained(TensorBoard(tmp_path, histograms=2), epochs=2)
    trained(TensorBoard(tmp_path, histograms=2), trainer=trainer, epochs=2)  # goes on
    found = reader.EventAccumulator(str(tmp_path)).Reload()
    assert sorted(found.Tags()["scalars"]) == [
        "accuracy/validation", "learning_rate", "loss/training", "loss/validation",
    ]  # fmt: skip
    for tag, name in (("loss/training", "loss"), ("accuracy/validation", "val_accuracy"), ("learning_rate", "lr")):
        events = found.Scalars(tag)
        assert [e.step for e in events] == [1, 2, 3, 4]
        np.testing.assert_allclose([e.value for e in events], trainer.history[name], rtol=1e-6)
    assert sorted(found.Tags()["histograms"]) == ["parameters/0.W", "parameters/0.b"]
    last = found.Histograms("parameters/0.W")[-1]
    W = trainer.model.params["0.W"]
    assert (last.step, last.histogram_value.num) == (4, W.size)
    np.testing.assert_allclose([last.histogram_value.min, last.histogram_value.max], [W.min(), W.max()], rtol=1e-6)


def test_without_tensorboardx(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(LibraryMissing, match=r"TensorBoard needs tensorboardX.*xbp\[tensorboard\]"):
        TensorBoard(tmp_path)


def test_a_negative_number_of_epochs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="histograms"):
        TensorBoard(tmp_path, histograms=-1)
