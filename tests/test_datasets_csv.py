"""CSV files: read once, in little memory, scaled by their training part, and bad cells named by line and column."""

from __future__ import annotations

import csv
import gzip
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataset_files import check, refused
from xbp.datasets import Scaling, load, load_features, table
from xbp.errors import ShapeError


def write(path, text: str | bytes):
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def rows_text(n: int, classes=("a", "b"), columns=3, seed=0) -> str:
    rng = np.random.default_rng(seed)
    head = ",".join([f"c{j}" for j in range(columns)] + ["kind"])
    lines = [",".join([*map(repr, map(float, rng.normal(3, 9, columns))), classes[i % len(classes)]]) for i in range(n)]
    return "\n".join([head, *lines]) + "\n"


def numbers(text: str) -> np.ndarray:
    return np.array([[float(c) for c in line.split(",")[:-1]] for line in text.split()[1:]])


# ---- values


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cells", [1 << 15, 40])
def test_columns_are_standardised_by_the_training_part(tmp_path, monkeypatch, dtype, cells):
    monkeypatch.setattr(table, "_CELLS", cells)  # 40: ten rows at a time, so that the file comes in several chunks
    text = rows_text(100)
    path = write(tmp_path / "data.csv", text)
    d = load(path, target="kind", dtype=dtype)
    check(d, dtype)
    assert (d.name, d.classes, d.features) == ("data", ("a", "b"), ("c0", "c1", "c2"))
    assert (len(d.x), len(d.x_test)) == (80, 20)
    np.testing.assert_allclose(d.x.mean(axis=0, dtype=float), 0, atol=1e-6)
    np.testing.assert_allclose(d.x.std(axis=0, dtype=float), 1, atol=1e-6)
    raw, kinds = numbers(text), np.arange(100) % 2
    scaled = d.scaling.apply(raw, dtype)
    by_row = {bytes(r): i for i, r in enumerate(scaled)}
    train, test = ([by_row[bytes(r)] for r in x] for x in (d.x, d.x_test))
    assert sorted(train + test) == list(range(100))
    assert (train, test) == (sorted(train), sorted(test))
    np.testing.assert_array_equal(d.t, kinds[train])
    np.testing.assert_array_equal(d.t_test, kinds[test])
    np.testing.assert_allclose(d.scaling.offset, raw[train].mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(np.divide(1, d.scaling.factor), raw[train].std(axis=0), rtol=1e-13)
    again = load_features(path, features=d.features, scaling=d.scaling, target="kind", dtype=dtype)
    np.testing.assert_array_equal(again, scaled, strict=True)


def test_constant_and_far_columns(tmp_path):
    rows = [f"0.1,{1_700_000_000 + i},{1e-30 * i},{'ab'[i % 2]}" for i in range(40)]
    d = load(write(tmp_path / "a.csv", "\n".join(["same,time,tiny,kind", *rows])), target="kind")
    assert d.scaling.offset[0] == 0.1
    assert d.scaling.factor[0] == 1.0
    np.testing.assert_array_equal(d.x[:, 0], np.zeros(32, np.float32), strict=True)
    for column, step in ((1, 1), (2, 1e-30)):
        values = np.sort(np.concatenate([d.x, d.x_test])[:, column])
        np.testing.assert_allclose(np.diff(values), step * d.scaling.factor[column], rtol=1e-5)
        assert 0.05 < values[1] - values[0] < 0.12


LAYOUTS = {
    "plain": "a,b,kind\n1,2.5,x\n-3,4e1,y\n",
    "semicolons": "a;b;kind\n1;2.5;x\n-3;4e1;y\n",
    "tabs": "a\tb\tkind\n1\t2.5\tx\n-3\t4e1\ty\n",
    "BOM and CRLF": "\ufeffa,b,kind\r\n1,2.5,x\r\n-3,4e1,y\r\n",
    "quoted": '"a","b","kind"\n"1","2.5","x"\n"-3","4e1","y"\n',
    "spaces": "a, b , kind\n1, 2.5, x\n -3 ,4e1, y \n",
    "quoted after spaces": '"a", "b", "kind"\n"1", "2.5", "x"\n"-3", "4e1", "y"\n',
    "blank lines": "a,b,kind\n\n1,2.5,x\n,,\n-3,4e1,y\n   \n\n",
    "no last line end": "a,b,kind\n1,2.5,x\n-3,4e1,y",
    "old line ends": "a,b,kind\r1,2.5,x\r-3,4e1,y\r",
    "a delimiter in a name": '"a;;",b,kind\n1,2.5,x\n-3,4e1,y\n',
    "a line end in a name": '"a\nb";b;kind\n1;2.5;x\n-3;4e1;y\n',
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout, packed):
    data = LAYOUTS[layout].encode()
    path = write(tmp_path / ("a.csv.gz" if packed else "a.csv"), gzip.compress(data) if packed else data)
    d = load(path, target="kind", test_fraction=0, dtype="float64")
    check(d, "float64")
    assert d.classes == ("x", "y")
    assert d.features == ({"a delimiter in a name": "a;;", "a line end in a name": "a\nb"}.get(layout, "a"), "b")
    np.testing.assert_allclose(d.x / d.scaling.factor + d.scaling.offset, [[1, 2.5], [-3, 40]], rtol=1e-15)


cells = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e100, max_value=1e100)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(lambda s: s.strip() != "")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.tuples(cells, cells, texts), min_size=2, max_size=12),
    names=st.lists(texts.map(str.strip), min_size=3, max_size=3, unique=True),
    delimiter=st.sampled_from(",;\t"),
)
def test_what_the_csv_module_writes_is_read(tmp_path, rows, names, delimiter):
    names = ["x" + n for n in names]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerows([names, *rows])
    x = load_features(tmp_path / "a.csv", scaling=Scaling(), target=names[2], dtype="float64")
    np.testing.assert_array_equal(x, [r[:2] for r in rows])
    labels = ["x" + r[2].strip() for r in rows]
    with (tmp_path / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(
            [names, *((a, b, k) for (a, b, _), k in zip(rows, labels, strict=True))]
        )
    if len(set(labels)) > 1:
        d = load(tmp_path / "a.csv", target=names[2], test_fraction=0)
        assert [d.classes[k] for k in d.t] == [k.strip() for k in labels]
        assert list(d.classes) == sorted(d.classes)


# ---- classes or numbers


def value(cell: str) -> int | float | str:
    """What a cell means: "01" and "+1" and "1.0" are the same class."""
    return int(cell) if cell.lstrip("+-").isdigit() else float(cell) if "." in cell else cell


@pytest.mark.parametrize(
    ("cells", "task", "classes"),
    [
        (["10", "9"] * 5, "auto", ("9", "10")),
        (["1", "01", "+1", "2"] * 5, "auto", ("1", "2")),
        (["yes", "no"] * 5, "auto", ("no", "yes")),
        (["1", "2", "other"] * 5, "auto", ("1", "2", "other")),
        ([str(i % 20) for i in range(40)], "auto", tuple(map(str, range(20)))),
        ([str(i % 20) for i in range(39)], "auto", ()),
        ([str(i % 21) for i in range(99)], "auto", ()),
        ([str(i % 21) for i in range(99)], "classification", tuple(map(str, range(21)))),
        ([chr(65 + i % 26) for i in range(52)], "auto", tuple(map(chr, range(65, 91)))),
        (["1.0", "2.0"] * 5, "auto", ()),
        (["1.0", "2.0"] * 5, "classification", ("1", "2")),
        (["36028797018963969", "36028797018963968"] * 5, "auto", ("36028797018963968", "36028797018963969")),
        (["1", "2"] * 5, "regression", ()),
    ],
)
def test_classes_or_numbers(tmp_path, cells, task, classes):
    path = write(tmp_path / "a.csv", "x,y\n" + "".join(f"{i},{c}\n" for i, c in enumerate(cells)))
    d = load(path, target="y", task=task, test_fraction=0)
    check(d)
    assert d.classes == classes
    if classes:
        assert [value(classes[k]) for k in d.t] == list(map(value, cells))
    else:
        np.testing.assert_array_equal(d.t[:, 0], np.array(cells, np.float32), strict=True)


# ---- memory and prediction


def test_memory_stays_near_the_numbers(tmp_path):
    path = write(tmp_path / "a.csv", rows_text(30_000, columns=20))
    tracemalloc.start()
    d = load(path, target="kind")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    two_chunks = 2 * 100 * table._CELLS  # bytes of text; the whole file takes five times as much
    assert peak < 3.3 * (d.x.nbytes + d.x_test.nbytes) + two_chunks, "float64 and float32 once, and no more text"


def test_new_files_are_read_by_the_names_of_the_columns(tmp_path):
    text = rows_text(20)
    d = load(write(tmp_path / "a.csv", text), target="kind")
    options = {"features": d.features, "scaling": d.scaling}
    raw = numbers(text)
    shuffled = "id,c2,c0,c1\n" + "".join(f"n{i},{c!r},{a!r},{b!r}\n" for i, (a, b, c) in enumerate(raw.tolist()))
    x = load_features(write(tmp_path / "b.csv", shuffled), **options)
    np.testing.assert_array_equal(x, d.scaling.apply(raw), strict=True)
    np.testing.assert_array_equal(load_features(tmp_path / "a.csv", scaling=d.scaling, target="kind"), x, strict=True)
    path = write(tmp_path / "c.csv", "c0,c1,d2\n1,2,3\n")
    refused(["Unknown column 'c2'", "Known: c0, c1, d2"], path, call=load_features, **options)
    refused(["3 columns", "has 2"], path, call=load_features, scaling=d.scaling, target="d2", error=ShapeError)
    np.savez(tmp_path / "a.npz", x=raw[:, :2])
    refused(["has 2 columns", "takes 3"], tmp_path / "a.npz", call=load_features, error=ShapeError,
            features=d.features, scaling=Scaling())  # fmt: skip
    refused(
        ["no column besides"], write(tmp_path / "d.csv", "y\n1\n"), call=load_features, scaling=Scaling(), target="y"
    )
    one = load_features(write(tmp_path / "e.csv", "x,y\n5,q\n\n7,q\n"), scaling=Scaling(1.0, 2.0), target="y")
    np.testing.assert_array_equal(one, np.array([[8], [12]], np.float32), strict=True)


# ---- what cannot be read


BROKEN = [
    ("", ["nothing in its first line"]),
    ("\na,b,kind\n", ["nothing in its first line"]),
    ("a,b,kind\n", ["no rows of data"]),
    ("a,b,kind\n\n\n", ["no rows of data"]),
    ("a,,kind\n1,2,x\n", ["column 2 of 3 has no name", "index=False"]),
    ("a,a,kind\n1,2,x\n", ["two columns are named 'a'"]),
    ("5.1,3.5,1.4\n4.9,3.0,1.4\n", ["holds only numbers: 5.1, 3.5, 1.4"]),
    ("a,b,knd\n1,2,x\n", ["Unknown column 'kind'. Did you mean 'knd'?", "Known: a, b, knd"]),
    ("kind\nx\n", ["no column besides the target 'kind'"]),
    ("a,b,kind\n1,2,x\n3,oops,y\n", ["line 3, column 'b': the cell 'oops' is not a number"]),
    ("a,b,kind\n1,2,x\n\n3,,y\n", ["line 4, column 'b': the cell '' is empty"]),
    ("a,b,kind\n1,nan,x\n", ["line 2, column 'b': the cell 'nan' is not a finite number"]),
    ("a,b,kind\n1,2,x\n-inf,2,x\n", ["line 3, column 'a': the cell '-inf' is not a finite number"]),
    ("a;b;kind\n1;2,5;x\n", ["line 2, column 'b'", "'2,5' has a decimal comma"]),
    ("a,b,kind\n1,2,x\n3,4\n", ["line 3: 2 cell(s), and the first line names 3 columns"]),
    ("a,b,kind\n1,2,x\n3,4,5,y\n", ["line 3: 4 cell(s)", "quotation marks"]),
    ('a,b,kind\n1,2,"x\n3,4,y\n', ["line 3", "quotation mark left open"]),
    ('a,b,kind\n1,2,"x\ny"\n3,?,y\n', ["line 4, column 'b': the cell '?'"]),
    ("a,b,kind\n1,2,x\n3,4, \n", ["target column 'kind': the cell in line 3 is empty"]),
    ("a,b,kind\n1,2,x\n3,4,x\n", ["is 'x' in every row"]),
    ("a,b,kind\n1,2,x\n3,4,x\n5,6,y\n", ["class 'y' has a single row"]),
    ("a,kind\n1,0.5\n", ["1 row", "too few"]),
    ("a,kind\n1,0.5\n2,nan\n", ["line 3, column 'kind'", "'nan' is not a finite"]),
    ("a,b,kind\n1,2,\xe9\n".encode("latin-1"), ["not UTF-8", "0xe9"]),
    ("a,b,kind\n1,2,x\n".encode("utf-16"), ["not UTF-8", "0xff"]),
    (gzip.compress(rows_text(50_000).encode(), mtime=0)[:-200_000], ["cut off", "after line "]),
    (gzip.compress(b"a,b,kind\n1,2,x\n", mtime=0)[:-8] + b"abcdefgh", ["packed data is damaged"]),
]


@pytest.mark.parametrize(("text", "words"), BROKEN)
def test_broken_files(tmp_path, text, words):
    path = write(tmp_path / "a.csv", text)
    where = [] if "single row" in words[0] or words[0] == "1 row" else [str(path)]
    refused([*where, *words], path, target="kind")


def test_target_is_needed_and_its_text_is_checked(tmp_path):
    path = write(tmp_path / "a.csv", rows_text(10))
    refused(["say with target=", "c0, c1, c2, kind"], path)
    refused(["line 2, column 'kind': the cell 'a' is not a number"], path, target="kind", task="regression")
    path = write(tmp_path / "n.csv", "x,y\n1,2\n2,0.5\n")
    refused(["holds 0.5, which is no class"], path, target="y", task="classification")
    mixed = ["x,y", *(f"{i},{i}" for i in range(30)), "30,oops", *(f"{i},{i}" for i in range(30))]
    for text in ("\n".join(mixed), "\n".join([mixed[0], mixed[31], *mixed[1:31]])):
        path = write(tmp_path / "b.csv", text)
        refused(["mixes numbers and text ('oops' in line ", "task='classification'"], path, target="y")


def test_text_late_in_a_column_of_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "_CELLS", 20)
    lines = ["x,y", *(f"{i},{i / 7}" for i in range(100)), "1,oops"]
    refused(["'oops' in line 102"], write(tmp_path / "a.csv", "\n".join(lines)), target="y")
    lines[-1] = "oops,1"
    refused(["line 102, column 'x'"], write(tmp_path / "a.csv", "\n".join(lines)), target="y")
