"""The comparison that the articles promise: a gradient by back-propagation, and by central differences."""

from __future__ import annotations

from typing import Any

import numerical
import pytest


@pytest.mark.parametrize("way", ["backpropagation", "central differences"])
def bench_gradient(benchmark: Any, way: str) -> None:
    p = numerical.problem()
    entries = numerical.subset(p)
    benchmark.group = f"a gradient of {numerical.CASE.name}, {p.size:,} parameters, float64"
    benchmark.extra_info["largest_difference"] = numerical.largest_difference(p, entries)
    if way == "backpropagation":
        benchmark(p.gradient)
        return
    benchmark.name = f"{benchmark.name} (of {len(entries)} parameters)"
    benchmark(lambda: [p.slope(name, i) for name, i in entries])
    if benchmark.stats:  # none with --benchmark-disable
        whole = benchmark.stats["median"] * p.size / len(entries)
        benchmark.extra_info["extrapolated_seconds"] = whole
        print(f"\nall {p.size:,} parameters by central differences, extrapolated from {len(entries)}: {whole:.1f} s")
