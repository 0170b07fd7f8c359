"""Article 3: layers as bricks, from addition to softmax with its loss, and what is built of them: handwritten digits.

The article's classes keep their state on themselves, and xbp's layers hold nothing; their results are compared.
"""

from __future__ import annotations

import math

import by_hand
import numpy as np
import pytest
from inventory import ids
from run_in import few_shapes, over

import xbp
from xbp.datasets import load
from xbp.kernels import add, affine, mul, relu, sigmoid, softmax_cross_entropy
from xbp.layers import LAYERS, Mode
from xbp.testing import assert_close, numerical_gradient

TOLERANCE = by_hand.TOLERANCE
CE = xbp.SoftmaxCrossEntropy()


def scores(N=6, C=4, seed=0):
    """Scores (N, C) and labels (N,)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, C)) * 2.0, rng.integers(0, C, N, dtype=np.int32)


def tiny(space):
    """The tolerance of sums of a few terms, in the space's dtype."""
    return 1e-14 if space.dtype == "float64" else 2e-6


# Addition and multiplication.


@ids("S3-01", "S3-02", "S3-17")
def test_add_and_mul_are_the_articles_layers(space):
    rng = np.random.default_rng(0)
    x, y, dout = rng.normal(size=(3, 4, 5))
    for kernel, layer in ((add, by_hand.AddLayer()), (mul, by_hand.MulLayer())):
        out, cache = kernel.forward(space.put(x), space.put(y), xp=space.xp)
        assert_close(out, layer.forward(x, y), space)
        grads = kernel.backward(space.put(dout), cache, xp=space.xp)
        for g, desired in zip(grads, layer.backward(dout), strict=True):
            assert_close(g, desired, space)


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


@ids("S3-03", "S3-17")
def test_buying_phones_as_a_graph(space, graph):
    """Two phones at 3000 and three at 1500, with 10 % tax; then the gradient of the bill by everything in it."""
    shop = graph(
        {
            "bill": (xbp.Mul(), "goods", "tax"),
            "goods": (xbp.Add(), "dear", "cheap"),
            "dear": (xbp.Mul(), "dear_price", "dear_count"),
            "cheap": (xbp.Mul(), "cheap_price", "cheap_count"),
        },
        inputs=["dear_price", "dear_count", "cheap_price", "cheap_count", "tax"],
        output="bill",
    )
    order = {"dear_price": 3000.0, "dear_count": 2.0, "cheap_price": 1500.0, "cheap_count": 3.0, "tax": 1.1}
    bill = shop.forward({name: space.put(np.array([value])) for name, value in order.items()})
    assert_close(bill, np.array([11550.0]), space)
    slopes = shop.backward(space.put(np.array([1.0])), input_gradient=True)
    known = {"dear_price": 2.2, "dear_count": 3300.0, "cheap_price": 3.3, "cheap_count": 1650.0, "tax": 10500.0}
    assert slopes.keys() == known.keys()
    for name, slope in known.items():
        assert_close(slopes[name], np.array([slope]), space)
    for name, slope in {"bill": 1.0, "goods": 1.1, "dear": 1.1, "cheap": 1.1}.items():
        assert_close(shop.node_grads[name], np.array([slope]), space)


# Activations.


@ids("S3-04", "S3-05", "B3-01", "B3-12")
def test_relu_is_the_articles_but_leaves_the_gradient_it_is_given_alone(space):
    x, dout = np.array([[1.0, -0.5], [-2.0, 3.0], [0.0, -0.0]]), np.array([[5.0, 5.0], [1.0, 2.0], [7.0, 8.0]])
    layer, caller = by_hand.Relu(), dout.copy()
    y, cache = relu.forward(space.put(x), xp=space.xp)
    assert_close(y, layer.forward(x), space, rtol=0.0)
    given = space.put(dout)
    dx = relu.backward(given, cache, xp=space.xp)
    assert layer.backward(caller) is caller  # the article writes into its caller's array and hands it back
    assert not np.array_equal(caller, dout)
    assert_close(dx, caller, space, rtol=0.0)
    assert dx is not given
    assert_close(given, dout, space, rtol=0.0)
    assert np.array_equal(space.get(cache) <= 0, layer.mask)  # the mask is in the output


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


@ids("S3-07", "S3-08", "B3-07")
def test_both_forms_of_the_slope_of_the_sigmoid_agree_and_its_output_is_kept(space):
    x = np.linspace(-8.0, 8.0, 12).reshape(3, 4)
    dout = np.cos(x)
    layer = by_hand.Sigmoid()
    y, cache = sigmoid.forward(space.put(x), xp=space.xp)
    assert_close(y, layer.forward(x), space)
    assert cache is y
    dx = sigmoid.backward(space.put(dout), cache, xp=space.xp)
    rtol = 1e-5 if space.dtype == "float32" else 1e-12
    assert_close(dx, layer.backward(dout), space, rtol, tiny(space))
    assert_close(dx, dout * layer.out**2 * np.exp(-x), space, rtol, tiny(space))
    far, cache = sigmoid.forward(space.put(np.array([-1000.0, 1000.0])), xp=space.xp)  # exp(1000) would warn
    assert_close(far, np.array([0.0, 1.0]), space)
    assert_close(sigmoid.backward(space.put(np.ones(2)), cache, xp=space.xp), np.zeros(2), space)


