"""JSON that loses nothing: floats that JSON lacks, and keys of any kind, survive the way there and back.

JSON has no NaN and no infinity: such a float becomes {"$float": "nan"}, "inf", "-inf", or "nan:<16 hex digits>" for a
NaN with other bits than the usual ones. A key that starts with "$" gets a second one. Tuples return as lists.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any, TypeAlias

__all__ = ["JSON", "decoded", "encoded", "pretty"]

JSON: TypeAlias = Any
"""None, bool, int, float, str, and lists and dicts of these with str keys."""


def encoded(value: JSON, where: str) -> JSON:
    """`value` in plain JSON; `where` names the spot for the error."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": _special(value)}
    if isinstance(value, list | tuple):
        return [encoded(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r} ({type(key).__name__}); keys must be strings")
        return {f"${k}" if k.startswith("$") else k: encoded(v, f"{where}[{k!r}]") for k, v in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__module__}.{type(value).__qualname__}; a header takes None, bool, int, float, "
        "str, lists and dicts (use float(...) or .tolist() for NumPy values)"
    )


def decoded(value: JSON) -> JSON:
    """What `encoded` was given, with lists for tuples."""
    if isinstance(value, list):
        return [decoded(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"$float"}:
        name, _, bits = value["$float"].partition(":")
        return struct.unpack(">d", bytes.fromhex(bits))[0] if bits else float(name)
    return {k[1:] if k.startswith("$") else k: decoded(v) for k, v in value.items()}


def _special(value: float) -> str:
    """The text of a float that JSON lacks; other NaN than Python's own are told apart by their bits."""
    bits = struct.pack(">d", value).hex()
    return f"nan:{bits}" if math.isnan(value) and bits != struct.pack(">d", math.nan).hex() else str(float(value))


def pretty(value: JSON, indent: str = "") -> str:
    """JSON text with what fits on a line on one line, and long lists of numbers in full lines: for reading."""
    line = json.dumps(value, ensure_ascii=False)
    if len(indent) + len(line) <= 100 or not isinstance(value, dict | list):
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        parts = [f"{json.dumps(k, ensure_ascii=False)}: {pretty(v, deeper)}" for k, v in value.items()]
    else:
        parts = [pretty(v, deeper) for v in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    lines = [""]
    for part in parts:
        if lines[-1] and (isinstance(value, dict) or "\n" in part or len(deeper) + len(lines[-1]) + len(part) > 98):
            lines.append("")
        lines[-1] += f" {part}," if lines[-1] else f"{part},"
    return f"{opening}\n{deeper}" + f"\n{deeper}".join(lines)[:-1] + f"\n{indent}{closing}"
