"""Kernels at the ends of the number line, and the limits of what a kernel may do.

No finite input makes a kernel warn, and here a warning is an error: the articles' softmax turned a score of 710 into
NaN. The rules of writing a kernel are checked on its source, and on its record, which is the same at any batch size.
"""

from __future__ import annotations

import ast
import math
import re
from inspect import ismodule
from pathlib import Path

import numpy as np
import pytest

import strategies as make
import xbp.kernels
from test_kernels import CASES as LAYERS
from test_losses_kernels import CASES as LOSSES
from test_losses_kernels import LOSS
from xbp.kernels import (
    batch_norm,
    elu,
    erf,
    gelu,
    identity,
    layer_norm,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softmax,
    softplus,
    tanh,
)
from xbp.program import Recorder
from xbp.testing import assert_close

inf, nan = math.inf, math.nan
LARGE = [89.0, 710.0, 800.0, 1e4, 1e30]  # exp overflows from 89 on in float32, from 710 on in float64

# y and dy/dx of activations at plus and minus infinity; the finite far ends have the same slopes.
RAMP, STEP = [inf, 0.0], [1.0, 0.0]
ACTIVATIONS = {
    "identity": (identity, {}, [inf, -inf], [1.0, 1.0]),
    "relu": (relu, {}, RAMP, STEP),
    "leaky_relu": (leaky_relu, {"negative_slope": 0.5}, [inf, -inf], [1.0, 0.5]),
    "elu": (elu, {"alpha": 1.5}, [inf, -1.5], STEP),
    "gelu": (gelu, {"approximate": "none"}, [inf, nan], STEP),
    "gelu-tanh": (gelu, {"approximate": "tanh"}, [inf, nan], STEP),
    "silu": (silu, {}, [inf, nan], [nan, nan]),
    "softplus": (softplus, {"beta": 2.0}, RAMP, STEP),
    "sigmoid": (sigmoid, {}, [1.0, 0.0], [0.0, 0.0]),
    "tanh": (tanh, {}, [1.0, -1.0], [0.0, 0.0]),
}
every_activation = pytest.mark.parametrize("name", list(ACTIVATIONS))


def rows(values, dtype=None):
    """Values repeated to the shape (3, 4) that most tests compute in."""
    return np.resize(np.asarray(values, dtype), (3, 4))


def run(space, kernel, options, x, dtype):
    """(y, dx) for an upstream gradient of ones."""
    y, cache = kernel.forward(space.put(x.astype(dtype)), **options, xp=space.xp)
    return y, kernel.backward(space.put(np.ones(y.shape, dtype)), cache, **options, xp=space.xp)


@every_activation
def test_activations_far_from_zero(space, name):
    kernel, options, (right, left), slopes = ACTIVATIONS[name]
    x = rows([1e4, -1e4, 1e30, -1e30])
    if name in ("identity", "leaky_relu"):
        y = np.where(x > 0.0, x, x * slopes[1])
    else:
        y = np.where(x > 0.0, x if right == inf else right, 0.0 if math.isnan(left) else left)
    slopes = [1.0, 0.0] if name == "silu" else slopes
    for dtype in make.dtypes(space):
        found, dx = run(space, kernel, options, x, dtype)
        assert_close(found, y.astype(dtype), space, dtype=dtype)
        assert_close(dx, rows(slopes, dtype), space, dtype=dtype)


@every_activation
def test_activations_of_infinity_and_nan(space, name):
    kernel, options, ends, slopes = ACTIVATIONS[name]
    x = rows([inf, -inf, nan, nan])
    for dtype in make.dtypes(space):
        with np.errstate(invalid="ignore"):  # infinity times 0 may warn, it is no finite input
            found, dx = run(space, kernel, options, x, dtype)
        assert_close(found, rows([*ends, nan, nan], dtype), space, dtype=dtype)
        np.testing.assert_allclose(space.get(dx)[0, :2], slopes)


@every_activation
def test_activations_of_subnormal_numbers_are_as_at_zero(space, name):
    """Some devices take them for 0, so at a kink either slope is right."""
    kernel, options, _, _ = ACTIVATIONS[name]
    near = rows([1e-3, -1e-3])
    for dtype in make.dtypes(space):
        tiny = rows([1.0, -1.0]) * float(np.finfo(dtype).smallest_subnormal) * 4.0
        (y, dx), (zero, _) = run(space, kernel, options, tiny, dtype), run(space, kernel, options, 0.0 * tiny, dtype)
        assert_close(y, zero, space, atol=1e-37)
        between = space.get(run(space, kernel, options, near, dtype)[1])
        assert np.all(space.get(dx) >= between.min() - 1e-2)
        assert np.all(space.get(dx) <= between.max() + 1e-2)


