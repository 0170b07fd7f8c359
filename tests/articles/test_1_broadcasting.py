"""Article 1: the gradients of linear, ReLU, linear and mean squared error by broadcasting, checked against autograd.

The article's check passes although its code does not run as printed, compares one gradient twice and others never, and
would pass for gradients that are wrong. Here every gradient is compared, by name, relative to its size.
"""

from __future__ import annotations

import re
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import by_hand
import numpy as np
import pytest
from inventory import ids
from run_in import few_shapes, over

import xbp
from xbp.kernels import add, affine, mul, relu, sigmoid, softmax
from xbp.layers.base import Result
from xbp.testing import assert_close

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = by_hand.TOLERANCE
LAYERS = [xbp.Affine(784, 50), xbp.ReLU(), xbp.Affine(50, 1)]
NAMES = {"0.W": "w1", "0.b": "b1", "2.W": "w2", "2.b": "b2"}


def small(N=6, D=5, M=3, seed=0):
    """x (N, D), W (D, M), b (M,), dy (N, M)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)), rng.normal(size=(D, M)), rng.normal(size=M), rng.normal(size=(N, M))


def article_data(dtype, seed=0):
    """The article's sizes and its unscaled weights, from N(0, 1)."""
    rng = np.random.default_rng(seed)
    shapes = {"x": (1000, 784), "0.W": (784, 50), "0.b": (50,), "2.W": (50, 1), "2.b": (1,)}
    arrays = {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    return arrays, rng.normal(size=1000).astype(dtype)


def article_loss(torch, x, w1, b1, w2, b2, *, target):
    return (((x @ w1 + b1).clamp_min(0) @ w2 + b2).squeeze(-1) - torch.tensor(target)).pow(2).mean()


def hosts(space, arrays):
    return {name: space.get(a) for name, a in arrays.items()}


# A step forward, and a step backward.


@ids("S1-01", "S1-02", "S1-04", "S1-05", "B1-10")
@pytest.mark.parametrize(
    ("kernel", "shapes"),
    [
        pytest.param(add, [(6, 3), (3,)], id="add"),
        pytest.param(mul, [(6, 3), (6, 1)], id="mul"),
        pytest.param(affine, [(6, 5), (5, 3), (3,)], id="affine"),
        pytest.param(relu, [(6, 3)], id="relu"),
        pytest.param(sigmoid, [(6, 3)], id="sigmoid"),
    ],
)
def test_forward_makes_one_output_and_backward_a_gradient_for_each_input_of_its_shape(space, kernel, shapes):
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape) for shape in shapes]
    y, cache = kernel.forward(*map(space.put, inputs), xp=space.xp)
    dy = rng.normal(size=y.shape)
    found = kernel.backward(space.put(dy), cache, xp=space.xp)
    grads = found if isinstance(found, tuple) else (found,)
    assert [g.shape for g in grads] == shapes
    for i, g in enumerate(grads):
        numeric = xbp.numerical_gradient(
            lambda a, i=i: float(np.sum(dy * kernel.forward(*inputs[:i], a, *inputs[i + 1 :], xp=np)[0])), inputs[i]
        )
        assert by_hand.relative_error(space.get(g), numeric) < (1e-5 if space.dtype == "float32" else 1e-8)
    with pytest.raises(AttributeError):
        inputs[0].g = grads[0]  # the article's notation x.g needs an array that takes attributes; xbp returns gradients


