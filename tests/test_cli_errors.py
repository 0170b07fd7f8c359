"""Bad input on the command line: the exit code, one message that teaches, and nothing lost."""

from __future__ import annotations

import gzip
import warnings

import numpy as np
import pytest

import xbp
from cli_helpers import SMALL, refused, run, write_csv, write_trees
from dataset_files import NAMES, write_idx
from xbp.cli.names import layers_of_text


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


WORDS = [
    (["trian", "digits"], ["trian", "train"]),
    (["train"], ["SOURCE", "digits"]),
    (["train", "digits", "--epoch", 3], ["--epoch", "--epochs"]),
    (["train", "digits", "--epochs", "many"], ["--epochs", "integer"]),
    (["train", "digits", "--epochs", 0], ["--epochs", "1"]),
    (["train", "digits", "--activation", "rellu"], ["--activation", "'rellu'", "Did you mean 'relu'?", "gelu"]),
    (["train", "digits", "--activation", "tanh:2"], ["--activation", "tanh takes no value"]),
    (["train", "digits", "--activation", "gelu:exact"], ["--activation", "'exact'", "tanh"]),
    (["train", "digits", "--loss", "softmx"], ["--loss", "'softmx'", "Did you mean 'softmax_cross_entropy'?"]),
    (["train", "digits", "--loss", "huber:x"], ["--loss", "'x'", "huber:DELTA", "not a number"]),
    (["train", "digits", "--loss", "huber:-1"], ["--loss", "delta", "-1"]),
    (["train", "digits", "--loss", "gaussian_nll", "--task", "classification"], ["--loss", "targets are classes"]),
    (["train", "digits", "--loss", "softmax_cross_entropy", "--task", "regression"], ["--loss", "--task"]),
    (["train", "digits", "--task", "clustering"], ["--task", "'clustering'", "classification"]),
    (["train", "digits", "--optimizer", "adamm"], ["--optimizer", "'adamm'", "Did you mean 'adam'?"]),
    (["train", "digits", "--momentum", 0.5], ["--momentum", "sgd"]),
    (["train", "digits", "--optimizer", "sgd", "--momentum", 1.5], ["--momentum", "1.5"]),
    (["train", "digits", "--weight-decay", -1], ["--weight-decay", "-1"]),
    (["train", "digits", "--schedule", "cosin"], ["--schedule", "'cosin'", "Did you mean 'cosine'?"]),
    (["train", "digits", "--lr", "nan"], ["--lr", "finite"]),
    (["train", "digits", "--lr", -0.1], ["--lr", "-0.1"]),
    (["train", "digits", "--clip-norm", 0], ["--clip-norm", "above 0"]),
    (["train", "digits", "--dropout", 1], ["--dropout", "below 1"]),
    (["train", "digits", "--hidden", "12,x"], ["--hidden", "'12,x'", "512,256"]),
    (["train", "digits", "--hidden", "12,0"], ["--hidden", "'12,0'", "at least 1"]),
    (["train", "digits", "--dtype", "float16"], ["--dtype", "'float16'", "float32, float64"]),
    (["train", "digits", "--backend", "numpi"], ["'numpi'", "Did you mean 'numpy'?"]),
    (["train", "digits", "--backend", "numpy", "--engine", "eagre"], ["'eagre'", "Did you mean 'eager'?"]),
    (["train", "digits", "--plot", "curves.jpg"], ["--plot", "curves.jpg", ".png"]),
    (["train", "digits", "--plot", "no/such/curves.png"], ["--plot", "no/such"]),
    (["train", "digits", "--out", "."], ["--out", "folder"]),
    (["predict", "m.safetensors", "digits", "--out", "p.txt"], ["--out", "p.txt", ".csv or .npz"]),
    (["evaluate", "m.safetensors", "digits", "--rows", "some"], ["--rows", "'some'", "held-out"]),
    (["check", "--layers", "affine:8 relu"], ["--layers", "affine:8", "affine:IN-OUT"]),
    (["check", "--layers", "affine:8-5 rellu"], ["--layers", "'rellu'", "Did you mean 'relu'?"]),
    (["check", "--layers", "relu tanh"], ["--layers", "no parameter"]),
    (["check", "--layers", " "], ["--layers", "no layers"]),
    (["check", "--layers", "batch_norm affine:3"], ["--layers", "batch_norm:SIZE"]),
    (["check", "--layers", "affine:8-5 dropout:2"], ["--layers", "2"]),
    (["check", "--loss", "gaussian_nll", "--outputs", 3], ["--loss", "two outputs a target", "3"]),
    (["check", "--tolerance", 0], ["--tolerance", "above 0"]),
    (["bench", "--case", "tinny", "--backend", "numpy"], ["'tinny'", "Did you mean 'tiny'?"]),
]


@pytest.mark.parametrize(("args", "words"), WORDS, ids=[" ".join(map(str, args)) for args, _ in WORDS])
def test_words_that_make_no_sense(args, words):
    refused(2, words, *args)


def test_widths_that_do_not_fit():
    refused(1, ["Layer '1'", "4", "5"], "check", "--layers", "affine:8-5 affine:4-3")


def test_a_usage_error_points_to_the_help():
    assert run("train", "digits", "--hidden", "x", code=2).stderr.splitlines()[-1].endswith("train --help")


@pytest.mark.parametrize("source", ["nosuch", "nosuch.csv", "digit"])
def test_no_such_data(source):
    refused(1, [repr(source), "IDX"], "train", source)


