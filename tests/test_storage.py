"""Files that hold models: what goes in comes out bit for bit, and what cannot be saved is refused in time."""

from __future__ import annotations

import json
import math
import os
import stat
import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from xbp import storage
from xbp.errors import CheckpointError

DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
DTYPES += ["float16", "float32", "float64"]


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


def assert_same(a: np.ndarray, b: np.ndarray) -> None:
    """Same shape, dtype but for its byte order, and bits."""
    assert b.shape == a.shape
    assert b.dtype == a.dtype.newbyteorder("=")
    assert b.tobytes() == a.astype(a.dtype.newbyteorder("=")).tobytes()


def files(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# ---- what goes in comes out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_dtype_in_both_byte_orders(tmp_path, dtype, order):
    a = np.arange(12).reshape(3, 4).astype(np.dtype(dtype).newbyteorder(order))
    storage.write(tmp_path / "m", {"a": a}, {})
    (b,) = storage.read(tmp_path / "m")[0].values()
    assert_same(a, b)
    assert b.dtype.isnative
    assert b.flags.writeable


def test_awkward_layouts(tmp_path):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    read_only = base.copy()
    read_only.flags.writeable = False
    arrays = {
        "transposed": base.T,
        "strided": base[::2, ::-3],
        "broadcast": np.broadcast_to(np.float64(2.5), (3, 2)),
        "fortran": np.asfortranarray(base),
        "zero-d": np.array(7, dtype=np.int64),
        "scalar": np.float32(1.5),
        "empty": np.zeros((0, 3), np.float64),
        "empty-bool": np.zeros((2, 0), bool),
        "read-only": read_only,
        "special": np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324]),
    }
    storage.write(tmp_path / "m", arrays, {})
    back, _ = storage.read(tmp_path / "m")
    assert list(back) == list(arrays)
    for name, a in arrays.items():
        assert_same(np.asarray(a), back[name])
    library = safetensors.numpy.load_file(tmp_path / "m")
    assert set(library) == set(arrays)
    for name, a in arrays.items():
        assert_same(np.asarray(a), library[name])


