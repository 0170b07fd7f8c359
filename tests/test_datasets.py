"""Data that people have: digits, IDX folders and `.npz` archives become the same arrays, held out and scaled alike."""

from __future__ import annotations

import gzip
import json
import os
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from dataset_files import NAMES, TYPES, check, idx_bytes, refused, write_idx
from xbp import datasets
from xbp.datasets import Scaling, load, load_features
from xbp.errors import DTypeError, NameUnknown, ShapeError

FASHION = Path("/usr/share/datasets/fashion-mnist")
# ---- scaling


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("raw", ["uint8", "int64", "float32", "float64", "bool", ">i2"])
def test_scaling_is_the_formula(raw, dtype):
    x = np.arange(24).reshape(2, 3, 4).astype(raw)
    s = Scaling(np.arange(12.0), 0.125)
    y = s.apply(x, dtype)
    assert y.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(y, ((x.reshape(2, 12).astype(float) - np.arange(12)) / 8).astype(dtype), strict=True)


def test_scaling_goes_through_json_and_is_a_value():
    s = Scaling(np.array([0.1, 1e300, -0.0]), (1.0, 2.0, 1 / 3))
    assert Scaling.from_json(json.loads(json.dumps(s.to_json()))) == s
    assert Scaling.from_json(Scaling(0, 1 / 255).to_json()) == Scaling(0.0, 1 / 255)
    assert len({s, Scaling(s.offset, s.factor), Scaling()}) == 2
    assert s.width == 3


def test_large_offsets_cost_no_digits():
    x = 1.7e9 + np.arange(4.0)[:, None]  # time stamps: float32 would make them multiples of 128
    np.testing.assert_array_equal(Scaling(1.7e9, 1.0).apply(x), np.arange(4, dtype=np.float32)[:, None], strict=True)


def test_scaling_refuses_what_does_not_fit():
    refused(["2 columns", "has 3"], np.zeros((1, 3)), call=Scaling((0.0, 0.0)).apply, error=ShapeError)
    refused(["(1, 1)"], [[0.0]], call=Scaling, error=ShapeError)
    refused(["[2, 3]"], (0, 0), (1, 1, 1), call=Scaling, error=ShapeError)
    refused(["<U1"], np.array([["a"]]), call=Scaling().apply, error=DTypeError)
    refused(["float16"], np.zeros((1, 1)), "float16", call=Scaling().apply, error=DTypeError)