@ids("S1-03", "S2-08")
def test_backward_steps_one_after_the_other_are_the_chain_rule():
    """The three backwards of affine, ReLU and softmax give the product of the Jacobians, each taken by differences."""
    x, W, b, dy = small()
    z, c1 = affine.forward(x, W, b, xp=np)
    a, c2 = relu.forward(z, xp=np)
    p, c3 = softmax.forward(a, xp=np)
    dx, _, _ = affine.backward(relu.backward(softmax.backward(dy, c3, xp=np), c2, xp=np), c1, xp=np)

    def jacobian(f, at):
        rows = [xbp.numerical_gradient(lambda v, i=i: f(v).ravel()[i], at).ravel() for i in range(f(at).size)]
        return np.array(rows)

    stages = [
        jacobian(lambda v: softmax.forward(v, xp=np)[0], a),
        jacobian(lambda v: np.maximum(v, 0.0), z),
        jacobian(lambda v: v @ W + b, x),
    ]
    assert [j.shape for j in stages] == [(18, 18), (18, 18), (18, 30)]
    assert by_hand.relative_error(dx.ravel(), dy.ravel() @ stages[0] @ stages[1] @ stages[2]) < 1e-8
    assert by_hand.relative_error(p, np.exp(a) / np.exp(a).sum(1, keepdims=True)) < 1e-14


# The linear function.


@ids("S1-06", "S1-07", "S1-08", "S1-09", "S1-11", "B1-06")
def test_products_of_matrices_give_what_the_articles_broadcasting_gives(space):
    x, W, b, dy = small()
    y, cache = affine.forward(*map(space.put, (x, W, b)), xp=space.xp)
    atol = 1e-14 if space.dtype == "float64" else 1e-6
    assert_close(y, x @ W + b, space, atol=atol)
    grads = affine.backward(space.put(dy), cache, xp=space.xp)
    for g, desired in zip(grads, by_hand.back_lin(x, W, b, dy), strict=True):
        assert_close(g, desired, space, atol=atol)


@ids("S1-06", "S1-10", "B1-06")
def test_at_the_articles_size_the_result_is_the_same_without_the_intermediate():
    x, W, b, dy = (a.astype(np.float32) for a in small(1000, 784, 50))
    product = np.broadcast_shapes(dy[:, None, :].shape, W.shape)
    assert product == np.broadcast_shapes(x[:, :, None].shape, dy[:, None, :].shape) == (1000, 784, 50)
    # Summed over its last axis the product has x's shape, over its first W's; as sums of products they are the same.
    desired = np.einsum("nm,dm->nd", dy, W), np.einsum("nd,nm->dm", x, dy), dy.sum(0)
    y, cache = affine.forward(x, W, b, xp=np)
    assert y.shape == (1000, 50)
    tracemalloc.start()
    grads = affine.backward(dy, cache, xp=np)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    for g, d in zip(grads, desired, strict=True):
        assert by_hand.relative_error(g, d) < 1e-5
    assert peak < 0.05 * 4 * np.prod(product)  # of the 157 MB that the broadcasting form takes
    part = slice(0, 20)
    teaching = by_hand.back_lin(x[part], W, b, dy[part])
    assert by_hand.relative_error(grads[0][part], teaching[0]) < 1e-5


# ReLU and the mean squared error.


@ids("S1-12", "S1-13", "B1-11")
def test_relu_and_its_slope_keep_the_dtype(space):
    x = np.array([[-2.0, 0.0, 0.5], [3.0, -0.1, 1e-30]])
    dy = np.array([[1.0, 2.0, 3.0], [-4.0, 5.0, 6.0]])
    for dtype in space.dtypes:
        y, cache = relu.forward(space.put(x.astype(dtype)), xp=space.xp)
        assert_close(y, np.clip(x, 0.0, None).astype(dtype), space, dtype=dtype)
        dx = relu.backward(space.put(dy.astype(dtype)), cache, xp=space.xp)
        assert_close(dx, by_hand.back_relu(x, dy).astype(dtype), space, rtol=0.0, dtype=dtype)


