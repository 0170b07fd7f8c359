"""Article 3, what its layers get wrong or leave out: each defect is shown on its class, then sought in xbp."""

from __future__ import annotations

import by_hand
import numpy as np
import pytest
from inventory import ids
from run_in import few_shapes

import xbp
from xbp.kernels import add, mul, relu, sigmoid
from xbp.layers import LAYERS, Mode
from xbp.testing import assert_close

CE = xbp.SoftmaxCrossEntropy()


def scores(N=6, C=4, seed=0):
    """Scores (N, C) and labels (N,)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, C)) * 2.0, rng.integers(0, C, N, dtype=np.int32)


def tiny(space):
    """The tolerance of sums of a few terms, in the space's dtype."""
    return 1e-14 if space.dtype == "float64" else 2e-6


# What is given, and in which shape.


@ids("B3-01", "B3-12", "B0-14")
@few_shapes
def test_no_layer_writes_into_what_it_is_given(space):
    """All arguments of forward and backward are compared before and after; strict knows no name beside the standard."""
    rng = np.random.default_rng(0)
    sizes = {"Affine": (4, 4), "LayerNorm": (4,), "BatchNorm": (4,)}
    for name, kind in LAYERS.items():
        layer = kind(*sizes.get(name, ()))
        hosts = [rng.normal(size=(3, 4)) for _ in range(layer.arity)]
        params = {n: space.put(rng.normal(size=p.shape)) for n, p in layer.parameters().items()}
        buffers = {n: space.put(np.ones(p.shape)) for n, p in layer.buffers().items()}
        x, dy = [space.put(a) for a in hosts], space.put(hosts[0])
        before = {id(a): space.get(a) for a in (*x, dy, *params.values(), *buffers.values())}
        key = space.put(np.array(7, np.int32))
        y, cache, _ = layer.forward(*x, params=params, buffers=buffers, mode=Mode(True, key), xp=space.xp)
        dx, grads = layer.backward(dy, cache, xp=space.xp)
        assert y.shape == (3, 4)
        assert grads.keys() == params.keys()  # the one protocol of all layers
        assert len(dx if isinstance(dx, tuple) else (dx,)) == layer.arity
        for a in (*x, dy, *params.values(), *buffers.values()):
            assert np.array_equal(space.get(a), before[id(a)]), name


@ids("B3-09")
def test_add_and_mul_undo_broadcasting(space):
    rng = np.random.default_rng(0)
    x, row, dout = rng.normal(size=(4, 5)), rng.normal(size=5), rng.normal(size=(4, 5))
    assert by_hand.AddLayer().backward(dout)[1].shape == (4, 5)  # the article's gradient of the row has not its shape
    for kernel, desired in ((add, dout.sum(0)), (mul, (dout * x).sum(0))):
        _, cache = kernel.forward(space.put(x), space.put(row), xp=space.xp)
        dx, drow = kernel.backward(space.put(dout), cache, xp=space.xp)
        assert dx.shape == x.shape
        assert_close(drow, desired, space, atol=tiny(space))


@ids("B3-08")
def test_rows_of_more_axes_are_refused_with_the_rule_how_to_flatten_them():
    net = xbp.Network([xbp.Affine(6, 2)], backend="numpy")
    pictures = np.ones((5, 2, 3))
    for use in (net.forward, net.predict):
        with pytest.raises(xbp.ShapeError, match=r"\(5, 2, 3\); flatten each row first: x\.reshape\(len\(x\), -1\)"):
            use(pictures)
    assert net.predict(pictures.reshape(len(pictures), -1)).shape == (5, 2)


# The loss.


@ids("B3-03", "B3-04")
@few_shapes
def test_the_loss_honours_its_upstream_factor_and_can_be_mean_sum_weighted_or_row_by_row(space):
    y, labels = scores()
    put, w = space.put, np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    mean, cache = CE.forward(put(y), put(labels), None, xp=space.xp)
    dy = space.get(CE.backward(1.0, cache, xp=space.xp))
    assert_close(CE.backward(-2.5, cache, xp=space.xp), -2.5 * dy, space, atol=tiny(space))  # the article ignores it
    assert np.array_equal(by_hand_backward(y, labels, -2.5), by_hand_backward(y, labels, 1.0))
    upstream = put(np.asarray(6.0))
    assert_close(CE.backward(upstream, cache, xp=space.xp), 6.0 * dy, space, atol=tiny(space))  # the sum over 6 rows

    rows = [CE.value_and_grad(put(y[i : i + 1]), put(labels[i : i + 1])) for i in range(6)]
    each = np.array([float(loss) for loss, _ in rows])
    slopes = np.concatenate([space.get(slope) for _, slope in rows])
    assert_close(mean, np.asarray(each.mean()), space)
    assert np.allclose(dy, slopes / 6, atol=1e-6)
    weighted, dw = CE.value_and_grad(put(y), put(labels), put(w))
    assert_close(weighted, np.asarray(np.average(each, weights=w)), space, rtol=1e-5)
    assert np.allclose(space.get(dw), slopes * w[:, None] / w.sum(), atol=1e-6)


def by_hand_backward(y, labels, dout):
    layer = by_hand.SoftmaxWithLoss()
    layer.forward(y, np.eye(4)[labels])
    return layer.backward(dout)


# State.


