"""Article 2: a lecture on feed-forward networks, derivatives, gradients, the chain rule, and the loop that learns.

It has no code. Its statements are tried here on xbp's networks, graphs and numerical gradients.
"""

from __future__ import annotations

import signal
from dataclasses import dataclass

import by_hand
import numpy as np
import pytest
from inventory import ids
from run_in import few_shapes

import xbp
from xbp.layers.base import Result
from xbp.testing import assert_close

LAYERS = [xbp.Affine(5, 8), xbp.Tanh(), xbp.Affine(8, 6), xbp.Tanh(), xbp.Affine(6, 3)]
LOSS = xbp.SoftmaxCrossEntropy()


def rows(N=12, seed=0):
    """x (N, 5) and labels (N,) that a network can learn."""
    x = np.random.default_rng(seed).normal(size=(N, 5))
    return x, np.argmax(x[:, :3] + 0.5 * x[:, 2:], axis=1)


def flat_loss(net, x, t):
    """(loss as a function of all parameters in one vector, that vector, its gradient by backward)."""
    names, shapes = list(net.params), [a.shape for a in net.params.values()]
    cuts = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]

    def f(vector):
        pieces = zip(names, np.split(vector, cuts), shapes, strict=True)
        net.load_params({name: piece.reshape(shape) for name, piece, shape in pieces})
        return LOSS.value_and_grad(net.predict(x), t)[0]

    start = np.concatenate([a.ravel() for a in net.params.values()])
    f(start)
    net.backward(LOSS.value_and_grad(net.forward(x), t)[1])
    return f, start, np.concatenate([net.grads[name].ravel() for name in names])


# The feed-forward network.


@ids("S2-01")
def test_an_input_layer_of_five_takes_vectors_of_five_and_the_structure_shows_it(space, network):
    net = network(LAYERS)
    lines = str(net).splitlines()
    assert [line.split()[-1] for line in lines[1:2]] == ["5"]
    assert [line.split()[0] for line in lines[1:]] == ["input", "0", "1", "2", "3", "4"]
    assert [line.split()[1].split("(")[0] for line in lines[2:]] == ["Affine", "Tanh", "Affine", "Tanh", "Affine"]
    assert f"{5 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3} parameters" in lines[0]
    assert net.predict(space.put(np.zeros((2, 5)))).shape == (2, 3)
    for width in (4, 6):
        for use in (net.forward, net.predict):
            with pytest.raises(xbp.ShapeError, match=rf"width 5.*\({width},\)"):
                use(space.put(np.zeros((2, width))))
    with pytest.raises(xbp.ShapeError, match=r"x\[None, :\]"):
        net.predict(space.put(np.zeros(5)))


@ids("S2-01")
def test_data_flow_one_way_only():
    with pytest.raises(xbp.ShapeError, match="cycle through back, hidden"):
        xbp.Graph({"hidden": (xbp.Add(), "x", "back"), "back": (xbp.Tanh(), "hidden")}, inputs=["x"], output="hidden")


@ids("S2-02")
def test_a_connection_weighs_what_its_weight_says(space, network):
    net = network([xbp.Affine(3, 1)])
    W = np.array([[2.0], [0.0], [-0.5]])
    net.params["0.W"] = W.astype(space.dtype)
    x = np.array([[1.0, 1.0, 1.0]])
    for i, weight in enumerate(W[:, 0]):
        more = x + np.eye(3)[i]
        change = space.get(net.predict(space.put(more)))[0, 0] - space.get(net.predict(space.put(x)))[0, 0]
        assert change == pytest.approx(weight, abs=1e-6)
    net.forward(space.put(x))
    assert_close(net.backward(space.put(np.ones((1, 1))), input_gradient=True), W.T, space)


# Derivatives.


@ids("S2-03")
def test_the_derivative_is_the_limit_of_the_quotient_of_differences_and_must_exist():
    x = 0.7
    quotients = [(np.exp(x + h) - np.exp(x)) / h for h in (1e-1, 1e-2, 1e-3, 1e-4)]
    errors = np.abs(np.array(quotients) - np.exp(x))
    assert np.allclose(errors[:-1] / errors[1:], 10.0, rtol=0.1)  # ten times nearer with a tenth of the step
    central = [
        abs(float(xbp.numerical_gradient(np.exp, np.asarray(x), step=h)) - np.exp(x)) for h in (1e-1, 1e-2, 1e-3)
    ]
    assert np.allclose(np.divide(central[:-1], central[1:]), 100.0, rtol=0.1)  # with steps both ways, a hundred times
    assert abs(float(xbp.numerical_gradient(np.exp, np.asarray(x))) - np.exp(x)) < 1e-9

    left, right = (float((xbp.relu(np.array(h)) - xbp.relu(np.array(0.0))) / h) for h in (-1e-6, 1e-6))
    assert (left, right) == (0.0, 1.0)  # no limit at the kink
    _, cache = xbp.kernels.relu.forward(np.array(0.0), xp=np)
    assert xbp.kernels.relu.backward(np.array(1.0), cache, xp=np) == 0.0  # xbp's convention there