@ids("S1-14", "S1-15", "B1-08")
def test_mean_squared_error_of_one_output_is_the_articles_and_targets_may_be_a_row_or_a_column(space):
    rng = np.random.default_rng(0)
    pred, target = rng.normal(size=(7, 1)), rng.normal(size=7)
    for t in (target, target[:, None]):
        loss, dy = xbp.MeanSquaredError().value_and_grad(space.put(pred), space.put(t))
        assert_close(loss, np.asarray(by_hand.mse(pred, target)), space)
        assert_close(dy, by_hand.back_mse(pred, target), space)
        assert dy.shape == (7, 1)


@ids("B1-08")
def test_no_target_is_stretched_to_fit_and_several_outputs_are_averaged():
    rng = np.random.default_rng(0)
    y, t = rng.normal(size=(4, 3)), rng.normal(size=(4, 3))
    forgotten_squeeze = rng.normal(size=(4, 1)) - rng.normal(size=4)
    assert forgotten_squeeze.shape == (4, 4)
    loss, dy = xbp.MeanSquaredError().value_and_grad(y, t)
    assert loss == pytest.approx(np.mean((y - t) ** 2))
    assert np.allclose(dy, 2.0 * (y - t) / 12)
    for scores, targets in ((y, t[:, 0]), (y, t[:, :1]), (y[:, :1], t), (y[:3], t), (y, t.T), (y[:, 0], t[:, 0])):
        with pytest.raises(xbp.ShapeError, match=r"shape|\(N, K\)"):
            xbp.MeanSquaredError().value_and_grad(scores, targets)


# The article's program: 1000 x 784 - 50 - 1, and its check.


@dataclass(frozen=True)
class Noted(xbp.Layer):
    """A layer that writes down when its backward is called."""

    layer: xbp.Layer
    diary: list

    def parameters(self):
        return self.layer.parameters()

    def output_shape(self, *shapes):
        return self.layer.output_shape(*shapes)

    def forward(self, x, /, **options):
        return self.layer.forward(x, **options)

    def backward(self, dy, cache, /, **options):
        self.diary.append(type(self.layer).__name__)
        return self.layer.backward(dy, cache, **options)


@ids("S1-16", "S1-17", "S1-18", "S1-19", "S1-20", "B1-01", "B1-05", "B1-09")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@over("numpy", "numpy-readonly", "strict", "strict-device1", "torch", "cupy")
def test_every_gradient_of_the_articles_program_is_that_of_autograd(space, dtype):
    arrays, target = article_data(dtype)
    value, desired = by_hand.autograd(lambda torch, *a: article_loss(torch, *a, target=target), arrays)
    diary = []
    net = xbp.Network([Noted(layer, diary) for layer in LAYERS], backend=space.backend, dtype=dtype)
    net.load_params({name: a for name, a in arrays.items() if name != "x"})

    output = net.forward(space.put(arrays["x"]))
    loss, dy = xbp.MeanSquaredError().value_and_grad(output, space.put(target))
    dx = net.backward(dy, input_gradient=True)
    assert diary == ["Affine", "ReLU", "Affine"]
    assert float(loss) == pytest.approx(value, rel=TOLERANCE[dtype])
    kept = dict(net.grads)  # safe without the article's copies: no later backward writes into them
    assert {name: g.shape for name, g in kept.items()} == {name: arrays[name].shape for name in NAMES}
    net.forward(space.put(-arrays["x"]))
    net.backward(dy)
    by_hand.assert_same({"x": space.get(dx), **hosts(space, kept)}, desired, TOLERANCE[dtype])


