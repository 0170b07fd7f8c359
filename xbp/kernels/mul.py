"""Product of two arrays, element by element: y = a b.

    da = dy b      db = dy a      each summed over the axes along which its operand was broadcast

Shapes: a and b broadcast against each other to the shape of y and dy.
Source: the multiplication node of computational graphs; Saitoh, "Deep Learning from Scratch" (2016), chapter 5.
"""

from __future__ import annotations

from typing import NamedTuple

from ..typing import Array, Namespace
from .broadcasting import unbroadcast


class Cache(NamedTuple):
    a: Array
    b: Array


def forward(a: Array, b: Array, *, xp: Namespace) -> tuple[Array, Cache]:
    return a * b, Cache(a, b)


def backward(dy: Array, cache: Cache, *, xp: Namespace) -> tuple[Array, Array]:
    a, b = cache
    return unbroadcast(dy * b, a.shape, xp=xp), unbroadcast(dy * a, b.shape, xp=xp)
