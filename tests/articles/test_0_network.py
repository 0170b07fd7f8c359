"""Article 0: a network of three dictionaries in NumPy, the same in PyTorch, and the graph that explains them.

Here stands what the article shows, run on xbp and compared with the article's own code; `test_0_defects.py` has what it
got wrong.
"""

from __future__ import annotations

import io
import re

import by_hand
import numpy as np
import pytest
from inventory import ids
from run_in import few_shapes, over

import xbp
from xbp.initializers import Constant, Normal
from xbp.show import show_params
from xbp.testing import assert_close

TOLERANCE = by_hand.TOLERANCE
ARCHITECTURE = [
    {"input_dim": 10, "output_dim": 20, "activation_func": "relu"},
    {"input_dim": 20, "output_dim": 10, "activation_func": "relu"},
    {"input_dim": 10, "output_dim": 5, "activation_func": "sigmoid"},
]
LAYERS = [xbp.Affine(10, 20), xbp.ReLU(), xbp.Affine(20, 10), xbp.ReLU(), xbp.Affine(10, 5), xbp.Sigmoid()]


def batch(rows=4, seed=0):
    """Rows (N, 10) and labels (N,) among 5 classes."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, 10)), rng.integers(0, 5, rows, dtype=np.int32)


def hosts(space, arrays):
    return {name: space.get(a) for name, a in arrays.items()}


@pytest.fixture
def article():
    return by_hand.Network(ARCHITECTURE, 0.01, np.random.default_rng(7))


@pytest.fixture
def twin(network, article):
    """xbp's network with the weights of the article's."""
    net = network(LAYERS)
    net.load_params({name: a.astype(net.dtype) for name, a in by_hand.as_xbp(article.params).items()})
    return net


# The article's first figure: c depends on a and b, d on b, e on c and d.


@ids("S0-04", "S0-05", "S0-06", "S0-08", "B1-09")
@pytest.mark.parametrize("make_c", [xbp.Add(), xbp.Mul()], ids=str)
def test_every_node_of_the_example_graph_has_its_gradient_and_b_gets_the_sum_over_both_paths(space, graph, make_c):
    g = graph(
        {"e": (xbp.Mul(), "c", "d"), "c": (make_c, "a", "b"), "d": (xbp.Add(), "b", "k")},
        inputs=["a", "b", "k"],
        output="e",
    )
    values = {"a": np.array([2.0, -3.0]), "b": np.array([1.0, 5.0]), "k": np.array([1.0, 1.0])}
    a, b, k = values.values()
    e = g.forward({name: space.put(v) for name, v in values.items()})
    inputs = g.backward(space.put(np.ones(2)), input_gradient=True)

    c, dc_da, dc_db = (a + b, 1.0, 1.0) if make_c == xbp.Add() else (a * b, b, a)
    d = b + k
    assert_close(e, c * d, space)
    assert_close(g.node_grads["c"], d, space)  # de/dc, stored at the node
    assert_close(g.node_grads["d"], c, space)
    assert_close(inputs["a"], d * dc_da, space)  # de/dc dc/da
    assert_close(inputs["b"], d * dc_db + c * 1.0, space)  # de/dc dc/db + de/dd dd/db
    assert g.node_grads["b"] is inputs["b"]


# The article's PyTorch program: 4-3-3-2 without bias, weights from N(0, 0.001), one step by hand.

SMALL = [xbp.Affine(n, m, bias=False, init=Normal(1e-3)) for n, m in ((4, 3), (3, 3), (3, 2))]
DEMO = [SMALL[0], xbp.ReLU(), SMALL[1], xbp.ReLU(), SMALL[2]]


def demo_batch():
    rng = np.random.default_rng(3)
    return rng.normal(size=(2, 4)), rng.integers(0, 2, 2, dtype=np.int32)


def demo_loss(torch, x, W0, W2, W4, *, labels):
    relu = torch.nn.functional.relu
    scores = relu(relu(x @ W0) @ W2) @ W4
    return torch.nn.functional.cross_entropy(scores, torch.tensor(labels, dtype=torch.int64))


@ids("S0-11", "S0-13", "S0-14", "S0-15", "S0-16", "S1-19", "B1-05", "B1-04")
@few_shapes
def test_the_pytorch_program_has_the_gradients_of_autograd_in_every_parameter_and_the_input(space, network):
    net = network(DEMO, seed=1)
    x, labels = demo_batch()
    assert list(net.params) == ["0.W", "2.W", "4.W"]  # no bias, no parameter of a ReLU
    before = hosts(space, net.params)
    arrays = {"x": x.astype(space.dtype), **before}
    loss, desired = by_hand.autograd(lambda torch, *a: demo_loss(torch, *a, labels=labels), arrays)

    value, dy = xbp.SoftmaxCrossEntropy().value_and_grad(net.forward(space.put(arrays["x"])), space.put(labels))
    dx = net.backward(dy, input_gradient=True)
    assert_close(value, np.asarray(loss, dtype=space.dtype), space)
    # Weights of a thousandth make gradients of a millionth: only a relative comparison can see them.
    assert 0 < np.abs(desired["0.W"]).max() < 1e-5
    by_hand.assert_same({"x": space.get(dx), **hosts(space, net.grads)}, desired, TOLERANCE[space.dtype])

    for name in net.params:
        net.params[name] = net.params[name] - 0.01 * net.grads[name]
    for name, W in before.items():
        assert_close(net.params[name], W - np.asarray(0.01, space.dtype) * desired[name], space)
        assert not np.array_equal(space.get(net.params[name]), W)


@ids("S0-12")
def test_chosen_layers_start_from_normal_values_of_a_thousandth_and_a_constant_bias():
    net = xbp.Network(
        [xbp.Affine(300, 200, init=Normal(std=1e-3), bias_init=Constant(0.25)), xbp.ReLU(), xbp.Affine(200, 50)],
        backend="numpy",
        dtype="float64",
    )
    W = net.params["0.W"]
    assert abs(W.mean()) < 5 * 1e-3 / np.sqrt(W.size)
    assert np.isclose(W.std(), 1e-3, rtol=0.02)
    assert 0.66 < np.mean(np.abs(W) < 1e-3) < 0.70  # 68.3 % of a normal distribution
    assert np.all(net.params["0.b"] == 0.25)
    assert net.params["2.W"].std() > 0.05  # the other layer keeps its own rule


@ids("S0-09", "S0-10", "B0-22")
@over("numpy", "strict-device1", "torch")
def test_show_params_before_backward_after_it_and_after_the_update(space, network):
    net = network(DEMO, seed=1)
    x, labels = demo_batch()
    phases = [show_params(net)]
    _, dy = xbp.SoftmaxCrossEntropy().value_and_grad(net.forward(space.put(x)), space.put(labels))
    net.backward(dy)
    phases.append(show_params(net))
    grads = hosts(space, net.grads)
    shown = hosts(space, net.params)
    for name in net.params:
        net.params[name] = net.params[name] - 0.01 * net.grads[name]
    phases.append(show_params(net))

    for name, W in shown.items():
        first, second, third = (blocks(phase)[name] for phase in phases)
        new = W - 0.01 * grads[name]
        assert first["shape"] == " x ".join(map(str, W.shape))
        assert (first["gradient"], first["value"]) == ("none", second["value"])
        assert np.allclose(numbers(second["value"]), W.ravel(), rtol=1e-3)
        assert np.allclose(numbers(second["gradient"]), grads[name].ravel(), rtol=1e-3)
        assert np.allclose(numbers(third["value"]), new.ravel(), rtol=1e-3)
        assert third["gradient"] == second["gradient"]
    assert list(blocks(phases[0])) == ["0.W", "2.W", "4.W"]  # names, where the article counts parameters as "layers"


def blocks(text):
    """What `show_params` printed, by the parameters' names."""
    pattern = r"^(\S+)  (.*)\n  value     ((?:.|\n)*?)\n  gradient  ((?:.|\n)*?)(?=\n\S|\Z)"
    return {
        name: {"shape": shape, "value": value, "gradient": gradient}
        for name, shape, value, gradient in re.findall(pattern, text, flags=re.M)
    }


