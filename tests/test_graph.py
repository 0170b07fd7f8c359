"""Graphs: the article's, values read twice, every order of the nodes, and random ones against differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import strategies as st

import strategies as make
import xbp
from xbp.testing import assert_close

ARTICLE = {"c": (xbp.Add(), "a", "b"), "d": (xbp.Add(), "b", "one"), "e": (xbp.Mul(), "c", "d")}


def graph(space, nodes, inputs, output, **options):
    options = {"dtype": space.dtype, **options}
    return xbp.Graph(nodes, inputs=inputs, output=output, backend=space.backend, **options)


def article(space, nodes=ARTICLE, **options):
    return graph(space, nodes, ["a", "b", "one"], "e", **options)


def numbers(space, **values):
    return {name: space.put(np.asarray(float(v))) for name, v in values.items()}


@pytest.mark.parametrize("order", list(itertools.permutations(ARTICLE)), ids=" ".join)
def test_the_graph_of_the_article_in_any_order(space, order):
    """e = (a + b)(b + 1) at a = 2, b = 1: e = 6, de/da = 2, de/db = 5 over both paths."""
    g = article(space, {name: ARTICLE[name] for name in order})
    e = g.forward(numbers(space, a=2, b=1, one=1))
    assert_close(e, np.asarray(6.0), space, rtol=0.0)
    slopes = g.backward(space.put(np.asarray(1.0)), input_gradient=True)
    assert list(slopes) == ["a", "b", "one"]
    for name, slope in (("a", 2.0), ("b", 5.0), ("one", 3.0)):
        assert_close(slopes[name], np.asarray(slope), space, rtol=0.0)
    for name, slope in (("c", 2.0), ("d", 3.0), ("e", 1.0), ("b", 5.0)):
        assert_close(g.node_grads[name], np.asarray(slope), space, rtol=0.0)
    assert set(g.node_grads) == {"a", "b", "one", "c", "d", "e"}


def test_python_numbers_will_do_for_numbers(space):
    g = article(space)
    assert_close(g.forward({"a": 2, "b": 1.0, "one": np.float64(1)}), np.asarray(6.0), space, rtol=0.0)
    assert_close(g.backward(10.0, input_gradient=True)["b"], np.asarray(50.0), space, rtol=0.0)
    assert_close(g.predict({"a": 2, "b": 1.0, "one": 1}), np.asarray(6.0), space, rtol=0.0)


def test_without_input_gradients_the_nodes_have_theirs_still(space):
    g = article(space)
    g.forward(numbers(space, a=2, b=1, one=1))
    assert g.backward(space.put(np.asarray(1.0))) is None
    assert set(g.node_grads) == {"c", "d", "e"}
    with pytest.raises(TypeError, match=r"does not support item assignment"):
        g.node_grads["c"] = 1.0


def test_batches_flow_as_numbers_do_and_broadcasts_are_undone(space):
    rng = np.random.default_rng(0)
    a, b, one = rng.normal(size=(6, 3)), rng.normal(size=(1, 3)), np.asarray(1.0)
    g = article(space)
    arrays = {"a": space.put(a), "b": space.put(b), "one": space.put(one)}
    atol = 1e-14 if space.dtype == "float64" else 1e-6
    assert_close(g.forward(arrays), (a + b) * (b + one), space, atol=atol)
    de = rng.normal(size=(6, 3))
    slopes = g.backward(space.put(de), input_gradient=True)
    d, c = b + one, a + b
    assert_close(slopes["a"], de * d, space, atol=atol)
    assert_close(slopes["b"], (de * d + de * c).sum(axis=0, keepdims=True), space, atol=10 * atol)
    assert_close(slopes["one"], np.asarray((de * c).sum()), space, atol=10 * atol)


@pytest.mark.parametrize("layer", [xbp.Add(), xbp.Mul()], ids=str)
def test_one_value_at_both_inputs_of_a_node_counts_twice(space, layer):
    g = graph(space, {"y": (layer, "x", "x")}, ["x"], "y")
    x = np.array([[1.0, -2.0], [3.0, 0.5]])
    y = g.forward({"x": space.put(x)})
    double = isinstance(layer, xbp.Add)
    assert_close(y, 2.0 * x if double else x * x, space)
    slope = g.backward(space.put(np.ones((2, 2))), input_gradient=True)["x"]
    assert_close(slope, np.full((2, 2), 2.0) if double else 2.0 * x, space)


def test_a_value_read_by_three_nodes_and_the_output_gets_the_sum_of_all(space):
    """y = z + z + z^2 + tanh z, where z itself is read four times and is computed once."""
    nodes = {
        "y": (xbp.Add(), "three", "t"),
        "three": (xbp.Add(), "two", "square"),
        "two": (xbp.Add(), "z", "z"),
        "square": (xbp.Mul(), "z", "z"),
        "t": (xbp.Tanh(), "z"),
        "z": (xbp.Affine(2, 2), "x"),
    }
    g = graph(space, nodes, ["x"], "y", seed=3)
    x = np.random.default_rng(0).normal(size=(4, 2))
    z = x @ space.get(g.params["z.W"]).astype(float)
    rtol = 1e-12 if space.dtype == "float64" else 1e-5
    assert_close(g.forward(space.put(x)), 2 * z + z**2 + np.tanh(z), space, rtol=rtol, atol=rtol)
    g.backward(space.put(np.ones((4, 2))))
    slope = 2.0 + 2.0 * z + 1.0 - np.tanh(z) ** 2
    assert_close(g.node_grads["z"], slope, space, rtol=rtol, atol=rtol)
    assert_close(g.grads["z.W"], x.T @ slope, space, rtol=rtol, atol=10 * rtol)
    assert_close(g.grads["z.b"], slope.sum(axis=0), space, rtol=rtol, atol=10 * rtol)


def test_an_inner_node_may_be_the_output(space):
    nodes = {"h": (xbp.Affine(2, 3), "x"), "later": (xbp.Mul(), "h", "h")}
    g = graph(space, nodes, ["x"], "h")
    x = np.random.default_rng(0).normal(size=(4, 2))
    y = g.forward(space.put(x))
    assert_close(g.predict(space.put(x)), space.get(y), space, rtol=1e-6)
    g.backward(y)
    assert set(g.node_grads) == {"h"}
    assert_close(g.grads["h.b"], space.get(y).sum(axis=0), space, rtol=1e-5)


def test_an_input_may_be_the_output():
    g = xbp.Graph({}, inputs=["x"], output="x", backend="numpy")
    assert g.forward(np.ones((2, 2))).tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert g.backward(np.full((2, 2), 3.0), input_gradient=True)["x"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


# A chain is a graph.


def test_a_chain_as_a_graph_is_the_network(space):
    layers = [xbp.Affine(3, 5), xbp.BatchNorm(5), xbp.GELU("tanh"), xbp.Dropout(0.3), xbp.Affine(5, 2)]
    names = ["first", "norm", "bend", "drop", "last"]
    nodes = {name: (layer, before) for name, layer, before in zip(names, layers, ["x", *names], strict=False)}
    g = graph(space, dict(reversed(nodes.items())), ["x"], "last", seed=5)
    net = xbp.Network(layers, backend=space.backend, dtype=space.dtype, seed=5)
    assert list(g.params) == ["first.W", "first.b", "norm.gamma", "norm.beta", "last.W", "last.b"]
    rng = np.random.default_rng(0)
    x, dy = space.put(rng.normal(size=(6, 3))), space.put(rng.normal(size=(6, 2)))
    for train in (True,) if make.compiles(space) else (True, False):
        assert_close(g.forward(x, train=train), space.get(net.forward(x, train=train)), space, rtol=0.0)
        dx = g.backward(dy, input_gradient=True)["x"]
        assert_close(dx, space.get(net.backward(dy, input_gradient=True)), space, rtol=0.0)
        for ours, theirs in zip(g.grads.values(), net.grads.values(), strict=True):
            assert_close(ours, space.get(theirs), space, rtol=0.0)
        for ours, theirs in zip(g.buffers.values(), net.buffers.values(), strict=True):
            assert_close(ours, space.get(theirs), space, rtol=0.0)
    assert g.passes == net.passes == 1
    assert_close(g.predict(x), space.get(net.predict(x)), space, rtol=0.0)


# Random graphs.

UNARY = [xbp.Tanh(), xbp.Sigmoid(), xbp.Softplus(), xbp.GELU(), xbp.SiLU(), xbp.Identity(), xbp.LayerNorm(3, 0.1)]
UNARY += [xbp.Affine(3, 3), xbp.Affine(3, 3, bias=False), xbp.Softmax()]
BINARY = [xbp.Add(), xbp.Mul()]


@st.composite
def graphs(draw):
    """Nodes that read anything made before them, then shuffled; the last one reads whatever nothing else reads."""
    inputs = ["x", "z"][: draw(st.integers(1, 2))]
    made, nodes = list(inputs), {}
    for i in range(draw(st.integers(1, 6))):
        layer = draw(st.sampled_from(UNARY + BINARY * 3))
        nodes[f"n{i}"] = (layer, *(draw(st.sampled_from(made)) for _ in range(layer.arity)))
        made.append(f"n{i}")
    for i in itertools.count():
        read = {v for _, *sources in nodes.values() for v in sources}
        loose = [v for v in made if v not in read]
        if len(loose) == 1:
            break
        nodes[f"s{i}"] = (xbp.Add(), *loose[:2])
        made.append(f"s{i}")
    order = draw(st.permutations(list(nodes)))
    return {name: nodes[name] for name in order}, inputs, loose[0], draw(st.integers(0, 99))


def test_gradients_of_random_graphs_are_those_of_differences():
    @make.for_all(xbp.testing.space("numpy"), graphs(), examples=60)
    def check(drawn):
        nodes, inputs, output, seed = drawn
        rng = np.random.default_rng(seed)
        g = xbp.Graph(nodes, inputs=inputs, output=output, backend="numpy", dtype="float64", seed=seed)
        x = {name: rng.normal(size=(2, 3)) for name in inputs}
        dy = rng.normal(size=(2, 3))
        g.forward(x)
        slopes = g.backward(dy, input_gradient=True)
        assert list(g.grads) == list(g.params)
        assert list(slopes) == inputs
        arrays = {**x, **{name: np.array(a) for name, a in g.params.items()}}

        def loss(values):
            g.load_params({name: values[name] for name in g.params})
            return float(np.sum(dy * g.predict({name: values[name] for name in inputs})))

        step = 6e-6
        for name, slope in {**slopes, **g.grads}.items():
            v = rng.normal(size=slope.shape)
            up, down = ({**arrays, name: arrays[name] + s * step * v} for s in (1.0, -1.0))
            numeric, exact = (loss(up) - loss(down)) / (2.0 * step), float(np.sum(slope * v))
            scale = max(np.linalg.norm(slope) * np.linalg.norm(v) / np.sqrt(slope.size), abs(loss(arrays)), 1e-3)
            assert abs(numeric - exact) < 1e-7 * scale, (name, numeric, exact)


def test_random_graphs_are_the_same_in_every_library(space):
    @make.for_all(space, graphs(), examples=8)
    def check(drawn):
        nodes, inputs, output, seed = drawn
        rng = np.random.default_rng(seed)
        x = {name: rng.normal(size=(2, 3)) for name in inputs}
        dy = rng.normal(size=(2, 3))
        here = graph(space, nodes, inputs, output, seed=seed)
        reference = xbp.Graph(nodes, inputs=inputs, output=output, backend="numpy", dtype="float64", seed=seed)
        y = reference.forward(x)
        tol = 1e-12 if space.dtype == "float64" else 1e-5
        atol = tol * max(1.0, float(np.abs(y).max()))
        assert_close(here.forward({n: space.put(a) for n, a in x.items()}), np.asarray(y), space, rtol=tol, atol=atol)
        slopes = here.backward(space.put(dy), input_gradient=True)
        desired = reference.backward(dy, input_gradient=True)
        for ours, theirs in ((slopes, desired), (here.grads, reference.grads)):
            assert list(ours) == list(theirs)
            for name, g in theirs.items():
                atol = 10 * tol * max(1.0, float(np.abs(g).max()))
                assert_close(ours[name], np.asarray(g), space, rtol=10 * tol, atol=atol)


# Chunks, text, files, training.


def test_what_is_broadcast_over_the_batch_is_not_cut_with_it(space):
    two = graph(space, {"y": (xbp.Add(), "a", "b")}, ["a", "b"], "y")
    a = np.arange(12.0).reshape(6, 2)
    for b in (np.array([1.0, 2.0]), np.array([[1.0, 2.0]]), np.asarray(1.0), a * 10.0):
        y = two.predict({"a": space.put(a), "b": space.put(b)}, batch_size=2)
        assert_close(y, a + b, space, rtol=0.0)


def test_the_structure_prints_a_line_a_node_in_the_order_of_computation():
    g = xbp.Graph(dict(reversed(ARTICLE.items())), inputs=["a", "b", "one"], output="e", backend="numpy", seed=4)
    assert str(g) == (
        "Graph of a, b, one on numpy, float32, seed 4\nd = Add()(b, one)\nc = Add()(a, b)\ne = Mul()(c, d)\noutput e"
    )


def test_a_saved_graph_opens_elsewhere_with_the_same_bits(space, tmp_path):
    nodes = {"y": (xbp.Add(), "h", "x"), "h": (xbp.BatchNorm(3), "a"), "a": (xbp.Affine(3, 3), "x")}
    g = graph(space, nodes, ["x"], "y", seed=2)
    x = np.random.default_rng(0).normal(size=(4, 3))
    g.forward(space.put(x), train=True)
    g.save(tmp_path / "graph.safetensors")
    again = xbp.Graph.load(tmp_path / "graph.safetensors", backend="numpy")
    assert again.plan.nodes == g.plan.nodes
    assert list(again.params) == list(g.params)
    for ours, theirs in ((again.params, g.params), (again.buffers, g.buffers)):
        for name, a in theirs.items():
            assert np.asarray(ours[name]).tobytes() == space.get(a).tobytes()
    rtol = 1e-12 if space.dtype == "float64" else 1e-5
    assert_close(g.predict(space.put(x)), np.asarray(again.predict(x.astype(again.dtype))), space, rtol=rtol, atol=rtol)


def test_a_residual_network_with_two_inputs_learns():
    nodes = {
        "p": (xbp.Affine(3, 4), "left"),
        "q": (xbp.Affine(2, 4), "right"),
        "sum": (xbp.Add(), "p", "q"),
        "h": (xbp.Tanh(), "sum"),
        "skip": (xbp.Add(), "h", "p"),
        "y": (xbp.Affine(4, 1), "skip"),
    }
    g = xbp.Graph(nodes, inputs=["left", "right"], output="y", backend="numpy")
    rng = np.random.default_rng(0)
    x = {"left": rng.normal(size=(8, 3)), "right": rng.normal(size=(8, 2))}
    t = rng.normal(size=(8, 1))
    trainer = xbp.Trainer(g, loss=xbp.MeanSquaredError(), optimizer=xbp.Adam(0.05))
    before = trainer.evaluate(x, t)["loss"]
    trainer.fit(x, t, epochs=15, batch_size=8)
    assert trainer.evaluate(x, t)["loss"] < 0.5 * before
