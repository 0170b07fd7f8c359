"""Where output goes: results to standard output, everything that is said along the way to standard error.

So a result can be piped while the progress stays visible. Colour is for terminals, and `NO_COLOR` turns it off.
"""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any

from rich.console import Console

__all__ = ["console", "json_line", "note", "plain", "show"]


def console(*, stderr: bool = False) -> Console:
    """A rich console on standard output or error; made anew each time, because tests and pipes replace the streams."""
    if os.environ.get("NO_COLOR"):
        return Console(stderr=stderr, color_system=None, highlight=False)
    return Console(stderr=stderr, highlight=False)


def note(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


def show(text: str) -> None:
    """A line on standard output."""
    print(text, flush=True)


def json_line(values: dict[str, Any]) -> None:
    """One JSON object as a line on standard output; what is no finite number becomes null, as JSON has none."""
    show(json.dumps(plain(values), allow_nan=False))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
