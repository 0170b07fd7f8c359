"""One epoch of the four networks, shuffling included: xbp and scikit-learn through `fit`, torch by a loop."""

from __future__ import annotations

from typing import Any

from products import is_limit


def bench_epoch(benchmark: Any, contestant: Any) -> None:
    case = contestant.case
    benchmark.group = f"an epoch of {case.name}, {case.steps} steps: {case}"
    benchmark.extra_info["steps"] = case.steps
    loss = benchmark(contestant.epochs, 1)
    assert is_limit(contestant) or 0.0 < loss < 10.0  # guessing gives about 2.3
