"""What makes two arrays the same: their values, and just as much dtype, shape, library and device.

A float32 network that turns float64 half-way, or a result that quietly became a NumPy array, has the right values.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..typing import Array, device_of
from .spaces import Space

__all__ = ["assert_close", "mismatch"]

RTOL = {"float32": 1e-5, "float64": 1e-12}  # some 80 rounding errors in float32, some 5000 in float64


def mismatch(actual: Any, shape: tuple[int, ...], dtype: str, like: Space) -> str:
    """What about an array is not as it should be, apart from its values; "" if nothing."""
    backend = like.backend
    library = backend.library_of(actual)
    if not backend.owns(actual):
        what = f"an array of {library}" if library else f"a {type(actual).__name__}, no array"
        return f"is {what}, not an array of space {like.name!r}"
    if actual.dtype != backend.dtype(dtype):
        return f"has dtype {actual.dtype}, not {dtype}"
    if tuple(actual.shape) != tuple(shape):
        return f"has shape {tuple(actual.shape)}, not {tuple(shape)}"
    device = device_of(backend.xp.zeros((), dtype=backend.dtype(dtype), device=backend.device))
    if device_of(actual) != device:
        return f"is on device {device_of(actual)}, not on {device}"
    return ""


def assert_close(
    actual: Array,
    desired: Any,
    space: Space,
    rtol: float | None = None,
    atol: float = 0.0,
    *,
    dtype: str | None = None,
) -> None:
    """That `actual` is an array of `space` with the dtype, the shape and, within tolerance, the values of `desired`.

    desired   a host array, or an array of the space
    rtol      None: 1e-5 for float32, 1e-12 for float64, and exact equality for the rest
    dtype     the dtype to expect; None is that of `desired`, or the space's widest float where it has no float64
    """
    host = np.asarray(space.get(desired) if space.backend.owns(desired) else desired)
    if dtype is None:
        narrow = host.dtype == np.float64 and "float64" not in space.dtypes
        dtype = space.dtype if narrow else host.dtype.name
    wrong = mismatch(actual, host.shape, dtype, space)
    if wrong:
        raise AssertionError(f"The array {wrong}.")
    np.testing.assert_allclose(
        space.get(actual),
        host,
        rtol=RTOL.get(dtype, 0.0) if rtol is None else rtol,
        atol=atol,
        err_msg=f"in space {space.name!r}, dtype {dtype}",
    )
