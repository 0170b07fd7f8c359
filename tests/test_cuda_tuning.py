"""The search for the fastest algorithm and its file: times and candidates are plain values, and no library runs."""

from __future__ import annotations

import dataclasses
import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xbp.errors import NotCompiled, ShapeError
from xbp_cupy.lt import Algorithm, Declined
from xbp_cupy.products import Matrix, Product
from xbp_cupy.tuning import FILE, DeviceKind, Tuning, key_of

H200 = DeviceKind("NVIDIA H200", "90")
PRODUCT = Product(10, 128, 256, Matrix("float32", 10), Matrix("float32", 256), Matrix("float32", 16))
KEY = key_of(PRODUCT, 1 << 20, 131000, H200)


def algorithm(number: int, workspace: int = 0) -> Algorithm:
    return Algorithm.from_hex(f"{number:0128x}", workspace, 0.5)


A, B, C = (algorithm(n, 100 * n) for n in (1, 2, 3))


def never(*_):
    raise AssertionError("nothing had to be tried")


def timed(times: dict, calls: list | None = None):
    """A clock that says, for each algorithm in turn, what stands in its list; the last value goes on."""
    left = {a: list(values) for a, values in times.items()}

    def seconds(a: Algorithm) -> float:
        if calls is not None:
            calls.append(a)
        return left[a].pop(0) if len(left[a]) > 1 else left[a][0]

    return seconds


def test_the_fastest_wins_and_is_remembered(tmp_path):
    calls: list[Algorithm] = []
    tuning = Tuning(tmp_path, repeats=3)
    assert tuning.best(KEY, lambda: [A, B, C], timed({A: [3.0], B: [1.0], C: [2.0]}, calls)) == B
    assert calls == [A, B, C] * 3
    assert tuning.best(KEY, never, never) == B
    assert Tuning(tmp_path).best(KEY, never, never) == B
    assert [f.name for f in tmp_path.iterdir()] == [FILE]


def test_the_median_counts_not_the_least(tmp_path):
    times = {A: [1.0, 9.0, 9.0, 9.0, 1.0], B: [5.0, 5.0, 100.0, 5.0, 5.0]}
    assert Tuning(tmp_path, repeats=5).best(KEY, lambda: [A, B], timed(times)) == B


def test_ties_keep_the_librarys_first_choice(tmp_path):
    assert Tuning(None).best(KEY, lambda: [B, A, C], timed({A: [1.0], B: [1.0], C: [1.0]})) == B


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=8))
def test_the_first_of_the_least_wins(times):
    candidates = [algorithm(i) for i in range(len(times))]
    clock = dict(zip(candidates, times, strict=True))
    found = Tuning(None, repeats=2).best(KEY, lambda: candidates, clock.__getitem__)
    assert found == candidates[times.index(min(times))]


def test_a_single_candidate_is_not_timed(tmp_path):
    assert Tuning(tmp_path).best(KEY, lambda: [C], never) == C


def test_what_does_not_run_is_out_of_the_race():
    def seconds(a):
        if a != C:
            raise NotCompiled("not this one")
        return 1.0

    assert Tuning(None).best(KEY, lambda: [A, B, C], seconds) == C

    def fails(a):
        raise NotCompiled(f"none runs, not even {a.workspace}")

    with pytest.raises(NotCompiled, match="none runs"):
        Tuning(None).best(KEY, lambda: [A, B], fails)


