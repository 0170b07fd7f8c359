"""Descriptions as JSON: layers, losses, optimisers, schedules and initialisers to plain data and back.

All of them are frozen dataclasses, so one pair of functions serves them all: the class name and the fields. Only known
classes are ever built from a file; nothing in a file is imported or run.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from .errors import CheckpointError, unknown_name_text

__all__ = ["build", "classes_in", "describe", "plain_number"]


def plain_number(
    owner: object,
    name: str,
    *,
    at_least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    at_most: float = math.inf,
    kind: str = "a finite number",
) -> None:
    """Check a numeric field of a frozen dataclass, and make it a plain Python number.

    NumPy's scalars are taken, but not kept: their dtype would widen float32 arrays, and JSON cannot hold them.
    Raises `ValueError` for anything but a finite number within the bounds.
    """
    value = getattr(owner, name)
    number = type(value) is not bool and isinstance(value, Real) and math.isfinite(value)
    if not (number and at_least <= value <= at_most and above < value < below):
        bounds = {"of at least": at_least, "above": above, "below": below, "at most": at_most}
        rule = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if math.isfinite(bound))
        raise ValueError(f"{type(owner).__name__}: {name} must be {kind} {rule}; it is {value!r}.")
    object.__setattr__(owner, name, int(value) if isinstance(value, Integral) else float(value))


def describe(value: Any) -> Any:
    """Plain JSON data for a dataclass instance, or for a number, string, list, tuple, None.

    Raises `CheckpointError` for anything else, such as a function given as a schedule.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"type": type(value).__name__, **fields}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(v) for v in (sorted(value) if isinstance(value, set | frozenset) else value)]
    raise CheckpointError(
        f"{value!r} ({type(value).__name__}) cannot be written to a file: only numbers, strings, lists and frozen "
        "dataclasses can. Write it as a frozen dataclass, and name that class in custom= when loading."
    )


def classes_in(value: Any) -> set[type]:
    """The dataclasses that `build` has to know for what `describe` makes of a value."""
    if isinstance(value, list | tuple | set | frozenset):
        return {c for v in value for c in classes_in(v)}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return set()
    return {type(value)}.union(*(classes_in(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init))


def build(data: Any, classes: Mapping[str, type]) -> Any:
    """The value that `describe` made `data` from; `classes` are the dataclasses it may contain, by name."""
    if isinstance(data, list):
        return tuple(build(v, classes) for v in data)
    if not isinstance(data, dict):
        return data
    kind = str(data.get("type"))
    if kind not in classes:
        raise CheckpointError(
            unknown_name_text("class in the file", kind, classes)
            + " A class of your own is passed in custom={name: class}."
        )
    fields = {name: build(v, classes) for name, v in data.items() if name != "type"}
    try:
        return classes[kind](**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The file describes a {kind} that cannot be made: {error}") from error
