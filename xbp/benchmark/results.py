"""What was measured, as values, as a table for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import unknown_name
from .cases import Case
from .clock import Timing
from .conditions import conditions

__all__ = ["Result", "document", "table"]


@dataclass(frozen=True)
class Result:
    """What was measured of one contestant in one case.

    step      through `Trainer.step`, on batches that lie on the device
    fit       a step as part of an epoch of `Trainer.fit`: with shuffling, checks, history and all that an epoch is
    error     the largest relative difference of a loss to float64, found before the timing; NaN for what has no loss
    others    cores that other programs used meanwhile, NaN where the system does not tell
    """

    case: Case
    name: str
    backend: str
    engine: str
    version: str
    device: str
    step: Timing
    fit: Timing
    error: float
    others: float

    @property
    def samples_per_second(self) -> float:
        """Through `fit`."""
        return self.case.batch / self.fit.median


HEAD = ("network", "backend", "engine", "µs a step", "spread", "µs in fit", "spread", "ratio", "samples/s")
NUMBERS = range(3, len(HEAD))


def table(results: Sequence[Result], style: str = "text") -> str:
    """The results as a table, "text" for a terminal or "markdown"; times are medians, ratios are of those in `fit`.

    The ratio is to NumPy's eager engine in the same network, or to the first contestant where that one is missing.
    """
    if style not in ("text", "markdown"):
        raise unknown_name("style of table", style, ("text", "markdown"))
    base: dict[str, Result] = {}
    for r in sorted(results, key=lambda r: (r.backend, r.engine) != ("numpy", "eager")):
        base.setdefault(r.case.name, r)
    rows = [HEAD, *(_row(r, base[r.case.name]) for r in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    cells = [
        [c.rjust(w) if i in NUMBERS else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))]
        for r in rows
    ]
    if style == "markdown":
        cells.insert(1, ["-" * (w - 1) + (":" if i in NUMBERS else "-") for i, w in enumerate(widths)])
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in cells)


def _row(r: Result, base: Result) -> tuple[str, ...]:
    times = [s for t in (r.step, r.fit) for s in (_micro(t.median), f"{100 * t.spread:.0f} %")]
    return (
        r.case.name,
        r.backend,
        r.engine,
        *times,
        f"{r.fit.median / base.fit.median:.2f}",
        f"{r.samples_per_second:,.0f}",
    )


def _micro(seconds: float) -> str:
    us = 1e6 * seconds
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def document(results: Sequence[Result], **settings: Any) -> dict[str, Any]:
    """The results with the conditions they were measured under, ready for `json.dump`."""
    versions = {r.backend: r.version for r in results}
    return {**conditions(versions), "settings": settings, "results": [_plain(r) for r in results]}


def _plain(r: Result) -> dict[str, Any]:
    medians = {"step_us": 1e6 * r.step.median, "fit_us": 1e6 * r.fit.median, "samples_per_second": r.samples_per_second}
    told = {"others": r.others, "error": r.error}
    numbers = {name: value if math.isfinite(value) else None for name, value in told.items()}  # JSON has no NaN
    case = {**asdict(r.case), "optimizer": str(r.case.optimizer)}
    return {**asdict(r), **medians, **numbers, "case": case}
