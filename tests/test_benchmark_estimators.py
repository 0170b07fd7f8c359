"""bench/estimators.py compares equals, verifies before it times, and is reported. No time is asserted."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="it is scikit-learn's estimators that are compared with")
pytest.importorskip("threadpoolctl", reason="the scripts of bench/ count threads with it")


@pytest.fixture
def script(bench, monkeypatch):
    module = bench("estimators")
    monkeypatch.setattr(module, "PAUSE", 0.0)
    monkeypatch.setattr(module, "STREAM", {"batch": 32, "width": 4, "calls": 3, "blocks": 2})
    return module


def blobs(seed):
    rng = np.random.default_rng(seed)
    t = rng.integers(0, 3, 200)
    X = rng.normal(size=(200, 5)) + 2 * np.eye(5)[t]
    return X[:150], X[150:], t[:150], t[150:]


def test_both_train_on_the_same_and_are_reported(script, bench, monkeypatch, tmp_path, capsys):
    settings = {"hidden_layer_sizes": (8, 4), "max_iter": 20}
    made_up = [script.Case("blobs", "MLPClassifier", blobs, settings), script.Case("left out", "", blobs, {})]
    monkeypatch.setattr(script, "cases", lambda folder, epochs: made_up)
    out = tmp_path / "results" / "estimators.json"
    script.main(["--only", "blobs", "--seeds", "3", "--out", str(out)])
    found = json.loads(out.read_text(encoding="utf-8"))
    (fit,) = found["estimators"]
    assert fit["network"] == "5-8-4-3"
    assert fit["scores"]["xbp"] == fit["scores"]["sklearn"]
    assert len(set(fit["scores"]["xbp"])) > 1, "every seed has rows and weights of its own"
    assert fit["times_as_fast"]["median"] == np.median(np.divide(fit["seconds"]["sklearn"], fit["seconds"]["xbp"]))
    assert all(p["gap"] < 1e-8 for p in found["partial_fit"])
    assert found["partial_fit"]
    text = bench("report").report(found)
    assert "| blobs | 5-8-4-3," in text
    assert "means of 3 seeds" in text
    assert "blobs" in capsys.readouterr().out


def test_streams_that_part_are_not_timed(script, monkeypatch):
    monkeypatch.setattr(script, "shipped", lambda load: lambda seed: blobs(0))
    theirs = script.neural_network.MLPClassifier
    monkeypatch.setattr(script.neural_network, "MLPClassifier", lambda **settings: theirs(**settings, alpha=1.0))
    with pytest.raises(ArithmeticError, match="the weights of the two differ"):
        script.streamed("auto")


def test_a_folder_that_is_not_there_leaves_its_cases_out(script, tmp_path, capsys):
    names = [case.name for case in script.cases(tmp_path / "nowhere", 1)]
    assert names == ["digits", "diabetes", "linnerud"]
    assert "Fashion-MNIST is left out" in capsys.readouterr().err
