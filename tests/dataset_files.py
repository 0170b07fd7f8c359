"""What the tests of data sets share: files in MNIST's layout, and what holds for every data set and every error."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from xbp.datasets import Dataset, load
from xbp.errors import DataError

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
NAMES = {(p, w): f"{p}-{w}-idx{r}-ubyte" for p in ("train", "t10k") for w, r in (("images", 3), ("labels", 1))}


def idx_bytes(a: np.ndarray, code: int = 0x08) -> bytes:
    return bytes([0, 0, code, a.ndim]) + struct.pack(f">{a.ndim}I", *a.shape) + a.astype(TYPES[code]).tobytes()


def write_idx(folder: Path, *, parts=("train", "t10k"), n=(40, 10), dot=False, packed=False, seed=0) -> dict:
    """A folder in MNIST's layout; returns the raw arrays by the names of `NAMES`."""
    rng, raw = np.random.default_rng(seed), {}
    folder.mkdir(exist_ok=True)
    for part, rows in zip(parts, n, strict=False):
        raw[part, "images"] = rng.integers(0, 256, (rows, 5, 4), dtype=np.uint8)
        raw[part, "labels"] = np.arange(rows, dtype=np.uint8) % 3
    for key, a in raw.items():
        name = NAMES[key].replace("-idx", ".idx") if dot else NAMES[key]
        data = idx_bytes(a)
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    return raw


def check(d: Dataset, dtype="float32") -> None:
    """What holds for every data set."""
    assert d.x.ndim == 2
    assert d.x.shape[1] == d.x_test.shape[1]
    assert d.x.dtype == d.x_test.dtype == np.dtype(dtype)
    assert (len(d.x), len(d.x_test)) == (len(d.t), len(d.t_test))
    assert d.x.flags.c_contiguous
    if d.classes:
        assert d.task == "classification"
        assert d.t.dtype == d.t_test.dtype == np.int64
        assert d.t.ndim == 1
        assert set(d.t) | set(d.t_test) == set(range(len(d.classes)))
    else:
        assert d.task == "regression"
        assert d.t.dtype == d.t_test.dtype == np.dtype(dtype)
        assert d.t.ndim == d.t_test.ndim == 2


def refused(words: list[str], *args, error=DataError, call=load, **kwargs) -> None:
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    for word in words:
        assert word in str(caught.value), str(caught.value)