def numbers(text):
    return [float(word) for word in re.findall(r"-?\d+\.?\d*(?:e[-+]\d+)?", text)]


# The article's functions.


@ids("S0-19", "S0-20", "S0-21", "S0-22", "B0-04", "B3-07", "B3-01")
def test_sigmoid_and_relu_and_their_slopes_are_those_of_the_article(space):
    x = np.array([[-30.0, -2.0, -0.0], [0.0, 0.5, 30.0]])
    dz = np.array([[1.0, -2.0, 3.0], [-4.0, 5.0, -6.0]])
    for kernel, forward, backward in (
        (xbp.kernels.sigmoid, by_hand.sigmoid, by_hand.sigmoid_backward),
        (xbp.kernels.relu, by_hand.relu, by_hand.relu_backward),
    ):
        upstream, z = space.put(dz), space.put(x)
        y, cache = kernel.forward(z, xp=space.xp)
        assert_close(y, forward(x), space)
        assert_close(kernel.backward(upstream, cache, xp=space.xp), backward(dz, x), space, atol=1e-11)
        assert_close(upstream, dz, space, rtol=0.0)  # nobody wrote into it
        assert_close(z, x, space, rtol=0.0)
    far = xbp.sigmoid(space.put(np.array([-1000.0, -80.0, 80.0, 1000.0])))  # a warning would be an error here
    assert_close(far, np.array([0.0, np.exp(-80.0), 1.0, 1.0]), space)


