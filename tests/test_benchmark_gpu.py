"""The benchmark of bench/gpu.py, as far as a machine without a GPU runs it: who is refused, who fails, what is written.

No time is asserted, and every number of a GPU in here is made up for the test.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from xbp.benchmark import case_named

ROOT = Path(__file__).resolve().parent.parent
SMALL = replace(case_named("tiny"), steps=8)
ADAM = replace(case_named("mid"), widths=(12, 16, 8, 4), batch=16, steps=6)

# PyTorch's own modules, when TorchInductor is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script.*is deprecated:DeprecationWarning")


@pytest.fixture
def contest(bench):
    return bench("gpu_contest")


@pytest.fixture
def own(bench):
    """Makes xbp's contestant, on NumPy."""
    return partial(bench("gpu_xbp").Own, precision="float32", device="cpu", engine="eager")


def references(contest, case):
    return {way: contest.reference(case, way) for way in ("step", "many")}


# --- who is let in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [SMALL, ADAM], ids=lambda c: c.name)
@pytest.mark.parametrize("engine", ["eager", "graph"])
def test_xbp_is_right_in_every_way(contest, own, case, engine):
    entrant, seconds = contest.seconds_to_first_step(lambda: own(case, engine=engine))
    assert seconds > 0
    assert set(entrant.ways) == {"step"} if engine == "eager" else {"step", "many", "fit"}
    for way, right in references(contest, case).items():
        if way in entrant.ways:
            errors = contest.verify(own(case, engine=engine), way, right, "float32")
            assert errors["loss"] < 1e-5
            assert errors["update"] < 1e-2
    for way in entrant.ways:
        assert contest.calls_for(entrant, way, 1e-5) >= 1
        block = contest.timed(entrant, way, 2)
        assert block.host > 0
        assert np.isnan(block.device)  # NumPy has no events


@pytest.mark.parametrize("precision", ["float32", "mixed-bfloat16", "mixed-float16"])
@pytest.mark.parametrize("case", [SMALL, ADAM], ids=lambda c: c.name)
@pytest.mark.parametrize(("library", "name"), [("torch", "TorchAutograd"), ("jax", "Jax")])
def test_peers_are_right_in_every_way(bench, contest, library, name, case, precision):
    pytest.importorskip(library, reason=f"{library} is not installed")
    make = getattr(bench(f"gpu_{library}"), name)
    for way, right in references(contest, case).items():
        entrant = make(case, precision, "cpu")
        if way in entrant.ways:
            contest.verify(entrant, way, right, precision)
            first = entrant.params(way)
            entrant.restart(way)
            contest.verify(entrant, way, right, precision)  # nothing is left of the steps before
            for a, b in zip(first, entrant.params(way), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "mixed-float16"])
def test_a_compiled_step_is_right(bench, contest, precision):
    pytest.importorskip("torch", reason="torch is not installed")
    entrant = bench("gpu_torch").TorchCompiled(ADAM, precision, "cpu")
    right = contest.reference(ADAM)
    contest.verify(entrant, "step", right, precision)
    contest.verify(entrant, "step", right, precision)
    assert entrant.told() == {"graphs_skipped": 0}


def slower(entrant):
    entrant.trainer.lr = 0.5 * entrant.trainer.lr


def frozen(entrant):
    entrant.trainer.lr = 0.0


def another_batch(entrant):
    entrant._all = entrant._all[1:]


def another_start(entrant):
    entrant._start = {name: a + np.float32(0.01) for name, a in entrant._start.items()}


@pytest.mark.parametrize("precision", ["float32", "tf32", "mixed-bfloat16", "mixed-float16"])
@pytest.mark.parametrize("wrong", [frozen, another_batch])
@pytest.mark.parametrize("case", [SMALL, ADAM], ids=lambda c: c.name)
def test_who_computes_something_else_is_refused_in_every_precision(contest, own, case, wrong, precision):
    entrant = own(case)
    wrong(entrant)
    with pytest.raises(contest.WrongError, match=rf"the (losses|parameters).* is allowed for {precision}\."):
        contest.verify(entrant, "step", contest.reference(case), precision)


def test_half_the_rate_is_noticed_in_every_precision(contest, own):
    right = contest.reference(ADAM)
    for precision in contest.PRECISIONS:
        entrant = own(ADAM)
        slower(entrant)
        with pytest.raises(contest.WrongError):
            contest.verify(entrant, "step", right, precision)


def test_a_slightly_other_start_is_enough_in_float32(contest, own):
    entrant = own(ADAM)
    another_start(entrant)
    with pytest.raises(contest.WrongError):
        contest.verify(entrant, "step", contest.reference(ADAM), "float32")


