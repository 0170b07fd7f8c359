"""Operations of a program as calls of NumPy that write into prepared arrays and allocate nothing.

A call is a tuple (function, *arguments) of compiled functions only, so that a list of them runs in one go without
returning to Python's own loop, where a signal could stop it halfway. What is computed is what the eager expression
computes, to the last bit.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from xbp.errors import NotCompiled
from xbp.program import Operation, Program, Value, bound
from xbp.program.passes import REDUCTIONS

__all__ = [
    "CONSTANTS",
    "ELEMENTWISE",
    "Call",
    "calls_of",
    "check",
    "copy",
    "may_overwrite",
    "number",
    "takes_mask",
    "view_of",
]

Call = tuple[Any, ...]

UFUNCS: dict[str, np.ufunc] = {
    name: getattr(np, name)
    for name in (
        *("add", "subtract", "multiply", "divide", "negative", "abs", "sign", "maximum", "minimum"),
        *("exp", "expm1", "log", "log1p", "sqrt", "tanh", "isfinite"),
        *("less", "less_equal", "greater", "greater_equal", "equal", "not_equal"),
        *("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert", "bitwise_right_shift"),
    )
}
ELEMENTWISE = frozenset({*UFUNCS, "astype", "pow", "where"})
CONSTANTS = frozenset({"arange", "asarray", "full", "zeros"})
VIEWS = frozenset({"broadcast_to", "getitem", "matrix_transpose", "reshape"})
OTHERS = frozenset({"argmax", "concat", "matmul", "stack", "take"})
REDUCE: dict[str, Callable[..., Any]] = {
    "all": np.logical_and.reduce,
    "max": np.maximum.reduce,
    "mean": np.add.reduce,
    "min": np.minimum.reduce,
    "sum": np.add.reduce,
}
EXACT = 2**24  # whole numbers up to here are numbers of float32 too


def check(program: Program, engine: str) -> None:
    """Raises `NotCompiled`, naming the operation, for a program with one that is not here."""
    known = ELEMENTWISE | CONSTANTS | VIEWS | OTHERS | REDUCTIONS
    for value in (*program.inputs.values(), *[op.result for op in program.operations]):
        if value.dtype.kind == "real floating" and value.dtype.bits < 32:
            raise NotCompiled(f"Engine {engine!r} of backend 'numpy' computes with no {value.dtype} (in {value}).")
    for op in program.operations:
        if op.function not in known:
            where = f", from {op.origin}" if op.origin else ""
            raise NotCompiled(
                f"Engine {engine!r} of backend 'numpy' has no {op.function!r} (in {op}{where}). "
                'Write it with functions of xbp.typing.Namespace, or train with engine="eager".'
            )


def view_of(op: Operation, x: np.ndarray, n: int) -> np.ndarray | None:
    """The result as a view of x, for a batch of n rows; None where it takes new memory."""
    name, options = op.function, op.options
    if name not in VIEWS:
        return None
    if name == "matrix_transpose":
        return np.matrix_transpose(x)
    if name == "getitem":
        part = x[options["key"].bound(n)]
        return part if isinstance(part, np.ndarray) else x[(*options["key"].bound(n), ...)]
    shape = bound(options["shape"], n)
    if name == "broadcast_to":
        return np.broadcast_to(x, shape)
    try:
        return x.reshape(shape, copy=False)
    except ValueError:  # no view has these rows
        return None


def number(value: float, dtype: Any) -> np.ndarray:
    """A Python number as the array () that it becomes beside arrays of `dtype`; a call need not convert it then."""
    return np.asarray(value, dtype=dtype)


def takes_mask(op: Operation) -> bool:
    """Whether the operation needs room for its condition as whole numbers."""
    return op.function == "where" and op.result.dtype.kind != "bool"


def may_overwrite(op: Operation, operand: Value) -> bool:
    """Whether the result may take the place of `operand`, entry by entry."""
    if op.function == "where":
        _, a, b = op.arguments
        return takes_mask(op) and a is not b and operand is (b if _is_zero(a) else a)
    return op.function in UFUNCS or (op.function == "pow" and operand is op.arguments[0])


def copy(out: np.ndarray, x: np.ndarray) -> Call:
    """out[...] = x, with whatever conversion it takes."""
    return (operator.setitem, out, ..., x)


def calls_of(op: Operation, operands: Sequence[np.ndarray], out: np.ndarray, mask: np.ndarray | None) -> list[Call]:
    """The operation on `operands` into `out`, which has the result's shape. `mask` is room for `takes_mask`."""
    name, options = op.function, op.options
    if name in ("maximum", "minimum"):  # these warn of a third argument
        return [(partial(UFUNCS[name], out=out), *operands)]
    if name in UFUNCS:
        return [(UFUNCS[name], *operands, out)]
    if name == "where":
        return _where(op, operands, out, mask)
    if name == "pow":
        return _power(op, operands, out)
    if name == "matmul":
        return [(np.matmul, *operands, out)]
    if name in REDUCE:
        return _reduction(op, operands[0], out)
    if name == "astype":
        return [copy(out, operands[0])]
    if name == "reshape":
        return [copy(out.reshape(operands[0].shape), operands[0])]
    if name == "argmax":
        return [(np.ndarray.argmax, operands[0], options["axis"], out)]
    if name == "take":
        return [(np.ndarray.take, operands[0], operands[1], options["axis"], out)]
    axis = options["axis"] % out.ndim
    if name == "stack":
        return [copy(out[(slice(None),) * axis + (i, ...)], x) for i, x in enumerate(operands)]
    assert name == "concat"  # `check` has seen the program
    ends = np.cumsum([x.shape[axis] for x in operands])
    places = [slice(end - x.shape[axis], end) for x, end in zip(operands, ends, strict=True)]
    return [copy(out[(slice(None),) * axis + (place,)], x) for x, place in zip(operands, places, strict=True)]