@ids("S2-04")
def test_the_lectures_first_functions(space):
    # Central differences keep two thirds of the digits.
    rtol = 1e-9 if space.dtype == "float64" else 1e-3
    for x in (-2.0, 0.5, 3.0):
        at = space.put(np.asarray(x))
        assert_close(xbp.numerical_gradient(lambda v: 2.0 * v * v, at), np.asarray(4.0 * x), space, rtol=rtol)
        assert_close(xbp.numerical_gradient(lambda v: 3.0 * v, at), np.asarray(3.0), space, rtol=rtol)
    assert float(3.0 * at) == 9.0


@ids("S2-05", "S2-06")
def test_partial_derivatives_vary_one_variable_and_hold_the_others(space, graph):
    at = np.array([1.5, -2.0])
    seen = []

    def z(v):
        seen.append(space.get(v))
        return 3.0 * v[0] + 2.0 * v[1]

    rtol = 1e-9 if space.dtype == "float64" else 1e-3
    assert_close(xbp.numerical_gradient(z, space.put(at)), np.array([3.0, 2.0]), space, rtol=rtol)
    assert [list(v != at.astype(v.dtype)) for v in seen] == [[True, False]] * 2 + [[False, True]] * 2
    assert_close(
        xbp.numerical_gradient(lambda v: space.xp.sum(v * v), space.put(at)), 2.0 * at, space, rtol=rtol
    )  # x^2 + y^2

    g = graph(
        {"xx": (xbp.Mul(), "x", "x"), "yy": (xbp.Mul(), "y", "y"), "z": (xbp.Add(), "xx", "yy")},
        inputs=["x", "y"],
        output="z",
    )
    g.forward({"x": space.put(at[:1]), "y": space.put(at[1:])})
    slopes = g.backward(space.put(np.ones(1)), input_gradient=True)
    assert_close(slopes["x"], 2.0 * at[:1], space)
    assert_close(slopes["y"], 2.0 * at[1:], space)


@ids("S2-07", "S2-10")
def test_the_gradient_points_where_the_loss_grows_fastest_and_its_opposite_where_it_falls_fastest():
    net = xbp.Network(LAYERS, backend="numpy", dtype="float64", seed=3)
    f, at, gradient = flat_loss(net, *rows())
    step, norm = 1e-4, np.linalg.norm(gradient)
    grown = f(at + step * gradient / norm) - f(at)
    fallen = f(at - step * gradient / norm) - f(at)
    assert grown == pytest.approx(step * norm, rel=1e-3)
    assert fallen == pytest.approx(-step * norm, rel=1e-3)
    rng = np.random.default_rng(0)
    for _ in range(300):
        random = rng.normal(size=at.size)
        random /= np.linalg.norm(random)
        change = f(at + step * random) - f(at)
        assert fallen < change < grown
        assert change == pytest.approx(step * gradient @ random, abs=2e-3 * grown)  # the part of it along the gradient
    nearly = gradient / norm + 0.2 * random
    assert f(at + step * nearly / np.linalg.norm(nearly)) - f(at) < grown


# The chain rule.


@dataclass(frozen=True)
class Cos(xbp.Layer):
    """A function that xbp does not have, as a layer of one's own."""

    def forward(self, x, /, *, params, buffers, mode, xp):
        return Result(xp.cos(x), x)

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        return -dy * xp.sin(cache), {}


@ids("S2-08", "S2-09")
def test_the_chain_rule_in_both_notations_on_the_cosine_of_x_squared_minus_one(space, graph):
    x = np.array([-1.3, 0.0, 0.4, 2.0])
    g = graph(
        {"u": (xbp.Add(), "square", "minus_one"), "y": (Cos(), "u"), "square": (xbp.Mul(), "x", "x")},
        inputs=["x", "minus_one"],
        output="y",
    )
    y = g.forward({"x": space.put(x), "minus_one": space.put(np.array([-1.0]))})
    slopes = g.backward(space.put(np.ones(4)), input_gradient=True)
    atol = 1e-15 if space.dtype == "float64" else 1e-6
    assert_close(y, np.cos(x**2 - 1.0), space, atol=atol)
    assert_close(slopes["x"], -np.sin(x**2 - 1.0) * 2.0 * x, space, atol=atol)
    # dy/dx = dy/du du/dx, with dy/du readable at the node; and f'(g(x)) g'(x), both factors by differences.
    assert_close(g.node_grads["u"], -np.sin(x**2 - 1.0), space, atol=atol)
    outer = xbp.numerical_gradient(lambda u: float(np.sum(np.cos(u))), x**2 - 1.0)
    inner = xbp.numerical_gradient(lambda v: float(np.sum(v**2 - 1.0)), x)
    assert_close(slopes["x"], outer * inner, space, rtol=1e-5, atol=1e-5)


