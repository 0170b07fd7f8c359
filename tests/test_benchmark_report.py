"""The scripts of bench/: products alone, ratios, report, chart, training on Fashion-MNIST. No time is asserted."""

from __future__ import annotations

import itertools
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from xbp import benchmark
from xbp.benchmark import Training, case_named

ROOT = Path(__file__).resolve().parent.parent
SMALL = replace(case_named("tiny"), steps=4)
SECONDS = 1e-4  # a block is then one step


def made_up(names, **blocks):
    """A document as compare.py writes it, of two networks; everybody takes 100 µs but those of `blocks`."""
    results = []
    for case, name in itertools.product([SMALL, case_named("book")], names):
        seconds = tuple(1e-6 * us for us in blocks.get(name, (100.0, 100.0, 100.0)))
        timing = benchmark.Timing(seconds)
        error = math.nan if "limit" in name else 1e-7
        results.append(benchmark.Result(case, name, "numpy", "eager", "0", "cpu", timing, timing, error, 0.0))
    settings = {
        "threads": 2,
        "clock": "wall",
        "seconds": 0.3,
        "blocks": 3,
        "quiet_below_cores": 0.2,
        "blocks_counted": {"accepted": 6, "disturbed": 1, "repeated": 2},
        "base": "xbp, numpy, eager",
        "pools": [],
        "longest_epoch": 2.0,
    }
    found = json.loads(json.dumps(benchmark.document(results, **settings), allow_nan=False))
    one = {"median": 1.0, "low": 1.0, "high": 1.0}
    found["results"] = [{**entry, "step_ratio": one, "fit_ratio": one} for entry in found["results"]]
    return {**found, "left_out": [{"case": "tiny", "name": "slow library", "epoch_seconds": 3.0}]}


EVERYONE = {
    "xbp, numpy, numba": (10.0, 20.0, 40.0),
    "xbp, numpy, eager": (100.0, 100.0, 100.0),
    "jax, jit, by hand": (30.0, 30.0, 30.0),
    "torch, autograd, fused": (60.0, 60.0, 60.0),
    "products alone (limit)": (5.0, 15.0, 50.0),
}


def test_products_alone_are_those_of_a_step(bench):
    case = replace(SMALL, dtype="float64")
    contestant = bench("products").Products(case)
    assert contestant.step() is None
    x, W = case.data()[0][: case.batch], [a for name, a in case.weights().items() if name.endswith("W")]
    h = [x, x @ W[0], x @ W[0] @ W[1]]
    dy = [None, None, np.full((case.batch, case.widths[-1]), 1e-3)]
    dy[1] = dy[2] @ W[2].T
    dy[0] = dy[1] @ W[1].T
    for found, values, slopes in zip(contestant.grads, h, dy, strict=True):
        np.testing.assert_allclose(found, values.T @ slopes, rtol=1e-12)
    kept = [id(a) for a in contestant.grads]
    contestant.restart()
    contestant.epochs(1)
    assert [id(a) for a in contestant.grads] == kept, "into arrays that are there already"
    with pytest.raises(NotImplementedError, match="has no loss"):
        contestant.number(None)


def test_products_take_part_and_are_the_only_ones_not_verified(bench, monkeypatch):
    pytest.importorskip("threadpoolctl", reason="compare.py gives every library the same threads by it")
    compare = bench("compare")
    verified = []
    monkeypatch.setattr(compare, "verify", lambda c, **_: verified.append(c.name) or 0.0)
    makers = {**bench("peers").entrants(), "slow": lambda case: slow(case)}
    monkeypatch.setattr(compare, "entrants", lambda: makers)

    def slow(case):
        contestant = Training(case, "numpy", "planned")
        contestant.name, right = "slow", contestant.epochs
        contestant.epochs = lambda n: (time.sleep(0.3), right(n))[1]
        return contestant

    limit = bench("products").LIMIT
    names = [compare.BASE, "slow", limit]
    assert limit in compare.chosen(None)
    results, left_out = compare.compare(SMALL, names, SECONDS, 3, 0.25, lambda others: True, time.perf_counter)
    assert verified == [compare.BASE, "slow"]
    assert [r.name for r in results] == [compare.BASE, limit]
    assert math.isnan(results[1].error)
    assert [(e["case"], e["name"]) for e in left_out] == [("tiny", "slow")]
    assert left_out[0]["epoch_seconds"] >= 0.3
    plain = json.loads(json.dumps(benchmark.document(results), allow_nan=False))["results"]
    assert [entry["error"] for entry in plain] == [0.0, None]


def test_ratios_are_of_blocks_of_the_same_round(bench):
    stands = bench("ratios").ratio((1.0, 4.0, 9.0), (1.0, 2.0, 3.0))
    assert stands == {"median": 2.0, "low": 1.5, "high": 2.5}
    results = made_up(EVERYONE, **EVERYONE)["results"]
    assert bench("ratios").fraction(results, "tiny", "jax, jit, by hand", "nobody") is None