# Affine.


@ids("S3-09", "S3-10", "S3-17")
def test_affine_is_the_articles_and_its_graph_has_the_shapes_of_the_figure(space, graph):
    rng = np.random.default_rng(0)
    x, W, b, dout = rng.normal(size=(5, 2)), rng.normal(size=(2, 3)), rng.normal(size=3), rng.normal(size=(5, 3))
    layer = by_hand.Affine(W, b)
    y, cache = affine.forward(*map(space.put, (x, W, b)), xp=space.xp)
    assert_close(y, layer.forward(x), space, atol=tiny(space))
    dx, dW, db = affine.backward(space.put(dout), cache, xp=space.xp)
    assert_close(dx, layer.backward(dout), space, atol=tiny(space))
    assert_close(dW, layer.dW, space, atol=tiny(space))
    assert_close(db, layer.db, space, atol=tiny(space))

    g = graph({"dot": (xbp.Affine(2, 3, bias=False), "x"), "y": (xbp.Add(), "dot", "b")}, inputs=["x", "b"], output="y")
    g.params["dot.W"] = W.astype(space.dtype)
    out = g.forward({"x": space.put(x), "b": space.put(b)})
    slopes = g.backward(space.put(dout), input_gradient=True)
    found = {"x": slopes["x"], "W": g.grads["dot.W"], "dot": g.node_grads["dot"], "b": slopes["b"], "y": out}
    figure = {"x": (5, 2), "W": (2, 3), "dot": (5, 3), "b": (3,), "y": (5, 3)}
    assert {name: a.shape for name, a in found.items()} == figure
    assert_close(out, layer.forward(x), space, atol=tiny(space))
    assert_close(slopes["b"], layer.db, space, atol=tiny(space))


@ids("B3-08")
def test_rows_of_more_axes_are_refused_with_the_rule_how_to_flatten_them():
    net = xbp.Network([xbp.Affine(6, 2)], backend="numpy")
    pictures = np.ones((5, 2, 3))
    for use in (net.forward, net.predict):
        with pytest.raises(xbp.ShapeError, match=r"\(5, 2, 3\); flatten each row first: x\.reshape\(len\(x\), -1\)"):
            use(pictures)
    assert net.predict(pictures.reshape(len(pictures), -1)).shape == (5, 2)


# Softmax with its loss.


@ids("S3-11", "S3-12", "S3-16", "B3-05", "B3-06")
def test_softmax_of_the_articles_scores_is_not_their_share_of_the_sum(space):
    y = np.array([[9.1, 0.9]])
    assert np.allclose(y / y.sum(), [[0.91, 0.09]])  # which is what the article prints
    p = xbp.softmax(space.put(y))
    assert_close(p, np.array([[0.99973, 0.00027]]), space, rtol=0.0, atol=5e-6)
    log_p = np.array([[0.0, -8.2]]) - math.log1p(math.exp(-8.2))
    assert_close(xbp.log_softmax(space.put(y)), log_p, space, atol=tiny(space))
    many, _ = scores(N=50)
    p = space.get(xbp.softmax(space.put(many)))
    assert np.allclose(p.sum(axis=1), 1.0)
    assert np.all(p > 0)
    assert np.array_equal(np.argmax(p, axis=1), np.argmax(many, axis=1))  # so inference needs no softmax


@ids("S3-12")
def test_prediction_gives_scores_and_the_same_answer_with_and_without_softmax(space, network):
    net = network([xbp.Affine(4, 3)])
    x, _ = scores()
    y = net.predict(space.put(x))
    assert_close(y, x @ space.get(net.params["0.W"]), space, atol=tiny(space))  # negative ones too: no probabilities
    assert space.get(y).min() < 0
    assert np.array_equal(space.get(space.xp.argmax(y, axis=1)), space.get(space.xp.argmax(xbp.softmax(y), axis=1)))


