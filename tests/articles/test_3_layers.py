"""Article 3: layers as bricks, from addition to softmax with its loss, and what is built of them: handwritten digits.

The article's classes keep their state on themselves, and xbp's layers hold nothing; their results are compared.
`test_3_defects.py` has what the article got wrong.
"""

from __future__ import annotations

import math

import by_hand
import numpy as np
import pytest
from inventory import ids
from run_in import few_shapes

import xbp
from xbp.datasets import load
from xbp.kernels import add, affine, mul, relu, sigmoid, softmax_cross_entropy
from xbp.testing import assert_close

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
@few_shapes
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

        numeric = xbp.numerical_gradient(f, W)
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

        numeric = xbp.numerical_gradient(f, W.ravel()[chosen])
        net.params[name] = W
        assert np.max(np.abs(numeric)) > 1e-5
        assert by_hand.relative_error(net.grads[name].ravel()[chosen], numeric) < 1e-6, name


@ids("S3-18", "S3-12", "B0-20")
def test_handwritten_digits_are_recognised():
    """By a network like the book's, trained by back-propagation: at least 96 of 100 digits that it has never seen."""
    pytest.importorskip("sklearn", reason="the handwritten digits come with scikit-learn: pip install 'xbp[sklearn]'")
    digits = load("digits")
    net = xbp.Network([xbp.Affine(64, 100), xbp.ReLU(), xbp.Affine(100, 10)], backend="numpy", seed=0)
    machine = xbp.Trainer(net, loss=CE, optimizer=xbp.SGD(0.1, momentum=0.9))
    history = machine.fit(digits.x, digits.t, epochs=20, batch_size=50, validation=(digits.x_test, digits.t_test))
    assert len(digits.x_test) >= 300
    assert history["val_accuracy"][-1] >= 0.96
    answers = np.argmax(net.predict(digits.x_test), axis=1)
    assert np.mean(answers == digits.t_test) == pytest.approx(history["val_accuracy"][-1])
    assert history["loss"][-1] < 0.1 * history["loss"][0]