def test_a_loss_that_is_no_number_is_refused(contest, own):
    entrant = own(SMALL)
    entrant.numbers = lambda loss: np.asarray([np.nan])
    with pytest.raises(contest.WrongError, match="nan"):
        contest.verify(entrant, "step", contest.reference(SMALL), "mixed-bfloat16")
    with pytest.raises(contest.WrongError, match="the loss of the first step"):
        contest.seconds_to_first_step(lambda: entrant)


# --- who fails --------------------------------------------------------------------------------------------------------


@pytest.fixture
def worker(bench, tmp_path):
    found = bench("gpu_worker").Worker("xbp, eager", "cpu", tmp_path)
    yield found
    found.kill()


def test_a_process_that_dies_or_hangs_is_told_and_started_again(bench, worker):
    failed = bench("gpu_worker").FailedError
    with pytest.raises(failed, match="the process ended, with exit code 3"):
        worker.ask("ask", "os", "_exit", 3, seconds=60)
    assert worker.ask("ask", "os.path", "basename", "a/b", seconds=60) == "b"
    with pytest.raises(failed, match="no answer within 0 s"):
        worker.ask("ask", "time", "sleep", 60, seconds=0.1)
    with pytest.raises(failed, match="the process had ended"):
        worker.answer(1)
    with pytest.raises(failed, match="ModuleNotFoundError: No module named 'nowhere'"):
        worker.ask("ask", "nowhere", "f", seconds=60)
    first = worker.ask("ask", "os", "getpid", seconds=60)
    with pytest.raises(failed, match="TypeError"):  # anything may have happened: the process is not used again
        worker.ask("ask", "os.path", "basename", seconds=60)
    assert worker.ask("ask", "os", "getpid", seconds=60) != first


