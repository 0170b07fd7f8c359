"""Sum of two arrays: y = a + b.

    da = dy      db = dy      each summed over the axes along which its operand was broadcast

Shapes: a and b broadcast against each other to the shape of y and dy.
Source: the addition node of computational graphs; Saitoh, "Deep Learning from Scratch" (2016), chapter 5.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace
from .broadcasting import unbroadcast


class Cache(NamedTuple):
    a_shape: tuple[int, ...]
    b_shape: tuple[int, ...]


def forward(a: Array, b: Array, *, xp: Namespace) -> tuple[Array, Cache]:
    return a + b, Cache(a.shape, b.shape)


def backward(dy: Array, cache: Cache, *, xp: Namespace) -> tuple[Array, Array]:
    return unbroadcast(dy, cache.a_shape, xp=xp), unbroadcast(dy, cache.b_shape, xp=xp)
