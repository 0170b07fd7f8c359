"""The recorder's shapes and dtypes are those of array-api-strict, whatever the function and whatever its arguments."""

from __future__ import annotations

import math
import operator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from xbp.errors import XBPError
from xbp.program import Recorder
from xbp.typing import device_of

strict = pytest.importorskip("array_api_strict", reason="needs array-api-strict, the judge of the recorder's rules")

DTYPES = ("bool", "int32", "int64", "float32", "float64")


def outcome(xp, make, formula, refusal):
    """(shape, dtype) of the result, or None where the namespace refuses."""
    try:
        result = formula(xp, make)
    except refusal:
        return None
    return tuple(map(int, result.shape)), str(result.dtype).rpartition(".")[2]


def strict_array(shape, dtype, value=1):
    return strict.full(shape, bool(value) if dtype == "bool" else value, dtype=getattr(strict, dtype))


def agree(formula):
    """`formula(xp, make)` comes to the same on both; `make(shape, dtype)` is an array there."""
    recorder = Recorder()
    recorded = outcome(recorder.xp, lambda shape, dtype, value=1: recorder.input("x", shape, dtype), formula, XBPError)
    expected = outcome(strict, strict_array, formula, Exception)
    assert recorded == expected
    return recorded


lengths = st.integers(1, 3)
shapes = st.lists(lengths, max_size=3).map(tuple)
dtypes = st.sampled_from(DTYPES)
scalars = st.sampled_from([True, 3, -1, 2**40, 0.5, math.inf])
axes = st.one_of(st.none(), st.integers(-3, 3), st.lists(st.integers(-3, 2), max_size=3).map(tuple))
KIND = {"bool": "bool", "int32": "integral", "int64": "integral", "float32": "floating", "float64": "floating"}
OPERATORS = [
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.rshift),
    *(operator.and_, operator.or_, operator.xor),
    *(operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne),
]


@given(
    name=st.sampled_from(["abs", "exp", "expm1", "isfinite", "log", "log1p", "sign", "sqrt", "tanh"]),
    shape=shapes,
    dtype=dtypes,
)
def test_elementwise_functions(name, shape, dtype):
    agree(lambda xp, make: getattr(xp, name)(make(shape, dtype)))


@given(op=st.sampled_from([operator.neg, operator.invert]), shape=shapes, dtype=dtypes)
def test_unary_operators(op, shape, dtype):
    agree(lambda xp, make: op(make(shape, dtype)))


@given(op=st.sampled_from([*OPERATORS, "maximum", "minimum"]), a=shapes, b=shapes, one=dtypes, other=dtypes)
def test_two_arrays(op, a, b, one, other):
    agree(lambda xp, make: (getattr(xp, op) if isinstance(op, str) else op)(make(a, one), make(b, other)))


@given(op=st.sampled_from([*OPERATORS, "maximum", "minimum"]), shape=shapes, dtype=dtypes, scalar=scalars)
def test_an_array_and_a_number(op, shape, dtype, scalar):
    # x >> -1 is undefined, and integers have no power -1, which only the values could show.
    assume(op not in (operator.rshift, operator.pow) or scalar != -1)
    agree(lambda xp, make: (getattr(xp, op) if isinstance(op, str) else op)(make(shape, dtype), scalar))


@given(
    op=st.sampled_from([operator.add, operator.sub, operator.mul, operator.truediv]),
    shape=shapes,
    dtype=dtypes,
    scalar=scalars,
)
def test_a_number_and_an_array(op, shape, dtype, scalar):
    agree(lambda xp, make: op(scalar, make(shape, dtype)))


@given(
    condition=shapes,
    kind=st.sampled_from(["bool", "bool", "float32"]),
    a=st.one_of(shapes, scalars),
    b=st.one_of(shapes, scalars),
    one=dtypes,
    other=dtypes,
)
def test_where(condition, kind, a, b, one, other):
    def formula(xp, make):
        left = make(a, one) if isinstance(a, tuple) else a
        right = make(b, other) if isinstance(b, tuple) else b
        return xp.where(make(condition, kind), left, right)

    agree(formula)


@given(
    name=st.sampled_from(["max", "mean", "min", "sum"]), shape=shapes, dtype=dtypes, axis=axes, keepdims=st.booleans()
)
def test_reductions(name, shape, dtype, axis, keepdims):
    # NumPy, and strict after it, lets a 0-d array have an axis 0, which the standard does not.
    assume(shape or axis in (None, ()))
    agree(lambda xp, make: getattr(xp, name)(make(shape, dtype), axis=axis, keepdims=keepdims))


