"""How one contestant stands to another: ratios of blocks of the same round, with what half of them lie between.

Times of different moments are not compared: block i of everyone in a case was measured within the same seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["find", "fraction", "ratio"]

Json = dict[str, Any]


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """above / below, block by block: the median, and the quartiles around it."""
    low, middle, high = np.quantile(np.divide(above, below), [0.25, 0.5, 0.75])
    return {"median": float(middle), "low": float(low), "high": float(high)}


def find(results: Sequence[Json], case: str, name: str) -> Json | None:
    """The result of that name in that case, None where it did not take part."""
    return next((r for r in results if r["case"]["name"] == case and r["name"] == name), None)


def fraction(results: Sequence[Json], case: str, above: str, below: str, way: str = "step") -> dict[str, float] | None:
    """The ratio of any two contestants in a case, by "step" or in "fit"; None where one of them did not take part."""
    a, b = find(results, case, above), find(results, case, below)
    return None if a is None or b is None else ratio(a[way]["blocks"], b[way]["blocks"])