def run(bench, tmp_path, *options):
    out = tmp_path / "gpu.json"
    bench("gpu").main(["--device", "cpu", "--quick", "--blocks", "3", "--block", "1e-4", "--commit", "abc",
                       "--out", str(out), *options])  # fmt: skip
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_writes_who_was_timed_and_who_failed(bench, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    who = "xbp;torch, autograd;torch, CUDA"
    found = run(bench, tmp_path, "--cases", "tiny", "--precisions", "float32,mixed-bfloat16", "--only", who)
    assert (found["gpu"], found["commit"], found["settings"]["quick"]) == (1, "abc", True)
    assert found["versions"]["numpy"] == np.__version__
    names = {(c["precision"], c["name"]) for c in found["cells"]}
    assert names == {
        ("float32", "xbp, graph"),
        ("float32", "xbp, eager"),
        ("float32", "torch, autograd, fused"),
        ("mixed-bfloat16", "torch, autograd, fused"),
    }
    for cell in found["cells"]:
        assert cell["case"]["widths"] == [10, 20, 10, 5]
        assert cell["first_step_seconds"] > 0
        assert set(cell["errors"]) <= set(cell["ways"])
        for way in cell["ways"].values():
            assert way["device"] is None
            assert len(way["host"]["blocks"]) == 3
            assert 0 < way["host"]["low"] <= way["host"]["median"] <= way["host"]["high"]
    reasons = {(e["precision"], e["name"]): e["reason"] for e in found["left_out"]}
    assert reasons["float32", "torch, CUDA graph by hand, fused"] == "ValueError: A CUDA graph needs a CUDA device."
    assert "has no precision 'mixed-bfloat16'" in reasons["mixed-bfloat16", "xbp, graph"]
    assert len(reasons) == 4
    accuracies = list(found["digits"].values())
    assert list(found["digits"]) == ["numpy, eager, float32", "numpy, numba, float32"]
    assert np.ptp(accuracies) <= 0.005
    assert found["transfers_of_an_epoch"] == dict.fromkeys(
        ("to_device", "to_device_bytes", "to_host", "to_host_bytes"), 0
    )
    assert found["floors"]["float32_tflop_per_s"] > 0
    with pytest.raises(ValueError, match="of a trial, or of no GPU"):
        bench("report").report(found)


def test_what_there_was_no_time_for_is_told(bench, tmp_path):
    options = ("--cases", "tiny", "--precisions", "float32", "--only", "xbp, eager", "--minutes", "0.4")
    found = run(bench, tmp_path, *options)
    assert found["cells"] == []
    assert {"case": "tiny", "precision": "float32", "name": "", "reason": "the time was up"} in found["left_out"]


def test_a_network_that_would_take_numpy_too_long_is_left_out(bench, tmp_path, monkeypatch):
    gpu = bench("gpu")
    comparison = gpu.Comparison({}, tmp_path, gpu.time.monotonic() + 100, 0.02, 3)
    monkeypatch.setattr(gpu, "work", lambda case: {"tiny": 1e-6, "mid": 1e9}[case.name])
    comparison.prepare([ADAM, SMALL])
    assert set(comparison.references) == {"tiny"}
    assert [e["case"] for e in comparison.left_out] == ["mid"]
    assert "NumPy needs about" in comparison.left_out[0]["reason"]


def test_the_command_runs_from_a_checkout_that_is_not_installed(tmp_path):
    command = [sys.executable, "-c", "import checkout, xbp, xbp_cupy; print(xbp.__file__)"]
    out = subprocess.run(command, cwd=ROOT / "bench", capture_output=True, text=True, check=True).stdout
    assert Path(out.strip()).parent == ROOT / "xbp"


# --- what is published ------------------------------------------------------------------------------------------------


def cell(case, precision, name, host, **more):
    """A made-up cell, with blocks in µs for single steps."""
    low, middle, high = np.quantile(host, [0.25, 0.5, 0.75])
    timed = {"steps": 1, "host": {"median": middle, "low": low, "high": high, "blocks": list(host)}, "device": None}
    plain = {"name": case.name, "widths": list(case.widths), "batch": case.batch, "optimizer": str(case.optimizer)}
    head = {"case": plain, "precision": precision, "name": name, "library": name.partition(",")[0]}
    return {**head, "ways": {"step": timed}, **more}


def made_up():
    mid = case_named("mid")
    cells = [
        cell(mid, "mixed-bfloat16", "xbp, graph", (8.0, 8.0, 8.0)),
        cell(mid, "float32", "xbp, graph", (10.0, 20.0, 40.0), launches=10),
        cell(mid, "float32", "xbp, eager", (1000.0, 1000.0, 1000.0)),
        cell(mid, "float32", "torch, autograd, fused", (60.0, 60.0, 60.0)),
        cell(mid, "float32", "jax, jit", (30.0, 30.0, 30.0)),
        cell(SMALL, "float32", "xbp, graph", (5.0, 5.0, 5.0)),
    ]
    return {
        "gpu": 1,
        "date": "2000-01-02T00:00:00+00:00",
        "commit": "made-up",
        "device": {"name": "A made-up device", "driver": "1.2", "memory": "3 MiB"},
        "versions": {"python": "3.0", "xbp": "0", "numpy": "4.0", "torch": "5.0"},
        "settings": {"quick": False, "blocks": 3, "block_seconds": 0.02},
        "floors": {"copy_gb_per_s": 1.0, "float32_tflop_per_s": 2.0, "size": 8, "bytes_copied": 8},
        "digits": {"numpy, eager, float32": 0.5},
        "transfers_of_an_epoch": {"to_device": 2, "to_device_bytes": 80, "to_host": 1, "to_host_bytes": 40},
        "cells": cells,
        "left_out": [{"case": "mid", "precision": "tf32", "name": "jax, jit", "reason": "made up"}],
    }


def test_the_table_says_how_xbp_compares_with_the_best_peer(bench):
    text = bench("report").report(made_up())
    table = [line.strip("|").split("|") for line in text.partition("<details>")[0].splitlines() if line[:1] == "|"]
    assert len({len(row) for row in table}) == 1
    head, _, *rows = [[c.strip() for c in row] for row in table]
    assert head[2:] == ["`tiny`<br>10-20-10-5, 4, SGD", "`mid`<br>784-512-256-10, 128, Adam"]
    assert rows == [
        ["float32", "a step", "5.0", "20.0, **1.50** (1.12-2.25)<br>jax, jit"],
        ["mixed-bfloat16", "a step", "", "8.0"],
    ]
    everyone = text.partition("<details>")[2]
    assert "| float32 | xbp, eager |  | 1,000 (1,000-1,000) |" in everyone
    for words in ("A made-up device, driver 1.2", "Commit made-up, 2000-01-02", "torch 5.0", "10 (`mid`)",
                  "copies 1 times to the host (40 bytes)", "numpy, eager, float32 50.0 %",
                  "1 times somebody could not take part"):  # fmt: skip
        assert words in text


def test_the_readmes_two_blocks_are_written_apart(bench):
    report, gpu = bench("report"), bench("gpu_report")
    readme = f"a\n{report.BEGIN}\nhost\n{report.END}\nb\n{gpu.BEGIN}\nnothing\n{gpu.END}\nc\n"
    found = report.written(readme, [made_up()], [])
    assert f"a\n{report.BEGIN}\nhost\n{report.END}\nb\n{gpu.BEGIN}\n\nxbp's times" in found
    assert found.endswith(f"\n\n{gpu.END}\nc\n")
    assert report.written(readme, [], []) == readme
    with pytest.raises(ValueError, match="needs the lines <!-- gpu table"):
        report.written("", [made_up()], [])


def test_the_readme_shows_no_number_that_was_not_measured(bench):
    gpu = bench("gpu_report")
    block = (ROOT / "README.md").read_text(encoding="utf-8").partition(gpu.BEGIN)[2].partition(gpu.END)[0].strip()
    results = ROOT / "bench" / "results" / "gpu.json"
    if results.exists():
        assert block == bench("report").report(json.loads(results.read_text(encoding="utf-8")))
    else:
        assert block == gpu.NOTHING
