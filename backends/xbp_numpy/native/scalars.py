"""One operation on single numbers, as LLVM's instructions: what the loops are made of.

Each entry has a type of its own and nothing is promoted behind anybody's back. Functions that the processor lacks (exp,
log, tanh, ...) are polynomials of plain arithmetic without a branch, so that LLVM turns a loop over them into vector
instructions; a call into the C library would stay one call an entry.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence

import numpy as np

from xbp.errors import NotCompiled
from xbp.program import RecordedDType

from .writer import Writer

__all__ = ["MEMORY", "REGISTER", "converted", "number", "scalar"]

REGISTER = {"bool": "i1", "int32": "i32", "int64": "i64", "float32": "float", "float64": "double"}
MEMORY = REGISTER | {"bool": "i8"}

Operand = tuple[str, RecordedDType]  # a register or a constant, and its dtype


def number(value: float, dtype: RecordedDType) -> str:
    """A Python number as a constant of that dtype."""
    if dtype.kind == "bool":
        return "true" if value else "false"
    if dtype.kind == "integral":
        return str(int(value))
    exact = float(np.float32(value)) if dtype.bits == 32 else float(value)
    return "0x" + struct.pack(">d", exact).hex().upper()


def converted(w: Writer, operand: Operand, to: RecordedDType) -> str:
    """The operand in another dtype, as `astype` does it."""
    register, dtype = operand
    if dtype == to:
        return register
    a, b = REGISTER[dtype.name], REGISTER[to.name]
    if to.kind == "bool":
        zero = number(0, dtype)
        return w.new(
            f"fcmp une {a} {register}, {zero}" if dtype.kind == "real floating" else f"icmp ne {a} {register}, 0"
        )
    if dtype.kind == "bool":
        return w.new(f"uitofp i1 {register} to {b}" if to.kind == "real floating" else f"zext i1 {register} to {b}")
    if dtype.kind == to.kind:
        wider = to.bits > dtype.bits
        names = ("fpext", "fptrunc") if to.kind == "real floating" else ("sext", "trunc")
        return w.new(f"{names[0] if wider else names[1]} {a} {register} to {b}")
    return w.new(f"{'sitofp' if to.kind == 'real floating' else 'fptosi'} {a} {register} to {b}")


def scalar(w: Writer, function: str, operands: Sequence[Operand], dtype: RecordedDType) -> str:
    """The register of `function` of operands that all have `dtype`, but for the condition of `where`."""
    registers = [register for register, _ in operands]
    kind, t = dtype.kind, REGISTER[dtype.name]
    if function == "where":
        return w.new(f"select i1 {registers[0]}, {t} {registers[1]}, {t} {registers[2]}")
    plain = PLAIN.get((function, kind))
    if plain is not None:
        return w.new(f"{plain} {t} {', '.join(registers)}")
    special = SPECIAL.get((function, kind)) or SPECIAL.get((function, "any"))
    if special is None:
        raise NotCompiled(f"{function} of {dtype} is not compiled.")
    return special(w, t, *registers)


FLOAT, INT, BOOL = "real floating", "integral", "bool"
COMPARISONS = {
    "less": ("olt", "slt"),
    "less_equal": ("ole", "sle"),
    "greater": ("ogt", "sgt"),
    "greater_equal": ("oge", "sge"),
    "equal": ("oeq", "eq"),
    "not_equal": ("une", "ne"),
}

# `contract` lets a product and a sum become one rounding; nothing else may be rearranged.
PLAIN: dict[tuple[str, str], str] = {
    ("add", FLOAT): "fadd contract",
    ("subtract", FLOAT): "fsub contract",
    ("multiply", FLOAT): "fmul contract",
    ("divide", FLOAT): "fdiv",
    ("negative", FLOAT): "fneg",
    ("add", INT): "add",
    ("subtract", INT): "sub",
    ("multiply", INT): "mul",
    ("bitwise_right_shift", INT): "ashr",
    **{(f"bitwise_{name}", kind): name for name in ("and", "or", "xor") for kind in (INT, BOOL)},
    **{(name, FLOAT): f"fcmp {ordered}" for name, (ordered, _) in COMPARISONS.items()},
    **{(name, INT): f"icmp {signed}" for name, (_, signed) in COMPARISONS.items()},
    **{(name, BOOL): f"icmp {COMPARISONS[name][1]}" for name in ("equal", "not_equal")},
}

Special = Callable[..., str]


def _intrinsic(name: str) -> Special:
    def call(w: Writer, t: str, *registers: str) -> str:
        return w.call(name, t, *registers)

    return call


def _larger(name: str, comparison: str) -> Special:
    """maximum or minimum, which are NaN where an operand is. One comparison does where the second is a number."""

    def choose(w: Writer, t: str, a: str, b: str) -> str:
        if b.startswith("0x") and b[2:5] not in ("7FF", "FFF"):
            return w.new(f"select i1 {w.new(f'fcmp {comparison} {t} {a}, {b}')}, {t} {a}, {t} {b}")
        return w.call(name, t, a, b)

    return choose


def _int_larger(name: str) -> Special:
    return lambda w, t, a, b: w.call(name, t, a, b)


def _int_negative(w: Writer, t: str, a: str) -> str:
    return w.new(f"sub {t} 0, {a}")


def _invert(w: Writer, t: str, a: str) -> str:
    return w.new(f"xor {t} {a}, {'true' if t == 'i1' else '-1'}")


def _sign(w: Writer, t: str, a: str) -> str:
    if t.startswith("i"):
        positive, negative = w.new(f"icmp sgt {t} {a}, 0"), w.new(f"icmp slt {t} {a}, 0")
        down = w.new(f"select i1 {negative}, {t} -1, {t} 0")
        return w.new(f"select i1 {positive}, {t} 1, {t} {down}")
    positive, negative = w.new(f"fcmp ogt {t} {a}, 0.0"), w.new(f"fcmp olt {t} {a}, 0.0")
    down = w.new(f"select i1 {negative}, {t} -1.0, {t} {a}")  # zero keeps its sign, NaN stays
    return w.new(f"select i1 {positive}, {t} 1.0, {t} {down}")


def _isfinite(w: Writer, t: str, a: str) -> str:
    if t.startswith("i"):
        return "true"
    return w.new(f"fcmp olt {t} {w.call('llvm.fabs', t, a)}, 0x7FF0000000000000")


def _pow(w: Writer, t: str, a: str, b: str) -> str:
    if t.startswith("i"):
        raise NotCompiled("pow of integers is not compiled; multiply instead.")
    return w.new(f"fmul {t} {a}, {a}") if b == "0x4000000000000000" else w.call("llvm.pow", t, a, b)


# --- functions made of arithmetic ---------------------------------------------------------------------------------


class _Float:
    """What the formulas need to know of a floating type."""

    def __init__(self, t: str) -> None:
        single = t == "float"
        self.dtype = np.dtype(np.float32 if single else np.float64)
        self.integer = "i32" if single else "i64"
        self.mantissa, self.bias = (23, 127) if single else (52, 1023)
        self.smallest = 2.0 ** (1 - self.bias)  # with all digits
        self.exp_terms = 8 if single else 14  # of the Taylor series on |r| <= ln(2) / 2
        self.log_terms = 5 if single else 11  # of the series in s^2 on |s| <= 0.1716
        self.overflow, self.underflow = (89.0, -104.0) if single else (710.0, -746.0)
        # ln 2 in two parts, the first short enough for k * high to be exact
        self.ln2_high = float(np.float32(0.693359375)) if single else float.fromhex("0x1.62e42fee00000p-1")
        self.ln2_low = -2.12194440054690583e-4 if single else 1.90821492927058770e-10

    def constant(self, value: float) -> str:
        exact = float(np.float32(value)) if self.mantissa == 23 else value
        return "0x" + struct.pack(">d", exact).hex().upper()


def _horner(w: Writer, t: str, x: str, coefficients: Sequence[float]) -> str:
    """The polynomial with these coefficients, of x^0 first, by fused steps."""
    f = _Float(t)
    total = f.constant(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = w.call("llvm.fma", t, total, x, f.constant(c))
    return total


def _reduced(w: Writer, t: str, x: str) -> tuple[str, str]:
    """(k, r) with x = k ln 2 + r, |r| <= ln(2) / 2 and k a whole float; x is first cut to where exp is not constant."""
    f = _Float(t)
    low, high = f.constant(f.underflow), f.constant(f.overflow)
    x = w.new(f"select i1 {w.new(f'fcmp ogt {t} {x}, {low}')}, {t} {x}, {t} {low}")
    x = w.new(f"select i1 {w.new(f'fcmp olt {t} {x}, {high}')}, {t} {x}, {t} {high}")
    k = w.call("llvm.rint", t, w.new(f"fmul {t} {x}, {f.constant(1 / math.log(2))}"))
    r = w.call("llvm.fma", t, k, f.constant(-f.ln2_high), x)
    return k, w.call("llvm.fma", t, k, f.constant(-f.ln2_low), r)


def _power_of_two(w: Writer, t: str, k: str) -> str:
    """2^k for a whole number k, an integer register, of the normal range."""
    f = _Float(t)
    biased = w.new(f"add {f.integer} {k}, {f.bias}")
    return w.new(f"bitcast {f.integer} {w.new(f'shl {f.integer} {biased}, {f.mantissa}')} to {t}")


def _halves(w: Writer, t: str, k: str) -> tuple[str, str]:
    """Two powers of two whose product is 2^k: k may lie outside the normal range."""
    f = _Float(t)
    whole = w.new(f"fptosi {t} {k} to {f.integer}")
    half = w.new(f"ashr {f.integer} {whole}, 1")
    return _power_of_two(w, t, half), _power_of_two(w, t, w.new(f"sub {f.integer} {whole}, {half}"))


def _or_nan(w: Writer, t: str, x: str, result: str) -> str:
    return w.new(f"select i1 {w.new(f'fcmp uno {t} {x}, {x}')}, {t} {x}, {t} {result}")


def _exp(w: Writer, t: str, x: str) -> str:
    """exp x = 2^k exp r, with the Taylor series of exp r."""
    k, r = _reduced(w, t, x)
    p = _horner(w, t, r, [1 / math.factorial(i) for i in range(_Float(t).exp_terms)])
    first, second = _halves(w, t, k)
    return _or_nan(w, t, x, w.new(f"fmul {t} {w.new(f'fmul {t} {p}, {first}')}, {second}"))


def _expm1(w: Writer, t: str, x: str) -> str:
    """exp x - 1 = 2^k (exp r - 1) + (2^k - 1): exact where x is small, because then k = 0."""
    f = _Float(t)
    k, r = _reduced(w, t, x)
    series = [1 / math.factorial(i) for i in range(1, f.exp_terms + 1)]
    p = w.new(f"fmul {t} {r}, {_horner(w, t, r, series)}")
    first, second = _halves(w, t, k)
    # Both halves are taken one after the other, so that 2^1024 does not overflow before it is made smaller.
    scaled = w.call("llvm.fma", t, p, first, w.new(f"fsub {t} {first}, {_shifted(w, t, second)}"))
    result = w.new(f"fmul {t} {scaled}, {second}")
    tiny = w.new(f"fcmp oeq {t} {x}, 0.0")  # keeps the sign of zero
    return _or_nan(w, t, x, w.new(f"select i1 {tiny}, {t} {x}, {t} {result}"))


def _shifted(w: Writer, t: str, second: str) -> str:
    """1 / 2^k of a power of two: what 1 is in units of the second half."""
    return w.new(f"fdiv {t} 1.0, {second}")


def _log(w: Writer, t: str, x: str) -> str:
    """log x = e ln 2 + log m with m in [sqrt(1/2), sqrt(2)); log m = 2 (s + s^3/3 + ...), s = (m - 1) / (m + 1)."""
    f = _Float(t)
    i = f.integer
    smallest = f.constant(f.smallest)
    subnormal = w.new(f"fcmp olt {t} {x}, {smallest}")
    shift = f.mantissa + 1
    lifted = w.new(f"fmul {t} {x}, {f.constant(2.0**shift)}")
    y = w.new(f"select i1 {subnormal}, {t} {lifted}, {t} {x}")
    bits = w.new(f"bitcast {t} {y} to {i}")
    # Counted from sqrt(1/2), the exponent field is e.
    root = int(np.asarray(math.sqrt(0.5), f.dtype).view(np.int32 if f.mantissa == 23 else np.int64))
    above = w.new(f"sub {i} {bits}, {root}")
    e = w.new(f"ashr {i} {above}, {f.mantissa}")
    exponent = w.new(f"shl {i} {e}, {f.mantissa}")
    m = w.new(f"bitcast {i} {w.new(f'sub {i} {bits}, {exponent}')} to {t}")
    down = w.new(f"select i1 {subnormal}, {i} {shift}, {i} 0")
    e = w.new(f"sitofp {i} {w.new(f'sub {i} {e}, {down}')} to {t}")
    s = w.new(f"fdiv {t} {w.new(f'fsub {t} {m}, 1.0')}, {w.new(f'fadd {t} {m}, 1.0')}")
    square = w.new(f"fmul {t} {s}, {s}")
    series = _horner(w, t, square, [2 / (2 * k + 1) for k in range(1, f.log_terms)])
    tail = w.new(f"fmul {t} {w.new(f'fmul {t} {s}, {square}')}, {series}")
    low = w.call("llvm.fma", t, e, f.constant(f.ln2_low), tail)
    log_m = w.call("llvm.fma", t, s, f.constant(2.0), low)
    result = w.call("llvm.fma", t, e, f.constant(f.ln2_high), log_m)
    infinite = w.new(f"fcmp oeq {t} {x}, 0x7FF0000000000000")
    result = w.new(f"select i1 {infinite}, {t} {x}, {t} {result}")
    zero = w.new(f"fcmp oeq {t} {x}, 0.0")
    result = w.new(f"select i1 {zero}, {t} 0xFFF0000000000000, {t} {result}")
    negative = w.new(f"fcmp olt {t} {x}, 0.0")
    return _or_nan(w, t, x, w.new(f"select i1 {negative}, {t} 0x7FF8000000000000, {t} {result}"))


def _log1p(w: Writer, t: str, x: str) -> str:
    """log u times x / (u - 1) with u = 1 + x rounded: the quotient takes back what the rounding did."""
    u = w.new(f"fadd {t} 1.0, {x}")
    difference = w.new(f"fsub {t} {u}, 1.0")
    corrected = w.new(f"fmul {t} {_log(w, t, u)}, {w.new(f'fdiv {t} {x}, {difference}')}")
    same = w.new(f"fcmp oeq {t} {difference}, 0.0")
    result = w.new(f"select i1 {same}, {t} {x}, {t} {corrected}")
    infinite = w.new(f"fcmp oeq {t} {x}, 0x7FF0000000000000")
    return w.new(f"select i1 {infinite}, {t} {x}, {t} {result}")


def _tanh(w: Writer, t: str, x: str) -> str:
    """tanh a = -e / (2 + e) with e = expm1(-2 a), for a = |x|: right near 0 and never overflowing."""
    a = w.call("llvm.fabs", t, x)
    e = _expm1(w, t, w.new(f"fmul {t} {a}, -2.0"))
    positive = w.new(f"fdiv {t} {w.new(f'fneg {t} {e}')}, {w.new(f'fadd {t} {e}, 2.0')}")
    return w.call("llvm.copysign", t, positive, x)


SPECIAL: dict[tuple[str, str], Special] = {
    ("abs", FLOAT): _intrinsic("llvm.fabs"),
    ("abs", INT): lambda w, t, a: w.call("llvm.abs", t, a, extra="i1 false"),
    ("negative", INT): _int_negative,
    ("bitwise_invert", "any"): _invert,
    ("sign", "any"): _sign,
    ("isfinite", "any"): _isfinite,
    ("sqrt", FLOAT): _intrinsic("llvm.sqrt"),
    ("maximum", FLOAT): _larger("llvm.maximum", "ugt"),
    ("minimum", FLOAT): _larger("llvm.minimum", "ult"),
    ("maximum", INT): _int_larger("llvm.smax"),
    ("minimum", INT): _int_larger("llvm.smin"),
    ("pow", "any"): _pow,
    ("exp", FLOAT): _exp,
    ("expm1", FLOAT): _expm1,
    ("log", FLOAT): _log,
    ("log1p", FLOAT): _log1p,
    ("tanh", FLOAT): _tanh,
}
