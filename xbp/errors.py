"""The exceptions that users may catch.

Each is also the built-in exception that a reader would expect (`ValueError`, `TypeError`, ...), so code that knows
nothing of xbp handles them too. A message names the thing, the value received, the rule broken and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BackendUnavailable",
    "CacheEmpty",
    "CheckpointError",
    "DTypeError",
    "DataError",
    "ExchangeError",
    "GradientError",
    "LabelError",
    "LibraryMissing",
    "MemoryExceeded",
    "NameUnknown",
    "NonFiniteLoss",
    "NotCompiled",
    "RecordingError",
    "ShapeError",
    "UnknownBackend",
    "XBPError",
    "unknown_name",
    "unknown_name_text",
]


class XBPError(Exception):
    """Root of every error that xbp raises on purpose."""


class ShapeError(XBPError, ValueError):
    """A shape, a width, a rank or a number of rows that does not fit."""


class DTypeError(XBPError, TypeError):
    """A dtype, or an array library, that does not fit the network."""


class LabelError(XBPError, ValueError):
    """Labels that the loss cannot read: out of range, negative, of the wrong kind."""


class DataError(XBPError, ValueError):
    """Data that cannot be trained on or read: NaN, a broken file, a missing column."""


class NameUnknown(XBPError, ValueError):
    """A name (of a layer, loss, optimiser, backend, ...) that nothing is registered under."""


class BackendUnavailable(XBPError, ImportError):
    """A backend asked for by name that cannot run here, with the reason and what to install."""


class LibraryMissing(XBPError, ImportError):
    """An optional library that is not installed, with what needs it and what to install."""


class ExchangeError(XBPError, ValueError):
    """A model, or a part of one, that another program's format or classes cannot hold."""


class UnknownBackend(BackendUnavailable, NameUnknown):
    """A backend name that no installed package registers."""


class CheckpointError(XBPError, OSError):
    """A file that cannot be written, or that does not hold what is to be loaded from it."""


class NonFiniteLoss(XBPError, ArithmeticError):
    """Training met a loss that is NaN or infinite; the last good weights are back in the network."""


class MemoryExceeded(XBPError, MemoryError):
    """A step that does not fit into the memory that it may take, however its batch is cut."""


class CacheEmpty(XBPError, RuntimeError):
    """A backward without a forward before it."""


class RecordingError(XBPError, TypeError):
    """Something that a recorded formula may not do, such as reading a value of an array."""


class NotCompiled(XBPError, NotImplementedError):
    """A program that an engine cannot run, with the operation and the reason."""


class GradientError(XBPError, AssertionError):
    """A gradient check failed."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> NameUnknown:
    """The error for a name that is not registered, with the nearest right one and the whole list."""
    return NameUnknown(unknown_name_text(kind, name, known))


def unknown_name_text(kind: str, name: object, known: Iterable[str]) -> str:
    """What `unknown_name` says, for errors of another class."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    hint = next((f" Did you mean {n!r}?" for n in names if near and n.lower() == near[0]), "")
    return f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names) or 'none'}."