@ids("S0-23", "S0-24", "S0-25", "B0-15")
@few_shapes
def test_cross_entropy_is_the_articles_but_its_gradient_is_that_of_the_loss_returned(space):
    rng = np.random.default_rng(4)
    scores, labels = rng.normal(size=(6, 5)) * 3.0, rng.integers(0, 5, 6, dtype=np.int32)
    mean_loss, sum_gradient = by_hand.cross_entropy_loss(scores, labels)
    loss, dy = xbp.SoftmaxCrossEntropy().value_and_grad(space.put(scores), space.put(labels))
    assert_close(loss, np.asarray(mean_loss), space)
    # The article's gradient is that of the sum of six losses, beside a loss that is their mean.
    assert_close(dy, sum_gradient / 6, space, atol=1e-6 if space.dtype == "float32" else 1e-15)
    numeric = xbp.numerical_gradient(lambda y: by_hand.cross_entropy_loss(y, labels)[0], scores)
    assert by_hand.relative_error(space.get(dy), numeric) < (1e-5 if space.dtype == "float32" else 1e-9)


# The article's network.


@ids("S0-26", "S0-28", "S0-29", "S0-30", "S0-31", "S0-36", "S0-37", "S0-38", "S0-39", "B0-19")
def test_the_network_computes_what_the_articles_network_computes(space, article, twin):
    x, labels = batch()
    scores = article.forward(x)
    _, summed = by_hand.cross_entropy_loss(scores, labels)
    dx = article.backward(summed)

    y = twin.forward(space.put(x))
    atol = 1e-6 if space.dtype == "float32" else 1e-14
    assert_close(y, scores, space, atol=atol)
    for at, i in ((0, 1), (2, 2), (4, 3)):  # what the article caches: each layer's input, and what its activation gave
        assert_close(twin.cache[f"{at}"].x, article.cache[f"input{i}"].T, space, atol=atol)
    assert_close(twin.cache["5"], scores, space, atol=atol)

    grad = twin.backward(space.put(summed / len(x)), input_gradient=True)
    desired = by_hand.as_xbp(article.grads)
    by_hand.assert_same(hosts(space, twin.grads), desired, TOLERANCE[space.dtype])
    by_hand.assert_same({"x": space.get(grad)}, {"x": dx / len(x)}, TOLERANCE[space.dtype])
    assert list(twin.grads) == list(twin.params)  # the same keys, where the article has w1 and weight_grad1
    assert {n: a.shape for n, a in twin.grads.items()} == {n: a.shape for n, a in twin.params.items()}


