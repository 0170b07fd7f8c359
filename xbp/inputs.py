"""The gate for data: what may come in, how it is moved, and what is refused.

Arrays of the backend's own library pass as they are. Host data (NumPy, lists, data frames) is moved once; a memory map
is moved in pieces. Arrays of other libraries are refused by name, because a silent copy is the commonest slowness of
all. Values are looked at once, before the first step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .backend import Backend
from .errors import DataError, DTypeError, ShapeError
from .traversal import Plan
from .typing import Array, Inputs

__all__ = ["check_finite", "checked_inputs", "host_or_own", "length", "named", "taken", "taken_all"]

BLOCK = 1 << 20  # entries that are looked at together: each block takes a byte an entry meanwhile


def host_or_own(name: str, value: Any, backend: Backend) -> Any:
    """`value` itself where the backend owns it, else as a NumPy array; `DTypeError` for other libraries' arrays."""
    if isinstance(value, np.ma.MaskedArray):
        raise DataError(
            f"{name} is a masked array; its mask would be lost. Fill its gaps first ({name}.filled(value))."
        )
    if isinstance(value, np.matrix):
        value = np.asarray(value)  # its * is a matrix product
    if backend.owns(value):
        return backend.bare(value)
    library = backend.library_of(value)
    if library not in ("", "numpy"):
        raise DTypeError(
            f"{name} is a {library} array, but the model lives on backend={backend.name!r}. "
            f'Build it with backend="{library.removeprefix("array_api_")}", or convert {name} to NumPy first.'
        )
    try:
        a = np.asanyarray(value)
    except ValueError as error:
        raise ShapeError(f"{name} is not a regular array of numbers: {error}.") from None
    if a.dtype.kind not in "fiub":
        raise DTypeError(f"{name} must hold real numbers; its dtype is {a.dtype}.")
    return a


def taken(name: str, value: Any, backend: Backend, dtype: str | None) -> Array:
    """`value` as an array of the backend, in `dtype` (None: its own). Own arrays of that dtype are not copied."""
    value = host_or_own(name, value, backend)
    if not backend.owns(value) or (backend.on_host and isinstance(value, np.memmap)):
        return backend.asarray(value, dtype)
    if dtype is not None:
        wanted = backend.dtype(dtype)
        if value.dtype != wanted:
            if not backend.xp.isdtype(value.dtype, ("real floating", "integral", "bool")):
                raise DTypeError(f"{name} must hold real numbers; its dtype is {value.dtype}.")
            return backend.xp.astype(value, wanted)
    own: Array = value
    return own


def length(x: Any) -> int:
    """The number of rows of inputs that have passed `host_or_own`."""
    first = next(iter(x.values())) if isinstance(x, Mapping) else x
    return int(first.shape[0])


def named(x: Any, plan: Plan) -> dict[str, Any]:
    """Inputs by the plan's names, from a mapping or, for a single input, from the array."""
    if isinstance(x, Mapping):
        if set(x) != set(plan.inputs):
            given = ", ".join(map(str, x)) or "none"
            raise ShapeError(f"The model has inputs {', '.join(plan.inputs)}; it is given {given}.")
        return {name: x[name] for name in plan.inputs}
    if len(plan.inputs) != 1:
        raise ShapeError(f"The model has inputs {', '.join(plan.inputs)}; give a mapping from these names to arrays.")
    return {plan.inputs[0]: x}


def checked_inputs(x: Any, plan: Plan, backend: Backend) -> dict[str, Any]:
    """Inputs by name, as own or host arrays, with row shapes that fit the layers and equal numbers of rows."""
    arrays = {name: host_or_own(name, value, backend) for name, value in named(x, plan).items()}
    single = len(arrays) == 1 and "x" in arrays
    for name, a in arrays.items():
        if single and a.ndim != 2:
            hint = "; one row is x[None, :]" if a.ndim == 1 else "; flatten each row first: x.reshape(len(x), -1)"
            raise ShapeError(f"{name} must be (N, D), N rows of D numbers; its shape is {tuple(a.shape)}{hint}.")
    # A graph may take numbers and vectors beside its batches: their first axis is not known to be the batch's.
    plan.check_rows(tuple(tuple(a.shape[1:]) if a.ndim > 1 else None for a in arrays.values()))
    return arrays


def taken_all(
    x: Any, plan: Plan, backend: Backend, dtype: str, batch_size: int | None, *, check: bool = True
) -> Iterator[Inputs]:
    """Inputs as arrays of the backend, `batch_size` rows at a time (None: all at once)."""
    arrays = checked_inputs(x, plan, backend)
    rows = {int(a.shape[0]) if a.ndim else None for a in arrays.values()}
    whole = batch_size is None or rows == {None} or len(rows) > 1  # what is broadcast over the batch cannot be cut
    n = 1 if whole else max(length(arrays), 1)
    size = batch_size if batch_size and not whole else n
    if check:
        for name, a in arrays.items():
            check_finite(name, a, backend)
    single = None if isinstance(x, Mapping) else next(iter(arrays))
    for start in range(0, n, size):
        # The standard leaves open what a slice beyond the end means, hence min.
        piece = {
            name: taken(name, a if whole else a[start : min(start + size, a.shape[0]), ...], backend, dtype)
            for name, a in arrays.items()
        }
        yield piece[single] if single is not None else piece


def check_finite(name: str, a: Any, backend: Backend) -> None:
    """Raise `DataError` naming row and column of the first NaN or infinity. Reads a memory map block by block."""
    if isinstance(a, np.ndarray):
        if a.dtype.kind != "f" or not a.size:
            return
        rows = max(1, BLOCK // max(1, a[:1].size)) if a.ndim else 1
        blocks = [(0, a)] if a.ndim == 0 or len(a) <= rows else [(i, a[i : i + rows]) for i in range(0, len(a), rows)]
        for start, block in blocks:
            finite = np.isfinite(block)
            if not finite.all():
                where = np.argwhere(~finite)[0] if a.ndim else ()
                place = [int(w) + (start if i == 0 else 0) for i, w in enumerate(where)]
                _refuse(name, place, str(block[tuple(where)]))
        return
    xp = backend.xp
    if xp.isdtype(a.dtype, "real floating") and not bool(xp.all(xp.isfinite(a))):
        host = backend.to_host(a)  # the refusal is worth one transfer
        where = np.argwhere(~np.isfinite(host))[0]
        _refuse(name, [int(w) for w in where], str(host[tuple(where)]))


def _refuse(name: str, where: list[int], value: str) -> None:
    place = ", ".join(f"{axis} {i}" for axis, i in zip(("row", "column", "index", "index"), where, strict=False))
    place = place or "its only entry"
    raise DataError(f"{name} contains {value} at {place} (counted from 0). Remove or fill such entries first.")
