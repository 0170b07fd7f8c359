"""`xbp evaluate` and `xbp predict`, for every kind of answer: what the model file says of its data is all they need."""

from __future__ import annotations

import csv

import numpy as np
import pytest

import xbp
from cli_helpers import (
    SMALL,
    TREES,
    close,
    read_csv,
    refused,
    run,
    run_json,
    write_counts,
    write_csv,
    write_prices,
    write_trees,
)
from dataset_files import write_idx
from xbp.cli.recipe import KEY


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trees(tmp_path):
    """A model of trees, and what its training said of the test part."""
    path = write_trees(tmp_path / "trees.csv")
    found = run_json("train", path, "--target", "tree", "--hidden", "32", "--epochs", 30, "--seed", 3, "--quiet")
    return path, found


def test_evaluate_gives_what_the_training_said(trees):
    path, trained = trees
    again = run_json("evaluate", "trees.safetensors")  # the source is in the file
    assert again["part"] == "held-out"
    assert (again["rows"], again["accuracy"]) == (trained["test_rows"], trained["test_accuracy"])
    assert close(again["loss"], trained["test_loss"])
    assert run_json("evaluate", "trees.safetensors", path) == {**again, "source": str(path)}
    text = run("evaluate", "trees.safetensors", path).stdout
    assert f"{trained['test_rows']} held-out rows" in text
    assert f"accuracy  {trained['test_accuracy']:.4f}" in text


@pytest.mark.parametrize("backend", ["strict", "torch", "jax"])
def test_evaluate_on_another_backend(trees, backend):
    try:
        xbp.get_backend(backend)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))
    again = run_json("evaluate", "trees.safetensors", "--backend", backend)
    assert again["backend"] == backend
    assert close(again["loss"], trees[1]["test_loss"])


def test_all_rows_are_evaluated_where_that_is_asked_for(trees):
    path, trained = trees
    whole = run_json("evaluate", "trees.safetensors", path, "--rows", "all")
    assert (whole["part"], whole["rows"]) == ("all", trained["rows"] + trained["test_rows"])
    assert whole["loss"] < trained["test_loss"] * 2


def test_new_rows_are_treated_as_the_training_rows_were(trees, tmp_path):
    """In another order of columns, with one more, and with other values, so of another mean and deviation."""
    path, _ = trees
    _, rows = read_csv(path.read_text())
    some = [row for row in rows if row[2] != "ash"][:50]
    write_csv(tmp_path / "same.csv", ["girth", "height", "tree"], some)
    write_csv(tmp_path / "new.csv", ["tree", "age", "height", "girth"], [(t, 3, h, g) for g, h, t in some])
    found = run_json("evaluate", "trees.safetensors", "new.csv")
    assert (found["part"], found["rows"]) == ("all", 50)
    said, probabilities = _predicted("new.csv")
    right = np.mean([a == row[2] for a, row in zip(said, some, strict=True)])
    assert close(found["accuracy"], float(right))
    truth = np.asarray([TREES.index(row[2]) for row in some])
    loss = -np.mean(np.log(probabilities[np.arange(50), truth]))
    assert close(found["loss"], float(loss), 1e-4)
    assert np.array_equal(_predicted("same.csv")[1], probabilities)
    refused(
        1,
        ["none of its rows were held out", "--rows all"],
        "evaluate", "trees.safetensors", "new.csv", "--rows", "held-out",
    )  # fmt: skip


def _predicted(path: str) -> tuple[list[str], np.ndarray]:
    head, rows = read_csv(run("predict", "trees.safetensors", path).stdout)
    assert head == ["class", *(f"p_{tree}" for tree in TREES)]
    return [row[0] for row in rows], np.asarray([row[1:] for row in rows], dtype=np.float64)


def test_evaluate_refuses_classes_that_the_model_does_not_know(trees, tmp_path):
    write_csv(
        tmp_path / "oaks.csv", ["girth", "height", "tree"], [(i, i, "oak" if i % 2 else "ash") for i in range(10)]
    )
    refused(1, ["'oak'", "does not know", "ash, birch, cedar"], "evaluate", "trees.safetensors", "oaks.csv")


def test_predict_writes_classes_and_probabilities(trees, tmp_path):
    path, _ = trees
    result = run("predict", "trees.safetensors", path, "--out", "p.csv")
    assert "240 predictions written to p.csv" in result.stderr
    said, probabilities = _predicted(path)
    assert (tmp_path / "p.csv").read_text() == run("predict", "trees.safetensors", path).stdout
    assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
    assert said == [TREES[k] for k in np.argmax(probabilities, axis=1)]
    net = xbp.Network.load("trees.safetensors", backend="numpy")
    scaling = net.metadata[KEY]["scaling"]
    _, rows = read_csv(path.read_text())
    raw = np.asarray([row[:2] for row in rows], dtype=np.float64)
    scores = net.predict((raw - scaling["offset"]) * scaling["factor"])
    assert np.allclose(xbp.softmax(scores), probabilities, atol=1e-6)