@ids("S2-10", "S2-06", "S3-20")
def test_the_gradient_of_the_loss_over_all_weights_is_that_of_numerical_differentiation():
    net = xbp.Network(LAYERS, backend="numpy", dtype="float64", seed=1)
    f, at, gradient = flat_loss(net, *rows())
    assert gradient.shape == (5 * 8 + 8 + 8 * 6 + 6 + 6 * 3 + 3,)
    assert by_hand.relative_error(gradient, xbp.numerical_gradient(f, at)) < 1e-8
    report = xbp.check_gradients(net, *rows(), loss=LOSS)
    assert report.ok
    assert [row.name for row in report.rows] == [*net.params, "x"]
    assert {(row.entries, row.kinks) for row in report.rows} == {(a.size, 0) for a in (*net.params.values(), rows()[0])}


# Learning.


@ids("S2-11", "S2-12")
@few_shapes
def test_moving_the_weights_against_the_gradient_again_and_again_makes_the_loss_small(space, network):
    x, t = rows()
    x, t = space.put(x), space.put(t.astype(np.int32))
    net = network(LAYERS, seed=2)
    losses = []
    for _ in range(150):
        loss, dy = LOSS.value_and_grad(net.forward(x), t)
        net.backward(dy)
        for name in net.params:
            net.params[name] = net.params[name] - 0.5 * net.grads[name]
        losses.append(float(loss))
        if losses[-1] < 0.05:
            break
    assert losses[-1] < 0.05 < 0.5 < losses[0]
    assert losses[1] < losses[0]
    forth = LOSS.value_and_grad(net.forward(x), t)
    net.backward(forth[1])
    for name in net.params:
        net.params[name] = net.params[name] + 0.1 * net.grads[name]
    assert float(LOSS.value_and_grad(net.predict(x), t)[0]) > float(forth[0])  # with the gradient it grows


class Interrupt(xbp.callbacks.Callback):
    """Presses Ctrl-C in the second epoch."""

    def on_chunk_end(self, trainer):
        if trainer.epoch == 1:
            signal.raise_signal(signal.SIGINT)


STOPS = {
    "epochs": [],
    "target_reached": [xbp.callbacks.TargetMetric(0.3)],
    "early_stopping": [xbp.callbacks.EarlyStopping("val_loss", patience=3)],
    "time_limit": [xbp.callbacks.TimeLimit(0.0)],
    "gradient_norm": [xbp.callbacks.GradientNorm(0.05)],
    "interrupted": [Interrupt()],
}