def test_report_says_how_xbp_compares(bench):
    text = bench("report").report(made_up(EVERYONE, **EVERYONE))
    table = [line for line in text.partition("<details>")[0].splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    rows = {tuple(c.strip() for c in line.split("|")[1:3]): line.split("|")[3].strip() for line in table}
    assert rows["`numba`, a step", "**the fastest peer**"] == "**1.50** (1.12-2.25)<br>JAX"
    assert rows["", "torch autograd, fused or foreach"] == "**3.00** (2.25-4.50)"
    assert rows["`numba`, `fit`", "JAX by hand, an epoch in one `lax.scan`"] == "**1.50** (1.12-2.25)"
    assert rows["`numba`, a step", "share of it that NumPy's products alone take"] == "**75 %** (62-100)"
    assert not any("compile" in who + against for who, against in rows), "nobody is asked who did not take part"
    assert "Left out, for an epoch of more than 2 s: slow library, on `tiny`." in text


def test_report_of_xbp_alone_has_no_comparison(bench):
    text = bench("report").report(made_up(["xbp, numpy, eager"]))
    assert text.startswith("<details>")


def test_report_writes_readme_and_chart(bench, tmp_path):
    pytest.importorskip("matplotlib", reason="the chart is drawn by matplotlib")
    report, source, readme = bench("report"), tmp_path / "cpu.json", tmp_path / "README.md"
    source.write_text(json.dumps(made_up(EVERYONE, **EVERYONE)), encoding="utf-8")
    readme.write_text(f"{report.BEGIN}\n{report.END}\n", encoding="utf-8")
    svg = tmp_path / "docs" / "benchmark.svg"
    arguments = [str(source), "--readme", str(readme), "--chart", str(svg)]
    report.main(arguments)
    written = svg.read_bytes()
    root = ElementTree.fromstring(written)
    assert root.tag.endswith("svg")
    words = " ".join(root.itertext())
    for word in ("µs per training step", "tiny", "784-50-10, batch 100", "xbp, numba", "JAX, by hand", "20.0"):
        assert word in words
    assert len(written) < 100_000
    assert "](docs/benchmark.svg)" in readme.read_text(encoding="utf-8")
    assert "![Chart: µs a training step" in readme.read_text(encoding="utf-8")
    report.main(arguments)
    assert svg.read_bytes() == written, "the same results give the same chart"


def test_fashion_says_what_is_missing(bench, tmp_path):
    with pytest.raises(SystemExit, match=r"There is no folder .*nowhere.*--data names the folder"):
        bench("fashion").prepare(tmp_path / "nowhere", tmp_path)


def test_fashion_trains_and_is_reported(bench, tmp_path):
    fashion = bench("fashion")
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((300, 6), dtype=np.float32), np.arange(300, dtype=np.int32) % 3
    x[:, :3] += 3 * np.eye(3, dtype=np.float32)[t]
    data = {"x": x[:200], "t": t[:200], "x_test": x[200:], "t_test": t[200:]}
    found = fashion.with_xbp(data, 2)
    assert found["accuracy"] > 0.5
    assert found["steps"]["count"] == 2
    assert len(found["steps"]["blocks"]["fit"]) == fashion.ROUNDS
    assert 0 < found["before_mb"] <= found["peak_mb"]
    found["steps"]["ratio_of_whole_fit"] = 1.0
    settings = {"epochs": 2, "rows": 200, "network": "6-3", "batch": 128, "threads": 2, "data_mb": 1.0, "steps": 2}
    text = bench("report").report({**benchmark.conditions({}), "settings": settings, "fashion": {"xbp": found}})
    assert f"| {found['name']} {found['version']} |" in text


def test_report_writes_between_the_markers_and_nowhere_else(bench):
    module = bench("report")
    readme = f"# xbp\n\n{module.BEGIN}\nold\n{module.END}\n\nmore\n"
    once = module.replaced(readme, "| new |")
    assert once == f"# xbp\n\n{module.BEGIN}\n\n| new |\n\n{module.END}\n\nmore\n"
    assert module.replaced(once, "| new |") == once
    for broken_readme in ("# xbp\n", f"{module.END} {module.BEGIN}"):
        with pytest.raises(ValueError, match="needs the lines"):
            module.replaced(broken_readme, "")


def test_published_results_are_complete(bench):
    for path in sorted((ROOT / "bench" / "results").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        text = bench("report").report(found)
        assert found["commit"] in text
        assert found["date"][:10] in text
        for r in found.get("results", ()):
            peer = not r["name"].startswith("xbp")
            slack = found["settings"].get("slack_of_peers", 1.0) if peer else 1.0
            assert r["error"] is None if r["name"] == bench("products").LIMIT else r["error"] <= 1e-5 * slack
            assert r["name"] in text
            assert r["step_ratio"]["low"] <= r["step_ratio"]["median"] <= r["step_ratio"]["high"]
