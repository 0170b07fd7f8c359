"""Weights to and from PyTorch: modules predict the same, state dicts have its names, and it reads our files."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xbp

pytest.importorskip("torch", reason="compared with PyTorch: pip install 'xbp[torch]'")
import torch
from safetensors.torch import load_file
from torch import nn

from xbp.errors import CheckpointError, ExchangeError, NameUnknown, ShapeError
from xbp.interchange import export_safetensors, from_torch, to_torch, torch_state_dict

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
MIDDLE = {
    "relu": xbp.ReLU(),
    "leaky": xbp.LeakyReLU(0.2),
    "elu": xbp.ELU(0.7),
    "gelu": xbp.GELU(),
    "gelu-tanh": xbp.GELU("tanh"),
    "silu": xbp.SiLU(),
    "softplus": xbp.Softplus(1.5),
    "sigmoid": xbp.Sigmoid(),
    "tanh": xbp.Tanh(),
    "softmax": xbp.Softmax(),
    "identity": xbp.Identity(),
    "dropout": xbp.Dropout(0.3),
    "layer-norm": xbp.LayerNorm(6, eps=1e-3),
    "batch-norm": xbp.BatchNorm(6, momentum=0.3),
    "affine": xbp.Affine(6, 6, bias=False),
}


def network(*layers, dtype="float64", seed=1, backend="numpy"):
    """With weights, offsets and running statistics that are no longer the first."""
    net = xbp.Network([xbp.Affine(4, 6), *layers, xbp.Affine(6, 3)], backend=backend, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for section in (net.params, net.buffers):
        for name, a in section.items():
            section[name] = rng.uniform(0.2, 1.5, tuple(a.shape)).astype(dtype)
    return net


def rows(n=5, dtype="float64"):
    return np.random.default_rng(7).normal(size=(n, 4)).astype(dtype)


def scores(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


@settings(max_examples=40)
@given(
    names=st.lists(st.sampled_from(sorted(MIDDLE)), max_size=5),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_a_network_goes_there_and_comes_back(names, dtype, seed):
    net, x = network(*(MIDDLE[n] for n in names), dtype=dtype, seed=seed), rows(dtype=dtype)
    module = to_torch(net)
    assert not module.training
    y = net.predict(x)
    there = scores(module, x)
    assert there.dtype == dtype
    np.testing.assert_allclose(there, y, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * np.abs(y).max())
    back = from_torch(module, backend="numpy")
    assert back.layers == net.layers
    assert back.dtype == dtype
    for section in ("params", "buffers"):
        for name, a in getattr(net, section).items():
            np.testing.assert_array_equal(getattr(back, section)[name], a)
    state = from_torch(module.state_dict(), net.layers, backend="numpy")
    np.testing.assert_array_equal(state.predict(x), y)


def test_names_and_layouts_are_those_of_a_sequential():
    net = network(xbp.BatchNorm(6), xbp.ReLU(), xbp.LayerNorm(6))
    state = torch_state_dict(net)
    module = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3)).double()
    assert {k: (tuple(v.shape), v.dtype) for k, v in state.items()} == {
        k: (tuple(v.shape), v.dtype) for k, v in module.state_dict().items()
    }
    np.testing.assert_array_equal(state["0.weight"].numpy(), net.params["0.W"].T)
    state["0.weight"].zero_()  # a copy
    assert np.all(net.params["0.W"] != 0)
    graph = xbp.Graph({"y": (xbp.Affine(2, 3), "x")}, inputs=["x"], output="y", backend="numpy")
    assert list(torch_state_dict(graph)) == ["y.weight", "y.bias"]


def test_a_sequential_made_there_is_read():
    module = nn.Sequential(
        nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6, affine=False), nn.Tanh()),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.Linear(6, 2, bias=False),
        nn.Softmax(dim=1),
    ).eval()
    module[0][1].running_mean.fill_(0.3)
    net = from_torch(module, backend="numpy")
    assert [type(layer).__name__ for layer in net.layers] == [
        "Affine", "BatchNorm", "Tanh", "LayerNorm", "Affine", "Softmax",
    ]  # fmt: skip
    x = rows(dtype="float32")
    np.testing.assert_allclose(net.predict(x), scores(module, x), atol=1e-6)
    half = from_torch(module.to(torch.bfloat16), backend="numpy")
    assert half.dtype == "float32"
    np.testing.assert_allclose(half.predict(x), net.predict(x), atol=0.05)
    assert from_torch(module.double(), backend="numpy").dtype == "float64"


def test_a_state_dict_of_a_module_of_ones_own():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 3)

        def forward(self, x):
            return self.outer(torch.relu(self.inner(x)))

    mine = Mine()
    net = from_torch(mine.state_dict(), [xbp.Affine(4, 6), xbp.ReLU(), xbp.Affine(6, 3)], backend="numpy")
    np.testing.assert_allclose(net.predict(rows(dtype="float32")), scores(mine, rows(dtype="float32")), atol=1e-6)
    with pytest.raises(ExchangeError, match=r"state_dict\(\) and layers="):
        from_torch(mine)


@pytest.mark.parametrize("layout", ["torch", "xbp"])
def test_safetensors_files_are_read_there(tmp_path, layout):
    net = network(xbp.BatchNorm(6), xbp.GELU(), dtype="float32")
    path = tmp_path / "net.safetensors"
    export_safetensors(net, path, layout=layout)
    loaded = load_file(path)
    if layout == "torch":
        module = to_torch(net)
        for a in module.state_dict().values():
            a.zero_()
        module.load_state_dict(loaded)
        np.testing.assert_allclose(scores(module, rows(dtype="float32")), net.predict(rows()), rtol=1e-5)
        assert {k: str(v.dtype) for k, v in loaded.items()}["1.num_batches_tracked"] == "torch.int64"
        np.testing.assert_array_equal(from_torch(loaded, net.layers, backend="numpy").params["0.W"], net.params["0.W"])
        with pytest.raises(CheckpointError, match="PyTorch state dict, not a network"):
            xbp.Network.load(path)
    else:
        held = {**net.params, **net.buffers}
        assert set(loaded) == set(held)
        for name, a in loaded.items():
            np.testing.assert_array_equal(a.numpy(), held[name])
    with pytest.raises(NameUnknown, match="layout 'keras'"):
        export_safetensors(net, path, layout="keras")


def test_more_than_ten_modules_from_a_file(tmp_path):
    net = network(*[layer for _ in range(6) for layer in (xbp.Affine(6, 6), xbp.Tanh())])
    export_safetensors(net, tmp_path / "deep.safetensors")
    again = from_torch(load_file(tmp_path / "deep.safetensors"), net.layers, backend="numpy")
    np.testing.assert_array_equal(again.predict(rows()), net.predict(rows()))


@pytest.mark.parametrize("backend", ["strict", "torch", "jax"])
def test_other_backends(backend):
    try:
        net = network(xbp.ReLU(), dtype="float32", backend=backend)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))
    x = rows(dtype="float32")
    np.testing.assert_allclose(scores(to_torch(net), x), net.backend.to_host(net.predict(x)), rtol=1e-5)
    again = from_torch(to_torch(net), backend=backend)
    np.testing.assert_array_equal(again.backend.to_host(again.params["2.W"]), net.backend.to_host(net.params["2.W"]))


class Cube(xbp.Layer):
    def forward(self, x, /, *, params, buffers, mode, xp):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (lambda: nn.Sequential(nn.Conv2d(1, 2, 3)), "'0', Conv2d.*no counterpart"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=0)), "'1'.*dim=1"),
        (lambda: nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), "running statistics"),
        (lambda: nn.Sequential(nn.BatchNorm1d(2, momentum=None)), "fixed momentum"),
        (lambda: nn.Sequential(nn.LayerNorm((2, 3))), "single axis"),
        (lambda: nn.Linear(2, 2), "it got a torch.nn.modules.linear.Linear"),
    ],
)
def test_modules_without_a_counterpart(module, words):
    with pytest.raises(ExchangeError, match=words):
        from_torch(module(), backend="numpy")


def test_weights_that_do_not_fit():
    state = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).state_dict()
    with pytest.raises(ExchangeError, match="give layers="):
        from_torch(state)
    with pytest.raises(ExchangeError, match="belongs to a state dict"):
        from_torch(nn.Sequential(nn.Linear(1, 1)), [xbp.Affine(1, 1)])
    with pytest.raises(ShapeError, match=r"2 modules \(0, 2\); 1 layers have some"):
        from_torch(state, [xbp.Affine(4, 6)], backend="numpy")
    with pytest.raises(ShapeError, match=r"Module '2' does not fit layer '1', Affine"):
        from_torch(state, [xbp.Affine(4, 6), xbp.Affine(6, 2)], backend="numpy")
    with pytest.raises(ExchangeError, match="Module '0' has bias, for which"):
        from_torch(state, [xbp.Affine(4, 6, bias=False), xbp.Affine(6, 3)], backend="numpy")
    del state["2.bias"]
    with pytest.raises(ExchangeError, match="'2' has no 'bias'"):
        from_torch(state, [xbp.Affine(4, 6), xbp.Affine(6, 3)], backend="numpy")


def test_layers_that_pytorch_lacks():
    with pytest.raises(ExchangeError, match="'1' is Cube"):
        to_torch(network(Cube()))
    with pytest.raises(ExchangeError, match="a Graph is none"):
        to_torch(xbp.Graph({"y": (xbp.Affine(2, 3), "x")}, inputs=["x"], output="y", backend="numpy"))