@given(name=st.sampled_from(["argmax", "all"]), shape=shapes, dtype=dtypes, axis=st.none() | st.integers(-3, 3))
def test_reductions_without_keepdims(name, shape, dtype, axis):
    assume(shape or axis is None)
    agree(lambda xp, make: getattr(xp, name)(make(shape, dtype), axis=axis))


@given(shape=shapes, kinds=st.sampled_from([("int32", "int64"), ("float32", "float64"), ("float64", "float32")]))
def test_sum_in_a_dtype_that_is_asked_for(shape, kinds):
    agree(lambda xp, make: xp.sum(make(shape, kinds[0]), dtype=getattr(xp, kinds[1])))


@given(a=shapes, b=shapes, one=dtypes, other=dtypes)
def test_matmul(a, b, one, other):
    assume(KIND[one] == KIND[other])  # strict lets NumPy promote across kinds here, which the standard leaves open
    agree(lambda xp, make: xp.matmul(make(a, one), make(b, other)))


@given(rows=st.lists(lengths, max_size=2), inner=lengths, a=st.lists(lengths, max_size=2), b=lengths)
def test_matmul_that_fits(rows, inner, a, b):
    assert agree(lambda xp, make: xp.matmul(make((*rows, inner), "float32"), make((*a, inner, b), "float64"))) or a


@given(shape=shapes, to=shapes)
def test_broadcast_to(shape, to):
    agree(lambda xp, make: xp.broadcast_to(make(shape, "float32"), to))


@given(shape=shapes, to=st.lists(st.sampled_from([-1, 1, 2, 3, 4, 6, 9]), max_size=3).map(tuple))
def test_reshape(shape, to):
    agree(lambda xp, make: xp.reshape(make(shape, "int32"), to))


@given(
    parts=st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=3),
    axis=st.integers(-3, 3),
    name=st.sampled_from(["concat", "stack"]),
)
def test_concat_and_stack(parts, axis, name):
    agree(lambda xp, make: getattr(xp, name)([make(*p) for p in parts], axis=axis))


@given(shape=shapes, count=st.integers(1, 3), name=st.sampled_from(["concat", "stack"]), axis=st.integers(-3, 2))
def test_concat_and_stack_that_fit(shape, count, name, axis):
    agree(lambda xp, make: getattr(xp, name)([make(shape, "float32")] * count, axis=axis))


@given(shape=shapes, indices=shapes, dtype=dtypes, axis=st.integers(-3, 2))
def test_take(shape, indices, dtype, axis):
    assume(shape)  # as for reductions
    agree(lambda xp, make: xp.take(make(shape, "float32"), make(indices, dtype, 0), axis=axis))


@given(shape=shapes)
def test_matrix_transpose_and_likes(shape):
    agree(lambda xp, make: xp.matrix_transpose(make(shape, "float32")))
    agree(lambda xp, make: xp.ones_like(make(shape, "int64")))
    agree(lambda xp, make: xp.zeros_like(make(shape, "bool")))
    agree(lambda xp, make: xp.asarray(make(shape, "float32"), copy=True))


keys = st.lists(
    st.one_of(
        st.integers(-3, 3),
        st.none(),
        st.just(...),
        st.builds(slice, *[st.none() | st.integers(-4, 4)] * 2, st.sampled_from([None, 1, 2, -1, 0])),
    ),
    max_size=4,
).map(tuple)


@given(shape=shapes, key=keys)
def test_indexing(shape, key):
    agree(lambda xp, make: make(shape, "float32")[key])


@given(shape=shapes, dtype=dtypes, to=dtypes)
def test_astype_and_isdtype(shape, dtype, to):
    agree(lambda xp, make: xp.astype(make(shape, dtype), getattr(xp, to)))
    for kind in ("bool", "signed integer", "integral", "real floating", "numeric", ("bool", "integral")):
        assert Recorder().xp.isdtype(getattr(Recorder().xp, to), kind) == strict.isdtype(getattr(strict, to), kind)


@given(shape=shapes, dtype=dtypes, value=scalars)
def test_creation(shape, dtype, value):
    def device(xp):
        return device_of(xp.zeros((), dtype=xp.float32, device=Recorder().device if xp is not strict else None))

    agree(lambda xp, make: xp.zeros(shape, dtype=getattr(xp, dtype), device=device(xp)))
    # NumPy, and strict after it, casts a value of another kind, which the standard leaves open.
    if KIND[dtype] in {bool: ("bool",), int: ("integral", "floating"), float: ("floating",)}[type(value)]:
        agree(lambda xp, make: xp.full(shape, value, dtype=getattr(xp, dtype), device=device(xp)))
    assume(dtype != "bool")  # two booleans can be counted out, says NumPy; the standard's arange is for numbers
    agree(lambda xp, make: xp.arange(len(shape), dtype=getattr(xp, dtype), device=device(xp)))
