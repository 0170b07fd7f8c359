"""The recorder lets nobody look inside an array, notes every operation, and shows a baked-in batch size."""

from __future__ import annotations

import copy
import inspect
import operator

import numpy as np
import pytest

from xbp.errors import DTypeError, RecordingError, ShapeError
from xbp.kernels import affine, batch_norm, layer_norm, relu, softmax_cross_entropy
from xbp.program import Dim, RecordedArray, Recorder, RecordingNamespace
from xbp.typing import Array, Namespace

# names


def members(cls):
    return {n for n in vars(cls) if not n.startswith("_")}


def test_the_namespace_has_the_names_and_signatures_of_the_protocol():
    assert members(RecordingNamespace) == members(Namespace)
    for name in members(Namespace):
        wanted, given_ = vars(Namespace)[name], vars(RecordingNamespace)[name]
        if inspect.isfunction(wanted):
            ours = inspect.signature(given_).parameters.values()
            theirs = inspect.signature(wanted).parameters.values()
            assert [(p.name, p.kind, p.default) for p in ours] == [(p.name, p.kind, p.default) for p in theirs], name


def test_arrays_have_the_operators_of_the_protocol():
    recorded = Recorder().input("x", (2,))
    wanted = {
        n for n in vars(Array) if inspect.isfunction(vars(Array)[n]) and n not in ("__init__", "__subclasshook__")
    }
    assert {"__add__", "__rsub__", "__getitem__"} <= wanted
    for name in wanted:
        assert callable(getattr(recorded, name)), name
    assert (recorded.shape, recorded.ndim, str(recorded.dtype)) == ((2,), 1, "float32")


def test_what_is_not_in_the_protocol_is_refused():
    recorder = Recorder()
    x = recorder.input("x", (2,))
    with pytest.raises(AttributeError, match=r"xp\.einsum is not in xbp\.typing\.Namespace"):
        recorder.xp.einsum("ij->ji", x)
    with pytest.raises(AttributeError, match=r"no 'sum' in a recording; use functions, xp\.sum\(x\)"):
        x.sum()
    assert x.__array_namespace__() is recorder.xp


def test_constants_are_nested_lists_of_python_numbers():
    recorder = Recorder()
    xp = recorder.xp
    a = xp.asarray([[1, 2, 3], [4, 5, 6]], dtype=xp.float32, device=recorder.device)
    assert (a.shape, a.dtype) == ((2, 3), xp.float32)
    assert xp.asarray(2.5, dtype=xp.float64, device=recorder.device).shape == ()
    with pytest.raises(ShapeError, match="several lengths"):
        xp.asarray([[1], [2, 3]], dtype=xp.int32, device=recorder.device)
    with pytest.raises(DTypeError, match=r"0\.5 does not become int32"):
        xp.asarray([0.5], dtype=xp.int32, device=recorder.device)


# what a formula may not do


@pytest.mark.parametrize(
    ("formula", "way_out"),
    [
        (bool, r"xp\.where"),
        (lambda x: 1 if x > 0 else 2, r"xp\.where"),
        (lambda x: x in (1, 2), r"xp\.where"),
        (float, "Keep the 0-d array"),
        (int, "Keep the 0-d array"),
        (complex, "Keep the 0-d array"),
        (len, r"x\.shape\[0\]"),
        (list, "all of its rows at once"),
        (lambda x: [1, 2][x], r"xp\.take"),
        (lambda x: x[x > 0], r"xp\.where"),
        (lambda x: x[[0, 1]], r"xp\.take"),
        (np.asarray, "Use functions of xp"),
        (lambda x: x @ x, r"xp\.matmul"),
        (lambda x: operator.iadd(x, 1.0), r"x = x \+"),
        (lambda x: operator.imul(x, 2.0), r"x = x \+"),
        (lambda x: operator.setitem(x, 0, 1.0), r"xp\.where"),
        (lambda x: x.__array_namespace__().zeros((2,), dtype=x.dtype, device=None), "device=device_of"),
    ],
)
def test_refusals_name_the_way_out(formula, way_out):
    x = Recorder().input("x", (3,))
    with pytest.raises(RecordingError, match=way_out):
        formula(x)


