"""Files that a full disk, a kill or a bad copy has damaged: saves lose nothing, reads say what is wrong."""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xbp import storage
from xbp.errors import CheckpointError


def files(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def envelope(text: str) -> bytes:
    return safetensors.numpy.save({"a": np.zeros(4)}, {"xbp": text})


# ---- the disk is full, the process is killed


@pytest.fixture
def full_disk(tmp_path):
    """A real file system of half a mebibyte, where the system lets us mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if shutil.which("mount") is None:
        pytest.skip("this system cannot mount a small file system; the limit on file sizes is tested instead")
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode != 0:
        pytest.skip("mounting a small file system needs root; the limit on file sizes is tested instead")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_full_disk_leaves_the_old_file(full_disk):
    path = full_disk / "m"
    storage.write(path, {"a": np.arange(4.0)}, {"v": 1})
    before, beside = path.read_bytes(), storage.sidecar(path).read_bytes()
    with pytest.raises(CheckpointError, match=r"No space left on device.*unchanged") as error:
        storage.write(path, {"a": np.zeros(1 << 20)}, {"v": 2})
    assert isinstance(error.value.__cause__, OSError)
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
    assert storage.sidecar(path).read_bytes() == beside
    assert files(full_disk) == ["m", "m.json"]
    with pytest.raises(CheckpointError) as error:
        storage.write(full_disk / "new", {"a": np.zeros(1 << 20)}, {})
    assert "unchanged" not in str(error.value)
    assert files(full_disk) == ["m", "m.json"]


LIMITED = """
import resource, signal, sys
import numpy as np
from xbp import storage
from xbp.errors import CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    storage.write(sys.argv[1], {"a": np.zeros(100_000)}, {"v": 2})
except CheckpointError as error:
    print(error)
"""


def run(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=True)


def test_file_size_limit_leaves_the_old_file(tmp_path):
    path = tmp_path / "m"
    storage.write(path, {"a": np.arange(4.0)}, {"v": 1})
    before = path.read_bytes()
    assert "File too large. What was saved there before is unchanged." in run(LIMITED, path).stdout
    assert path.read_bytes() == before
    assert storage.read_header(path) == {"v": 1}
    assert files(tmp_path) == ["m", "m.json"]


SAVING = """
import sys
import numpy as np
from xbp import storage
k = int(sys.argv[2])
while True:
    k += 1
    storage.write(sys.argv[1], {n: np.full(200_000, k, np.int64) for n in "ab"}, {"k": k})
    print(k, flush=True)
"""


def test_kill_in_the_middle_of_a_save(tmp_path):
    path, last, torn = tmp_path / "m", 0, 0
    storage.write(path, {n: np.zeros(200_000, np.int64) for n in "ab"}, {"k": 0})
    for attempt in range(12):
        command = [sys.executable, "-c", SAVING, str(path), str(last)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as saver:
            saver.stdout.readline()  # the first save is done, the second has begun
            time.sleep(0.0007 * attempt)
            saver.kill()
            told = [last, *map(int, saver.stdout.read().split())]
        assert saver.returncode == -signal.SIGKILL
        arrays, header = storage.read(path)
        k = header["k"]
        assert k >= max(told), "a save that was reported is gone"
        for name in "ab":
            np.testing.assert_array_equal(arrays[name], np.full(200_000, k), strict=True)
        last = k
        torn += sum(n.endswith(".tmp") for n in files(tmp_path))
        for left in tmp_path.glob(".m*.tmp"):
            left.unlink()
    assert torn > 0, "no kill came in the middle of a save: the test proves nothing"


def test_interrupt_removes_the_temporary_file(tmp_path, monkeypatch):
    storage.write(tmp_path / "m", {}, {"v": 1})
    monkeypatch.setattr(os, "fsync", lambda fd: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        storage.write(tmp_path / "m", {}, {"v": 2})
    assert storage.read_header(tmp_path / "m") == {"v": 1}
    assert files(tmp_path) == ["m", "m.json"]


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_opening_a_file_runs_no_code(tmp_path):
    for data in (
        pickle.dumps(Bomb(str(tmp_path / "fired"))),
        envelope(pickle.dumps(Bomb("fired"), protocol=0).decode()),
    ):
        (tmp_path / "m").write_bytes(data)
        with pytest.raises(CheckpointError, match=r"not a safetensors file|header is damaged"):
            storage.read(tmp_path / "m")
    assert files(tmp_path) == ["m"]


# ---- files that cannot be read


def good_bytes(tmp_path) -> bytes:
    storage.write(tmp_path / "good", {"a": np.arange(100.0), "b": np.zeros(3, np.int32)}, {"k": 1})
    return (tmp_path / "good").read_bytes()


HEAD = '"names": ["a"], "header"'
BROKEN = {
    "text": (b"import numpy as np\n" * 20, ["not a safetensors file"]),
    "zip": (b"PK\x03\x04" + bytes(200), ["not a safetensors file"]),
    "empty": (b"", ["0 bytes", "interrupted"]),
    "five bytes": (b"12345", ["5 bytes", "interrupted"]),
    "foreign": (safetensors.numpy.save({"a": np.zeros(2)}, {"format": "pt"}), ["not one of xbp", "load_params"]),
    "no metadata": (safetensors.numpy.save({"a": np.zeros(2)}), ["not one of xbp"]),
    "newer": (envelope(f'{{"version": 99, {HEAD}: {{}}}}'), ["format version 99", "Update xbp", "up to 1"]),
    "bad JSON": (envelope('{"version": 1, '), ["header is damaged", "JSONDecodeError"]),
    "no version": (envelope("{}"), ["header is damaged", "version"]),
    "a list": (envelope("[]"), ["header is damaged"]),
    "other names": (envelope('{"version": 1, "names": ["b"], "header": {}}'), ["header is damaged", "names"]),
    "header no dict": (envelope(f'{{"version": 1, {HEAD}: 3}}'), ["header is damaged"]),
    "bad float": (envelope(f'{{"version": 1, {HEAD}: {{"a": {{"$float": 3}}}}}}'), ["header is damaged"]),
    "bad bits": (envelope(f'{{"version": 1, {HEAD}: {{"a": {{"$float": "nan:ff"}}}}}}'), ["header is damaged"]),
    "too deep": (envelope(f'{{"version": 1, {HEAD}: {"[" * 100_000}'), ["header is damaged", "Recursion"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path, name):
    data, words = BROKEN[name]
    (tmp_path / "m").write_bytes(data)
    for read in (storage.read, storage.read_header):
        with pytest.raises(CheckpointError) as error:
            read(tmp_path / "m")
        for word in [str(tmp_path / "m"), *words]:
            assert word in str(error.value)


def test_truncated_anywhere(tmp_path):
    whole = good_bytes(tmp_path)
    for size in range(len(whole)):
        (tmp_path / "cut").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match="interrupted") as error:
            storage.read(tmp_path / "cut")
        assert f"{size:,} " in str(error.value)
    assert f"{len(whole):,} bytes are announced" in str(error.value)


def test_appended_bytes(tmp_path):
    (tmp_path / "long").write_bytes(good_bytes(tmp_path) + b"abc")
    with pytest.raises(CheckpointError, match="3 bytes follow behind its end"):
        storage.read(tmp_path / "long")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_raises_or_reads(tmp_path, data):
    """No spoilt byte leads to anything but a clean error or arrays of the right names: never to a crash."""
    spoilt = bytearray(good_bytes(tmp_path))
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, len(spoilt) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "m").write_bytes(spoilt)
    with contextlib.suppress(CheckpointError):
        assert len(storage.read(tmp_path / "m")[0]) == 2


def test_what_is_no_file(tmp_path):
    good_bytes(tmp_path)
    (tmp_path / "good").rename(tmp_path / "model.safetensors")
    os.mkfifo(tmp_path / "pipe")
    for path, words in {
        "modle.safetensors": ["no such file", "That folder has: model.safetensors"],
        "nowhere/m": ["no such file"],
        ".": ["is a folder"],
        "pipe": ["a pipe"],
    }.items():
        with pytest.raises(CheckpointError) as error:
            storage.read(tmp_path / path)
        for word in words:
            assert word in str(error.value)


def test_dtype_that_numpy_lacks(tmp_path):
    index = b'{"__metadata__":{"xbp":"{\\"version\\":1,\\"names\\":[\\"a\\"],\\"header\\":{}}"},'
    index += b'"a":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    (tmp_path / "m").write_bytes(struct.pack("<Q", len(index)) + index + bytes(4))
    with pytest.raises(CheckpointError, match="NumPy cannot"):
        storage.read(tmp_path / "m")
    assert storage.read_header(tmp_path / "m") == {}


def test_soft_limit_on_open_files_is_a_clean_error(tmp_path):
    storage.write(tmp_path / "m", {}, {"v": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(CheckpointError, match="Too many open files"):
            storage.write(tmp_path / "m", {}, {"v": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert storage.read_header(tmp_path / "m") == {"v": 1}