def test_mixed_item_sizes_stay_aligned_and_in_order(tmp_path):
    arrays = {"b": np.ones(3, bool), "d": np.arange(5.0), "h": np.ones(3, np.float16), "f": np.ones(1, np.float32)}
    storage.write(tmp_path / "m", arrays, {})
    raw = (tmp_path / "m").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    for name, a in arrays.items():
        assert (8 + length + table[name]["data_offsets"][0]) % a.itemsize == 0
    assert list(storage.read(tmp_path / "m")[0]) == list(arrays)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_subnormal=True) | st.text(st.characters(codec=None)),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | st.just("$float"), inner, max_size=4)
    ),
    max_leaves=12,
)
names = st.text(st.characters(codec="utf-8"), max_size=8).filter(lambda n: n != "__metadata__")
any_array = st.sampled_from(DTYPES).flatmap(
    lambda d: hnp.arrays(np.dtype(d), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
)


def same_json(a, b) -> bool:
    """Equality that tells 0.0 from -0.0, True from 1, and one NaN from another."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return bits(a) == bits(b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same_json, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_json(a[k], b[k]) for k in a)
    return a == b


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(names, any_array, max_size=4), st.dictionaries(st.text(max_size=6), json_values, max_size=4))
def test_round_trip(tmp_path, arrays, header):
    path = tmp_path / "m"
    storage.write(path, arrays, header)
    back, head = storage.read(path)
    assert list(back) == list(arrays)
    for name, a in arrays.items():
        assert_same(a, back[name])
    assert same_json(head, header)
    assert same_json(storage.read_header(path), header)
    json.loads(storage.sidecar(path).read_bytes(), parse_constant=lambda c: pytest.fail(f"{c} is no JSON"))
    assert files(tmp_path) == ["m", "m.json"]


def test_floats_that_json_lacks(tmp_path):
    payload = struct.unpack(">d", bytes.fromhex("fff8000000abcdef"))[0]
    header = {"history": [math.nan, -math.nan, math.inf, -math.inf, payload, -0.0, 0.1, np.float64("nan")]}
    storage.write(tmp_path / "m", {}, header)
    back = storage.read_header(tmp_path / "m")["history"]
    assert list(map(bits, back)) == list(map(bits, header["history"]))
    assert all(type(v) is float for v in back)
    text = storage.sidecar(tmp_path / "m").read_text()
    assert '{"$float": "nan"}' in text
    assert '{"$float": "nan:fff8000000abcdef"}' in text


def test_dollars_tuples_and_surrogates(tmp_path):
    header = {"$float": "nan", "a": {"$float": "1"}, "$$x": {"$": 1}, "\udc80": "\ud800 ü 学"}
    storage.write(tmp_path / "m", {}, {**header, "t": (1, (2,))})
    assert storage.read_header(tmp_path / "m") == {**header, "t": [1, [2]]}
    assert "学" in storage.sidecar(tmp_path / "m").read_text(encoding="utf-8")


def test_sidecar_is_readable_and_never_read(tmp_path):
    path = tmp_path / "model.safetensors"
    losses = [i / 7 for i in range(50)]
    storage.write(path, {"0.W": np.zeros((784, 50), np.float32)}, {"layers": [["Affine", 784, 50]], "loss": losses})
    beside = storage.sidecar(path)
    assert beside == tmp_path / "model.safetensors.json"
    text = beside.read_text()
    assert '"0.W": {"dtype": "float32", "shape": [784, 50]}' in text
    assert text.startswith('{\n  "version": 1,\n  "header": {\n    "layers": [["Affine", 784, 50]],\n')
    assert max(map(len, text.splitlines())) <= 110
    assert json.loads(text)["header"]["loss"] == losses
    beside.write_text("spoilt")
    assert storage.read_header(path)["loss"] == losses
    beside.unlink()
    assert storage.read(path)[0]["0.W"].shape == (784, 50)


def test_arrays_are_streamed_not_copied(tmp_path):
    arrays = {f"{i}": np.ones((1024, 1024), np.float32) for i in range(8)}  # 4 MiB each
    arrays["7"] = arrays["7"].T
    tracemalloc.start()
    storage.write(tmp_path / "m", arrays, {})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * arrays["7"].nbytes


# ---- what cannot be saved


@pytest.mark.parametrize(
    ("arrays", "header", "words"),
    [
        ({"a": np.array([None])}, {}, ["array 'a'", "dtype object", "float32"]),
        ({"a": np.zeros(2, complex)}, {}, ["array 'a'", "complex128"]),
        ({"a": np.array(["x"])}, {}, ["array 'a'", "<U1"]),
        ({"a": [1.0]}, {}, ["array 'a'", "list", "NumPy"]),
        ({"__metadata__": np.zeros(1)}, {}, ["'__metadata__'", "name"]),
        ({"\ud800": np.zeros(1)}, {}, ["name", "plain string"]),
        ({3: np.zeros(1)}, {}, ["array 3", "plain string"]),
        ({}, {"a": {"b": [0, np.float32(1)]}}, ["header['a']['b'][1]", "numpy.float32", "float(...)"]),
        ({}, {"a": {1: 2}}, ["header['a']", "key 1", "strings"]),
        ({}, {"a": {1, 2}}, ["header['a']", "set"]),
        ({}, {"a": "x" * 100_000_001}, ["100,000,000", "arrays"]),
    ],
)
def test_refused_before_anything_is_written(tmp_path, arrays, header, words):
    with pytest.raises(CheckpointError) as error:
        storage.write(tmp_path / "m", arrays, header)
    for word in [str(tmp_path / "m"), *words]:
        assert word in str(error.value)
    assert files(tmp_path) == []


def test_header_nested_without_end(tmp_path):
    header: dict = {}
    header["self"] = header
    with pytest.raises(CheckpointError, match="Nothing was written"):
        storage.write(tmp_path / "m", {}, header)


def test_places_where_nothing_can_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    before = files(tmp_path)
    for path, words in {
        "modle/m": ["modle' does not exist", "Create it"],
        "folder": ["is a folder", "model.safetensors"],
        "loop": ["points to itself"],
        "pipe": ["a pipe"],
        "x" * 300: ["File name too long"],
    }.items():
        for attempt in (lambda p: storage.write(p, {"a": np.zeros(2)}, {}), storage.check_writable):
            with pytest.raises(CheckpointError) as error:
                attempt(tmp_path / path)
            for word in [path, *words]:
                assert word in str(error.value)
    assert files(tmp_path) == before
    (tmp_path / "m.json").mkdir()
    with pytest.raises(CheckpointError, match=r"m\.json'.*is a folder"):
        storage.write(tmp_path / "m", {}, {})
    assert not (tmp_path / "m").exists()


@pytest.fixture
def bound_folder():
    """A folder whose permissions bind us: they would not bind root, so root becomes nobody for the while."""
    with tempfile.TemporaryDirectory() as name:
        folder, root = Path(name), os.geteuid() == 0
        folder.chmod(0o777)
        if root:
            os.setresuid(65534, 65534, 0)
        try:
            yield folder
        finally:
            if root:
                os.setresuid(0, 0, 0)


def test_permissions_are_respected(bound_folder):
    path = bound_folder / "m"
    storage.write(path, {}, {"v": 1})
    path.chmod(0o444)
    for attempt in (storage.check_writable, lambda p: storage.write(p, {}, {"v": 2})):
        with pytest.raises(CheckpointError, match=r"m': the file is read-only"):
            attempt(path)
    assert storage.read_header(path) == {"v": 1}
    path.chmod(0o000)
    with pytest.raises(CheckpointError, match="Permission denied"):
        storage.read(path)
    (bound_folder / "locked").mkdir(mode=0o555)
    with pytest.raises(CheckpointError, match="locked' is read-only"):
        storage.check_writable(bound_folder / "locked" / "m")
    (bound_folder / "locked").chmod(0o000)
    for attempt in (storage.check_writable, storage.read):
        with pytest.raises(CheckpointError, match="Permission denied"):
            attempt(bound_folder / "locked" / "m")
    (bound_folder / "locked").chmod(0o700)


def test_permissions_of_a_new_file_and_of_one_replaced(tmp_path):
    old = os.umask(0o027)
    try:
        storage.write(tmp_path / "m", {}, {})
        assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o640
        (tmp_path / "m").chmod(0o604)
        storage.write(tmp_path / "m", {"a": np.zeros(1)}, {})
        assert stat.S_IMODE((tmp_path / "m").stat().st_mode) == 0o604
    finally:
        os.umask(old)


def test_links_stay_links(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "m").symlink_to(tmp_path / "real" / "target")
    for value in (1, 2):  # the first makes what the link points to, the second replaces it
        storage.write(tmp_path / "m", {}, {"v": value})
        assert (tmp_path / "m").is_symlink()
        assert storage.read_header(tmp_path / "real" / "target") == {"v": value}
    assert files(tmp_path / "real") == ["target"]
