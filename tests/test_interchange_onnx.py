"""ONNX files of every kind of network predict in ONNX Runtime what the network predicts, for any batch size."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given, settings

import xbp

pytest.importorskip("onnx", reason="the export is written by onnx: pip install 'xbp[onnx]'")
pytest.importorskip("onnxruntime", reason="compared with ONNX Runtime: pip install 'xbp[onnx]'")
import onnx
from onnxruntime import InferenceSession

from engine_networks import CASES
from network_strategies import Described, batch, build, networks
from xbp.errors import CheckpointError, ExchangeError, LibraryMissing, NameUnknown, NotCompiled, RecordingError
from xbp.interchange import export_onnx, onnx_bytes
from xbp.layers.base import Result

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def opened(file):
    """A session that does not merge factors into products: ONNX Runtime keeps them in float32, also of float64."""
    return InferenceSession(file, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulScaleFusion"])


def answer(model, x, **options):
    """What ONNX Runtime says."""
    session = opened(onnx_bytes(model, **options))
    assert [o.name for o in session.get_outputs()] == ["scores"]
    return session.run(None, x if isinstance(x, dict) else {"x": x})[0]


def part(x, n):
    return {k: a[:n] for k, a in x.items()} if isinstance(x, dict) else x[:n]


def assert_same(model, x, **options):
    expected = model.forward(x)
    actual = answer(model, x, **options)
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
    scale = np.abs(expected).max() if expected.dtype.kind == "f" else 1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[model.dtype] * scale)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_trained_networks(case, dtype):
    trainer = case.trainer("numpy", dtype, "eager")
    x, t, w = case.data(dtype)
    trainer.fit(x, t, sample_weight=w, batch_size=7, epochs=1)
    session = opened(onnx_bytes(trainer.model))
    for n in (1, 2, 40):  # one file for all of them
        expected = trainer.model.predict(part(x, n))
        feed = part(x, n) if isinstance(x, dict) else {"x": part(x, n)}
        actual = session.run(["scores"], feed)[0]
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE[dtype] * np.abs(expected).max())


@settings(max_examples=60)
@given(described=networks())
@example(described=Described(inputs=1, width=1, layers=("batch",), outputs=4, bias=False))
def test_random_networks(described):
    model, *_ = build(described)
    x, _, _ = batch(described, 5, seed=1)
    assert_same(model, x)


@pytest.mark.parametrize("norm", [xbp.BatchNorm, xbp.LayerNorm])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_norm_of_width_1_that_has_learnt_nothing(norm, dtype):
    """ONNX Runtime 1.31 takes x - 0 out by itself, and then misses it."""
    net = xbp.Network([xbp.Affine(1, 1, bias=False), norm(1), xbp.Affine(1, 4)], backend="numpy", dtype=dtype)
    assert_same(net, np.random.default_rng(0).normal(size=(5, 1)).astype(dtype))


def names(model):
    made = onnx.load_from_string(onnx_bytes(model))
    return made, [node.op_type for node in made.graph.node]


def test_what_the_file_says_of_itself(tmp_path):
    net = xbp.Network([xbp.Affine(4, 8), xbp.BatchNorm(8), xbp.Dropout(0.5), xbp.Affine(8, 3)], backend="numpy")
    net.metadata = {"classes": ["ash", "birch", "cedar"]}
    export_onnx(net, tmp_path / "net.onnx", opset=20)
    made = onnx.load(tmp_path / "net.onnx")
    assert [(o.domain, o.version) for o in made.opset_import] == [("", 20)]
    assert (made.producer_name, made.producer_version) == ("xbp", xbp.__version__)
    facts = {p.key: p.value for p in made.metadata_props}
    assert (facts["opset"], facts["dtype"]) == ("20", "float32")
    assert json.loads(facts["metadata"]) == net.metadata
    held = {a.name: onnx.numpy_helper.to_array(a) for a in made.graph.initializer}
    for name, a in {**net.params, **net.buffers}.items():
        np.testing.assert_array_equal(held[name], a)
    (x,) = made.graph.input
    assert [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim] == ["N", 4]
    assert any(node.name.startswith("3 Affine/MatMul") for node in made.graph.node)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


def test_gelu_is_erf_and_its_other_form_tanh():
    def operators(layer):
        return set(names(xbp.Network([xbp.Affine(2, 2), layer], backend="numpy"))[1])

    assert "Erf" in operators(xbp.GELU())
    assert operators(xbp.GELU("tanh")) >= {"Tanh"}
    assert operators(xbp.Dropout()) == {"MatMul", "Add", "Identity"}


@pytest.mark.parametrize("opset", [18, 19, 21, 23])
def test_newer_operators(opset):
    net = xbp.Network([xbp.Affine(3, 4), xbp.LayerNorm(4), xbp.Softplus(), xbp.Softmax()], backend="numpy")
    assert_same(net, np.random.default_rng(0).normal(size=(5, 3)).astype("float32"), opset=opset)


@pytest.mark.parametrize("backend", ["strict", "torch", "jax"])
def test_other_backends_write_the_same_file(backend):
    layers = [xbp.Affine(3, 4), xbp.GELU(), xbp.Affine(4, 2)]
    try:
        there = xbp.Network(layers, backend=backend)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))
    assert onnx_bytes(there).replace(backend.encode(), b"numpy") == onnx_bytes(
        xbp.Network(layers, backend="numpy")
    ) or (
        onnx.load_from_string(onnx_bytes(there)).graph.node
        == onnx.load_from_string(onnx_bytes(xbp.Network(layers, backend="numpy"))).graph.node
    )


# --- layers of somebody else's ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Formula(xbp.Layer):
    """Whatever a function computes with x and xp."""

    f: Callable[..., object]

    def forward(self, x, /, *, params, buffers, mode, xp):
        return Result(self.f(x, xp), None)


def ints(x, xp):
    return xp.astype(x * 10.0, xp.int32)


FORMULAS = {
    "all": lambda x, xp: xp.where(xp.all(x > -1.0, axis=1), 1.0, x[:, 0]),
    "arange": lambda x, xp: x * xp.astype(xp.arange(4, dtype=xp.int32, device=x.device), x.dtype),
    "argmax": lambda x, xp: xp.argmax(x, axis=-1),
    "argmax-of-all": lambda x, xp: x[:, 0] * xp.astype(xp.argmax(x), x.dtype),
    "asarray": lambda x, xp: x + xp.asarray([[1.0], [2.0]], dtype=x.dtype, device=x.device)[0, ...],
    "bits": lambda x, xp: (ints(x, xp) & 12) | (ints(x, xp) ^ 5) | ~ints(x, xp),
    "bools": lambda x, xp: xp.where(((x > 0.0) & (x < 1.0)) | ~(x <= 2.0) ^ (x >= 3.0), x, -x),
    "broadcast": lambda x, xp: xp.broadcast_to(x[:, :1], x.shape),
    "broadcast-a-row": lambda x, xp: xp.broadcast_to(x[0, :], x.shape),
    "concat": lambda x, xp: xp.concat([x, x[:, 1:], -x], axis=1),
    "count": lambda x, xp: x / xp.sum(xp.ones_like(x[:, 0])),
    "equal": lambda x, xp: xp.where((ints(x, xp) == 3) & (x != 0.5), 1.0, x),
    "expm1": lambda x, xp: xp.expm1(x * 1e-3),
    "expm1-far": lambda x, xp: xp.expm1(x * 8.0),
    "fill": lambda x, xp: x * xp.full((4,), 3.0, dtype=x.dtype, device=x.device) + xp.zeros_like(x),
    "getitem": lambda x, xp: x[:, 3:0:-2],
    "getitem-last": lambda x, xp: x[..., -1] + x[:, 1],
    "getitem-new": lambda x, xp: (x[:, None, :2] * x[:, 2:, None])[:, 0, ...],
    "isfinite": lambda x, xp: xp.where(xp.isfinite(xp.log(x)), x, 7.0),
    "log1p": lambda x, xp: xp.log1p(xp.abs(x) * 1e-4),
    "log1p-far": lambda x, xp: xp.log1p(xp.abs(x) * 1e4),
    "maxima": lambda x, xp: xp.maximum(x, 0.5) - xp.minimum(x, xp.min(x, axis=1, keepdims=True)),
    "mean": lambda x, xp: x - xp.mean(x, axis=0) + xp.mean(x),
    "outer": lambda x, xp: xp.sum(xp.matmul(xp.matrix_transpose(x), x)) * x,
    "power": lambda x, xp: xp.abs(x) ** 1.5 + x**2,
    "reshape": lambda x, xp: xp.reshape(xp.reshape(x, (-1, 2, 2)) + 1.0, (-1, 4)),
    "rows": lambda x, xp: xp.reshape(xp.reshape(x, (-1,)), (-1, 4)),
    "sign": lambda x, xp: xp.sign(x) * xp.sqrt(xp.abs(x)),
    "stack": lambda x, xp: xp.sum(xp.stack([x, x * 2.0], axis=1), axis=1),
    "sum-of-integers": lambda x, xp: xp.sum(ints(x, xp), axis=1),
    "take": lambda x, xp: xp.take(x, xp.asarray([2, 0], dtype=xp.int32, device=x.device), axis=1),
    "transpose": lambda x, xp: xp.matrix_transpose(x[:, :, None] * x[:, None, :])[:, 1, ...],
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(FORMULAS))
@pytest.mark.filterwarnings("ignore:(divide by zero|invalid value):RuntimeWarning")  # of log, which is what is tested
def test_every_operation(name, dtype):
    net = xbp.Network([Formula(FORMULAS[name])], backend="numpy", dtype=dtype)
    assert_same(net, np.random.default_rng(1).normal(size=(6, 4)).astype(dtype), rows=(4,))


def test_small_numbers_keep_their_digits():
    """A lowering by exp(x) - 1 and log(1 + x) would lose all of them."""
    net = xbp.Network([Formula(lambda x, xp: xp.log1p(xp.expm1(x)))], backend="numpy")
    x = np.geomspace(1e-30, 10, 40, dtype="float32")[:, None]
    np.testing.assert_allclose(answer(net, x, rows=(1,)), x, rtol=3e-6)
    net = xbp.Network([Formula(lambda x, xp: xp.log1p(x))], backend="numpy")
    np.testing.assert_array_equal(answer(net, np.float32([[np.inf], [-1], [0]]), rows=(1,)), [[np.inf], [-np.inf], [0]])
    net = xbp.Network([Formula(lambda x, xp: xp.expm1(x))], backend="numpy")
    np.testing.assert_array_equal(answer(net, np.float32([[np.inf], [-np.inf], [0]]), rows=(1,)), [[np.inf], [-1], [0]])


def test_what_cannot_be_exported_says_why(tmp_path, monkeypatch):
    def formula(f):
        return xbp.Network([xbp.Affine(4, 4), Formula(f)], backend="numpy")

    with pytest.raises(NotCompiled, match=r"'bitwise_right_shift' of 1 Formula.forward: it has no operator"):
        onnx_bytes(formula(lambda x, xp: ints(x, xp) >> 2))
    with pytest.raises(RecordingError, match=r"number of rows, x.shape\[0\]"):
        onnx_bytes(formula(lambda x, xp: x / float(x.shape[0])))
    with pytest.raises(RecordingError, match="Compute with functions of xp alone"):
        onnx_bytes(formula(lambda x, xp: x * float(x[0, 0])))
    net = xbp.Network([xbp.Affine(4, 4)], backend="numpy")
    for opset in (17, 1000, "18", True):
        with pytest.raises(ExchangeError, match="from 18 to"):
            onnx_bytes(net, opset=opset)
    with pytest.raises(xbp.ShapeError, match=r"rows={'x': \(10,\)}"):
        onnx_bytes(xbp.Network([xbp.ReLU()], backend="numpy"))
    with pytest.raises(xbp.ShapeError, match="width 4"):
        onnx_bytes(net, rows=(5,))
    with pytest.raises(NameUnknown, match="input in rows= 'z'"):
        onnx_bytes(net, rows={"z": (4,)})
    with pytest.raises(CheckpointError, match="does not exist"):
        export_onnx(net, tmp_path / "no" / "net.onnx")
    graph = xbp.Graph({"a": (xbp.Affine(2, 2), "a.b")}, inputs=["a.b"], output="a", backend="numpy")
    with pytest.raises(ExchangeError, match="rename it"):
        onnx_bytes(graph)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(LibraryMissing, match=r"export_onnx needs onnx.*pip install 'xbp\[onnx\]'"):
        onnx_bytes(net)


def test_widths_are_found_through_activations():
    net = xbp.Network([xbp.Tanh(), xbp.Dropout(), xbp.LayerNorm(3)], backend="numpy")
    assert_same(net, np.random.default_rng(1).normal(size=(2, 3)).astype("float32"))
    graph = xbp.Graph(
        {"h": (xbp.ReLU(), "scores"), "y": (xbp.Mul(), "h", "scale")},
        inputs=["scores", "scale"],
        output="y",
        backend="numpy",
    )
    x = {"scores": np.float32([[1, -2]]), "scale": np.float32([[3]])}
    made = onnx.load_from_string(onnx_bytes(graph, rows={"scores": (2,), "scale": (1,)}))
    assert [o.name for o in made.graph.output] == ["scores_"]
    session = opened(made.SerializeToString())
    np.testing.assert_array_equal(session.run(None, x)[0], [[3, 0]])