@ids("B1-01", "S1-16", "S1-17", "S1-21")
def test_the_articles_own_formulas_run_once_their_results_are_stored():
    arrays, target = article_data("float64")
    x, w1, b1, w2, b2 = arrays.values()
    x, target = x[:40], target[:40]
    l1 = x @ w1 + b1
    l2 = by_hand.relu(l1)
    d2 = by_hand.back_mse(l2 @ w2 + b2, target)
    dl2, dw2, db2 = by_hand.back_lin(l2, w2, b2, d2)
    dx, dw1, db1 = by_hand.back_lin(x, w1, b1, by_hand.back_relu(l1, dl2))

    net = xbp.Network(LAYERS, backend="numpy", dtype="float64")
    net.load_params({"0.W": w1, "0.b": b1, "2.W": w2, "2.b": b2})
    found = net.backward(xbp.MeanSquaredError().value_and_grad(net.forward(x), target)[1], input_gradient=True)
    by_hand.assert_same(
        {"x": found, **net.grads}, {"x": dx, "0.W": dw1, "0.b": db1, "2.W": dw2, "2.b": db2}, TOLERANCE["float64"]
    )


def examples():
    """The Python examples of README and CONTRIBUTING; tests/test_docs.py runs those of the site, page by page."""
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        text = path.read_text(encoding="utf-8")
        for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S), 1):
            yield pytest.param(code, id=f"{path.stem}-{i}")


@ids("B1-01")
@pytest.mark.parametrize("code", list(examples()))
def test_what_the_documentation_prints_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "example", "exec"), {"__name__": "example"})


@ids("B1-02")
def test_the_oracle_refuses_to_answer_for_a_tensor_that_gets_no_gradient():
    torch = pytest.importorskip("torch", reason="PyTorch's autograd, the reference of this test, is not installed")
    w = torch.ones(3, requires_grad=True)
    clone = w.clone().requires_grad_(True)
    clone.sum().backward()
    unreached = torch.ones(3, requires_grad=True)
    for tensor in (clone, unreached):  # the clone is no leaf, as in the article
        with pytest.raises(AssertionError, match="made no gradient for 'w'"):
            by_hand.leaf_gradient("w", tensor)
    assert np.array_equal(by_hand.leaf_gradient("w", w), np.ones(3))


def is_same(a, b):
    """The article's comparison."""
    return (a - b).max() < 1e-4


@ids("S1-20", "B1-03", "B1-04")
def test_gradients_are_compared_by_absolute_value_and_relative_to_their_size(space):
    """is_same lets any error pass that is negative, and refuses right gradients that are large."""
    right = np.full(3, 4000.0)
    rounded, doubled, negative = right * (1.0 + 4e-7), right * 2.0, right - 1000.0
    assert is_same(negative, right)
    assert not is_same(rounded, right)
    small, half = np.full(3, 2e-6), np.full(3, 1e-6)
    assert is_same(half, small)  # and what is small is the same as anything small
    for compare in (
        lambda a, b: assert_close(space.put(a), b, space, rtol=1e-6),
        lambda a, b: by_hand.assert_same({"w": a}, {"w": b}, 1e-6),
    ):
        compare(rounded, right)
        for wrong, desired in ((negative, right), (doubled, right), (-right, right), (half, small)):
            with pytest.raises(AssertionError):
                compare(wrong, desired)


@dataclass(frozen=True)
class Wrong(xbp.Affine):
    """An affine layer whose gradients by W and b are both wrong by a factor."""

    factor: float = 1.0

    def backward(self, dy, cache, /, **options):
        dx, grads = super().backward(dy, cache, **options)
        return dx, {name: g * self.factor for name, g in grads.items()}


@ids("S1-20", "B1-03", "B1-05")
@few_shapes
def test_the_check_of_xbp_compares_every_gradient_by_name_and_sees_errors_of_either_sign(space, network):
    rng = np.random.default_rng(0)
    x, t = space.put(rng.normal(size=(6, 4))), space.put(rng.normal(size=(6, 2)))
    for at, factor in ((None, 1.0), (0, 1.002), (0, 0.998), (2, -1.0), (2, 0.0)):
        factors = [factor if at == i else 1.0 for i in (0, 2)]
        net = network([Wrong(4, 3, factor=factors[0]), xbp.Tanh(), Wrong(3, 2, factor=factors[1])])
        report = xbp.check_gradients(net, x, t, loss=xbp.MeanSquaredError())
        wrong = [row.name for row in report.rows if not row.ok]
        assert wrong == ([] if at is None else [f"{at}.W", f"{at}.b"])
        assert [row.name for row in report.rows] == ["0.W", "0.b", "2.W", "2.b", "x"]


