"""`.npz` archives under the names that people give, and the one rule that tells classes from numbers."""

from __future__ import annotations

import tracemalloc
import zipfile

import numpy as np
import pytest

from dataset_files import check, refused
from xbp.datasets import Scaling, load, load_features

RNG = np.random.default_rng(0)
X = RNG.normal(size=(30, 4))
LABELS = np.arange(30) % 3
PAIRS = [
    ("x", "t"),
    ("X", "y"),
    ("data", "target"),
    ("images", "labels"),
    ("x_train", "y_train"),
    ("train_X", "train_Y"),
]


@pytest.mark.parametrize("names", PAIRS)
def test_names_that_people_use(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (X, LABELS), strict=True)), noise=np.zeros(3))
    d = load(tmp_path / "a.npz")
    check(d)
    assert (d.name, d.classes, d.scaling) == ("a", ("0", "1", "2"), Scaling())
    assert (len(d.x), len(d.x_test)) == (24, 6)
    rows = {bytes(r): k for r, k in zip(X.astype(np.float32), LABELS, strict=True)}
    for r, k in zip(np.concatenate([d.x, d.x_test]), [*d.t, *d.t_test], strict=True):
        assert rows.pop(bytes(r)) == k
    assert not rows
    np.testing.assert_array_equal(
        load_features(tmp_path / "a.npz", scaling=d.scaling), X.astype(np.float32), strict=True
    )


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_both_parts_given(tmp_path, save):
    images = RNG.integers(0, 256, (20, 3, 2), dtype=np.uint8)
    save(
        tmp_path / "a.npz", x_train=images[:15], y_train=np.arange(15) % 3, x_test=images[15:], y_test=np.arange(5) % 3
    )
    d = load(tmp_path / "a.npz")
    check(d)
    assert d.scaling == Scaling(0.0, 1 / 255)
    expected = images.reshape(20, 6).astype(np.float32) * np.float32(1 / 255)
    np.testing.assert_array_equal(d.x, expected[:15], strict=True)
    np.testing.assert_array_equal(d.x_test, expected[15:], strict=True)
    np.testing.assert_array_equal(d.t_test, np.arange(5) % 3, strict=True)
    np.testing.assert_array_equal(load_features(tmp_path / "a.npz", scaling=d.scaling), d.x_test, strict=True)


@pytest.mark.parametrize(
    ("t", "task", "classes"),
    [
        (np.array(["b", "a"] * 15), "auto", ("a", "b")),
        (np.array([b"b", b"a"] * 15), "auto", ("a", "b")),
        (np.array([True, False] * 15), "auto", ("False", "True")),
        (np.arange(30) % 15, "auto", tuple(map(str, range(15)))),
        (np.arange(30) % 2 * 7 - 5, "auto", ("-5", "2")),
        ((np.arange(30) % 3)[:, None].astype(np.uint8), "auto", ("0", "1", "2")),
        (np.eye(3)[np.arange(30) % 3], "auto", ("0", "1", "2")),
        (np.arange(30) % 3 + 0.0, "classification", ("0", "1", "2")),
        (np.arange(30) % 16, "auto", ()),  # fewer than two rows of each on average
        (np.arange(30) % 3 + 0.0, "auto", ()),
        (np.arange(30) % 3, "regression", ()),
        (np.arange(60).reshape(30, 2), "auto", ()),
        (RNG.normal(size=30), "auto", ()),
    ],
)
def test_classes_or_numbers(tmp_path, t, task, classes):
    np.savez(tmp_path / "a.npz", x=X, t=t)
    d = load(tmp_path / "a.npz", task=task, test_fraction=0)
    check(d)
    assert d.classes == classes
    if not classes:
        np.testing.assert_array_equal(d.t, t.reshape(30, -1).astype(np.float32), strict=True)
    elif t.ndim == 1:
        texts = [v.decode() if isinstance(v, bytes) else str(int(v) if isinstance(v, float) else v) for v in t.tolist()]
        assert [classes[k] for k in d.t] == texts


@pytest.mark.parametrize(("distinct", "task"), [(20, "classification"), (21, "regression")])
def test_at_most_twenty_classes_are_guessed(tmp_path, distinct, task):
    np.savez(tmp_path / "a.npz", x=np.zeros((63, 1)), t=np.arange(63) % distinct)
    assert load(tmp_path / "a.npz").task == task
    assert len(load(tmp_path / "a.npz", task="classification").classes) == distinct


def test_names_of_classes_and_columns(tmp_path):
    extra = {"target_names": np.array(["no", "yes", "maybe"]), "feature_names": np.array(list("abcd"))}
    np.savez(tmp_path / "a.npz", data=X, target=LABELS, **extra)
    d = load(tmp_path / "a.npz")
    assert (d.classes, d.features) == (("no", "yes", "maybe"), tuple("abcd"))
    np.savez(
        tmp_path / "b.npz", data=X, target=LABELS, target_names=np.array(["no", None]), feature_names=np.array(["a"])
    )
    d = load(tmp_path / "b.npz")
    assert (d.classes, d.features) == (("0", "1", "2"), ())