def test_predict_writes_an_npz(trees, tmp_path):
    path, _ = trees
    run("predict", "trees.safetensors", path, "--out", "p.npz")
    said, probabilities = _predicted(path)
    with np.load("p.npz") as file:
        assert set(file) == {"prediction", "probabilities", "classes"}
        assert file["prediction"].tolist() == said
        assert np.array_equal(file["probabilities"], probabilities.astype(np.float32))
        assert tuple(file["classes"]) == TREES
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_predict_needs_no_targets(trees, tmp_path):
    path, _ = trees
    _, rows = read_csv(path.read_text())
    write_csv(tmp_path / "bare.csv", ["height", "girth"], [(h, g) for g, h, _ in rows])
    assert np.array_equal(_predicted("bare.csv")[1], _predicted(path)[1])


def test_numbers_come_in_their_own_units(tmp_path):
    path = write_prices(tmp_path / "prices.csv")
    trained = run_json("train", path, "--target", "price", "--hidden", "32", "--epochs", 60, "--quiet")
    assert trained["test_accuracy"] is None
    assert trained["test_r2"] > 0.9
    found = run_json("evaluate", "prices.safetensors")
    assert close(found["rmse"], trained["test_rmse"])
    assert close(found["r2"], trained["test_r2"])
    whole = run_json("evaluate", "prices.safetensors", "--rows", "all")
    head, rows = read_csv(run("predict", "prices.safetensors", path).stdout)
    assert head == ["price"]
    said = np.asarray(rows, dtype=np.float64)[:, 0]
    truth = np.asarray([row["price"] for row in csv.DictReader(path.read_text().splitlines())], dtype=np.float64)
    assert close(whole["rmse"], float(np.sqrt(np.mean((said - truth) ** 2))))
    assert close(whole["r2"], float(1 - np.sum((said - truth) ** 2) / np.sum((truth - truth.mean()) ** 2)))


def test_targets_may_keep_their_scale(tmp_path):
    path = write_counts(tmp_path / "counts.csv")
    common = ("train", path, "--target", "count", "--task", "regression", *SMALL, "--quiet", "--seed", 1)
    own = run_json(*common, "--raw-targets")
    assert close(own["test_loss"], own["test_rmse"] ** 2, 1e-4)
    scaled = run_json(*common)
    assert not close(scaled["test_loss"], scaled["test_rmse"] ** 2, 1e-2)


@pytest.mark.parametrize(
    ("loss", "columns"),
    [
        ("mean_squared_error", ["price"]),
        ("MAE", ["price"]),
        ("huber:0.5", ["price"]),
        ("quantile:0.9", ["price"]),
        ("quantile:0.1,0.5,0.9", ["price_q0.1", "price_q0.5", "price_q0.9"]),
        ("gaussian-nll", ["price", "price_deviation"]),
    ],
)
def test_losses_for_numbers(loss, columns, tmp_path):
    path = write_prices(tmp_path / "prices.csv")
    found = run_json("train", path, "--target", "price", "--loss", loss, "--hidden", "32", "--epochs", 60, "--quiet")
    if loss != "quantile:0.9":
        assert found["test_r2"] > 0.85
    head, rows = read_csv(run("predict", "prices.safetensors", path).stdout)
    assert head == columns
    said = np.asarray(rows, dtype=np.float64)
    truth = np.asarray([row["price"] for row in csv.DictReader(path.read_text().splitlines())], dtype=np.float64)
    if loss == "quantile:0.9":
        assert 0.8 < np.mean(truth < said[:, 0]) < 0.99
    if len(columns) == 3:
        assert np.mean(truth < said[:, 0]) < np.mean(truth < said[:, 1]) < np.mean(truth < said[:, 2])
    if columns[-1] == "price_deviation":
        assert 0.5 < np.mean(np.abs(truth - said[:, 0]) / said[:, 1]) < 1.2  # 0.8 for a normal one
    run("predict", "prices.safetensors", path, "--out", "p.npz")
    with np.load("p.npz") as file:
        assert file["prediction"].shape == (300, 1)


def test_counts_are_predicted_as_rates(tmp_path):
    path = write_counts(tmp_path / "counts.csv")
    run("train", path, "--target", "count", "--loss", "poisson_nll", "--hidden", "none", "--epochs", 150, "--quiet")
    head, rows = read_csv(run("predict", "counts.safetensors", path).stdout)
    assert head == ["count"]
    rates = np.asarray(rows, dtype=np.float64)[:, 0]
    a = np.asarray([row["a"] for row in csv.DictReader(path.read_text().splitlines())], dtype=np.float64)
    assert np.corrcoef(np.log(rates), a)[0, 1] > 0.97
    assert abs(np.log(rates).mean() - 1.0) < 0.3


