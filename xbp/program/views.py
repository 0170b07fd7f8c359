"""Views: values that are another value's memory read with other strides, so that nothing has to be computed for them.

Offsets and strides count entries. They may grow with the batch size, so each is a pair (c, k) that stands for c + k N.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from . import shapes
from .program import Operation
from .shapes import Dim, Shape
from .values import Value

__all__ = ["Layout", "Linear", "constant", "contiguous", "linear", "scaled", "size_of", "spread", "times", "viewed"]


class Linear(NamedTuple):
    """The number constant + per_row * N."""

    constant: int
    per_row: int = 0

    def at(self, n: int) -> int:
        return self.constant + self.per_row * n


class Layout(NamedTuple):
    """Where the entries of a value lie in the memory of `root`."""

    root: Value
    offset: Linear
    strides: tuple[Linear, ...]


def linear(length: int) -> Linear:
    return Linear(0, length.times) if isinstance(length, Dim) else Linear(int(length))


def constant(a: Linear, value: int) -> bool:
    return a == Linear(value)


def times(a: Linear, b: Linear) -> Linear | None:
    """The product; None where it would hold N squared."""
    if a.per_row and b.per_row:
        return None
    return Linear(a.constant * b.constant, a.constant * b.per_row + a.per_row * b.constant)


def scaled(a: Linear, factor: int) -> Linear:
    return Linear(a.constant * factor, a.per_row * factor)


def size_of(shape: Shape) -> Linear | None:
    """The number of entries; None where it grows faster than N."""
    symbols = sum([isinstance(length, Dim) for length in shape])
    size = math.prod([length.times if isinstance(length, Dim) else length for length in shape])
    return None if symbols > 1 else Linear(0, size) if symbols else Linear(size)


def contiguous(shape: Shape) -> tuple[Linear, ...] | None:
    """The strides of rows that lie one after the other; None where one would grow faster than N."""
    strides: list[Linear] = []
    step, symbols = 1, 0  # the step is that number, times N for each symbol
    for length in reversed(shape):
        if symbols > 1:
            return None
        strides.append(Linear(0, step) if symbols else Linear(step))
        symbols += isinstance(length, Dim)
        step *= length.times if isinstance(length, Dim) else length
    return tuple(reversed(strides))


def viewed(op: Operation, layouts: Mapping[Value, Layout]) -> Layout | None:
    """The layout of the operation's result as a view of its operand's memory; None where it has to be computed."""
    if op.function not in ("reshape", "matrix_transpose", "broadcast_to", "getitem"):
        return None
    source = op.operands[0]
    layout = layouts.get(source)
    if layout is None:
        return None
    if op.function == "matrix_transpose":
        return layout._replace(strides=(*layout.strides[:-2], layout.strides[-1], layout.strides[-2]))
    if op.function == "reshape":
        strides = _reshaped(source.shape, op.result.shape, layout.strides)
        return None if strides is None else layout._replace(strides=strides)
    if op.function == "broadcast_to":
        return layout._replace(strides=spread(source.shape, layout.strides, op.result.shape))
    return _indexed(op, source.shape, layout)


def spread(old: Shape, strides: tuple[Linear, ...], new: Shape) -> tuple[Linear, ...]:
    """The strides of an array of shape `old` that is broadcast to `new`: 0 along every axis of length one."""
    lead = len(new) - len(old)
    kept = [Linear(0) if n == 1 and not isinstance(n, Dim) else s for n, s in zip(old, strides, strict=True)]
    return (Linear(0),) * lead + tuple(kept)


def _reshaped(old: Shape, new: Shape, strides: tuple[Linear, ...]) -> tuple[Linear, ...] | None:
    """Strides after a reshape: of any view where only axes of length one come or go, else of contiguous ones."""
    longer = [(n, s) for n, s in zip(old, strides, strict=True) if isinstance(n, Dim) or n != 1]
    wanted = [n for n in new if isinstance(n, Dim) or n != 1]
    if len(longer) == len(wanted) and all(shapes.same(n, m) for (n, _), m in zip(longer, wanted, strict=True)):
        rest = iter(longer)
        return tuple(next(rest)[1] if isinstance(n, Dim) or n != 1 else Linear(1) for n in new)
    plain = contiguous(old)
    if plain is None or any(
        s != p for n, s, p in zip(old, strides, plain, strict=True) if isinstance(n, Dim) or n != 1
    ):
        return None
    return contiguous(new)


def _indexed(op: Operation, shape: Shape, layout: Layout) -> Layout | None:
    """The layout of x[key]."""
    offset, strides, axis = layout.offset, [], 0
    parts = op.options["key"].parts
    for part in parts:
        if part is None:
            strides.append(Linear(1))
            continue
        if part is Ellipsis:
            skipped = len(shape) - sum(k is not None and k is not Ellipsis for k in parts)
            strides += layout.strides[axis : axis + skipped]
            axis += skipped
            continue
        step, length = layout.strides[axis], shape[axis]
        axis += 1
        if isinstance(part, slice):
            if part == slice(None):
                strides.append(step)
                continue
            ends = (part.start, part.stop)
            if isinstance(length, Dim) or any(isinstance(e, Dim) for e in ends):
                return None
            start, _, jump = part.indices(length)
            strides.append(scaled(step, jump))
        else:
            if isinstance(part, Dim) or (isinstance(length, Dim) and part < 0):
                return None
            start = part % length if not isinstance(length, Dim) else part
        moved = scaled(step, start)
        offset = Linear(offset.constant + moved.constant, offset.per_row + moved.per_row)
    return Layout(layout.root, offset, tuple(strides))