def test_other_failures_get_through(tmp_path):
    def declined():
        raise Declined("no algorithm")

    with pytest.raises(Declined):
        Tuning(tmp_path).best(KEY, declined, never)
    with pytest.raises(ShapeError, match="no algorithm to choose"):
        Tuning(tmp_path).best(KEY, lambda: [], never)
    with pytest.raises(ZeroDivisionError):
        Tuning(tmp_path).best(KEY, lambda: [A, B], lambda a: 1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_stored_algorithm_that_is_not_accepted_is_tuned_again(tmp_path):
    Tuning(tmp_path).best(KEY, lambda: [A], never)
    asked: list[Algorithm] = []
    tuning = Tuning(tmp_path)
    clock = timed({B: [1.0], C: [2.0]})
    assert tuning.best(KEY, lambda: [B, C], clock, lambda a: asked.append(a)) == B  # append answers None: not accepted
    assert asked == [A]
    assert Tuning(tmp_path).best(KEY, never, never) == B


def test_what_the_library_says_of_a_stored_one_counts(tmp_path):
    Tuning(tmp_path).best(KEY, lambda: [A], never)
    found = Tuning(tmp_path).best(KEY, never, never, lambda a: dataclasses.replace(a, workspace=77))
    assert found == dataclasses.replace(A, workspace=77)


OTHERS = [
    key_of(PRODUCT, 1 << 21, 131000, H200),
    key_of(PRODUCT, 1 << 20, 131001, H200),
    key_of(PRODUCT, 1 << 20, 131000, DeviceKind("NVIDIA H100", "90")),
    key_of(PRODUCT, 1 << 20, 131000, DeviceKind("NVIDIA H200", "100")),
    key_of(PRODUCT, 1 << 20, 131000, H200, (16, 256, 256)),
    *(
        key_of(dataclasses.replace(PRODUCT, **change), 1 << 20, 131000, H200)
        for change in (
            {"n": 129},
            {"compute": "tf32"},
            {"epilogue": "relu"},
            {"epilogue": "relu_aux", "aux_ld": 128},
            {"epilogue": "relu_aux", "aux_ld": 256},
            {"a": Matrix("float32", 11)},
            {"a": Matrix("float32", 256, True)},
            {"a": Matrix("bfloat16", 10), "b": Matrix("bfloat16", 256)},
        )
    ),
]


def test_everything_that_decides_is_in_the_key():
    assert len({KEY, *OTHERS}) == 1 + len(OTHERS)


def test_products_do_not_share_winners(tmp_path):
    tuning = Tuning(tmp_path)
    tuning.best(KEY, lambda: [A], never)
    for i, key in enumerate(OTHERS):
        assert tuning.best(key, lambda i=i: [algorithm(100 + i)], never) == algorithm(100 + i)
    again = Tuning(tmp_path)
    assert again.best(KEY, never, never) == A
    assert [again.best(key, never, never) for key in OTHERS] == [algorithm(100 + i) for i in range(len(OTHERS))]


GOOD = [A.to_hex(), 100, 0.5]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "null",
        "[1, 2]",
        '"format"',
        "\x00\xff",
        "[" * 100_000,
        json.dumps({"format": 99, "algorithms": {KEY: GOOD}}),
        json.dumps({"algorithms": {KEY: GOOD}}),
        json.dumps({"format": 1, "algorithms": [GOOD]}),
        *(
            json.dumps({"format": 1, "algorithms": {KEY: line}})
            for line in (
                None, "00", [], [A.to_hex()], ["00", 0, 0.0], ["zz" * 64, 0, 0.0], [A.to_hex(), -1, 0.0],
                [A.to_hex(), "100", 0.5], [A.to_hex(), 100, 10**400], [17, 100, 0.5],
            )
        ),
    ],
    ids=lambda text: text[:40],
)  # fmt: skip
def test_a_damaged_or_foreign_file_is_as_if_empty(tmp_path, content):
    (tmp_path / FILE).write_text(content, encoding="utf-8")
    assert Tuning(tmp_path).best(KEY, lambda: [B], never) == B
    assert Tuning(tmp_path).best(KEY, never, never) == B


def test_one_bad_line_does_not_spoil_the_others(tmp_path):
    lines = {"broken": ["00", 0, 0.0], KEY: GOOD}
    (tmp_path / FILE).write_text(json.dumps({"format": 1, "algorithms": lines}))
    assert Tuning(tmp_path).best(KEY, never, never) == A


def test_bytes_that_are_no_text_are_as_if_empty(tmp_path):
    (tmp_path / FILE).write_bytes(b"\xff\xfe{}")
    assert Tuning(tmp_path).best(KEY, lambda: [B], never) == B


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="permissions of this kind are those of POSIX")
def test_a_file_that_others_may_write_is_not_read(tmp_path):
    Tuning(tmp_path).best(KEY, lambda: [A], never)
    (tmp_path / FILE).chmod(0o666)
    assert Tuning(tmp_path).best(KEY, lambda: [B], never) == B


def test_where_nothing_can_be_written_it_goes_on_without(tmp_path):
    tuning = Tuning(tmp_path / "not-there")
    assert tuning.best(KEY, lambda: [A], never) == A
    assert tuning.best(KEY, never, never) == A
    assert list(tmp_path.iterdir()) == []
    (tmp_path / FILE).mkdir()  # and where a folder is in the way of the file
    tuning = Tuning(tmp_path)
    assert tuning.best(KEY, lambda: [A], never) == A
    assert [f.name for f in tmp_path.iterdir()] == [FILE]


def test_a_write_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch):
    Tuning(tmp_path).best(KEY, lambda: [A], never)
    before = (tmp_path / FILE).read_bytes()

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert Tuning(tmp_path).best(OTHERS[0], lambda: [B], never) == B
    assert (tmp_path / FILE).read_bytes() == before
    assert [f.name for f in tmp_path.iterdir()] == [FILE]


def test_two_processes_keep_each_others_winners(tmp_path):
    one, two = Tuning(tmp_path), Tuning(tmp_path)
    one.best(OTHERS[0], lambda: [A], never)
    two.best(OTHERS[1], lambda: [B], never)
    one.best(OTHERS[2], lambda: [C], never)  # has not read since `two` wrote
    again = Tuning(tmp_path)
    assert [again.best(key, never, never) for key in OTHERS[:3]] == [A, B, C]
    one.forget()
    assert one.best(OTHERS[1], never, never) == B


def test_threads_share_one(tmp_path):
    tuning = Tuning(tmp_path)
    found: dict[int, Algorithm] = {}

    def work(start):
        for i in range(start, 60, 4):
            found[i] = tuning.best(f"key {i}", lambda i=i: [algorithm(i)], never)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == {i: algorithm(i) for i in range(60)}
    assert all(Tuning(tmp_path).best(f"key {i}", never, never) == algorithm(i) for i in range(60))


def test_the_users_folder_is_where_the_variable_says(tmp_path, monkeypatch):
    monkeypatch.setenv("XBP_CACHE_DIR", str(tmp_path / "new"))
    Tuning.of_user().best(KEY, lambda: [A], never)
    assert (tmp_path / "new" / FILE).exists()
    monkeypatch.setenv("XBP_CACHE_DIR", "")
    assert Tuning.of_user().path is None


def test_no_timings_are_refused():
    with pytest.raises(ShapeError, match="once or more"):
        Tuning(None, repeats=0)
