"""The functions of the articles on the arrays of any library: values, ends of the number line, and what they refuse."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xbp
from xbp.errors import DTypeError
from xbp.testing import assert_close

FUNCTIONS = [xbp.softmax, xbp.log_softmax, xbp.sigmoid, xbp.relu]
x = np.random.default_rng(0).normal(size=(3, 4)) * 3.0
by_name = pytest.mark.parametrize("f", FUNCTIONS, ids=lambda f: f.__name__)


def softmax(a):
    return np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True)


DESIRED = {
    xbp.softmax: softmax,
    xbp.log_softmax: lambda a: np.log(softmax(a)),
    xbp.sigmoid: lambda a: 1.0 / (1.0 + np.exp(-a)),
    xbp.relu: lambda a: np.maximum(a, 0.0),
}


@by_name
def test_values_dtype_library_and_device_follow_the_argument(space, f):
    for dtype in space.dtypes[-1:] if space.name == "jax-x64" else space.dtypes:  # space jax has float32 already
        rtol = 1e-13 if dtype == "float64" else 3e-6
        assert_close(f(space.put(x.astype(dtype))), DESIRED[f](x), space, rtol=rtol, dtype=dtype)


@by_name
@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (0, 4)], ids=str)
def test_any_number_of_axes_is_taken(f, shape):
    a = np.random.default_rng(1).normal(size=shape)
    np.testing.assert_allclose(f(a), DESIRED[f](a), rtol=1e-13)


@by_name
def test_the_ends_of_the_number_line_are_right_without_a_warning(space, f):
    """The article's own forms overflow from 89 in float32 and answer NaN."""
    far = np.array([[800.0, -800.0, 0.0, 1e30]])
    desired = {
        xbp.softmax: [[0.0, 0.0, 0.0, 1.0]],
        xbp.log_softmax: [[-1e30, -1e30, -1e30, 0.0]],
        xbp.sigmoid: [[1.0, 0.0, 0.5, 1.0]],
        xbp.relu: [[800.0, 0.0, 0.0, 1e30]],
    }
    assert_close(f(space.put(far)), np.array(desired[f]), space, rtol=1e-6, atol=1e-300)


def test_softmax_sums_to_one_and_ignores_a_shift(space):
    p = space.get(xbp.softmax(space.put(x)))
    np.testing.assert_allclose(p.sum(axis=1), 1.0, rtol=1e-6)
    atol = 1e-14 if space.dtype == "float64" else 1e-5
    np.testing.assert_allclose(space.get(xbp.softmax(space.put(x + 100.0))), p, rtol=1e-5, atol=atol)


def test_log_softmax_has_digits_where_softmax_has_none(space):
    a = np.array([[0.0, -500.0]])
    assert_close(xbp.log_softmax(space.put(a)), np.array([[-math.exp(-500.0), -500.0]]), space, rtol=1e-6, atol=1e-30)


def test_nan_comes_out_where_it_went_in(space):
    a = np.array([[math.nan, 1.0]])
    for f in FUNCTIONS:
        assert np.isnan(space.get(f(space.put(a)))[0, 0])


@by_name
def test_what_is_no_floating_array_is_refused_by_name(space, f):
    with pytest.raises(DTypeError, match=rf"^{f.__name__} takes a floating array; it got .*int32.*astype"):
        f(space.put(np.zeros((2, 2), dtype=np.int32)))
    with pytest.raises(
        DTypeError, match=rf"^{f.__name__} takes an array of an Array API library; it got a list \(\[1\.0"
    ):
        f([1.0, 2.0])
    with pytest.raises(DTypeError, match=r"it got a float \(1\.5\)"):
        f(1.5)


@by_name
def test_arguments_stay_as_they_are(space, f):
    a = space.put(x)
    before = space.get(a)
    f(a)
    np.testing.assert_array_equal(space.get(a), before)
