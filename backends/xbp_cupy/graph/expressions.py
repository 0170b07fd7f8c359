"""One operation on single numbers, as a C expression: what the kernels are made of.

Each operand has a type of its own and nothing is promoted behind anybody's back; a half is a float in every
computation, and rounded where a value of the program has that dtype. The functions are CUDA's own, in their exact
forms; the text compiles for a CPU as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from xbp.errors import NotCompiled
from xbp.program import RecordedDType

__all__ = ["MEMORY", "REGISTER", "converted", "number", "scalar"]

REGISTER = {
    "bool": "bool",
    "int32": "int",
    "int64": "long long",
    "float16": "float",
    "bfloat16": "float",
    "float32": "float",
    "float64": "double",
}
MEMORY = REGISTER | {"bool": "bool_t", "float16": "half_t", "bfloat16": "bfloat_t"}
ROUNDED = {"float16": "loaded(to_half({}))", "bfloat16": "loaded(to_bfloat({}))"}
FLOAT, INT, BOOL = "real floating", "integral", "bool"


def number(value: float, dtype: RecordedDType) -> str:
    """A Python number as a constant of that dtype."""
    if dtype.kind == BOOL:
        return "true" if value else "false"
    if dtype.kind == INT:
        suffix = "LL" if dtype.bits == 64 else ""
        least = -(2 ** (dtype.bits - 1))
        return f"({least + 1}{suffix} - 1)" if int(value) == least else f"({int(value)}{suffix})"
    t = REGISTER[dtype.name]
    if math.isnan(value):
        return f"(Limits<{t}>::most() - Limits<{t}>::most())"
    if math.isinf(value):
        return f"Limits<{t}>::{'most' if value > 0 else 'least'}()"
    if t == "double":
        return f"({value!r})"
    single = np.float32(value)
    return f"({float(single)!r}f)" if np.isfinite(single) else number(float(single), dtype)


def converted(expression: str, dtype: RecordedDType, to: RecordedDType) -> str:
    """An expression of one dtype in another one, as `astype` does it."""
    if dtype == to:
        return expression
    if to.kind == BOOL:
        return f"({expression} != 0)"
    cast = f"(({REGISTER[to.name]}){expression})"
    return ROUNDED[to.name].format(cast) if to.name in ROUNDED else cast


def scalar(function: str, operands: Sequence[str], dtype: RecordedDType) -> str:
    """`function` of operands that all have `dtype`, but for the condition of `where`."""
    kind = dtype.kind
    single = dtype.bits < 64
    text = EXPRESSIONS.get((function, kind)) or EXPRESSIONS.get((function, "any"))
    if function == "pow" and kind == FLOAT and operands[1] in ("(2.0f)", "(2.0)"):
        text = "({0} * {0})"
    if text is None:
        raise NotCompiled(f"{function} of {dtype} is not compiled for CUDA.")
    filled = text(single, *operands) if callable(text) else text.format(*operands, t=REGISTER[dtype.name])
    return ROUNDED[dtype.name].format(filled) if dtype.name in ROUNDED and function not in ANSWERS else filled


def _wrapping(operator: str) -> Callable[..., str]:
    """Integers that wrap, which C promises of unsigned ones alone."""

    def text(single: bool, a: str, b: str) -> str:
        signed, unsigned = ("int", "unsigned") if single else ("long long", "unsigned long long")
        return f"(({signed})(({unsigned}){a} {operator} ({unsigned}){b}))"

    return text


def _function(name: str) -> Callable[..., str]:
    """A function of C's library, which has an f at its end for floats."""
    return lambda single, *operands: f"{name}{'f' if single else ''}({', '.join(operands)})"


COMPARISONS = {"less": "<", "less_equal": "<=", "greater": ">", "greater_equal": ">=", "equal": "==", "not_equal": "!="}
ANSWERS = frozenset(COMPARISONS) | {"isfinite"}

EXPRESSIONS: dict[tuple[str, str], str | Callable[..., str]] = {
    ("add", FLOAT): "({0} + {1})",
    ("subtract", FLOAT): "({0} - {1})",
    ("multiply", FLOAT): "({0} * {1})",
    ("divide", FLOAT): "({0} / {1})",
    ("negative", FLOAT): "(-{0})",
    ("add", INT): _wrapping("+"),
    ("subtract", INT): _wrapping("-"),
    ("multiply", INT): _wrapping("*"),
    ("negative", INT): lambda single, a: _wrapping("-")(single, "0", a),
    ("bitwise_right_shift", INT): "({0} >> {1})",
    ("bitwise_invert", INT): "(~{0})",
    ("bitwise_invert", BOOL): "(!{0})",
    **{(f"bitwise_{n}", INT): f"({{0}} {c} {{1}})" for n, c in (("and", "&"), ("or", "|"), ("xor", "^"))},
    ("bitwise_and", BOOL): "({0} && {1})",
    ("bitwise_or", BOOL): "({0} || {1})",
    ("bitwise_xor", BOOL): "({0} != {1})",
    **{(name, "any"): f"({{0}} {c} {{1}})" for name, c in COMPARISONS.items()},
    ("isfinite", "any"): "is_finite({0})",
    ("maximum", "any"): "larger<{t}>({0}, {1})",
    ("minimum", "any"): "smaller<{t}>({0}, {1})",
    ("sign", "any"): "sign_of<{t}>({0})",
    ("abs", "any"): "magnitude<{t}>({0})",
    ("where", "any"): "({0} ? {1} : {2})",
    **{
        (name, FLOAT): _function(c)
        for name, c in (
            ("exp", "exp"),
            ("expm1", "expm1"),
            ("log", "log"),
            ("log1p", "log1p"),
            ("sqrt", "sqrt"),
            ("tanh", "tanh"),
            ("pow", "pow"),
        )
    },
}
