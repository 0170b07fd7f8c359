"""One training step of the four networks: xbp on every backend and engine, scikit-learn and torch beside it."""

from __future__ import annotations

from typing import Any


def bench_step(benchmark: Any, contestant: Any) -> None:
    benchmark.group = f"a step of {contestant.case.name}: {contestant.case}"
    benchmark(contestant.step)