@pytest.mark.parametrize("score", LARGE)
def test_softmax_of_large_scores(space, score):
    x = np.array([[0.0, score, -score], [score, score, -score], [-score, -score, -score]])
    p = np.array([[0.0, 1.0, 0.0], [0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    log_p = np.array([[-score, 0.0, -2.0 * score], [-math.log(2.0)] * 2 + [-2.0 * score], [-math.log(3.0)] * 3])
    log_p[1, 2] -= math.log(2.0)
    for dtype in make.dtypes(space):
        y, dx = run(space, softmax, {}, x, dtype)
        assert_close(y, p.astype(dtype), space, atol=1e-38, dtype=dtype)
        assert_close(dx, np.zeros((3, 3), dtype), space, atol=1e-6, dtype=dtype)
        found = softmax.log_softmax(space.put(x.astype(dtype)), xp=space.xp)
        assert_close(found, log_p.astype(dtype), space, atol=1e-7, dtype=dtype)


def test_softmax_of_one_class_is_certain_and_of_a_masked_one_impossible(space):
    y, dx = run(space, softmax, {}, np.array([[3.0], [-1e30], [0.0]]), space.dtype)
    assert_close(y, np.ones((3, 1)), space)
    assert_close(dx, np.zeros((3, 1)), space)
    y, dx = run(space, softmax, {}, rows([2.0, -inf, 2.0, -inf]), space.dtype)
    assert_close(y, rows([0.5, 0.0]), space)
    assert_close(dx, np.zeros((3, 4)), space)


def loss_of(space, name, dtype, y, t, w=None):
    """(loss, dy) of a line of the losses' table, all of one dtype."""
    t = np.asarray(t)
    t = t.astype(np.int32) if t.ndim == 1 else t.astype(dtype)
    return LOSS[name].run(space, np.asarray(y, dtype), t, w)


@pytest.mark.parametrize("kind", ["softmax-labels", "softmax-one_hot"])
@pytest.mark.parametrize("score", LARGE)
def test_softmax_cross_entropy_of_large_scores(space, kind, score):
    """Right and certain costs nothing; wrong and certain costs the score, even where the probability is 0."""
    for label, cost, slope in ((0, 0.0, [0.0, 0.0, 0.0, 0.0]), (1, score, [1.0, -1.0, 0.0, 0.0])):
        labels = np.full(3, label)
        t = labels if kind == "softmax-labels" else np.eye(4)[labels]
        for dtype in make.dtypes(space):
            loss, dy = loss_of(space, kind, dtype, rows([score, 0.0, -score, 0.0]), t)
            assert_close(loss, np.array(cost, dtype), space, atol=1e-37, dtype=dtype)
            assert_close(dy, rows(slope, dtype) / np.array(3.0, dtype), space, atol=1e-37, dtype=dtype)


def test_softmax_cross_entropy_of_one_class_and_of_masked_classes(space):
    loss, dy = loss_of(space, "softmax-labels", space.dtype, [[5.0], [-1e4], [0.0]], [0, 0, 0])
    assert_close(loss, np.zeros(()), space)
    assert_close(dy, np.zeros((3, 1)), space)
    for t in (np.zeros(3, int), rows([1.0, 0.0, 0.0, 0.0])):
        loss, dy = loss_of(space, "softmax-labels", space.dtype, rows([1.0, 1.0, -inf, -inf]), t)
        assert_close(loss, np.asarray(math.log(2.0)), space)
        assert_close(dy, rows([-0.5, 0.5, 0.0, 0.0]) / 3.0, space)


@pytest.mark.parametrize("score", LARGE)
def test_sigmoid_cross_entropy_of_large_scores(space, score):
    y, t = rows([score, score, -score, -score]), rows([1.0, 0.0, 1.0, 0.0])
    for dtype in make.dtypes(space):
        loss, dy = loss_of(space, "sigmoid-bits", dtype, y, t)
        assert_close(loss, np.array(score / 2.0, dtype), space, dtype=dtype)
        assert_close(dy, rows([0.0, 1.0, -1.0, 0.0], dtype) / np.array(12.0, dtype), space, atol=1e-37, dtype=dtype)


@pytest.mark.parametrize("rate", LARGE)
def test_poisson_nll_of_absurd_log_rates_is_huge_and_leads_back(space, rate):
    """Of the four columns each is below the dtype's end, and so is their sum."""
    one = np.ones((3, 4))
    for dtype in make.dtypes(space):
        loss, dy = loss_of(space, "poisson_nll", dtype, rate * one, one)
        assert 1e30 < space.get(loss) < inf
        assert np.all((space.get(dy) > 1e28) & (space.get(dy) < inf))
        loss, dy = loss_of(space, "poisson_nll", dtype, -rate * one, one)
        assert_close(loss, np.array(rate, dtype), space, dtype=dtype)
        assert_close(dy, -one.astype(dtype) / np.array(12.0, dtype), space, dtype=dtype)


@pytest.mark.parametrize("log_variance", [89.0, 710.0, 1e4])
def test_gaussian_nll_of_absurd_variances(space, log_variance):
    m, v, t = np.full((3, 4), 2.0), np.full((3, 4), log_variance), np.zeros((3, 4))
    for dtype in make.dtypes(space):
        loss, dy = loss_of(space, "gaussian_nll", dtype, np.concatenate([m, -v], 1), t)
        assert 1e30 < space.get(loss) < inf
        assert np.all(np.isfinite(space.get(dy)))
        assert np.all(space.get(dy)[:, :4] > 0.0)
        assert np.all(space.get(dy)[:, 4:] < 0.0)
        loss, dy = loss_of(space, "gaussian_nll", dtype, np.concatenate([m, v], 1), t)
        assert_close(loss, np.array(log_variance / 2.0, dtype), space, dtype=dtype)
        slope = np.concatenate([t, np.full((3, 4), 1.0 / 24.0)], 1)
        assert_close(dy, slope.astype(dtype), space, atol=1e-37, dtype=dtype)


@pytest.mark.parametrize(
    ("name", "slope"), [("mean_absolute_error", 1.0), ("huber", 1.0), ("huber-0.05", 0.05), ("quantile-0.3", 0.7)]
)
def test_errors_that_grow_like_a_line_are_never_squared(space, name, slope):
    for dtype in make.dtypes(space):
        loss, dy = loss_of(space, name, dtype, np.full((3, 4), 1e30), np.zeros((3, 4)))
        assert_close(loss, np.array(slope * 1e30, dtype), space, dtype=dtype)
        assert_close(dy, np.full((3, 4), slope / 12.0, dtype), space, dtype=dtype)


def test_squared_error_goes_as_far_as_the_square(space):
    for dtype in make.dtypes(space):
        loss, dy = loss_of(space, "mean_squared_error", dtype, rows([1e18, -1e18]), np.zeros((3, 4)))
        assert_close(loss, np.array(1e36, dtype), space, dtype=dtype)
        assert_close(dy, rows([1e18 / 6.0, -1e18 / 6.0], dtype), space, dtype=dtype)


@pytest.mark.parametrize("kernel", [layer_norm, batch_norm], ids=["layer_norm", "batch_norm"])
@pytest.mark.parametrize("scale", [1e4, 1e15])
def test_normalisation_takes_scale_out(space, kernel, scale):
    x = np.array([[1.0, -2.0, 4.0, 3.0], [0.0, 5.0, -1.0, 2.0], [2.0, 2.5, 0.0, -3.0]])
    axis = 1 if kernel is layer_norm else 0
    desired = (x - x.mean(axis, keepdims=True)) / x.std(axis, keepdims=True)
    for dtype in make.dtypes(space):
        arrays = [space.put(a.astype(dtype)) for a in (x * scale, np.ones(4), np.zeros(4))]
        y, cache = kernel.forward(*arrays, eps=1e-5, xp=space.xp)
        dx, _, _ = kernel.backward(y, cache, eps=1e-5, xp=space.xp)
        assert_close(y, desired.astype(dtype), space, rtol=1e-5, atol=1e-6, dtype=dtype)
        assert_close(dx, np.zeros((3, 4), dtype), space, atol=1e-6 / scale, dtype=dtype)


def test_erf_of_infinity_and_nan(space):
    x = space.put(np.array([inf, -inf, nan, 1e30, -1e30]))
    assert_close(erf.erf(x, xp=space.xp), np.array([1.0, -1.0, nan, 1.0, -1.0]), space)


# One record for every batch size.

TYPES = {"f": "float32", "i": "int32", "b": "bool"}


def inputs(recorder, N, generator):
    """Arrays of the shapes that a generator makes for N rows; N is like no other length."""
    hosts = generator(make.Sizes(N=N))
    lengths = [tuple("N" if n == N else n for n in host.shape) for host in hosts]
    kinds = [TYPES[host.dtype.kind] for host in hosts]
    return [recorder.input(f"x{i}", shape, kind) for i, (shape, kind) in enumerate(zip(lengths, kinds, strict=True))]


def record(case, N, weighted=None):
    """The text of forward and backward, recorded with N rows."""
    recorder = Recorder(batch=N)
    arrays = inputs(recorder, N, case.arrays)
    if weighted is None:
        arrays += inputs(recorder, N, case.constants)
        y, cache = case.kernel.forward(*arrays, **case.options, xp=recorder.xp)
        dy = recorder.input("dy", tuple("N" if n == N else n for n in y.shape))
    else:
        w = recorder.input("w", ("N",)) if weighted else None
        y, cache = case.kernel.forward(*arrays, w, **case.options, xp=recorder.xp)
        dy = 1.0
    return recorder.text(y, case.kernel.backward(dy, cache, **case.options, xp=recorder.xp))


@pytest.mark.parametrize("case", LAYERS, ids=lambda case: case.name)
def test_layers_record_the_same_at_two_batch_sizes(case):
    text = record(case, 7)
    assert text == record(case, 11)
    assert "[N" in text


@pytest.mark.parametrize("case", LOSSES, ids=lambda case: case.name)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_losses_record_the_same_at_two_batch_sizes(case, weighted):
    text = record(case, 7, weighted)
    assert text == record(case, 11, weighted)
    assert "[N" in text


def test_batch_statistics_record_the_same_at_two_batch_sizes():
    texts = []
    for N in (7, 11):
        recorder = Recorder(batch=N)
        x, v = recorder.input("x", ("N", 4)), recorder.input("v", (4,))
        unbiased = batch_norm.unbiased(v, x, xp=recorder.xp)
        texts.append(recorder.text(batch_norm.running(v, unbiased, momentum=0.1)))
    assert texts[0] == texts[1]


# Rules of writing.

FILES = sorted(p for p in Path(xbp.kernels.__path__[0]).glob("*.py") if p.name != "__init__.py")
FORBIDDEN_CALLS = {"bool", "complex", "float", "int", "iter", "list", "input", "print", "open", "eval", "exec"}


def violations(source: str) -> list[str]:
    """What a kernel's source does that it may not, as far as reading it tells; the recorder sees the rest."""
    tree = ast.parse(source)
    found = []
    modules = {"xp"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
            found += [f"imports {a.name}" for a in node.names if a.name != "math"]
        elif isinstance(node, ast.ImportFrom):
            modules |= {alias.name for alias in node.names}
            if node.level == 0 and node.module not in ("__future__", "typing"):
                found.append(f"imports {node.module}")
            if node.level > 2 or (node.level == 2 and node.module != "typing"):
                found.append(f"imports {'.' * node.level}{node.module}")
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
            found.append("writes @ for xp.matmul")
        if isinstance(node, ast.AugAssign | ast.Delete | ast.Global | ast.Nonlocal):
            found.append(f"has a statement of kind {type(node).__name__}")
        if isinstance(node, ast.Subscript | ast.Attribute) and not isinstance(node.ctx, ast.Load):
            found.append("writes into an object")
        if isinstance(node, ast.Name) and node.id in ("np", "cp", "numpy", "cupy"):
            found.append(f"names {node.id}")
        if isinstance(node, ast.Subscript) and ast.unparse(node).endswith(".shape[0]"):
            found.append("computes with the batch size")
        if isinstance(node, ast.Call):
            f = node.func
            if isinstance(f, ast.Attribute) and not (isinstance(f.value, ast.Name) and f.value.id in modules):
                found.append(f"calls the method {f.attr}")
            if isinstance(f, ast.Name) and f.id in FORBIDDEN_CALLS:
                found.append(f"calls {f.id}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_kernels_are_written_by_the_rules(path):
    assert violations(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import numpy",
        "import numpy as np",
        "from array_api_compat import numpy",
        "from ..backend import get_backend",
        "y = x @ W",
        "x @= W",
        "y = x.sum()",
        "y = (x + 1).astype(t)",
        "dx[mask] = 0.0",
        "dx += 1.0",
        "cache.x = y",
        "n = float(loss)",
        "n = loss.item()",
        "y = np.exp(x)",
        "mean = xp.sum(x) / x.shape[0]",
    ],
)
def test_the_rules_are_seen_to_be_broken(source):
    assert violations(source)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_docstrings_name_shapes_and_source(path):
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert "Shapes:" in text
    assert re.search("Source( of .*)?:", text)


def test_every_kernel_is_in_a_table():
    """A new kernel gets its line in `test_kernels` or `test_losses_kernels`, and with it all tests."""
    names = {case.kernel.__name__.rsplit(".", 1)[-1] for case in (*LAYERS, *LOSSES) if ismodule(case.kernel)}
    helpers = {"broadcasting", "erf", "weighting"}
    assert names | helpers == {path.stem for path in FILES}