@ids("S0-01", "S0-40", "S2-12", "B3-10")
@few_shapes
def test_forward_backward_and_update_are_three_steps_and_none_does_the_work_of_another(space, twin):
    x, labels = batch()
    start = hosts(space, twin.params)
    y = twin.forward(space.put(x))
    assert twin.cache
    assert not twin.grads
    by_hand.assert_same(hosts(space, twin.params), start, 0.0)

    twin.backward(xbp.SoftmaxCrossEntropy().value_and_grad(y, space.put(labels))[1])
    grads = hosts(space, twin.grads)
    assert set(grads) == set(start)
    by_hand.assert_same(hosts(space, twin.params), start, 0.0)
    with pytest.raises(xbp.errors.CacheEmpty):
        twin.backward(y)

    for name in twin.params:
        twin.params[name] = twin.params[name] - 0.01 * twin.grads[name]
    by_hand.assert_same(hosts(space, twin.grads), grads, 0.0)
    for name, a in start.items():
        assert_close(twin.params[name], a - np.asarray(0.01, space.dtype) * grads[name], space)


@ids("S0-32", "S0-33", "S0-40")
@few_shapes
@pytest.mark.filterwarnings("ignore:The network ends in Sigmoid")
def test_an_epoch_of_mini_batches_ends_with_the_weights_of_the_articles_training(space, article, twin):
    """Ten rows in batches of 4: the last one has 2, and its own size is its divisor."""
    x, labels = batch(rows=10)
    trainer = xbp.Trainer(twin, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.5))
    article.lr = 0.5
    history = trainer.fit(space.put(x), space.put(labels), epochs=1, batch_size=4, shuffle=False)
    reported = article.train(x, labels, 4)
    assert trainer.steps == 3
    by_hand.assert_same(hosts(space, twin.params), by_hand.as_xbp(article.params), TOLERANCE[space.dtype])
    assert history["loss"][0] < 0.9 * reported  # the article's figure is 1.2 times too large, see test_0_defects.py


@ids("S0-32", "S0-40", "S2-12")
@few_shapes
def test_a_step_of_the_trainer_is_the_three_steps_by_hand(space, network):
    layers = LAYERS[:-1]
    x, labels = map(space.put, batch())
    by_steps, by_trainer = network(layers, seed=5), network(layers, seed=5)
    loss = xbp.SoftmaxCrossEntropy()
    trainer = xbp.Trainer(by_trainer, loss=loss, optimizer=xbp.SGD(0.1))
    for _ in range(2):
        value, dy = loss.value_and_grad(by_steps.forward(x, train=True), labels)
        by_steps.backward(dy)
        for name in by_steps.params:
            by_steps.params[name] = by_steps.params[name] - 0.1 * by_steps.grads[name]
        assert_close(trainer.step(x, labels), space.get(value), space)
    by_hand.assert_same(hosts(space, by_trainer.params), hosts(space, by_steps.params), TOLERANCE[space.dtype])