@ids("B3-10")
def test_a_layer_may_be_used_twice_and_a_second_forward_does_not_spoil_the_first(space):
    """The article's objects remember the last forward only; kernels hand their memory out."""
    x1, x2 = np.array([[1.0, -1.0]]), np.array([[-1.0, 1.0]])
    shared = by_hand.Relu()
    shared.forward(x1)
    shared.forward(x2)
    assert np.array_equal(shared.backward(np.ones((1, 2))), [[0.0, 1.0]])  # of x2, whichever was meant
    _, first = relu.forward(space.put(x1), xp=space.xp)
    _, second = relu.forward(space.put(x2), xp=space.xp)
    for cache, slope in ((first, [[1.0, 0.0]]), (second, [[0.0, 1.0]]), (first, [[1.0, 0.0]])):
        assert_close(relu.backward(space.put(np.ones((1, 2))), cache, xp=space.xp), np.array(slope), space)


@ids("B3-10")
def test_one_layer_object_in_two_places_has_weights_and_caches_of_its_own_in_each():
    square, tanh = xbp.Affine(4, 4), xbp.Tanh()
    net = xbp.Network([square, tanh, square, tanh], backend="numpy", dtype="float64")
    assert list(net.params) == ["0.W", "0.b", "2.W", "2.b"]
    assert not np.array_equal(net.params["0.W"], net.params["2.W"])
    x, _ = scores()
    dy = np.random.default_rng(5).normal(size=(6, 4))
    with pytest.raises(xbp.errors.CacheEmpty, match=r"needs a forward\(\) before it"):
        net.backward(dy)
    net.forward(-x)
    net.forward(x)
    dx = net.backward(dy, input_gradient=True)
    grads = dict(net.grads)
    with pytest.raises(xbp.errors.CacheEmpty):
        net.backward(dy)
    assert by_hand.relative_error(dx, xbp.numerical_gradient(lambda v: np.sum(dy * net.predict(v)), x)) < 1e-8
    for name, W in dict(net.params).items():
        assert by_hand.relative_error(grads[name], xbp.numerical_gradient(of_parameter(net, name, x, dy), W)) < 1e-8


def of_parameter(net, name, x, dy):
    """sum(dy y) as a function of one parameter; the network keeps the value that it is called with last."""
    start = net.params[name].copy()

    def f(value):
        net.params[name] = value
        total = np.sum(dy * net.predict(x))
        net.params[name] = start
        return total

    return f


@ids("B3-11", "B1-09")
@few_shapes
def test_a_value_that_two_layers_read_gets_the_sum_of_their_gradients(space, graph):
    g = graph(
        {"left": (xbp.Affine(3, 2), "x"), "right": (xbp.Tanh(), "x"), "wide": (xbp.Affine(3, 2), "right"),
         "y": (xbp.Mul(), "left", "wide")},
        inputs=["x"], output="y",
    )  # fmt: skip
    x, dy = np.random.default_rng(1).normal(size=(4, 3)), np.random.default_rng(2).normal(size=(4, 2))
    y = g.forward(space.put(x))
    slopes = g.backward(space.put(dy), input_gradient=True)
    W = {n: space.get(g.params[f"{n}.W"]) for n in ("left", "wide")}
    t = np.tanh(x)
    left, wide = x @ W["left"], t @ W["wide"]
    assert_close(y, left * wide, space, atol=tiny(space))
    desired = (dy * wide) @ W["left"].T + ((dy * left) @ W["wide"].T) * (1.0 - t * t)
    assert_close(slopes["x"], desired, space, atol=2.0 * tiny(space))


# The ends of the number line.


@ids("B3-13")
def test_what_layers_do_with_nan_infinity_both_zeros_subnormal_numbers_and_no_rows(space):
    """NaN goes through, so that it is noticed; infinity saturates; both zeros are one; no rows give no rows."""
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0])
    desired = {
        relu: ([np.nan, np.inf, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0, 0.0]),
        sigmoid: ([np.nan, 1.0, 0.0, 0.5, 0.5], [np.nan, 0.0, 0.0, 0.25, 0.25]),
        xbp.kernels.tanh: ([np.nan, 1.0, -1.0, 0.0, -0.0], [np.nan, 0.0, 0.0, 1.0, 1.0]),
    }
    for kernel, (value, slope) in desired.items():
        y, cache = kernel.forward(space.put(x), xp=space.xp)
        assert_close(y, np.array(value), space)
        dx = kernel.backward(space.put(np.ones(5)), cache, xp=space.xp)
        assert_close(dx, np.array(slope), space)
        empty, cache = kernel.forward(space.put(np.ones((0, 3))), xp=space.xp)
        assert empty.shape == kernel.backward(empty, cache, xp=space.xp).shape == (0, 3)
    subnormal = np.array([1e-310 if space.dtype == "float64" else 1e-40, -1e-40])
    if not space.name.startswith("jax"):  # XLA flushes them to zero, by design
        assert_close(relu.forward(space.put(subnormal), xp=space.xp)[0], np.maximum(subnormal, 0.0), space)
    assert_close(sigmoid.forward(space.put(subnormal), xp=space.xp)[0], np.full(2, 0.5), space)


@ids("B3-13")
def test_training_refuses_nan_by_row_and_column_and_no_rows_at_all():
    x, labels = scores()
    net = xbp.Network([xbp.Affine(4, 4)], backend="numpy")
    machine = xbp.Trainer(net, loss=CE, optimizer=xbp.SGD(0.1))
    for bad in (np.nan, np.inf):
        broken = x.copy()
        broken[4, 2] = bad
        for use in (lambda a: machine.fit(a, labels), lambda a: machine.evaluate(a, labels), net.predict):
            with pytest.raises(xbp.errors.DataError, match=f"x contains {bad} at row 4, column 2"):
                use(broken)
    with pytest.raises(xbp.ShapeError, match="no rows"):
        machine.fit(x[:0], labels[:0])
    assert net.predict(x[:0]).shape == (0, 4)
