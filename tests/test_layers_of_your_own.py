"""Layers as users write them: in a Network, in a Graph, trained, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import initializers
from xbp.errors import CheckpointError, ShapeError
from xbp.layers import Layer, Parameter
from xbp.layers.base import Result
from xbp.testing import assert_close

N = 6


def x_ND():
    return np.random.default_rng(1).normal(size=(N, 4))


def gradients(net, space, x, dy, train):
    net.forward(space.put(x.astype(net.dtype)), train=train, step=3)
    dx = net.backward(space.put(dy.astype(net.dtype)), input_gradient=True)
    return {"x": dx} | dict(net.grads)


@dataclass(frozen=True)
class Square(Layer):
    """A layer as a user would write it, without parameters: y = x^2."""

    follows = "lecun"

    def forward(self, x, /, *, params, buffers, mode, xp):
        return Result(x * x, x)

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        return 2.0 * dy * cache, {}


@dataclass(frozen=True)
class Scale(Layer):
    """A layer with a parameter, an option and a buffer that counts the training passes: y = c s x."""

    size: int
    c: float = 1.0

    def parameters(self):
        return {"s": Parameter((self.size,), initializers.Uniform(0.5, 1.5))}

    def buffers(self):
        return {"passes": Parameter((1,), initializers.Zeros())}

    def output_shape(self, *shapes):
        if shapes[0] not in (None, (self.size,)):
            raise ShapeError(f"{self} gets rows of shape {shapes[0]}.")
        return (self.size,)

    def forward(self, x, /, *, params, buffers, mode, xp):
        new = {"passes": buffers["passes"] + 1.0} if mode.train else {}
        return Result(self.c * (x * params["s"]), (x, params["s"]), new)

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        x, s = cache
        return self.c * (dy * s) if input_gradient else None, {"s": self.c * xp.sum(dy * x, axis=0)}


def test_layers_of_your_own_work_in_a_network(space):
    layers = [xbp.Affine(4, 3), Square(), Scale(3, c=2.0), xbp.Affine(3, 2)]
    net = xbp.Network(layers, backend=space.backend, dtype=space.dtype, seed=1)
    host = xbp.Network(layers, backend="numpy", dtype="float64", seed=1)
    assert list(net.params) == ["0.W", "0.b", "2.s", "3.W", "3.b"]
    assert str(net).splitlines()[3:5] == [
        "1  Square()                               3",
        "2  Scale(size=3, c=2.0)                   3   3",
    ]
    x, dy = x_ND(), np.random.default_rng(3).normal(size=(N, 2))
    grads = gradients(net, space, x, dy, True)
    for name, g in gradients(host, xbp.testing.space("numpy"), x, dy, True).items():
        assert_close(grads[name], np.asarray(g), space, rtol=1e-4, atol=1e-6)
    assert_close(net.buffers["2.passes"], np.ones(1), space)
    numeric = xbp.testing.numerical_gradient(
        lambda value: float(np.sum(dy * predicted(host, "2.s", value, x))), np.array(host.params["2.s"])
    )
    np.testing.assert_allclose(host.grads["2.s"], numeric, rtol=1e-7)
    drawn = initializers.LeCun()(xbp.random.weight_generator(1, 0), (4, 3))
    np.testing.assert_array_equal(host.params["0.W"], drawn)  # as `follows` asks


def predicted(net, name, value, x):
    net.params[name] = value
    return net.predict(x)


def test_layers_of_your_own_work_in_a_graph(space):
    nodes = {"y": (xbp.Add(), "a", "b"), "a": (Scale(4), "x"), "b": (Square(), "x")}
    g = xbp.Graph(nodes, inputs=["x"], output="y", backend=space.backend, dtype=space.dtype)
    x = x_ND()
    y = g.forward(space.put(x))
    scale = space.get(g.params["a.s"])
    assert_close(y, scale * x + x * x, space, rtol=1e-5)
    dx = g.backward(space.put(np.ones((N, 4))), input_gradient=True)
    assert_close(dx["x"], scale + 2.0 * x, space, rtol=1e-5, atol=1e-6)


def test_layers_of_your_own_train():
    net = xbp.Network([Scale(4), Square(), xbp.Affine(4, 2)], backend="numpy")
    x, t = x_ND(), np.random.default_rng(3).normal(size=(N, 2))
    trainer = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.05))
    before = trainer.evaluate(x, t)["loss"]
    trainer.fit(x, t, epochs=5, batch_size=3)
    assert trainer.evaluate(x, t)["loss"] < before
    assert net.buffers["0.passes"] == 10.0  # two batches an epoch


def test_layers_of_your_own_are_saved_and_loaded_by_the_class_that_you_name(tmp_path):
    net = xbp.Network([xbp.Affine(4, 3), Square(), Scale(3, c=2.0)], backend="numpy", seed=1)
    net.forward(x_ND(), train=True)
    path = tmp_path / "mine.safetensors"
    net.save(path)
    again = xbp.Network.load(path, backend="numpy", custom={"Square": Square, "Scale": Scale})
    assert again.layers == net.layers
    np.testing.assert_array_equal(again.predict(x_ND()), net.predict(x_ND()))
    np.testing.assert_array_equal(again.buffers["2.passes"], [1.0])
    with pytest.raises(CheckpointError, match=r"Unknown class in the file 'Square'.*custom=\{name: class\}"):
        xbp.Network.load(path, backend="numpy")
    with pytest.raises(CheckpointError, match=r"Unknown class in the file 'Scale'"):
        xbp.Network.load(path, backend="numpy", custom={"Square": Square})


def test_a_layer_without_maths_says_what_it_lacks():
    class Empty(Layer):
        pass

    net = xbp.Network([Empty()], backend="numpy")
    assert "Empty()" in str(net)
    with pytest.raises(NotImplementedError, match=r"Empty has no forward\. A layer overrides forward and backward"):
        net.forward(np.ones((1, 2)))
    with pytest.raises(NotImplementedError, match=r"Empty has no backward"):
        Empty().backward(np.ones(1), None, xp=np)


def test_a_layer_that_is_no_layer_is_refused():
    for wrong, match in (
        (xbp.ReLU, r"layers\[1\] is the class ReLU; write ReLU\(\.\.\.\) to make a layer of it"),
        ("relu", r"layers\[1\] is no layer but a str \('relu'\)\. Layers derive from xbp\.layers\.Layer"),
        (np.tanh, r"layers\[1\] is no layer but a ufunc"),
    ):
        with pytest.raises(TypeError, match=match):
            xbp.Network([xbp.Affine(2, 2), wrong], backend="numpy")


def test_parameters_arrive_as_mappings_by_local_name():
    seen: dict[str, Any] = {}

    class Spy(Scale):
        def forward(self, x, /, *, params, buffers, mode, xp):
            seen.update(params=params, buffers=buffers, mode=mode)
            return super().forward(x, params=params, buffers=buffers, mode=mode, xp=xp)

    net = xbp.Network([xbp.Identity(), Spy(3)], backend="numpy")
    net.forward(np.ones((2, 3)), train=True)
    assert isinstance(seen["params"], Mapping)
    assert list(seen["params"]) == ["s"]
    assert list(seen["buffers"]) == ["passes"]
    assert seen["mode"].train is True