@ids("S3-13", "S3-14", "S3-15", "S3-16", "B3-02")
def test_softmax_with_loss_is_the_articles_for_one_hot_rows_and_takes_labels_and_soft_rows_too(space):
    y, labels = scores(N=4, C=4)  # as many rows as classes: where labels would broadcast against rows unnoticed
    one_hot = np.eye(4)[labels]
    layer = by_hand.SoftmaxWithLoss()
    desired = layer.forward(y, one_hot)
    for t in (one_hot, labels):
        loss, cache = softmax_cross_entropy.forward(space.put(y), space.put(t), None, label_smoothing=0.0, xp=space.xp)
        assert_close(loss, np.asarray(desired), space)
        assert_close(cache.p, layer.y, space, atol=tiny(space))  # what the article keeps: y, t
        assert_close(cache.t, t, space)
        value, dy = CE.value_and_grad(space.put(y), space.put(t))
        assert_close(value, np.asarray(desired), space)
        assert_close(dy, layer.backward(), space, atol=tiny(space))  # (y - t) / N
    soft = np.full((4, 4), 0.25)
    soft_loss, soft_dy = CE.value_and_grad(space.put(y), space.put(soft))
    assert_close(soft_loss, np.asarray(layer.forward(y, soft)), space)
    assert_close(soft_dy, layer.backward(), space, atol=tiny(space))
    with pytest.raises(xbp.LabelError, match="must be integers"):
        CE.value_and_grad(space.put(y), space.put(labels.astype(np.float32)))
    with pytest.raises(xbp.ShapeError, match=r"\(N,\) or probabilities \(N, C\)"):
        CE.value_and_grad(space.put(y), space.put(labels[None, :]))


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
    assert by_hand.relative_error(dx, numerical_gradient(lambda v: np.sum(dy * net.predict(v)), x)) < 1e-8
    for name, W in dict(net.params).items():
        assert by_hand.relative_error(grads[name], numerical_gradient(of_parameter(net, name, x, dy), W)) < 1e-8


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


# Numerical differentiation, and the digits that it was too slow for.


def book_network(dtype="float64"):
    return xbp.Network([xbp.Affine(784, 50), xbp.ReLU(), xbp.Affine(50, 10)], backend="numpy", dtype=dtype, seed=1)


@ids("S3-19", "S3-20")
def test_central_differences_take_two_evaluations_an_entry_and_backward_takes_one_pass(counting):
    net = xbp.Network([xbp.Affine(3, 4), xbp.Sigmoid(), xbp.Affine(4, 2)], backend=counting, dtype="float64")
    x, labels = scores(C=3)
    labels = labels % 2
    calls, evaluations = counting.xp.calls, []

    def loss():
        evaluations.append(1)
        return CE.forward(net.predict(x), labels, None, xp=np)[0]

    net.backward(CE.value_and_grad(net.forward(x), labels)[1])
    one_pass = calls["matmul"]
    assert one_pass == 2 + 3
    for name, W in dict(net.params).items():

        def f(value, name=name):
            net.params[name] = value
            return loss()

        numeric = numerical_gradient(f, W)
        net.params[name] = W
        assert by_hand.relative_error(net.grads[name], numeric) < 1e-8
    entries = sum(a.size for a in net.params.values())
    assert len(evaluations) == 2 * entries == 2 * (3 * 4 + 4 + 4 * 2 + 2)
    assert calls["matmul"] - one_pass == 2 * 2 * entries


@ids("S3-19", "S3-20")
def test_both_ways_to_the_gradient_agree_on_784_50_10_at_batch_100():
    """On a random choice of entries of every parameter: all 39,760 would take as many evaluations twice."""
    net, rng = book_network(), np.random.default_rng(0)
    x, labels = rng.random((100, 784)), rng.integers(0, 10, 100)
    net.backward(CE.value_and_grad(net.forward(x), labels)[1])
    for name, W in dict(net.params).items():
        chosen = rng.choice(W.size, size=min(W.size, 20), replace=False)

        def f(entries, name=name, W=W, chosen=chosen):
            moved = W.copy()
            moved.flat[chosen] = entries
            net.params[name] = moved
            return CE.value_and_grad(net.predict(x), labels)[0]

        numeric = numerical_gradient(f, W.ravel()[chosen])
        net.params[name] = W
        assert np.max(np.abs(numeric)) > 1e-5
        assert by_hand.relative_error(net.grads[name].ravel()[chosen], numeric) < 1e-6, name


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn: pip install 'xbp[sklearn]'")
    return load("digits")


@ids("S3-18", "S3-12", "B0-20")
@over("numpy", "torch")
def test_handwritten_digits_are_recognised(space, digits):
    """The book's network and training, on scikit-learn's digits: 97 of 100 digits that it has never seen."""
    net = xbp.Network([xbp.Affine(64, 50), xbp.ReLU(), xbp.Affine(50, 10)], backend=space.backend, seed=0)
    machine = xbp.Trainer(net, loss=CE, optimizer=xbp.SGD(0.1))
    history = machine.fit(digits.x, digits.t, epochs=60, batch_size=25, validation=(digits.x_test, digits.t_test))
    assert len(digits.x_test) >= 300
    assert history["val_accuracy"][-1] >= 0.97
    answers = np.argmax(space.get(net.predict(digits.x_test)), axis=1)
    assert np.mean(answers == digits.t_test) == pytest.approx(history["val_accuracy"][-1])
    assert history["loss"][-1] < 0.1 * history["loss"][0]