def test_target_by_name(tmp_path):
    np.savez(tmp_path / "a.npz", x=X, price=X[:, 0], t=LABELS, y=LABELS)
    refused(["'t' and 'y' might be meant", "target="], tmp_path / "a.npz")
    d = load(tmp_path / "a.npz", target="price", dtype="float64")
    check(d, "float64")
    assert d.t.shape == (24, 1)
    refused(["no array 'prise'", "x (30, 4) float64", "price (30,) float64"], tmp_path / "a.npz", target="prise")


@pytest.mark.parametrize(
    ("arrays", "options", "words"),
    [
        ({"a": X, "b": LABELS}, {}, ["no features and targets", "Inside: a (30, 4) float64, b (30,) int64"]),
        ({}, {}, ["Inside: no arrays"]),
        ({"x": X, "t": LABELS[:29]}, {}, ["x has 30 rows", "t has shape (29,)"]),
        ({"x": X, "t": np.int64(3)}, {}, ["t has shape ()"]),
        ({"x": X[:0], "t": LABELS[:0]}, {}, ["(0, 4)", "at least one row"]),
        ({"x": np.float64(1), "t": LABELS}, {}, ["shape ()"]),
        ({"x": X.astype(str), "t": LABELS}, {}, ["dtype <U", "numbers"]),
        ({"x": X * 1j, "t": LABELS}, {}, ["complex128"]),
        ({"x": X, "t": LABELS * 1j}, {}, ["'t'", "complex128"]),
        ({"x": X.astype(object), "t": LABELS}, {}, ["'x' holds Python objects", "astype"]),
        ({"x": X, "t": np.array(["a", None] * 15)}, {}, ["'t' holds Python objects"]),
        ({"x": X, "t": LABELS.reshape(30, 1, 1)}, {}, ["(30, 1, 1)"]),
        ({"x": X, "t": X}, {"task": "classification"}, ["(30, 4)", "one-hot"]),
        ({"x": X, "t": LABELS + 0.5}, {"task": "classification"}, ["holds 0.5, which is no class"]),
        ({"x": X, "t": np.full(30, np.nan)}, {"task": "classification"}, ["holds nan, which is no class"]),
        ({"x": X, "t": np.array(["a", "b"] * 15)}, {"task": "regression"}, ["'a'", "regression needs numbers"]),
        ({"x": X, "t": LABELS * 0}, {}, ["is '0' in every row"]),
        ({"x": X, "t": np.array(["a"] * 29 + ["b"])}, {}, ["class 'b' has a single row", "test_fraction=0"]),
        ({"x": X[:1], "t": X[:1, 0]}, {}, ["1 row", "too few", "test_fraction=0"]),
        ({"x_train": X, "y_train": LABELS, "x_test": X}, {}, ["has 'x_test'", "other half"]),
        ({"x_train": X, "y_train": LABELS, "x_test": X[:, :3], "y_test": LABELS}, {}, ["x_test is float64 (30, 3)"]),
        ({"x_train": X, "y_train": LABELS, "x_test": X.astype(int), "y_test": LABELS}, {}, ["x_test is int64"]),
    ],
)
def test_archives_that_do_not_fit(tmp_path, arrays, options, words):
    np.savez(tmp_path / "a.npz", **arrays)
    refused(["a", *words], tmp_path / "a.npz", **options)


def test_damaged_archives(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=X, t=LABELS)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refused([str(path), "not a whole .npz file"], path)
    middle = whole.index(b"x.npy") + 80
    path.write_bytes(whole[:middle] + b"\0\xff" * 20 + whole[middle + 40 :])
    refused([str(path), "array 'x' is damaged"], path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
        archive.writestr("t.npy", b"\x93NUMPY\x01\x00")
    refused([str(path), "array 'x' is damaged"], path)
    refused(["x (damaged), t (damaged)"], path, target="q")


def test_nothing_is_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return open, (str(tmp_path / "fired"), "w")

    np.savez(tmp_path / "a.npz", x=X, t=np.array([Bomb()] * 30), classes=np.array([Bomb()]))
    refused(["'t' holds Python objects"], tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", x=X, t=LABELS, classes=np.array([Bomb()]))
    load(tmp_path / "a.npz")
    assert not (tmp_path / "fired").exists()


def test_features_for_prediction(tmp_path):
    np.savez(tmp_path / "a.npz", X)
    scaling = Scaling((1.0, 2.0, 3.0, 4.0), 0.5)
    x = load_features(tmp_path / "a.npz", scaling=scaling, dtype="float64")
    np.testing.assert_array_equal(x, (X - [1, 2, 3, 4]) / 2, strict=True)
    np.savez(tmp_path / "b.npz", a=X, b=X)
    refused(["no features found", "a (30, 4) float64"], tmp_path / "b.npz", call=load_features, scaling=scaling)


def test_bytes_are_not_blown_up(tmp_path):
    images = RNG.integers(0, 256, (20_000, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=images, t=np.arange(20_000) % 10)
    tracemalloc.start()
    d = load(tmp_path / "a.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    check(d)
    assert peak < 1.1 * (images.nbytes + d.x.nbytes + d.x_test.nbytes)