def _reduction(op: Operation, x: np.ndarray, out: np.ndarray) -> list[Call]:
    axes = op.options["axis"]
    first = (REDUCE[op.function], x, axes, out.dtype, out, op.options["keepdims"])
    if op.function != "mean":
        return [first]
    count = int(np.prod([x.shape[i] for i in axes]))
    if count <= EXACT:
        return [first, (np.true_divide, out, number(count, out.dtype), out)]
    # NumPy's own mean divides by a number that float32 need not have, in float64.
    return [first, (partial(np.true_divide, casting="unsafe"), out, np.asarray(float(count)), out)]


def _power(op: Operation, operands: Sequence[np.ndarray], out: np.ndarray) -> list[Call]:
    exponent = op.arguments[1]
    if isinstance(exponent, Value) or out.ndim == 0:
        return [(np.power, *operands, out)]
    # Powers such as 2 and 0.5 are taken in shorter ways by the operator, not by the function.
    return [copy(out, operands[0]), (operator.ipow, out, exponent)]


def _where(op: Operation, operands: Sequence[np.ndarray], out: np.ndarray, mask: np.ndarray | None) -> list[Call]:
    """A choice by arithmetic on the bits, (a - b) m + b with m 1 or 0, which is exact for any a and b, NaN included.

    It is more than ten times as fast as copying by a mask, whose time goes into guessing the next entry.
    """
    condition, a, b = operands
    if mask is None:
        choose = partial(np.logical_or, where=condition)
        return [copy(out, b), (choose, a, a, out)]
    whole = mask.dtype
    first, a, b, to = copy(mask, condition), a.view(whole), b.view(whole), out.view(whole)
    if _is_zero(op.arguments[2]):
        return [first, (np.multiply, a, mask, to)]
    if _is_zero(op.arguments[1]):
        return [first, (np.bitwise_xor, mask, number(1, whole), mask), (np.multiply, b, mask, to)]
    return [first, (np.subtract, a, b, to), (np.multiply, to, mask, to), (np.add, to, b, to)]


def _is_zero(argument: Value | float) -> bool:
    """Whether it is the number whose bits are all 0, which -0.0 is not."""
    return not isinstance(argument, Value) and argument == 0 and str(argument)[0] != "-"