def test_scaling_of_bytes_makes_no_wider_copy():
    x = np.ones((4000, 1000), np.uint8)
    tracemalloc.start()
    y = Scaling(0.0, 1 / 255).apply(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * y.nbytes


# ---- digits, and what is held out


def test_digits():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'xbp[sklearn]'")
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    d = load("digits")
    check(d)
    assert (d.x.shape, d.x_test.shape) == ((1438, 64), (359, 64))
    assert d.classes == tuple("0123456789")
    assert (d.x.min(), d.x.max()) == (0.0, 1.0)
    for k in range(10):
        n = int(np.sum(labels == k))
        assert np.sum(d.t_test == k) == round(n / 5)
    rows = {(r.tobytes(), k) for r, k in zip((raw / 16).astype(np.float32), labels, strict=True)}
    assert {(r.tobytes(), k) for r, k in zip(np.concatenate([d.x, d.x_test]), [*d.t, *d.t_test], strict=True)} == rows
    np.testing.assert_array_equal(
        load_features("digits", scaling=d.scaling), (raw / 16).astype(np.float32), strict=True
    )


def test_the_seed_chooses_the_rows():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn: pip install 'xbp[sklearn]'")
    a, b, c = load("digits", seed=3), load("digits", seed=3), load("digits", seed=4)
    np.testing.assert_array_equal(a.x_test, b.x_test)
    np.testing.assert_array_equal(a.t, b.t)
    assert not np.array_equal(a.t_test, c.t_test) or not np.array_equal(a.x_test, c.x_test)
    everything = load("digits", test_fraction=0.0, dtype="float64")
    check(everything, "float64")
    assert (everything.x.shape, everything.x_test.shape) == ((1797, 64), (0, 64))


def test_digits_without_scikit_learn(monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "sklearn"] or ["sklearn"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    refused(["digits", "scikit-learn", "pip install 'xbp[sklearn]'"], "digits")


def test_arguments_that_mean_nothing(tmp_path):
    for fraction in (-0.1, 1.0, 1.5, float("nan"), True):
        refused([f"test_fraction={fraction!r}"], "digits", test_fraction=fraction)
    for seed in (-1, 1.5, True):
        refused([f"seed={seed!r}"], "digits", seed=seed)
    refused(["task 'clasification'", "'classification'"], "digits", task="clasification", error=NameUnknown)
    refused(["'int8'", "float64"], "digits", dtype="int8", error=DTypeError)
    refused(["target='a'", "'digits'"], "digits", target="a")


def test_sources_that_are_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris.csv").write_text("a,b\n1,2\n")
    refused(["'digitz'", "Did you mean 'digits'?", ".npz"], "digitz")
    refused(["Did you mean 'iris.csv'?"], "irs.csv")
    refused([f"Did you mean '{tmp_path / 'iris.csv'}'?"], tmp_path / "iriss.csv")
    refused(["'data/iris.csv'", "folder 'data' does not exist"], "data/iris.csv")
    refused(["no data set or file".capitalize()], "qqqqqqqqqqqqq")
    (tmp_path / "table.xlsx").write_bytes(b"PK")
    refused(["named .xlsx", "digits", "IDX", ".npz", ".csv"], "table.xlsx")
    (tmp_path / "table").write_bytes(b"")
    refused(["without a suffix"], "table")
    refused(["File name too long"], "x" * 300 + ".csv")


# ---- IDX folders


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dot", [False, True])
def test_idx_folder(tmp_path, dot, packed):
    raw = write_idx(tmp_path / "mini", dot=dot, packed=packed)
    d = load(tmp_path / "mini")
    check(d)
    assert (d.name, d.classes, d.features, d.scaling) == ("mini", ("0", "1", "2"), (), Scaling(0.0, 1 / 255))
    for x, t, part in ((d.x, d.t, "train"), (d.x_test, d.t_test, "t10k")):
        expected = raw[part, "images"].reshape(-1, 20).astype(np.float32) * np.float32(1 / 255)
        np.testing.assert_array_equal(x, expected, strict=True)
        np.testing.assert_array_equal(t, raw[part, "labels"].astype(np.int64), strict=True)
    np.testing.assert_array_equal(load_features(tmp_path / "mini", scaling=d.scaling), d.x_test, strict=True)
    single = next((tmp_path / "mini").glob("train-images*"))
    np.testing.assert_array_equal(load_features(single, scaling=d.scaling), d.x, strict=True)
    refused(["one of several", str(tmp_path / "mini")], single)


def test_idx_folder_for_training_only_is_split(tmp_path):
    raw = write_idx(tmp_path, parts=("train",))
    d = load(tmp_path, seed=1)
    check(d)
    assert (len(d.x), len(d.x_test)) == (31, 9)  # 14, 13 and 13 rows: 3 of each class
    np.testing.assert_array_equal(np.bincount(d.t_test), [3, 3, 3])
    every = raw["train", "images"].reshape(-1, 20).astype(np.float32) * np.float32(1 / 255)
    assert sorted(map(bytes, every)) == sorted(map(bytes, np.concatenate([d.x, d.x_test])))
    numbers = load(tmp_path, task="regression", dtype="float64")
    check(numbers, "float64")
    assert numbers.t.shape == (32, 1)


@pytest.mark.parametrize("code", sorted(TYPES))
def test_idx_types(tmp_path, code):
    write_idx(tmp_path, parts=("train",))
    images = np.arange(40 * 20).reshape(40, 5, 4) % 100
    (tmp_path / NAMES["train", "images"]).write_bytes(idx_bytes(images, code))
    d = load(tmp_path, test_fraction=0)
    factor = np.float32(1 / 255) if code == 0x08 else np.float32(1)
    np.testing.assert_array_equal(d.x, images.reshape(40, 20).astype(np.float32) * factor, strict=True)


def test_idx_packed_and_unpacked_side_by_side(tmp_path):
    write_idx(tmp_path, packed=True)
    write_idx(tmp_path)
    assert len(load(tmp_path).x) == 40
    (tmp_path / ("emnist-" + NAMES["train", "images"])).write_bytes(b"")
    refused(["two files", "emnist-train-images", "train images"], tmp_path)


def images_file(folder: Path) -> Path:
    return folder / NAMES["train", "images"]


DAMAGE = {
    "bad magic": (lambda b: b"<!DOCTYPE html>", ["not an IDX file", "3c 21 44 4f", "web page"]),
    "unknown type": (lambda b: b"\0\0\x07\x03" + b[4:], ["not an IDX file", "00 00 07 03"]),
    "empty": (lambda b: b"", ["not an IDX file", "(none)"]),
    "in the header": (lambda b: b[:9], ["inside its header of 16 bytes"]),
    "truncated": (lambda b: b[:-7], ["[40, 5, 4]", "816 bytes", "809 are there", "cut off"]),
    "trailing": (lambda b: b + b"abc", ["[40, 5, 4]", "816 bytes", "3 more follow"]),
    "no rows": (lambda b: idx_bytes(np.zeros((0, 5, 4))), ["(0, 5, 4)"]),
    "one rank": (lambda b: idx_bytes(np.zeros(40)), ["(40,)", "swapped"]),
    "other count": (lambda b: idx_bytes(np.zeros((39, 5, 4))), ["39 images", "40 labels"]),
    "far too many": (lambda b: b[:4] + b"\xff" * 12 + b[16:], ["are there. It is cut off"]),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_idx(tmp_path, name, packed):
    write_idx(tmp_path)
    spoil, words = DAMAGE[name]
    path = images_file(tmp_path)
    data = spoil(path.read_bytes())
    path.write_bytes(gzip.compress(data) if packed else data)
    if packed and name == "far too many":
        words = ["4,294,967,295 images, and"]  # its size can only be known at its end
    refused([str(path), *words], tmp_path)


def test_damaged_packing(tmp_path):
    write_idx(tmp_path)
    path = images_file(tmp_path)
    whole = gzip.compress(path.read_bytes())
    for size in range(11, len(whole)):
        path.write_bytes(whole[:size])
        refused([str(path), "cut off" if size > 40 else ""], tmp_path)
    path.write_bytes(whole[:-4] + b"abcd")
    refused([str(path), "packed data is damaged"], tmp_path)
    path.write_bytes(whole[:100] + b"\xff" * 50 + whole[150:])
    refused([str(path)], tmp_path)


def test_idx_folders_that_lack_something(tmp_path):
    refused(["no IDX files", "train-images-idx3-ubyte", "nothing"], tmp_path)
    (tmp_path / "readme.txt").write_text("x")
    refused(["has readme.txt"], tmp_path)
    write_idx(tmp_path)
    (tmp_path / NAMES["t10k", "labels"]).unlink()
    refused([NAMES["t10k", "images"], "not the file with the labels"], tmp_path)
    images_file(tmp_path).unlink()
    assert load_features(tmp_path, scaling=Scaling()).shape == (10, 20)  # to predict, images are enough


def test_idx_labels_and_images_swapped_or_unlike(tmp_path):
    raw = write_idx(tmp_path)
    (tmp_path / NAMES["train", "labels"]).write_bytes(idx_bytes(raw["train", "images"]))
    refused(["(40, 5, 4)", "swapped"], tmp_path)
    write_idx(tmp_path)
    (tmp_path / NAMES["t10k", "images"]).write_bytes(idx_bytes(np.zeros((10, 6, 4))))
    refused(["differ in size or type"], tmp_path)
    write_idx(tmp_path)
    (tmp_path / NAMES["train", "labels"]).write_bytes(idx_bytes(np.zeros(40)))
    (tmp_path / NAMES["t10k", "labels"]).write_bytes(idx_bytes(np.zeros(10)))
    refused(["is '0' in every row"], tmp_path)


@pytest.mark.skipif(not FASHION.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_as_debian_lays_it_out():
    tracemalloc.start()
    d = load(FASHION)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check(d)
    assert (d.x.shape, d.x_test.shape, len(d.classes)) == ((60000, 784), (10000, 784), 10)
    np.testing.assert_array_equal(np.bincount(d.t), [6000] * 10)
    np.testing.assert_array_equal(np.bincount(d.t_test), [1000] * 10)
    assert (d.x.min(), d.x.max()) == (0.0, 1.0)
    with gzip.open(FASHION / "t10k-images-idx3-ubyte.gz") as file:
        last = np.frombuffer(file.read()[-784:], np.uint8)
    np.testing.assert_array_equal(d.x_test[-1], last.astype(np.float32) * np.float32(1 / 255), strict=True)
    assert peak < 1.1 * (d.x.nbytes + d.x_test.nbytes), (
        "bytes were held beside the floats made of them, or doubles were"
    )


def test_unreadable_folder(tmp_path):
    (tmp_path / NAMES["train", "images"]).mkdir(parents=True)
    (tmp_path / NAMES["train", "labels"]).symlink_to(tmp_path / "nowhere")
    refused(["Cannot read", NAMES["train", "labels"], "No such file"], tmp_path)
    assert os.path.islink(tmp_path / NAMES["train", "labels"])


def test_public_names():
    assert datasets.__all__ == ["Dataset", "Scaling", "load", "load_features"]
