"""The functions of the articles, for any array: the namespace and the device follow the argument."""

from __future__ import annotations

from array_api_compat import array_namespace, is_array_api_obj

from .errors import DTypeError
from .kernels import relu as _relu
from .kernels import sigmoid as _sigmoid
from .kernels import softmax as _softmax
from .typing import Array, Namespace

__all__ = ["log_softmax", "relu", "sigmoid", "softmax"]


def _namespace(name: str, x: Array) -> Namespace:
    known: bool = is_array_api_obj(x)  # kept apart: as a guard it would hide that x is an Array
    if not known:
        raise DTypeError(f"{name} takes an array of an Array API library; it got a {type(x).__name__} ({x!r:.60}).")
    xp: Namespace = array_namespace(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise DTypeError(f"{name} takes a floating array; it got {x.dtype}. Convert it first (astype).")
    return xp


def softmax(x: Array) -> Array:
    """exp(x_k) / sum_j exp(x_j) along the last axis. Raises `DTypeError` for anything but a floating array."""
    return _softmax.forward(x, xp=_namespace("softmax", x))[0]


def log_softmax(x: Array) -> Array:
    """x_k - log(sum_j exp(x_j)) along the last axis. Raises `DTypeError` for anything but a floating array."""
    return _softmax.log_softmax(x, xp=_namespace("log_softmax", x))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)). Raises `DTypeError` for anything but a floating array."""
    return _sigmoid.forward(x, xp=_namespace("sigmoid", x))[0]


def relu(x: Array) -> Array:
    """max(x, 0). Raises `DTypeError` for anything but a floating array."""
    return _relu.forward(x, xp=_namespace("relu", x))[0]
