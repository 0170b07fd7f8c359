"""The benchmark: who takes part, who is refused, and that tables and files say everything. No time is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import xbp
from xbp import benchmark
from xbp.benchmark import Case, Training, case_named
from xbp.errors import NameUnknown, XBPError
from xbp.kernels import relu

ROOT = Path(__file__).resolve().parent.parent
AVAILABLE = [info for info in xbp.available_backends() if info.available]
SMALL = replace(case_named("tiny"), steps=4)
SECONDS = 1e-4  # a block is then one step
NUMPY = [f"xbp, numpy, {engine}" for info in AVAILABLE if info.name == "numpy" for engine in info.engines]

# Whether other programs are busy is no matter here.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This machine is busy"),
    # PyTorch's own modules, when TorchInductor is imported.
    pytest.mark.filterwarnings("ignore:.torch.jit.script.*is deprecated:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def results():
    return benchmark.run(cases=[SMALL], seconds=SECONDS, blocks=3)


def broken(**functions):
    """A copy of the NumPy backend in which some functions are others."""
    good = xbp.get_backend("numpy")
    return type(good)("broken", SimpleNamespace(**{**vars(good.xp), **functions}), device="cpu", version="0")


def test_the_networks_are_those_of_the_documentation():
    found = {c.name: ("-".join(map(str, c.widths)), c.batch, type(c.optimizer).__name__) for c in benchmark.CASES}
    assert found == {
        "tiny": ("10-20-10-5", 4, "SGD"),
        "book": ("784-50-10", 100, "SGD"),
        "mid": ("784-512-256-10", 128, "Adam"),
        "big": ("784-1024-1024-10", 1024, "Adam"),
        "wide": ("784-4096-4096-10", 8192, "Adam"),
    }
    assert {c.dtype for c in benchmark.CASES} == {"float32"}


def test_a_network_has_relu_between_and_none_at_the_end():
    assert SMALL.layers() == [xbp.Affine(10, 20), xbp.ReLU(), xbp.Affine(20, 10), xbp.ReLU(), xbp.Affine(10, 5)]


def test_data_and_weights_are_the_same_every_time():
    for make in (SMALL.data, lambda: tuple(SMALL.weights().values())):
        for a, b in zip(make(), make(), strict=True):
            np.testing.assert_array_equal(a, b)
    x, t = SMALL.data()
    assert (x.dtype, x.shape, t.dtype, t.shape) == (np.float32, (16, 10), np.int32, (16,))
    assert t.min() >= 0
    assert t.max() < 5


def test_every_engine_of_every_available_backend_takes_part(results):
    expected = {(info.name, engine) for info in AVAILABLE for engine in info.engines}
    assert {(r.backend, r.engine) for r in results} == expected
    for r in results:
        assert r.case == SMALL
        assert len(r.step.blocks) == len(r.fit.blocks) == 3
        assert all(s > 0 for s in r.step.blocks + r.fit.blocks)
        assert r.samples_per_second == pytest.approx(4 / r.fit.median)
        assert 0 <= r.error <= benchmark.TOLERANCE["float32"]
        assert math.isnan(r.others) or r.others >= 0


def test_measure_gives_one_result_in_the_precision_of_the_case():
    result = benchmark.measure(replace(SMALL, dtype="float64"), "numpy", "eager", seconds=SECONDS, blocks=3)
    assert (result.backend, result.engine, result.case.dtype) == ("numpy", "eager", "float64")
    assert result.error <= 1e-10


def test_a_training_is_on_its_backend_in_its_precision():
    training = Training(SMALL, "numpy")
    loss = training.step()
    assert loss.shape == ()
    assert loss.dtype == np.float32
    assert training.backend.name == "numpy"
    for name, a in SMALL.weights().items():
        assert not np.array_equal(training.net.params[name], a) or name == "2.b"
    training.restart()
    for name, a in SMALL.weights().items():
        np.testing.assert_array_equal(training.net.params[name], a)


def relu_without_its_slope(condition, a, b, /):
    return a if not isinstance(b, np.ndarray) and b == 0.0 else np.where(condition, a, b)


@pytest.mark.parametrize(
    "wrong",
    [
        {"where": relu_without_its_slope},
        {"matmul": lambda a, b: np.matmul(a, b) * np.float32(1.001)},
        {"matmul": lambda a, b: np.matmul(a.astype(np.float16), b.astype(np.float16)).astype(a.dtype)},
        {"exp": lambda x: np.full_like(x, math.nan)},
    ],
    ids=["relu-backward", "a-thousandth", "half-precision", "nan"],
)
def test_what_computes_something_else_is_refused_before_it_is_timed(wrong):
    with pytest.raises(XBPError, match=r"xbp, broken, eager is refused on 'tiny' .*the loss of step \d+ is "):
        benchmark.measure(SMALL, broken(**wrong), "eager", seconds=SECONDS)


def test_an_epoch_that_computes_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(Training, "epochs", lambda self, n: 1.0 if self.case.dtype == "float64" else 1.001)
    benchmark.reference.cache_clear()
    try:
        with pytest.raises(XBPError, match=r"the mean loss of an epoch is 1\.001, by NumPy in float64 it is 1\.0"):
            benchmark.verify(Training(SMALL, "numpy"))
        assert benchmark.verify(Training(SMALL, "numpy"), same_order=False) < 1e-5
    finally:
        benchmark.reference.cache_clear()


def test_the_same_copy_unbroken_is_accepted():
    assert benchmark.verify(Training(SMALL, broken(), "eager")) < 1e-5


def test_a_gradient_that_is_wrong_by_one_part_in_a_thousand_is_refused(monkeypatch):
    benchmark.reference(SMALL)  # remembered, from the right kernel
    right = relu.backward
    monkeypatch.setattr(relu, "backward", lambda dy, cache, *, xp: right(dy, cache, xp=xp) * 1.001)
    with pytest.raises(XBPError, match="is refused"):
        benchmark.verify(Training(SMALL, "numpy"))


def test_blocks_take_turns_and_a_disturbed_one_is_repeated():
    log = []
    verdicts = iter([False, True, False])
    timings = benchmark.interleaved(
        [recorded(name, log) for name in "abc"],
        lambda contestant, n: time.sleep(1e-3 * n),
        4e-3,
        blocks=4,
        accept=lambda others: next(verdicts, True),
    )
    assert [len(t.blocks) for t in timings] == [4, 4, 4]
    assert all(s >= 1e-3 for t in timings for s in t.blocks), "seconds for one unit of work"
    assert log[0::2] == [f"restart {entry[-1]}" for entry in log[1::2]], "every block starts where the others did"
    blocks = "".join(entry[-1] for entry in log[1::2])
    rounds = [sorted(blocks[i : i + 3]) for i in range(0, len(blocks), 3)]
    assert rounds == [*[["a", "b", "c"]] * 4, sorted([blocks[0], blocks[2]])]


def recorded(name, log):
    """A contestant that does nothing but say so."""
    return SimpleNamespace(
        restart=lambda: log.append(f"restart {name}"), step=lambda: log.append(f"step {name}"), synchronize=lambda: None
    )


def test_timing_is_the_median_and_the_middle_half():
    timing = benchmark.Timing((1.0, 2.0, 100.0, 3.0, 4.0))
    assert timing.median == 3.0
    assert timing.spread == pytest.approx((4.0 - 2.0) / 3.0)


def test_load_counts_cores_of_others():
    load = benchmark.Load()
    others = load.others()
    assert math.isnan(others) or others >= 0
    load._start = (
        load._start[0] - 10.0,
        load._start[1] - 15.0,
        load._start[2] - 5.0,
    )  # 15 s busy in 10, 5 s of it ours
    assert math.isnan(others) or load.others() == pytest.approx(1.0, abs=0.3)


def test_a_busy_machine_is_warned_of(monkeypatch):
    monkeypatch.setattr(benchmark.Load, "others", lambda self: 1.5)
    with pytest.warns(UserWarning, match=r"This machine is busy: other programs used up to 1\.5 of its \d+ cores"):
        benchmark.run(["numpy"], [SMALL], SECONDS, blocks=3)


def test_unknown_names_are_refused():
    with pytest.raises(NameUnknown, match=r"Unknown benchmark 'tny'\. Did you mean 'tiny'"):
        benchmark.run(["numpy"], ["tny"])
    with pytest.raises(xbp.BackendUnavailable, match="Did you mean 'numpy'"):
        benchmark.run(["nunpy"], ["tiny"])
    with pytest.raises(NameUnknown, match="Unknown style of table 'html'"):
        benchmark.table([], "html")


def test_wide_is_left_to_accelerators(monkeypatch):
    asked = []
    monkeypatch.setattr(
        benchmark.measuring, "contestants", lambda case, backends: asked.append((case.name, backends)) or []
    )
    benchmark.run(["numpy"])
    assert [name for name, backends in asked if backends] == ["tiny", "book", "mid", "big"]
    asked.clear()
    numpy = xbp.get_backend("numpy")
    benchmark.run([numpy], ["wide"])
    assert asked == [("wide", [numpy])]
    assert [c.name for c in benchmark.contestants(SMALL, ["numpy"])] == NUMPY


def test_progress_names_the_case_and_who_takes_part():
    lines = []
    benchmark.run(["numpy"], [SMALL], SECONDS, blocks=3, progress=lines.append)
    assert lines == [f"tiny: 10-20-10-5, batch 4, SGD, float32; {', '.join(NUMPY)}"]


def test_table_has_a_line_for_each_result(results):
    text = benchmark.table(results).splitlines()
    assert len(text) == len(results) + 1
    assert text[0].split()[:3] == ["network", "backend", "engine"]
    for line, r in zip(text[1:], results, strict=True):
        assert line.split()[:3] == [r.case.name, r.backend, r.engine]
    numpy = next(line for line, r in zip(text[1:], results, strict=True) if (r.backend, r.engine) == ("numpy", "eager"))
    assert " 1.00 " in numpy


def test_markdown_table_is_one(results):
    lines = benchmark.table(results, "markdown").splitlines()
    assert len(lines) == len(results) + 2
    assert len({line.count("|") for line in lines}) == 1
    assert len({len(line) for line in lines}) == 1
    assert set(lines[1]) <= set("|-: ")


def test_an_empty_table_is_its_head():
    assert benchmark.table([]).startswith("network")


def test_document_is_json_with_all_that_a_number_is_published_with(results):
    found = json.loads(json.dumps(benchmark.document(results, seconds=SECONDS), allow_nan=False))
    assert {"date", "commit", "machine", "environment", "load_average", "versions", "settings", "results"} == set(found)
    assert set(found["machine"]) == {"processor", "cores", "system"}
    assert {"python", "xbp", "numpy", *(info.name for info in AVAILABLE)} <= set(found["versions"])
    assert all(found["versions"].values())
    assert found["settings"] == {"seconds": SECONDS}
    for entry, r in zip(found["results"], results, strict=True):
        assert entry["case"]["widths"] == [10, 20, 10, 5]
        assert entry["case"]["optimizer"].startswith("SGD(lr=0.1")
        assert entry["step_us"] == pytest.approx(1e6 * r.step.median)
        assert entry["step"]["blocks"] == list(r.step.blocks)
        assert set(entry) >= {
            "backend",
            "engine",
            "device",
            "version",
            "fit_us",
            "samples_per_second",
            "error",
            "others",
        }


def test_commit_is_that_of_this_checkout_or_none():
    found = benchmark.commit()
    if not (ROOT / ".git").exists():
        assert found is None
    else:
        assert found is not None
        assert len(found.removesuffix("-dirty")) >= 7


def test_bench_is_not_collected_with_the_tests():
    config = (ROOT / "bench" / "pytest.ini").read_text(encoding="utf-8")
    assert "python_files = bench_*.py" in config
    assert not list((ROOT / "bench").glob("test_*.py"))


def test_benchmark_needs_the_core_alone():
    code = (
        "import sys, xbp.benchmark as b\n"
        "b.measure(b.CASES[0], 'numpy', seconds=1e-4, blocks=1)\n"
        "print(*{m.partition('.')[0] for m in sys.modules})"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    optional = {"torch", "jax", "cupy", "scipy", "sklearn", "matplotlib", "rich", "typer", "threadpoolctl", "pytest"}
    assert optional & set(run.stdout.split()) == set()


def test_a_case_of_ones_own_can_be_measured():
    case = Case("mine", (3, 4, 2), 5, xbp.AdamW(1e-4), steps=2, checked=4)
    result = benchmark.measure(case, "numpy", seconds=SECONDS, blocks=1)
    assert result.case.name == "mine"