@pytest.mark.parametrize("number", [np.float64(2.0), np.float32(2.0), np.ones(3), "2", None, [1.0, 2.0, 3.0]])
def test_operands_are_arrays_of_the_recording_or_python_numbers(number):
    recorder = Recorder()
    x = recorder.input("x", (3,))
    for formula in (
        lambda: x * number,
        lambda: x == number,
        lambda: recorder.xp.maximum(x, number),
        lambda: recorder.xp.where(x > 0.0, x, number),
        lambda: recorder.xp.asarray(np.float32(2.0), dtype=x.dtype, device=x.device),
    ):
        with pytest.raises(DTypeError, match="neither an array of this recording nor a Python number"):
            formula()
    if isinstance(number, np.ndarray | np.generic):
        with pytest.raises(DTypeError, match="constants come from Python or math"):
            _ = number * x
    with pytest.raises(DTypeError, match="not an array of the recording"):
        recorder.xp.exp(number)


def test_arrays_of_two_recordings_do_not_mix():
    a, b = Recorder().input("a", (3,)), Recorder().input("b", (3,))
    with pytest.raises(RecordingError, match="'b' of another recording"):
        _ = a + b


def test_arrays_are_values():
    x = Recorder().input("x", (3,))
    with pytest.raises(AttributeError):
        x.shape = (4,)
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)
    assert isinstance(copy.copy(x), RecordedArray)


# the batch size


