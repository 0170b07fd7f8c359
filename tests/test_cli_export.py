"""`xbp export`: other programs predict from the file what the model predicts."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from cli_helpers import SMALL, refused, run, run_json, write_trees


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trees(tmp_path):
    run("train", write_trees(tmp_path / "trees.csv"), "--target", "tree", *SMALL, "--quiet")
    return xbp.Network.load("trees.safetensors", backend="numpy")


X = np.random.default_rng(0).normal(size=(5, 2)).astype("float32")


def test_onnx(trees):
    pytest.importorskip("onnx", reason="the export is written by onnx: pip install 'xbp[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="compared with ONNX Runtime: pip install 'xbp[onnx]'")
    result = run("export", "trees.safetensors", "trees.onnx")
    assert result.stdout == ""
    assert "trees.onnx: ONNX of the network in trees.safetensors; it takes rows scaled" in result.stderr
    session = runtime.InferenceSession("trees.onnx", providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": X})[0], trees.predict(X), rtol=1e-5, atol=1e-6)
    found = run_json("export", "trees.safetensors", "new.onnx", "--opset", 20)
    assert found == {"file": "new.onnx", "format": "ONNX", "model": "trees.safetensors", "opset": 20}
    refused(2, ["--opset", "from 18 to"], "export", "trees.safetensors", "old.onnx", "--opset", 9)


def test_torch(trees):
    torch = pytest.importorskip("torch", reason="compared with PyTorch: pip install 'xbp[torch]'")
    load_file = pytest.importorskip("safetensors.torch", reason="needs PyTorch").load_file
    assert run_json("export", "trees.safetensors", "torch.safetensors")["format"] == "a PyTorch state dict"
    linear = torch.nn.Linear
    module = torch.nn.Sequential(linear(2, 16), torch.nn.ReLU(), torch.nn.Identity(), linear(16, 3))
    module.load_state_dict(load_file("torch.safetensors"))
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(X)).numpy(), trees.predict(X), rtol=1e-5, atol=1e-6)


def test_a_graph_saved_in_python():
    graph = xbp.Graph({"y": (xbp.Affine(2, 3), "x")}, inputs=["x"], output="y", backend="numpy")
    graph.save("graph.safetensors")
    result = run("export", "graph.safetensors", "torch.safetensors")
    assert result.stderr == "torch.safetensors: a PyTorch state dict of the graph in graph.safetensors\n"


def test_mistakes(trees):
    refused(2, ["FILE", "'trees.pt'", ".onnx or .safetensors"], "export", "trees.safetensors", "trees.pt")
    refused(2, ["the model itself"], "export", "trees.safetensors", "trees.safetensors")
    refused(2, ["--opset", "not .onnx"], "export", "trees.safetensors", "a.safetensors", "--opset", 18)
    refused(1, ["no such file", "trees.safetensors"], "export", "nothing.safetensors", "trees.onnx")
    refused(1, ["no' does not exist"], "export", "trees.safetensors", "no/a.safetensors")
