"""The mappings through which a model's arrays are read and written, and who holds the newest values.

While a trainer's engine runs, the engine owns parameters and buffers in a layout of its own. The model then borrows
them back when somebody looks, and the engine is told when somebody writes. So `net.params` is right at any moment, and
nothing is copied in a training that nobody watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from .backend import Backend
from .errors import DTypeError, NameUnknown, ShapeError, unknown_name_text
from .typing import Array, Inputs, Tree

__all__ = ["ArrayMap", "Weights", "copied"]


def copied(arrays: Mapping[str, Array], backend: Backend) -> dict[str, Array]:
    """Copies on the device, which no later step can change."""
    return {name: backend.xp.asarray(a, copy=True) for name, a in arrays.items()}


class Weights:
    """Parameters and buffers of one model, with the link to whoever trains them."""

    def __init__(self, backend: Backend, params: dict[str, Array], buffers: dict[str, Array]) -> None:
        self.backend = backend
        self.version = 0  # counts changes from outside the current owner
        self._tree: Tree = {"params": params, "buffers": buffers}
        self.scores: Callable[[Inputs], Array] | None = None  # the owner's way from rows to scores
        self._read: Callable[[], Tree] | None = None
        self._stale = False

    @property
    def tree(self) -> Tree:
        """The newest values."""
        if self._stale and self._read is not None:
            tree = self._read()
            self._tree = {"params": dict(tree["params"]), "buffers": dict(tree["buffers"])}
            self._stale = False
        return self._tree

    def lend(self, read: Callable[[], Tree], scores: Callable[[Inputs], Array]) -> int:
        """Hand ownership to a new reader; the former owner sees a new version. Returns that version."""
        self._tree = self.tree
        self._read, self.scores = read, scores
        self.version += 1
        return self.version

    def changed_by(self, read: Callable[[], Tree]) -> None:
        """The owner made a step: what is held here is old."""
        if not self._stale:
            self._stale = self._read == read  # bound methods are equal, never identical

    def write(self, section: str, values: Mapping[str, Array]) -> None:
        """New values from outside the owner; names, shapes and dtypes have been checked."""
        self.tree[section].update(values)
        self.version += 1
        self.scores = None  # the owner's weights are old until it is lent these


class _UnknownKeyError(NameUnknown, KeyError):
    """A name that a mapping does not have: a `KeyError`, as every mapping raises, and an error of xbp."""

    __str__ = Exception.__str__  # KeyError shows the repr of its message


class ArrayMap(MutableMapping[str, Array]):
    """A mapping by fixed names. Assigning checks name, shape and dtype, and copies; names cannot be added or removed.

    An array taken out is valid until the next training step; copy it to keep it.
    """

    def __init__(self, weights: Weights, section: str, kind: str) -> None:
        self._weights = weights
        self._section = section
        self._kind = kind

    def _now(self) -> dict[str, Array]:
        return self._weights.tree[self._section]

    def __getitem__(self, name: str) -> Array:
        arrays = self._now()
        if name not in arrays:
            raise _UnknownKeyError(unknown_name_text(self._kind, name, arrays))
        return arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __setitem__(self, name: str, value: Any) -> None:
        self.update_checked({name: value})

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"The {self._kind} {name!r} belongs to the layers of the model and cannot be removed.")

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{n!r}: {tuple(a.shape)}" for n, a in self._now().items()) + "}"

    def update_checked(self, values: Mapping[str, Any]) -> None:
        """Assign several at once: all are checked before the first is written."""
        held = self._now()
        checked = {name: self._checked(name, value, held) for name, value in values.items()}
        self._weights.write(self._section, checked)

    def _checked(self, name: str, value: Any, held: Mapping[str, Array]) -> Array:
        if name not in held:
            raise _UnknownKeyError(unknown_name_text(self._kind, name, held))
        backend, old = self._weights.backend, held[name]
        library = backend.library_of(value)
        if not backend.owns(value):
            if library not in ("", "numpy"):
                raise DTypeError(
                    f"{self._kind} {name!r}: a {library} array cannot be assigned to a model on "
                    f"backend={backend.name!r}. Convert it to that library or to NumPy first."
                )
            value = backend.asarray(value)
        value = backend.bare(value)
        if tuple(value.shape) != tuple(old.shape):
            raise ShapeError(
                f"{self._kind} {name!r} has shape {tuple(old.shape)}; the new value has {tuple(value.shape)}."
            )
        if value.dtype != old.dtype:
            raise DTypeError(
                f"{self._kind} {name!r} is {old.dtype}; the new value is {value.dtype}. Convert it (astype)."
            )
        return backend.xp.asarray(value, dtype=old.dtype, device=backend.device, copy=True)