def test_a_dim_is_a_number_that_prints_as_n_until_it_is_computed_with():
    n = Dim(5)
    assert (n, str(n), f"{n}", repr((n, 3))) == (5, "N", "N", "(N, 3)")
    for number in (n + 0, 2 * n, -n, n // 1, int(n), abs(n), max(n + 1, 2)):
        assert type(number) is int
        assert str(number).lstrip("-").isdecimal()


def test_n_passes_through_what_only_passes_it_on():
    recorder = Recorder(batch=5)
    xp, x = recorder.xp, recorder.input("x", ("N", 3))
    rows = xp.arange(x.shape[0], dtype=xp.int32, device=x.device)
    for array, shape in (
        (x + 1.0, "(N, 3)"),
        (xp.sum(x, axis=1), "(N,)"),
        (xp.sum(x, axis=1, keepdims=True), "(N, 1)"),
        (xp.matrix_transpose(x), "(3, N)"),
        (xp.matmul(x, xp.matrix_transpose(x)), "(N, N)"),
        (x[:, :1], "(N, 1)"),
        (x[:, 0], "(N,)"),
        (x[None, ...], "(1, N, 3)"),
        (xp.reshape(x, (-1, 3, 1)), "(N, 3, 1)"),
        (xp.reshape(x, (x.shape[0], -1)), "(N, 3)"),
        (xp.reshape(x, (-1,)), "(3N,)"),
        (xp.reshape(xp.reshape(x, (-1,)), (-1, 3)), "(N, 3)"),
        (xp.broadcast_to(x[:, :1], x.shape), "(N, 3)"),
        (xp.concat([x, x], axis=1), "(N, 6)"),
        (xp.stack([x, x], axis=1), "(N, 2, 3)"),
        (rows, "(N,)"),
        (xp.take(x, rows, axis=0), "(N, 3)"),
        (xp.zeros((x.shape[0],), dtype=x.dtype, device=x.device), "(N,)"),
    ):
        assert str(array.shape) == shape


def test_n_and_the_number_it_stands_for_are_not_the_same():
    recorder = Recorder(batch=3)
    xp, x, w = recorder.xp, recorder.input("x", ("N", 3)), recorder.input("w", (3,))
    with pytest.raises(ShapeError, match="at every batch size N"):
        _ = x + xp.reshape(w, (3, 1))
    with pytest.raises(ShapeError, match="inner lengths N and 3 are not the same"):
        xp.matmul(xp.matrix_transpose(x), xp.reshape(w, (3, 1)))
    with pytest.raises(ShapeError, match="do not broadcast"):
        xp.broadcast_to(w[:1], (x.shape[0],)) + w
    with pytest.raises(ShapeError, match="the other lengths must be the same"):
        xp.concat([x, xp.matrix_transpose(x)], axis=1)


def test_a_batch_of_one_is_a_batch_and_not_a_broadcast():
    recorder = Recorder(batch=1)
    with pytest.raises(ShapeError, match="N is not 4"):
        _ = recorder.input("x", ("N",)) + recorder.input("y", (4,))
    with pytest.raises(ShapeError, match="one row or more"):
        Recorder(batch=0)


def record(formula, batch):
    recorder = Recorder(batch)
    return recorder.text(formula(recorder))


def train_step(recorder):
    """Affine, batch norm, ReLU, layer norm, softmax cross-entropy with weights; forward and backward."""
    xp, i = recorder.xp, recorder.input
    x, t, w = i("x", ("N", 3)), i("t", ("N",), "int32"), i("w", ("N",))
    W, b, g, h = i("W", (3, 4)), i("b", (4,)), i("g", (4,)), i("h", (4,))
    a, first = affine.forward(x, W, b, xp=xp)
    a, second = batch_norm.forward(a, g, b, eps=1e-5, xp=xp)
    a, third = relu.forward(a, xp=xp)
    a, fourth = layer_norm.forward(a, g, h, eps=1e-5, xp=xp)
    loss, last = softmax_cross_entropy.forward(a, t, w, label_smoothing=0.1, xp=xp)
    da = softmax_cross_entropy.backward(1.0, last, label_smoothing=0.1, xp=xp)
    da, dg, dh = layer_norm.backward(da, fourth, eps=1e-5, xp=xp)
    da = relu.backward(da, third, xp=xp)
    da, dg2, db = batch_norm.backward(da, second, eps=1e-5, xp=xp)
    return loss, dg, dh, dg2, db, affine.backward(da, first, xp=xp)


def test_kernels_record_the_same_at_two_batch_sizes():
    assert record(train_step, 5) == record(train_step, 7) == record(train_step, 1)


@pytest.mark.parametrize(
    "formula",
    [
        lambda x, xp: x / x.shape[0],
        lambda x, xp: xp.sum(x) * (1.0 / x.shape[0]),
        lambda x, xp: xp.reshape(x, (x.shape[0] * 3,)),
        lambda x, xp: xp.full((2,), x.shape[0], dtype=x.dtype, device=x.device),
        lambda x, xp: xp.zeros((x.shape[0] + 0,), dtype=x.dtype, device=x.device),
        lambda x, xp: x[: x.shape[0] // 2, :],
        lambda x, xp: x[1:, :],
    ],
)
def test_computing_with_the_batch_size_shows(formula):
    def whole(recorder):
        return formula(recorder.input("x", ("N", 3)), recorder.xp)

    assert record(whole, 6) != record(whole, 8)


def test_the_text_can_be_read():
    def formula(recorder):
        x, W = recorder.input("x", ("N", 3)), recorder.input("W", (3, 2))
        y, _ = affine.forward(x, W, None, xp=recorder.xp)
        y, cache = relu.forward(2.0 * y[:, :1], xp=recorder.xp)
        return {"y": recorder.xp.sum(y, axis=0), "rest": (cache,)}

    assert record(formula, 4) == (
        "input x: float32[N, 3]\n"
        "input W: float32[3, 2]\n"
        "%0: float32[N, 2] = matmul(x, W)\n"
        "%1: float32[N, 1] = getitem(%0, key=[:, :1])\n"
        "%2: float32[N, 1] = multiply(2.0, %1)\n"
        "%3: float32[N, 1] = maximum(%2, 0.0)\n"
        "%4: float32[1] = sum(%3, axis=0, keepdims=False)\n"
        "return %4, %3"
    )


def test_inputs_have_known_dtypes_and_lengths():
    with pytest.raises(DTypeError, match="no dtype 'complex64'"):
        Recorder().input("x", (2,), "complex64")
    with pytest.raises(ShapeError, match="is none"):
        Recorder().input("x", ("M",))
