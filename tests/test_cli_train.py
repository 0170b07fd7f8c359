"""`xbp train`: what it reaches, what it writes, what it says, and that a resumed training is the same training."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cli_helpers import SMALL, refused, run, run_json, write_csv, write_prices, write_trees
from dataset_files import write_idx
from xbp import Network, Trainer
from xbp.cli.console import plain
from xbp.cli.threads import SMALL as SMALL_PRODUCT
from xbp.cli.threads import calm_blas
from xbp.layers import Affine

KEYS = {"test_accuracy", "test_loss", "epochs", "seconds", "backend", "engine", "samples_per_second", "model"}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Models are written to the working directory unless they are told otherwise."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("seed", [0, 1])
def test_digits_are_learnt_with_the_defaults(seed, tmp_path):
    found = run_json("train", "digits", "--seed", seed, "--quiet")
    assert found["test_accuracy"] >= 0.97
    assert set(found) >= KEYS
    assert found["model"] == "digits.safetensors"
    assert (tmp_path / "digits.safetensors").exists()
    assert found["epochs"] == 60
    assert found["backend"] in ("numpy", "cupy")
    assert found["samples_per_second"] == pytest.approx(60 * 1438 / found["seconds"], rel=0.01)


def test_a_training_says_what_it_does_and_where_the_model_is():
    result = run("train", "digits", *SMALL)
    lines = result.stderr.splitlines()
    assert "1,438 rows to train on, 359 held out" in lines[0]
    assert "64-16-10" in lines[1]
    epochs = [line for line in lines if line.startswith("epoch")]
    assert [line.split()[1] for line in epochs] == ["1/3", "2/3", "3/3"]
    assert all("test accuracy 0." in line and "loss" in line for line in epochs)
    test, speed, model = result.stdout.splitlines()
    assert test.startswith("test: accuracy 0.")
    assert speed.startswith("3 epochs")
    assert model == "model: digits.safetensors"


def test_json_is_one_line_and_all_else_is_on_standard_error():
    result = run("train", "digits", *SMALL, "--json", "--plot", "curves.png")
    assert len(result.stdout.splitlines()) == 1
    found = json.loads(result.stdout)
    assert found["plot"] == "curves.png"
    assert "test: accuracy" in result.stderr


def test_quiet_says_nothing(tmp_path):
    result = run("train", "digits", *SMALL, "--quiet", "--out", "m.safetensors")
    assert (result.stdout, result.stderr) == ("", "")
    assert (tmp_path / "m.safetensors").exists()


def test_json_has_no_nan():
    values = {"a": math.nan, "b": [1.0, math.inf], "c": {"d": (-math.inf, 2)}}
    assert plain(values) == {"a": None, "b": [1.0, None], "c": {"d": [None, 2]}}


@pytest.mark.parametrize("options", [(), ("--validation", 0.2, "--dropout", 0.3), ("--schedule", "constant")], ids=str)
def test_two_epochs_and_two_more_are_four(options, tmp_path):
    common = ("train", "digits", "--hidden", "32", "--quiet")
    first = run_json(*common, *options, "--epochs", 2, "--out", "a.safetensors")
    again = run_json(*common[:2], "--resume", "a.safetensors", "--epochs", 2, "--quiet")
    whole = run_json(*common, *options, "--epochs", 4, "--out", "b.safetensors")
    assert first["epochs"] == 2
    assert again["epochs"] == whole["epochs"] == 4
    assert again["model"] == "a.safetensors"
    assert again["test_loss"] == whole["test_loss"]
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_stopped_training_goes_on_to_the_epochs_that_were_planned():
    run("train", "digits", "--hidden", "8", "--epochs", 4, "--time-limit", 0, "--quiet")
    found = run_json("train", "--resume", "digits.safetensors", "--quiet")  # the source is in the file
    assert found["epochs"] == 4
    assert found["stop_reason"] == "epochs"


def test_resume_goes_on_on_another_backend():
    run("train", "digits", *SMALL, "--quiet", "--backend", "numpy")
    found = run_json("train", "--resume", "digits.safetensors", "--epochs", 1, "--backend", "strict", "--quiet")
    assert found["backend"] == "strict"
    assert found["epochs"] == 4
    assert found["test_accuracy"] > 0.5


def test_resume_refuses_what_a_training_keeps():
    run("train", "digits", *SMALL, "--quiet")
    resume = ("train", "digits", "--resume", "digits.safetensors")
    refused(2, ["--hidden, --dropout", "cannot change"], *resume, "--hidden", "64", "--dropout", 0.5)
    refused(2, ["--patience", "no epoch so far has learnt from"], *resume, "--patience", 3)


def test_resume_at_the_end_of_a_schedule_asks_for_a_rate():
    run("train", "digits", *SMALL, "--schedule", "cosine", "--quiet")
    refused(1, ["has come to its end", "--lr 1e-4"], "train", "digits", "--resume", "digits.safetensors")
    found = run_json("train", "--resume", "digits.safetensors", "--epochs", 1, "--lr", 1e-3, "--quiet")
    assert found["epochs"] == 4


def test_resume_refuses_data_of_another_kind(tmp_path):
    run("train", write_trees(tmp_path / "trees.csv"), "--target", "tree", *SMALL, "--quiet")
    before = (tmp_path / "trees.safetensors").read_bytes()
    resume = ("--resume", "trees.safetensors")
    prices = write_prices(tmp_path / "prices.csv")
    refused(1, ["'price' holds", "is no class"], "train", prices, "--target", "price", *resume)
    leaves = write_csv(
        tmp_path / "leaves.csv", ["length", "girth", "tree"], [(i, i % 7, ["ash", "oak"][i % 2]) for i in range(40)]
    )
    refused(1, ["needs the columns 'height'", "not there"], "train", leaves, *resume)
    assert (tmp_path / "trees.safetensors").read_bytes() == before


def test_patience_cuts_validation_rows_from_the_training_part():
    result = run("train", "digits", "--hidden", "32", "--lr", 0.05, "--patience", 1, "--json")
    found = json.loads(result.stdout)
    assert found["stop_reason"] == "early_stopping"
    assert found["epochs"] < 60
    assert (found["rows"], found["test_rows"]) == (1438 - 145, 359)  # a tenth of each class, rounded
    assert "145 to validate" in result.stderr
    epoch = next(line for line in result.stderr.splitlines() if line.startswith("epoch"))
    assert "validation accuracy" in epoch
    assert "test" not in epoch
    history = Trainer.load("digits.safetensors", backend="numpy").history["val_loss"]
    assert history[-1] > min(history)


def test_plateau_lowers_the_rate_and_validates_on_rows_of_its_own():
    """At such a rate no weight changes, so no epoch is better than the first."""
    common = ("train", "digits", "--hidden", "8", "--schedule", "plateau")
    found = run_json(*common, "--lr", 1e-20, "--epochs", 8, "--quiet")
    assert found["rows"] == 1438 - 145
    rates = Trainer.load("digits.safetensors", backend="numpy").history["lr"]
    assert rates[0] == 1e-20
    assert rates[-1] == pytest.approx(0.3e-20)


def test_the_time_limit_stops_within_an_epoch():
    found = run_json("train", "digits", "--epochs", 100000, "--time-limit", 0.2, "--quiet")
    assert found["stop_reason"] == "time_limit"
    assert found["epochs"] < 100000


@pytest.mark.parametrize("schedule", ["constant", "step", "exponential", "cosine", "onecycle", "warmup"])
def test_every_schedule_learns(schedule):
    found = run_json(
        "train", "digits", "--hidden", "32", "--epochs", 8, "--schedule", schedule, "--lr", 0.01, "--quiet"
    )
    assert found["test_accuracy"] > 0.85


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "rmsprop", "adam", "AdamW"])
def test_every_optimiser_learns_at_its_own_rate(optimizer):
    found = run_json("train", "digits", "--hidden", "32", "--epochs", 8, "--optimizer", optimizer, "--quiet")
    assert found["test_accuracy"] > 0.85


def test_the_options_reach_the_training():
    run(
        "train", "digits", "--hidden", "12,7", "--activation", "leaky_relu:0.2", "--dropout", 0.25, "--seed", 7,
        "--optimizer", "sgd", "--momentum", 0.5, "--weight-decay", 0.001, "--lr", 0.03, "--schedule", "constant",
        "--clip-norm", 2.5, "--loss", "softmax_cross_entropy:0.1", "--dtype", "float64", "--epochs", 1,
        "--batch-size", 100, "--engine", "eager", "--backend", "numpy", "--quiet", "--out", "all.safetensors",
    )  # fmt: skip
    trainer = Trainer.load("all.safetensors", backend="numpy")
    rate, slope = "LeakyReLU(negative_slope=0.2)", "Dropout(p=0.25)"
    assert [str(layer) for layer in trainer.model.layers] == [
        "Affine(in_features=64, out_features=12)", rate, slope, "Affine(in_features=12, out_features=7)", rate, slope,
        "Affine(in_features=7, out_features=10)",
    ]  # fmt: skip
    o = trainer.optimizer
    assert (type(o).__name__, o.lr, o.momentum, o.weight_decay) == ("SGD", 0.03, 0.5, 0.001)
    assert trainer.loss.label_smoothing == 0.1
    assert (trainer.model.dtype, trainer.model.seed, trainer.steps) == ("float64", 7, 15)
    assert trainer.engine == "eager"


def test_a_linear_model_has_no_hidden_layer():
    run("train", "digits", "--hidden", "none", "--epochs", 1, "--quiet")
    assert list(Network.load("digits.safetensors", backend="numpy").params) == ["0.W", "0.b"]


def test_an_idx_folder_keeps_its_own_test_part(tmp_path):
    write_idx(tmp_path / "toys", packed=True)
    found = run_json("train", tmp_path / "toys", *SMALL, "--quiet")
    assert (found["rows"], found["test_rows"]) == (40, 10)
    assert found["model"] == "toys.safetensors"


def test_nothing_needs_to_be_held_out():
    result = run("train", "digits", *SMALL, "--test-fraction", 0, "--json")
    found = json.loads(result.stdout)
    assert (found["rows"], found["test_rows"], found["test_accuracy"]) == (1797, 0, None)
    assert "test: no rows were held out" in result.stderr


def test_a_loss_that_is_not_finite_saves_the_last_good_weights(tmp_path):
    result = run("train", "digits", *SMALL, "--lr", 1e30, "--json", code=1)
    assert "The loss became" in result.stderr
    assert "--clip-norm" in result.stderr
    assert result.stdout == ""
    params = Network.load("digits.safetensors", backend="numpy").params
    assert all(np.isfinite(a).all() for a in params.values())
    run("train", "digits", *SMALL, "--quiet")
    good = (tmp_path / "digits.safetensors").read_bytes()
    result = run("train", "digits", *SMALL, "--lr", 1e30, code=1)
    assert "left as it was" in result.stderr
    assert (tmp_path / "digits.safetensors").read_bytes() == good


def test_blas_is_calmed_for_small_networks_only(monkeypatch):
    control = pytest.importorskip("threadpoolctl", reason="comes with scikit-learn: pip install 'xbp[cli]'")
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    def threads(model, rows):
        with calm_blas(model, rows):
            return {pool["num_threads"] for pool in control.threadpool_info() if pool["user_api"] == "blas"}

    before = {pool["num_threads"] for pool in control.threadpool_info() if pool["user_api"] == "blas"}
    net = Network([Affine(64, 64)], backend="numpy")
    assert threads(net, 32) == {1}
    assert threads(net, SMALL_PRODUCT) == before
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "8")
    assert threads(net, 32) == before