@pytest.mark.parametrize(
    ("loss", "kind"), [("softmax_cross_entropy:0.05", "p"), ("sigmoid_cross_entropy", "p"), ("mse", "score")]
)
def test_losses_for_classes(loss, kind, tmp_path):
    path = write_trees(tmp_path / "trees.csv")
    task = ("--task", "classification")
    found = run_json(
        "train", path, "--target", "tree", "--loss", loss, *task, "--hidden", "32", "--epochs", 40, "--quiet"
    )
    assert found["test_accuracy"] > 0.85
    head, rows = read_csv(run("predict", "trees.safetensors", path).stdout)
    assert head == ["class", *(f"{kind}_{tree}" for tree in TREES)]
    truth = [row["tree"] for row in csv.DictReader(path.read_text().splitlines())]
    right = np.mean([row[0] == t for row, t in zip(rows, truth, strict=True)])
    assert close(run_json("evaluate", "trees.safetensors", "--rows", "all")["accuracy"], float(right))


def test_two_classes_need_one_sigmoid(tmp_path):
    _, rows = read_csv(write_trees(tmp_path / "trees.csv").read_text())
    path = write_csv(tmp_path / "two.csv", ["girth", "height", "tree"], [row for row in rows if row[2] != "birch"])
    common = ("train", path, "--target", "tree", "--loss", "sigmoid_cross_entropy")
    found = run_json(*common, "--hidden", "8", "--epochs", 60, "--quiet")
    assert found["test_accuracy"] > 0.95
    assert xbp.Network.load("two.safetensors", backend="numpy").params["3.W"].shape == (8, 1)
    head, rows = read_csv(run("predict", "two.safetensors", path).stdout)
    assert head == ["class", "p_ash", "p_cedar"]
    assert all(abs(float(a) + float(b) - 1) < 1e-6 and (tree == "ash") == (float(a) >= 0.5) for tree, a, b in rows)


def test_pictures(tmp_path):
    raw = write_idx(tmp_path / "toys", seed=1)
    run("train", tmp_path / "toys", *SMALL, "--quiet")
    assert run_json("evaluate", "toys.safetensors")["rows"] == 10
    assert run_json("evaluate", "toys.safetensors", "--rows", "all")["rows"] == 50
    write_idx(tmp_path / "more", n=(20, 30), seed=2)
    found = run_json("evaluate", "toys.safetensors", tmp_path / "more")
    assert (found["part"], found["rows"]) == ("test", 30)
    head, rows = read_csv(run("predict", "toys.safetensors", tmp_path / "toys").stdout)
    assert (head, len(rows)) == (["class", "p_0", "p_1", "p_2"], 10)
    net = xbp.Network.load("toys.safetensors", backend="numpy")
    x = raw["t10k", "images"].reshape(10, -1) / np.float32(255)
    assert [row[0] for row in rows] == [str(k) for k in np.argmax(net.predict(x), axis=1)]


def test_archives(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 4))
    np.savez(tmp_path / "both.npz", x=x, y=x[:, :2] * [3.0, 400.0] + [0.0, 1000.0])
    found = run_json("train", "both.npz", "--hidden", "none", "--lr", 0.05, "--epochs", 100, "--quiet")
    assert found["test_r2"] > 0.99
    assert run_json("evaluate", "both.safetensors", "both.npz")["rows"] == 16
    np.savez(tmp_path / "new.npz", x=x[:5])
    head, rows = read_csv(run("predict", "both.safetensors", "new.npz").stdout)
    assert head == ["prediction_0", "prediction_1"]
    assert abs(np.asarray(rows, dtype=float)[:, 1].mean() - (x[:5, 1].mean() * 400 + 1000)) < 10
    np.savez(tmp_path / "wide.npz", x=np.ones((5, 3)))
    refused(1, ["3", "4"], "predict", "both.safetensors", "wide.npz")


def test_a_model_without_a_recipe_is_told_from_a_broken_one(tmp_path):
    xbp.Network([xbp.Affine(64, 10)], backend="numpy").save("net.safetensors")
    refused(1, ["a model without a training", "xbp.Network.load"], "evaluate", "net.safetensors", "digits")
    trainer = xbp.Trainer(
        xbp.Network([xbp.Affine(64, 10)], backend="numpy"), loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam()
    )
    trainer.save("trainer.safetensors")
    refused(1, ["not how its data was made", "xbp train"], "predict", "trainer.safetensors", "digits")
    trainer.model.metadata[KEY] = {"classes": 3}
    trainer.save("damaged.safetensors")
    refused(1, ["the description of the data is damaged"], "predict", "damaged.safetensors", "digits")
