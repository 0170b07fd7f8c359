"""Networks as a whole: how they are made, what they print, how they are saved, and prediction in chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xbp
from xbp.errors import CheckpointError, ShapeError
from xbp.testing import assert_close

N, D, H, C = 6, 4, 5, 3
LAYERS = [xbp.Affine(D, H), xbp.ReLU(), xbp.Affine(H, C)]
NAMES = {"0.W": (D, H), "0.b": (H,), "2.W": (H, C), "2.b": (C,)}


def network(space, layers=LAYERS, **options):
    return xbp.Network(layers, backend=space.backend, **{"dtype": space.dtype, "seed": 1, **options})


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)), rng.normal(size=(N, C))


# Construction, text, files.


@pytest.mark.parametrize("seed", [-1, 0.5, "one", None, True])
def test_seeds_are_whole_numbers(seed):
    with pytest.raises(ValueError, match=r"seed must be a whole number of at least 0; it is "):
        xbp.Network(LAYERS, backend="numpy", seed=seed)


def test_a_network_is_a_list_of_layers():
    assert xbp.Network(iter(LAYERS), backend="numpy").layers == tuple(LAYERS)
    assert xbp.Network(LAYERS, backend="numpy", seed=np.int64(3)).seed == 3
    with pytest.raises(TypeError, match=r"layers must be a list of layers; it is a ReLU\. Write \[ReLU\(\)\]"):
        xbp.Network(xbp.ReLU(), backend="numpy")
    with pytest.raises(ShapeError, match=r"A Network needs at least one layer; the list of layers is empty"):
        xbp.Network([], backend="numpy")
    with pytest.raises(
        ShapeError, match=r"layers\[1\] is Add\(\), which takes 2 inputs\. A Network is a chain; use xbp"
    ):
        xbp.Network([xbp.ReLU(), xbp.Add()], backend="numpy")
    with pytest.raises(
        ShapeError, match=r"Layer '1', after '0': Affine\(in_features=3, out_features=2\) takes rows of width 3"
    ):
        xbp.Network([xbp.Affine(4, 5), xbp.Affine(3, 2)], backend="numpy")


def test_the_structure_prints_a_line_a_layer():
    net = xbp.Network(
        [xbp.Affine(784, 50), xbp.BatchNorm(50), xbp.ReLU(), xbp.Dropout(0.2), xbp.Affine(50, 10)],
        backend="numpy",
        seed=7,
    )
    assert str(net) == (
        "Network on numpy, float32, seed 7, 39,860 parameters\n"
        "   input                                     784\n"
        "0  Affine(in_features=784, out_features=50)   50  39,250\n"
        "1  BatchNorm(size=50)                         50     100\n"
        "2  ReLU()                                     50\n"
        "3  Dropout(p=0.2)                             50\n"
        "4  Affine(in_features=50, out_features=10)    10     510"
    )
    assert repr(xbp.Network([xbp.ReLU()], backend="numpy")) == (
        "Network([ReLU()], backend='numpy', dtype='float32', seed=0)"
    )
    assert str(xbp.Network([xbp.ReLU()], backend="numpy")).splitlines()[1:] == ["   input   any", "0  ReLU()  any"]


@pytest.mark.parametrize("direction", ["to the host", "from the host"])
def test_a_saved_network_opens_on_another_backend_with_the_same_bits(space, tmp_path, direction):
    layers = [xbp.Affine(D, H), xbp.BatchNorm(H, momentum=0.5), xbp.GELU("tanh"), xbp.Dropout(), xbp.Affine(H, C)]
    there = xbp.testing.space("numpy")
    for dtype in space.dtypes:
        source, target = (space, there) if direction == "to the host" else (there, space)
        net = network(source, layers, dtype=dtype)
        net.forward(source.put(data()[0]), train=True)
        net.metadata["classes"] = ["a", "b", "c"]
        path = tmp_path / f"{dtype}.safetensors"
        net.save(path)
        again = xbp.Network.load(path, backend=target.backend)
        assert again.layers == tuple(layers)
        assert (again.dtype, again.seed, again.passes) == (dtype, 1, 1)
        assert again.metadata == {"classes": ["a", "b", "c"]}
        for ours, theirs in ((again.params, net.params), (again.buffers, net.buffers)):
            assert list(ours) == list(theirs)
            for name, a in theirs.items():
                assert target.get(ours[name]).tobytes() == source.get(a).tobytes()
        rtol = 1e-12 if dtype == "float64" else 1e-5
        x = data(1)[0].astype(dtype)
        assert_close(again.predict(target.put(x)), source.get(net.predict(source.put(x))), target, rtol=rtol, atol=rtol)


def test_a_network_is_no_graph_when_loaded(tmp_path):
    path = tmp_path / "model.safetensors"
    network(xbp.testing.space("numpy")).save(path)
    with pytest.raises(CheckpointError, match=r"holds a network, not a graph; load it with xbp\.Network\.load"):
        xbp.Graph.load(path)


# Prediction.


def test_predicting_in_chunks_is_predicting_at_once(space):
    """In small whole numbers, where no order of summation changes a bit."""
    net = network(space)
    rng = np.random.default_rng(0)
    for name, a in net.params.items():
        net.params[name] = rng.integers(-3, 4, tuple(a.shape)).astype(space.dtype)
    x = rng.integers(-5, 6, (12, D)).astype(np.float64)
    W, b, V, c = (space.get(a) for a in net.params.values())
    whole = space.get(net.predict(space.put(x)))
    np.testing.assert_array_equal(whole, np.maximum(x @ W + b, 0.0) @ V + c)
    for rows in (space.put(x), x, x.tolist()):
        for batch_size in (6, 5, 12, 100, np.int64(6)):
            y = net.predict(rows, batch_size=batch_size)
            assert_close(y, whole, space, rtol=0.0)
    assert dict(net.cache) == {}


def test_predicting_uses_the_functions_of_prediction(space):
    net = network(space, [xbp.BatchNorm(D), xbp.Dropout(0.5)])
    x = data()[0]
    assert_close(net.predict(space.put(x)), x / math.sqrt(1.0 + 1e-5), space, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, None, True])
def test_a_batch_size_is_a_whole_number(batch_size):
    net = network(xbp.testing.space("numpy"))
    with pytest.raises(ValueError, match=r"batch_size must be a whole number of at least 1; it is "):
        net.predict(data()[0], batch_size=batch_size)
