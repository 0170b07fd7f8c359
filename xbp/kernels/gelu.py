"""Gaussian error linear unit: y = x F(x), with F the distribution function of the standard normal.

    exact:   F(x) = erfc(-x / sqrt 2) / 2           dx = dy (F + x f(x)),  f(x) = exp(-x^2 / 2) / sqrt(2 pi)
    "tanh":  F(x) = (1 + tanh u) / 2,  u = sqrt(2 / pi) (x + 0.044715 x^3)
             dx = dy (F + x u' (1 - tanh^2 u) / 2),  u' = sqrt(2 / pi) (1 + 0.134145 x^2)

Shapes: any; y and dx have the shape of x. Both slopes are 1/2 at 0. Powers are taken of x clamped to [-40, 40], where F
is 0 or 1 and its slope 0 in every dtype, so that nothing overflows. The limit at minus infinity is 0, but -inf itself
gives NaN (-inf times 0), as in `silu`.
Source: Hendrycks, Gimpel, "Gaussian error linear units (GELUs)", arXiv:1606.08415 (2016).
"""

from __future__ import annotations

import math
from typing import NamedTuple

from ..typing import Array, Namespace
from .erf import erfc

FLAT = 40.0


class Cache(NamedTuple):
    x: Array  # the input
    F: Array  # the distribution function at x


def forward(x: Array, *, approximate: str, xp: Namespace) -> tuple[Array, Cache]:
    if approximate == "tanh":
        F = 0.5 * (1.0 + xp.tanh(_inner(_clamped(x, xp))))
    else:
        F = 0.5 * erfc(x * -math.sqrt(0.5), xp=xp)
    return x * F, Cache(x, F)


def backward(dy: Array, cache: Cache, *, approximate: str, xp: Namespace) -> Array:
    c = _clamped(cache.x, xp)
    if approximate == "tanh":
        inner_slope = math.sqrt(2.0 / math.pi) * (1.0 + 3.0 * 0.044715 * (c * c))
        f = 2.0 * cache.F * (1.0 - cache.F) * inner_slope  # (1 - tanh^2) / 2 = 2 F (1 - F)
    else:
        f = xp.exp(-0.5 * (c * c)) * math.sqrt(0.5 / math.pi)
    return dy * (cache.F + c * f)


def _clamped(x: Array, xp: Namespace) -> Array:
    return xp.maximum(xp.minimum(x, FLAT), -FLAT)


def _inner(c: Array) -> Array:
    return math.sqrt(2.0 / math.pi) * (c + 0.044715 * (c * c * c))