@pytest.fixture
def ctrl_c():
    """Ctrl-C as in a terminal; a process in the background is born deaf to it."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@ids("S2-13", "B2-04")
@pytest.mark.parametrize("reason", STOPS)
def test_the_loop_ends_on_a_stated_condition_and_says_which(reason, ctrl_c):
    (x, t), held_out = rows(40), rows(200, seed=1)
    net = xbp.Network(LAYERS, backend="numpy", seed=2)
    machine = xbp.Trainer(net, loss=LOSS, optimizer=xbp.SGD(0.5))
    assert machine.stop_reason is None
    limit = 7 if reason == "epochs" else 2000
    history = machine.fit(x, t, epochs=limit, batch_size=20, validation=held_out, callbacks=STOPS[reason])
    assert machine.stop_reason == reason
    assert machine.epoch == len(history.get("loss", ())) < 2000
    if reason == "epochs":
        assert machine.epoch == 7
    elif reason == "target_reached":
        assert history["loss"][-1] <= 0.3 < history["loss"][-2]
    elif reason == "early_stopping":
        assert min(history["val_loss"]) == history["val_loss"][-4] < min(history["val_loss"][-3:])
        assert machine.evaluate(*held_out)["loss"] == pytest.approx(history["val_loss"][-4], rel=1e-5)
    elif reason == "time_limit":
        assert machine.epoch <= 1
        assert machine.steps >= 1
    elif reason == "gradient_norm":
        net.backward(LOSS.value_and_grad(net.forward(x), t)[1])
        norms = np.sqrt(sum(np.sum(g * g) for g in net.grads.values()))
        assert 0 < norms <= 0.05
    elif reason == "interrupted":
        assert machine.epoch in (1, 2)
    assert all(np.all(np.isfinite(a)) for a in net.params.values())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@ids("S2-13", "B2-04")
def test_a_rate_at_which_the_loss_explodes_ends_the_loop_with_the_weights_from_before_the_epoch():
    x, _ = rows(40)
    net = xbp.Network(LAYERS, backend="numpy", seed=2)
    machine = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.01))
    machine.fit(x, x[:, :3], epochs=1)
    good = {name: a.copy() for name, a in net.params.items()}
    machine.lr = 1e30
    with np.errstate(all="ignore"), pytest.raises(xbp.NonFiniteLoss, match=r"epoch 2, with lr=1e\+30.*smaller lr"):
        machine.fit(x, x[:, :3], epochs=10, batch_size=4)
    assert machine.stop_reason == "non_finite_loss"
    by_hand.assert_same(net.params, good, 0.0)


@ids("S2-14", "S2-15")
@pytest.mark.parametrize("rule", xbp.optimizers.OPTIMIZERS.values(), ids=lambda rule: rule.__name__)
def test_the_optimiser_is_a_part_that_can_be_replaced(rule):
    """Every rule works on the same gradients, which no rule computes."""
    x, t = rows(40)
    net = xbp.Network(LAYERS, backend="numpy", seed=2)
    plain = xbp.Network(LAYERS, backend="numpy", seed=2)
    before = LOSS.value_and_grad(net.predict(x), t)[0]
    xbp.Trainer(net, loss=LOSS, optimizer=rule(0.01)).step(x, t)
    optimizer = rule(0.01)
    plain.backward(LOSS.value_and_grad(plain.forward(x), t)[1])
    moved, _ = optimizer.update(dict(plain.params), plain.grads, optimizer.init(dict(plain.params)))
    by_hand.assert_same(net.params, moved, 1e-6)
    assert LOSS.value_and_grad(net.predict(x), t)[0] < before


TARGETS = {
    "SoftmaxCrossEntropy": lambda rng, y: rng.integers(0, 4, 30),
    "SigmoidCrossEntropy": lambda rng, y: (y > 0).astype(float),
    "PoissonNLL": lambda rng, y: np.round(np.exp(0.5 * y)),
    "GaussianNLL": lambda rng, y: y[:, :2],
}


@ids("S2-15")
@pytest.mark.parametrize("name", xbp.losses.LOSSES)
def test_there_is_a_collection_of_losses_and_each_can_be_learnt(name):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 5))
    t = TARGETS.get(name, lambda rng, y: y)(rng, x @ rng.normal(size=(5, 4)))
    net = xbp.Network([xbp.Affine(5, 16), xbp.Tanh(), xbp.Affine(16, 4)], backend="numpy")
    losses = xbp.Trainer(net, loss=xbp.losses.LOSSES[name](), optimizer=xbp.Adam(0.02)).fit(x, t, epochs=60)["loss"]
    assert losses[-1] < losses[0] - 0.3 * abs(losses[0])
    assert len(xbp.losses.LOSSES) >= 8
    assert len(xbp.optimizers.OPTIMIZERS) >= 5


@ids("S2-17")
@few_shapes
def test_every_intermediate_value_can_be_read(space, network, graph):
    """What frameworks hide: each layer's input and output after forward, each value's gradient after backward."""
    x, t = rows(4)
    layers = {"hidden": xbp.Affine(5, 6), "squashed": xbp.Tanh(), "scores": xbp.Affine(6, 3)}
    net = network(list(layers.values()), seed=1)
    values = dict(zip(layers, ("x", "hidden", "squashed"), strict=True))
    g = graph({name: (layer, values[name]) for name, layer in layers.items()}, inputs=["x"], output="scores", seed=1)

    def dot(a, name):
        at = {"hidden": "0", "scores": "2"}[name]
        return a @ space.get(net.params[f"{at}.W"]) + space.get(net.params[f"{at}.b"])

    hidden = dot(x, "hidden")
    squashed = np.tanh(hidden)
    y = net.forward(space.put(x))
    atol = 1e-14 if space.dtype == "float64" else 1e-6
    for seen, known in ((net.cache["0"].x, x), (net.cache["1"], squashed), (net.cache["2"].x, squashed)):
        assert_close(seen, known, space, atol=atol)
    assert_close(y, dot(squashed, "scores"), space, atol=atol)

    _, dy = LOSS.value_and_grad(g.forward(space.put(x)), space.put(t.astype(np.int32)))
    g.backward(dy)
    down = space.get(dy) @ space.get(g.params["scores.W"]).T
    for name, known in {"scores": space.get(dy), "squashed": down, "hidden": down * (1.0 - squashed**2)}.items():
        assert_close(g.node_grads[name], known, space, atol=atol)