@ids("S0-41", "B0-15")
@few_shapes
def test_the_gradient_is_a_mean_so_it_does_not_depend_on_the_batch_size(space, twin):
    x, labels = batch(rows=6)
    loss = xbp.SoftmaxCrossEntropy()

    def gradients(rows):
        _, dy = loss.value_and_grad(twin.forward(space.put(x[rows])), space.put(labels[rows]))
        twin.backward(dy)
        return hosts(space, twin.grads)

    whole = gradients(np.arange(6))
    by_hand.assert_same(gradients(np.tile(np.arange(6), 3)), whole, TOLERANCE[space.dtype])
    single = [gradients(np.array([i])) for i in range(6)]
    mean = {name: np.mean([g[name] for g in single], axis=0) for name in whole}
    by_hand.assert_same(mean, whole, TOLERANCE[space.dtype])


@ids("S0-35", "S0-45")
@few_shapes
def test_query_is_the_class_of_the_highest_score_and_leaves_a_training_pass_alone(space, article, twin):
    x, labels = batch()
    others, _ = batch(rows=7, seed=1)
    _, dy = xbp.SoftmaxCrossEntropy().value_and_grad(twin.forward(space.put(x)), space.put(labels))
    answer = space.get(space.xp.argmax(twin.predict(space.put(others)), axis=1))
    assert answer.shape == (7,)
    assert np.array_equal(answer, article.query(others))
    twin.backward(dy)  # of the batch x, although `others` have passed in between

    article.forward(x)
    article.backward(by_hand.cross_entropy_loss(article.forward(x), labels)[1])
    desired = by_hand.as_xbp(article.grads)
    by_hand.assert_same(hosts(space, twin.grads), desired, TOLERANCE[space.dtype])


@ids("S0-18")
def test_backward_reuses_what_forward_stored(counting):
    """No exponential is taken again, and there are two products a layer, with dx of the first one product more."""
    net = xbp.Network(LAYERS, backend=counting)
    calls = counting.xp.calls
    x, _ = batch()
    y = net.forward(x)
    assert (calls["exp"], calls["matmul"], calls["maximum"]) == (1, 3, 2)
    calls.clear()
    net.backward(y, input_gradient=True)
    assert (calls["exp"], calls["matmul"], calls["maximum"]) == (0, 6, 0)


# The article's demonstration, with labels that can be learnt.


def learnable(rows, seed):
    """Five clusters in ten dimensions."""
    centres = np.random.default_rng(0).normal(size=(5, 10)) * 2.0
    rng = np.random.default_rng([1, seed])
    t = rng.integers(0, 5, rows)
    return centres[t] + rng.normal(size=(rows, 10)), t


@ids("S0-42", "S0-43", "S0-44", "B0-20", "B0-05", "S2-11")
def test_the_demonstration_learns_logs_a_line_an_epoch_and_reports_its_accuracy():
    (x, t), (x_test, t_test) = learnable(100, 0), learnable(100, 1)
    net = xbp.Network(LAYERS[:-1], backend="numpy", seed=0)  # without the sigmoid, see test_0_defects.py
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.01))
    log = io.StringIO()
    progress = xbp.callbacks.Progress(stream=log)
    history = trainer.fit(x, t, epochs=100, batch_size=4, callbacks=[progress])

    lines = log.getvalue().splitlines()
    assert len(lines) == len(history["loss"]) == trainer.epoch == 100
    for i, (line, loss) in enumerate(zip(lines, history["loss"], strict=True), 1):
        assert line.startswith(f"epoch {i}/100  ")
        assert f"loss {loss:.4g}" in line
    assert history["loss"][-1] < 0.1 < 1.0 < history["loss"][0]

    predicted = np.argmax(net.predict(x_test), axis=1)
    accuracy = np.mean(predicted == t_test)
    assert accuracy >= 0.95
    scores = trainer.evaluate(x_test, t_test)
    assert scores["accuracy"] == pytest.approx(accuracy)  # under its right name: the article calls it precision
    assert set(scores) == {"loss", "accuracy"}
    chance = trainer.evaluate(*(np.random.default_rng(2).permutation(a) for a in (x_test, t_test[::-1])))
    assert chance["accuracy"] < 0.45  # what labels without a connection to the rows can give
