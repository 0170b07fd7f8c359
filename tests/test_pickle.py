"""Networks and graphs through pickle, copy and skops: the same model on the same backend, with arrays of its own."""

from __future__ import annotations

import copy
import dataclasses
import logging
import pickle
from typing import ClassVar

import numpy as np
import pytest

import xbp
from xbp.layers.base import Result

X = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


@dataclasses.dataclass(frozen=True)
class Doubling(xbp.initializers.Zeros):
    def __call__(self, rng, shape):
        return np.full(shape, 2.0)


@dataclasses.dataclass(frozen=True)
class Scaled(xbp.Layer):
    """A layer of somebody else's, with a parameter and an initialiser of its own."""

    init: Doubling = Doubling()
    follows: ClassVar[str | None] = None

    def parameters(self):
        return {"s": xbp.layers.Parameter((), self.init)}

    def forward(self, x, /, *, params, buffers, mode, xp):
        return Result(x * params["s"], None)


def network(backend="numpy", *layers):
    net = xbp.Network(
        [xbp.Affine(4, 6), xbp.BatchNorm(6), *layers, xbp.Dropout(0.2), xbp.Affine(6, 3)],
        backend=backend,
        seed=np.int64(3),
    )
    net.forward(X, train=True)  # moves running statistics, and counts
    net.metadata = {"classes": ["a", "b"], "odd": [float("nan"), {"$x": 1}]}
    return net


WAYS = {
    "pickle": lambda m: pickle.loads(pickle.dumps(m)),
    "oldest-pickle": lambda m: pickle.loads(pickle.dumps(m, protocol=2)),
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
}


@pytest.mark.parametrize("backend", ["numpy", "strict", "torch", "jax"])
@pytest.mark.parametrize("way", WAYS)
def test_a_network_comes_back(way, backend):
    try:
        net = network(backend)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))
    again = WAYS[way](net)
    assert type(again) is xbp.Network
    assert (again.layers, again.dtype, again.seed, again.passes) == (net.layers, net.dtype, net.seed, 1)
    assert (again.backend.name, str(again.backend.device)) == (net.backend.name, str(net.backend.device))
    assert repr(again.metadata) == repr(net.metadata)
    host = net.backend.to_host
    np.testing.assert_array_equal(host(again.predict(X)), host(net.predict(X)))
    np.testing.assert_array_equal(host(again.forward(X, train=True)), host(net.forward(X, train=True)))  # same masks
    before = host(net.params["0.W"])
    again.params["0.W"] = np.zeros((4, 6), dtype="float32")
    np.testing.assert_array_equal(host(net.params["0.W"]), before)


def test_a_graph_and_layers_of_ones_own():
    graph = xbp.Graph({"y": (Scaled(), "h"), "h": (xbp.Affine(4, 3), "x")}, inputs=["x"], output="y", backend="numpy")
    again = pickle.loads(pickle.dumps(graph))
    assert isinstance(again, xbp.Graph)
    np.testing.assert_array_equal(again.predict({"x": X}), graph.predict({"x": X}))
    assert again.plan.nodes == graph.plan.nodes


def test_a_network_in_training_gives_its_newest_weights():
    net = xbp.Network([xbp.Affine(4, 3)], backend="numpy")
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1))
    trainer.step(X, np.zeros(5, dtype="int32"))
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(again.params["0.W"], net.params["0.W"])
    trainer.step(X, np.zeros(5, dtype="int32"))
    assert np.abs(again.params["0.W"] - net.params["0.W"]).max() > 0


def test_a_backend_that_cannot_run_here_is_replaced(caplog):
    state = network().__getstate__()
    net = object.__new__(xbp.Network)
    with caplog.at_level(logging.WARNING, "xbp.model"):
        net.__setstate__({**state, "backend": "mylib", "device": "mylib:0"})
    assert "backend 'mylib'" in caplog.text
    assert net.backend.name == xbp.get_backend("auto").name


def test_skops_keeps_a_network_without_pickle():
    skops = pytest.importorskip("skops.io", reason="whole objects without pickle: pip install 'xbp[skops]'")
    net = network()
    data = skops.dumps(net)
    trusted = skops.get_untrusted_types(data=data)
    assert trusted == ["xbp.network.Network"]
    again = skops.loads(data, trusted=trusted)
    np.testing.assert_array_equal(again.predict(X), net.predict(X))