@ids("B1-07", "B1-10")
@over("torch")
def test_no_gradient_carries_a_graph_of_autograd_whatever_comes_in(space):
    """A tensor that requires a gradient, as model, data or upstream gradient, leaves no trace in what xbp computes."""
    torch = pytest.importorskip("torch", reason="this is about PyTorch's tensors")
    x, W, _, dy = (torch.tensor(a, dtype=torch.float32, requires_grad=True) for a in small())
    net = xbp.Network([xbp.Affine(5, 3)], backend=space.backend)
    machine = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.Adam(0.1))
    net.params["0.W"] = W
    y = net.forward(x)
    made = [y, *net.cache["0"], net.backward(dy, input_gradient=True), *net.grads.values()]
    made += [net.predict(x), machine.step(x, dy)]
    machine.fit(x, dy, sample_weight=torch.ones(6, requires_grad=True), epochs=2)
    made += net.params.values()
    assert len(made) == 10
    assert not any(a.requires_grad or a.grad_fn is not None or hasattr(a, "g") for a in made)
    assert W.requires_grad  # the user's own is left as it was
    assert W.grad is None


@ids("B1-12")
def test_default_weights_keep_the_size_of_the_signal_where_the_articles_blow_it_up():
    arrays, target = article_data("float32")
    x, w1, b1, w2, b2 = arrays.values()
    net = xbp.Network(LAYERS, backend="numpy", seed=0)
    net.forward(x)
    hidden, output = net.cache["2"].x, net.predict(x)
    assert np.std(x @ w1 + b1) > 25.0
    assert np.std(by_hand.relu(x @ w1 + b1) @ w2 + b2) > 100.0
    assert 0.5 < np.std(hidden) < 1.5
    assert 0.3 < np.std(output) < 3.0
    assert xbp.MeanSquaredError().value_and_grad(output, target)[0] < 10.0


# The article's conclusion.


@dataclass(frozen=True)
class Broadcasting(xbp.Layer):
    """The article's linear function as a layer of one's own, by broadcasting and without a product of matrices."""

    D: int
    M: int

    def parameters(self):
        return xbp.Affine(self.D, self.M).parameters()

    def output_shape(self, *shapes):
        return (self.M,)

    def forward(self, x, /, *, params, buffers, mode, xp):
        W, b = params["W"], params["b"]
        return Result(xp.sum(x[:, :, None] * W[None, :, :], axis=1) + b, (x, W, b))

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        x, W, _ = cache
        dx = xp.sum(dy[:, None, :] * W[None, :, :], axis=2)
        dW = xp.sum(x[:, :, None] * dy[:, None, :], axis=0)
        return dx, {"W": dW, "b": xp.sum(dy, axis=0)}


@ids("S1-21", "S1-11")
@pytest.mark.falls_back  # the loops of the engine numba have two axes, and the article's product of Affine has three
@few_shapes
def test_simple_derivation_and_broadcasting_are_enough_to_train_a_network(space, network):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(32, 4)).astype(space.dtype)
    t = (x[:, 0] - 2.0 * np.maximum(x[:, 1], 0.0)).astype(space.dtype)
    learnt = []
    for linear in (Broadcasting, xbp.Affine):
        net = network([linear(4, 16), xbp.ReLU(), linear(16, 1)], seed=1)
        machine = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.1))
        losses = machine.fit(space.put(x), space.put(t), epochs=25, batch_size=16)["loss"]
        assert losses[-1] < 0.1 * losses[0]
        learnt.append(hosts(space, net.params))
    by_hand.assert_same(*learnt, 1e-4 if space.dtype == "float32" else 1e-10)