def test_the_nearest_source_is_named():
    refused(1, ["Did you mean 'digits'?"], "train", "digit")


def test_a_csv_needs_its_target(tmp_path):
    path = write_trees(tmp_path / "trees.csv")
    refused(1, ["say with --target", "girth, height, tree"], "train", path)
    refused(1, ["'tre'", "Did you mean 'tree'?"], "train", path, "--target", "tre")
    refused(1, ["--target 'tree'", "Leave --target out"], "train", "digits", "--target", "tree")


def test_a_cell_that_is_no_number_is_named_by_line_and_column(tmp_path):
    path = write_csv(tmp_path / "a.csv", ["a", "b", "t"], [(1, 2, "x"), (3, "four", "y"), (5, 6, "x"), (7, 8, "y")])
    refused(1, ["line 3", "column 'b'", "'four'"], "train", path, "--target", "t")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named_by_row_and_column(value, tmp_path):
    x = np.zeros((40, 3))
    x[:, 2] = value
    np.savez(tmp_path / "bad.npz", x=x, t=np.arange(40) % 2)
    result = run("train", "bad.npz", "--quiet", code=1)
    assert str(value) in result.stderr
    assert "row" in result.stderr
    assert "column 2" in result.stderr
    assert not (tmp_path / "bad.safetensors").exists()


def test_a_truncated_idx_file(tmp_path):
    write_idx(tmp_path / "toys")
    images = tmp_path / "toys" / NAMES["train", "images"]
    images.write_bytes(images.read_bytes()[:-7])
    refused(1, ["cut off", images.name], "train", tmp_path / "toys")
    images.with_name(images.name + ".gz").write_bytes(gzip.compress(images.read_bytes()))
    images.unlink()
    refused(1, ["cut off"], "train", tmp_path / "toys")


def test_a_truncated_archive(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros((40, 3)), t=np.arange(40) % 2)
    path = tmp_path / "a.npz"
    path.write_bytes(path.read_bytes()[:-30])
    refused(1, ["not a whole .npz"], "train", path)


@pytest.mark.parametrize("command", [("evaluate",), ("predict",), ("train", "--resume")])
def test_a_truncated_model(command, tmp_path):
    run("train", "digits", *SMALL, "--quiet")
    path = tmp_path / "digits.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(1, ["digits.safetensors"], *command, path, "digits")
    refused(1, ["no such file"], *command, "nosuch.safetensors", "digits")


def test_a_model_that_cannot_be_written_is_told_before_the_training(tmp_path):
    refused(1, ["'nosuch/m.safetensors'", "does not exist"], "train", "digits", "--out", "nosuch/m.safetensors")
    (tmp_path / "file").write_text("")
    refused(1, ["file"], "train", "digits", "--out", "file/m.safetensors")


def test_predictions_that_cannot_be_written(tmp_path):
    run("train", "digits", *SMALL, "--quiet")
    refused(1, ["Cannot write", "nosuch"], "predict", "digits.safetensors", "digits", "--out", "nosuch/p.csv")
    old = tmp_path / "p.csv"
    old.mkdir()
    refused(1, ["Cannot write", "p.csv"], "predict", "digits.safetensors", "digits", "--out", "p.csv")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".p")] == []


def test_predict_misses_a_column(tmp_path):
    run("train", write_trees(tmp_path / "trees.csv"), "--target", "tree", *SMALL, "--quiet")
    write_csv(tmp_path / "short.csv", ["girth"], [(1,), (2,)])
    refused(1, ["'height'", "girth"], "predict", "trees.safetensors", "short.csv")
    refused(1, ["height"], "evaluate", "trees.safetensors", write_trees_without_height(tmp_path))


def write_trees_without_height(folder):
    return write_csv(folder / "flat.csv", ["girth", "tree"], [(i, "ash" if i % 2 else "birch") for i in range(20)])


def test_a_backend_that_cannot_run_says_what_to_install():
    if any(info.available for info in xbp.available_backends() if info.name == "cupy"):
        pytest.skip("CuPy runs here")
    refused(1, ["cupy", "pip install"], "train", "digits", "--backend", "cupy")


def test_what_nobody_foresaw_keeps_its_traceback(monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("xbp.cli.tables.backends", broken)
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run("backends")


@pytest.mark.parametrize(
    ("error", "code", "words"), [(MemoryError("9 GiB"), 1, "9 GiB"), (KeyboardInterrupt(), 130, "")]
)
def test_what_is_no_error_of_ours(error, code, words, monkeypatch):
    def raising(*args):
        raise error

    monkeypatch.setattr("xbp.cli.tables.backends", raising)
    assert words in run("backends", code=code).stderr


@pytest.mark.filterwarnings("default:careful")
def test_warnings_are_told_without_their_place(monkeypatch):
    monkeypatch.setattr("xbp.cli.tables.backends", lambda *args: warnings.warn("careful", stacklevel=2))
    assert run("backends").stderr == "Warning: careful\n"


def test_layers_of_text():
    layers = layers_of_text("affine:8-5 BatchNorm ReLU dropout:0.2 affine:4 layer-norm gelu:tanh leaky_relu affine:4-3")
    assert list(map(str, layers)) == [
        "Affine(in_features=8, out_features=5)", "BatchNorm(size=5)", "ReLU()", "Dropout(p=0.2)",
        "Affine(in_features=5, out_features=4)", "LayerNorm(size=4)", "GELU(approximate='tanh')", "LeakyReLU()",
        "Affine(in_features=4, out_features=3)",
    ]  # fmt: skip
