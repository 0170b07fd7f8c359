"""Descriptions as JSON: layers, losses, optimisers, schedules and initialisers to plain data and back.

All of them are frozen dataclasses, so one pair of functions serves them all: the class name and the fields. Only known
classes are ever built from a file; nothing in a file is imported or run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import CheckpointError, unknown_name_text

__all__ = ["build", "describe"]


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


def build(data: Any, classes: Mapping[str, type]) -> Any:
    """The value that `describe` made `data` from; `classes` are the dataclasses it may contain, by name."""
    if isinstance(data, list):
        return tuple(build(v, classes) for v in data)
    if not isinstance(data, dict):
        return data
    kind = str(data.get("type"))
    if kind not in classes:
        raise CheckpointError(
            unknown_name_text("class in the file", kind, classes) + " A class of your own is passed in custom={name: class}."
        )
    fields = {name: build(v, classes) for name, v in data.items() if name != "type"}
    try:
        return classes[kind](**fields)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"The file describes a {kind} that cannot be made: {error}") from error
