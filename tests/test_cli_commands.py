"""The smaller commands: backends, check, bench, and the pictures and helps of all."""

from __future__ import annotations

import json

import numpy as np
import pytest

import xbp
from cli_helpers import SMALL, run, run_json, write_prices
from xbp import kernels
from xbp.cli.plot import save_curves


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "backends", "check", "bench"])
def test_every_command_has_a_help(command):
    text = run(command, "--help").stdout
    assert command in text
    assert "--help" in text
    assert command in run("--help").stdout


def test_backends_names_every_backend_with_its_reason():
    head, *lines = run("backends").stdout.splitlines()
    assert head.split() == ["name", "available", "device", "engines", "version", "reason"]
    infos = {info.name: info for info in xbp.available_backends()}
    assert {line.split()[0] for line in lines} == set(infos)
    for line in lines:
        info = infos[line.split()[0]]
        assert line.split()[1] == ("yes" if info.available else "no")
        assert (info.version in line and ", ".join(info.engines) in line) if info.available else info.reason in line
    found = run_json("backends")["backends"]
    assert {b["name"]: b["available"] for b in found} == {name: info.available for name, info in infos.items()}


def test_check_passes_on_right_gradients():
    text = run("check", "--layers", "affine:8-5 relu affine:3", "--backend", "numpy").stdout
    assert "all gradients are right" in text
    assert [line.split()[0] for line in text.splitlines() if line.endswith("ok")] == ["0.W", "0.b", "2.W", "2.b", "x"]


@pytest.mark.parametrize(
    "options",
    [
        ("--hidden", "6,5", "--activation", "tanh", "--inputs", 7, "--outputs", 2, "--loss", "huber:0.3"),
        ("--hidden", "6", "--activation", "gelu", "--dropout", 0.3, "--loss", "sigmoid_cross_entropy"),
        ("--layers", "affine:6-5 batch_norm silu layer_norm affine:4", "--loss", "gaussian_nll"),
        ("--hidden", "none", "--loss", "quantile:0.1,0.9", "--outputs", 2, "--dtype", "float64"),
        ("--hidden", "5", "--loss", "poisson_nll", "--activation", "softplus:2", "--seed", 3),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_check_takes_every_kind_of_network(options, backend):
    found = run_json("check", *options, "--backend", backend)
    assert found["ok"]
    assert found["checks"][0]["backend"] == backend
    assert all(row["relative_error"] < 1e-6 for row in found["checks"][0]["rows"])


def test_check_on_all_backends():
    found = run_json("check", "--hidden", "4", "--backend", "all", "--inputs", 3, "--batch-size", 4)
    assert {c["backend"] for c in found["checks"]} == {i.name for i in xbp.available_backends() if i.available}


def test_check_names_a_wrong_gradient(monkeypatch):
    right = kernels.affine.backward

    def wrong(*args, **kwargs):
        dx, dW, *rest = right(*args, **kwargs)
        return dx, dW * 1.001, *rest

    monkeypatch.setattr(kernels.affine, "backward", wrong)
    result = run("check", "--layers", "affine:8-5 relu affine:3", "--backend", "numpy", code=1)
    rows = [line.split() for line in result.stdout.splitlines() if line.endswith(("ok", "WRONG"))]
    assert {row[0] for row in rows if row[-1] == "WRONG"} == {"0.W", "2.W"}
    assert result.stderr.splitlines()[0] == "numpy: the gradient of 0.W is wrong"
    found = json.loads(run("check", "--hidden", "4", "--backend", "numpy", "--json", code=1).stdout)
    assert not found["ok"]


@pytest.mark.filterwarnings("default:.*is busy")
def test_bench_prints_a_table():
    common = ("bench", "--backend", "numpy", "--case", "tiny", "--seconds", 0.01)
    head, _, *rows = run(*common, "--markdown").stdout.splitlines()
    assert head.startswith("| network")
    assert [row.split()[1:6:2] for row in rows] == [["tiny", "numpy", e] for e in xbp.get_backend("numpy").engines]
    found = run_json(*common)
    assert found["results"][0]["backend"] == "numpy"
    assert found["versions"]["numpy"] == np.__version__


def test_the_picture_shows_both_curves(tmp_path):
    run("train", "digits", *SMALL, "--plot", "curves.png", "--quiet")
    data = (tmp_path / "curves.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    from matplotlib.image import imread

    picture = imread("curves.png")[..., :3]
    height, width, _ = picture.shape
    assert width > 1200
    assert height > 500
    left, right = picture[:, : width // 2], picture[:, width // 2 :]
    blue, orange = (np.asarray([int(c[i : i + 2], 16) for i in (1, 3, 5)]) / 255 for c in ("#1f5fa8", "#d1651a"))
    assert _count(left, blue) > 200  # the loss in training
    assert _count(left, orange) > 200  # and on the test rows
    assert _count(right, orange) > 200  # the accuracy
    assert _count(right, blue) == 0


def _count(picture, colour):
    return int(np.sum(np.all(np.abs(picture - colour) < 0.02, axis=-1)))


def test_pictures_of_other_kinds(tmp_path):
    path = write_prices(tmp_path / "prices.csv", 60)
    run("train", path, "--target", "price", "--epochs", 1, "--hidden", "4", "--plot", "one.svg", "--quiet")
    assert "<svg" in (tmp_path / "one.svg").read_text()
    save_curves(tmp_path / "bare.pdf", {"loss": [0.5, -0.1]}, "no test", "test")
    assert (tmp_path / "bare.pdf").read_bytes().startswith(b"%PDF")
    save_curves(tmp_path / "wide.png", {"loss": [5.0, 0.01], "val_loss": [4.0, 0.02]}, "logarithmic", "test")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_epochs_are_whole_numbers_on_the_axis():
    from xbp.cli.plot import _figure

    for epochs in (1, 2, 3, 60):
        field = _figure({"loss": [1.0] * epochs}, "", "test").axes[0]
        ticks = [tick for tick in field.get_xticks() if 1 <= tick <= epochs]
        assert ticks
        assert all(tick == round(tick) for tick in ticks)
        assert field.get_xlabel() == "epoch"
