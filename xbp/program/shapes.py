"""Shapes by the rules of the standard, with one length that may be a symbol.

The recorder needs to know what shape an operation would give without computing it. The batch size N stays a symbol as
long as it is only passed on, and becomes an ordinary number, for all to see, as soon as somebody computes with it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, SupportsIndex

from ..errors import ShapeError

__all__ = [
    "Axis",
    "Dim",
    "Key",
    "Shape",
    "as_axis",
    "as_shape",
    "bound",
    "broadcast",
    "broadcast_to",
    "concatenated",
    "indexed",
    "key_text",
    "matmul",
    "reduced",
    "reduced_axes",
    "reshaped",
    "same",
    "stacked",
    "text",
]

Shape = tuple[int, ...]
Axis = int | tuple[int, ...] | None


class Dim(int):
    """A length that is N, or `times` N: prints so, counts as its number, and is that bare number after arithmetic."""

    times: int

    def __new__(cls, value: int, times: int = 1) -> Dim:
        self = super().__new__(cls, value)
        self.times = times
        return self

    def __repr__(self) -> str:
        return "N" if self.times == 1 else f"{self.times}N"

    __str__ = __repr__


@dataclass(frozen=True)
class Key:
    """What stands between the brackets of x[...]."""

    parts: tuple[Any, ...]

    def bound(self, n: int) -> tuple[Any, ...]:
        """The key for a batch of n rows."""
        return tuple(
            slice(*bound((k.start, k.stop, k.step), n)) if isinstance(k, slice) else bound((k,), n)[0]
            for k in self.parts
        )

    def __repr__(self) -> str:
        return f"[{key_text(self.parts)}]"


def bound(shape: Sequence[Any], n: int) -> tuple[Any, ...]:
    """The shape for a batch of n rows: n in the place of N."""
    return tuple([n * d.times if isinstance(d, Dim) else d for d in shape])


def text(shape: Sequence[int]) -> str:
    """(N, 3) as "N, 3"."""
    return ", ".join(map(str, shape))


def as_shape(shape: object) -> Shape:
    if not isinstance(shape, tuple) or not all(isinstance(n, int | SupportsIndex) for n in shape):
        raise ShapeError(f"A shape is a tuple of integers, such as (3,) or x.shape; {shape!r} is none.")
    return tuple(n if isinstance(n, Dim) else int(n) for n in shape)


def as_axis(axis: int, ndim: int) -> int:
    """`axis` counted from the front."""
    if not -ndim <= axis < ndim:
        raise ShapeError(f"axis={axis} does not exist in an array of {ndim} dimensions.")
    return axis % ndim


def same(a: int, b: int) -> bool:
    """Whether two lengths are equal for every batch size, not only for the one that is recorded."""
    return a is b or (a == b and getattr(a, "times", 0) == getattr(b, "times", 0))


def broadcast(*shapes: Shape) -> Shape:
    first = shapes[0]
    if all([s is first or not s or (s == first and all(map(same, s, first))) for s in shapes]):
        return first  # most often, and quickly told
    out: list[int] = []
    for lengths in zip_longest(*(reversed(s) for s in shapes), fillvalue=1):
        wide = [n for n in lengths if isinstance(n, Dim) or n != 1]  # a batch that happens to hold one row is no 1
        if any(not same(n, wide[0]) for n in wide):
            raise ShapeError(
                f"Shapes {' and '.join(map(str, shapes))} do not broadcast: {wide[0]} is not "
                f"{next(n for n in wide if not same(n, wide[0]))}. "
                "A length of one is repeated, any others must be the same, at every batch size N."
            )
        out.append(wide[0] if wide else 1)
    return tuple(reversed(out))


def broadcast_to(old: Shape, new: Shape) -> Shape:
    if len(broadcast(old, new)) != len(new) or not all(map(same, broadcast(old, new), new)):
        raise ShapeError(f"Shape {old} does not broadcast to {new}.")
    return new


def matmul(a: Shape, b: Shape) -> Shape:
    if not a or not b:
        raise ShapeError(f"matmul takes arrays of one dimension or more; the shapes are {a} and {b}.")
    rows, columns = (a if len(a) > 1 else (1, *a)), (b if len(b) > 1 else (*b, 1))
    if not same(rows[-1], columns[-2]):
        raise ShapeError(f"matmul of {a} and {b}: the inner lengths {rows[-1]} and {columns[-2]} are not the same.")
    stack = broadcast(rows[:-2], columns[:-2])
    return stack + rows[-2:-1] * (len(a) > 1) + columns[-1:] * (len(b) > 1)


def reduced(shape: Shape, axis: Axis, keepdims: bool) -> Shape:
    axes = reduced_axes(shape, axis)
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def reduced_axes(shape: Shape, axis: Axis) -> set[int]:
    if axis is None:
        return set(range(len(shape)))
    given = axis if isinstance(axis, tuple) else (axis,)
    axes = {as_axis(i, len(shape)) for i in given}
    if len(axes) != len(given):
        raise ShapeError(f"axis={axis} names an axis twice in an array of shape {shape}.")
    return axes


def reshaped(old: Shape, new: Shape) -> Shape:
    """`new` with its -1 filled in; the symbol passes through where the lengths say that it does."""
    if sum(n == -1 for n in new) > 1 or any(n < -1 for n in new):
        raise ShapeError(f"Cannot reshape to {new}: at most one length may be left open, as -1, and none is negative.")
    size, known = math.prod(old), math.prod(n for n in new if n != -1)
    if -1 in new:
        if known == 0 or size % known:
            raise ShapeError(f"Cannot reshape {old} to {new}: {size} entries do not divide by {known}.")
        new = tuple(_rest(old, new, size // known) if n == -1 else n for n in new)
    elif size != known:
        raise ShapeError(f"Cannot reshape {old} to {new}: {size} entries do not become {known}.")
    return new


def _rest(old: Shape, new: Shape, length: int) -> int:
    """The length that stands for -1: a multiple of N where N goes in and no other length takes it up."""
    symbols = [n for n in old if isinstance(n, Dim)]
    if len(symbols) != 1 or any(isinstance(n, Dim) for n in new):
        return length
    batch = symbols[0] // symbols[0].times
    return length if length % batch else Dim(length, length // batch)


def concatenated(shapes: Sequence[Shape], axis: int) -> Shape:
    first = shapes[0]
    at = as_axis(axis, len(first))
    for s in shapes:
        if len(s) != len(first) or any(
            not same(n, m) for i, (n, m) in enumerate(zip(s, first, strict=True)) if i != at
        ):
            raise ShapeError(f"concat of {first} and {s} along axis {axis}: the other lengths must be the same.")
    total = first[at] if len(shapes) == 1 else sum(s[at] for s in shapes)
    return (*first[:at], total, *first[at + 1 :])


def stacked(shapes: Sequence[Shape], axis: int) -> Shape:
    first = shapes[0]
    for s in shapes:
        if len(s) != len(first) or not all(map(same, s, first)):
            raise ShapeError(f"stack of {first} and {s}: all arrays must have one shape.")
    at = as_axis(axis, len(first) + 1)
    return (*first[:at], len(shapes), *first[at:])


def indexed(shape: Shape, key: tuple[Any, ...]) -> Shape:
    """The shape of x[key], for integers, slices, None and one `...`; every axis must be named, or `...` be there."""
    if key.count(Ellipsis) > 1:
        raise ShapeError(f"x[{key_text(key)}]: '...' stands for all axes that are not named, so there is one at most.")
    named = sum(k is not None and k is not Ellipsis for k in key)
    if named > len(shape) or (named < len(shape) and Ellipsis not in key):
        raise ShapeError(
            f"x[{key_text(key)}] names {named} axes of an array of shape {shape}. Name each of them, with ':' or '...'."
        )
    out: list[int] = []
    axis = 0
    for k in key:
        if k is None:
            out.append(1)
        elif k is Ellipsis:
            rest = len(shape) - named
            out.extend(shape[axis : axis + rest])
            axis += rest
        else:
            n = shape[axis]
            axis += 1
            if isinstance(k, slice):
                out.append(_sliced(n, k))
            elif not -n <= k < n:
                raise ShapeError(f"x[{key_text(key)}]: index {k} is out of range for a length of {n}.")
    return tuple(out)


def _sliced(n: int, k: slice) -> int:
    """The length of x[k]; as in the standard, and unlike in NumPy, the ends of a slice are within the axis."""
    if k == slice(None):
        return n
    if k.step == 0 or any(end is not None and not -n <= end <= n for end in (k.start, k.stop)):
        raise ShapeError(f"x[{_part_text(k)}] goes beyond a length of {n}, which libraries take differently.")
    return len(range(*k.indices(n)))


def key_text(key: tuple[Any, ...]) -> str:
    return ", ".join(_part_text(k) for k in key)


def _part_text(k: Any) -> str:
    if k is Ellipsis:
        return "..."
    if not isinstance(k, slice):
        return str(k)
    ends = [("" if end is None else str(end)) for end in (k.start, k.stop)]
    return ":".join(ends if k.step is None else [*ends, str(k.step)])
