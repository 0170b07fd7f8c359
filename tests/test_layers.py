"""Every layer in a network: shapes, gradients behind another layer, options, what it prints; and layers of your own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, dataclass, replace
from typing import Any

import numpy as np
import pytest

import xbp
from xbp import initializers
from xbp.describe import build, describe
from xbp.errors import CheckpointError, NameUnknown, ShapeError
from xbp.layers import LAYERS, Layer, Parameter
from xbp.layers.activations import ACTIVATIONS, get_activation
from xbp.layers.base import Result
from xbp.model import CLASSES
from xbp.testing import assert_close

D, N = 5, 6  # width and rows of what every layer is given

CHAIN = [
    xbp.Affine(D, 3),
    xbp.Affine(D, 3, bias=False),
    xbp.ReLU(),
    xbp.LeakyReLU(0.2),
    xbp.ELU(1.5),
    xbp.GELU(),
    xbp.GELU("tanh"),
    xbp.SiLU(),
    xbp.Softplus(2.0),
    xbp.Sigmoid(),
    xbp.Tanh(),
    xbp.Softmax(),
    xbp.Identity(),
    xbp.Dropout(0.4),
    xbp.LayerNorm(D, eps=0.1),
    xbp.BatchNorm(D, eps=0.1, momentum=0.3),
]
MODAL = (xbp.Dropout, xbp.BatchNorm)  # another function in training than in prediction
CASES = [(layer, train) for layer in CHAIN for train in ((True, False) if isinstance(layer, MODAL) else (True,))]


def case_id(value):
    return {True: "train", False: "predict"}[value] if isinstance(value, bool) else str(value)


def x_ND():
    return np.random.default_rng(1).normal(size=(N, 4))


def network(layer, backend, dtype):
    """The layer between two others, so that its input has a gradient and its output is used unevenly."""
    width = 3 if isinstance(layer, xbp.Affine) else D
    net = xbp.Network([xbp.Affine(4, D), layer, xbp.Affine(width, 2)], backend=backend, dtype=dtype, seed=4)
    rng = np.random.default_rng(2)
    for section in (net.params, net.buffers):
        for name, a in section.items():  # zero biases and unit scales would hide errors
            positive = name.endswith(("gamma", "running_var"))
            values = rng.uniform(0.5, 1.5, a.shape) if positive else rng.normal(size=a.shape)
            section[name] = values.astype(dtype)
    return net


def gradients(net, space, x, dy, train):
    net.forward(space.put(x.astype(net.dtype)), train=train, step=3)
    dx = net.backward(space.put(dy.astype(net.dtype)), input_gradient=True)
    return {"x": dx} | dict(net.grads)


@pytest.mark.parametrize(("layer", "train"), CASES, ids=case_id)
def test_gradients_behind_another_layer_are_those_of_differences(layer, train):
    """In float64 on NumPy, entry by entry along the whole of every parameter and of the input."""
    host = xbp.testing.space("numpy")
    net = network(layer, "numpy", "float64")
    x, dy = x_ND(), np.random.default_rng(3).normal(size=(N, 2))
    grads = gradients(net, host, x, dy, train)
    assert list(net.grads) == list(net.params)

    def loss(name, value):
        kept = x if name == "x" else np.asarray(net.params[name])
        buffers = {n: np.array(a) for n, a in net.buffers.items()}
        if name != "x":
            net.params[name] = value
        y = net.forward(value if name == "x" else x, train=train, step=3)
        if name != "x":
            net.params[name] = kept
        for n, a in buffers.items():
            net.buffers[n] = a
        return float(np.sum(dy * y))

    for name, g in grads.items():
        start = np.array(x if name == "x" else net.params[name])
        numeric = xbp.testing.numerical_gradient(lambda value, name=name: loss(name, value), start)
        np.testing.assert_allclose(g, numeric, rtol=1e-6, atol=1e-8 * np.abs(numeric).max(initial=1.0), err_msg=name)


@pytest.mark.parametrize(("layer", "train"), CASES, ids=case_id)
def test_outputs_and_gradients_are_the_same_in_every_library(space, layer, train):
    host = xbp.testing.space("numpy")
    x, dy = x_ND(), np.random.default_rng(3).normal(size=(N, 2))
    reference = network(layer, "numpy", "float64")
    desired = gradients(reference, host, x, dy, train)
    for dtype, tolerance in (("float32", 2e-5), ("float64", 1e-12)):
        if dtype not in space.dtypes or (space.name, dtype) == ("jax-x64", "float32"):
            continue  # space jax has float32 already
        net = network(layer, space.backend, dtype)
        y = net.forward(space.put(x.astype(dtype)), train=train, step=3)
        expected = reference.forward(x, train=train, step=3)
        assert_close(y, np.asarray(expected), space, rtol=tolerance, atol=tolerance, dtype=dtype)
        got = gradients(network(layer, space.backend, dtype), space, x, dy, train)
        assert list(got) == list(desired)
        for name, g in desired.items():
            atol = tolerance * max(1.0, float(np.abs(g).max()))
            assert_close(got[name], np.asarray(g), space, rtol=tolerance, atol=atol, dtype=dtype)


@pytest.mark.parametrize("layer", CHAIN, ids=str)
def test_the_declared_shape_is_that_of_the_output(layer):
    x = np.ones((N, D), dtype=np.float32)
    for rows in (x, x[:2]):
        y = xbp.Network([layer], backend="numpy").forward(rows)
        assert layer.output_shape((D,)) == y.shape[1:]
        assert y.shape[0] == len(rows)
    unknown = layer.output_shape(None)
    assert unknown in (None, y.shape[1:])


@pytest.mark.parametrize("layer", CHAIN, ids=str)
def test_what_a_layer_asks_for_is_what_it_gets_and_returns_gradients_for(layer):
    net = xbp.Network([layer], backend="numpy")
    asked = {f"0.{name}": spec.shape for name, spec in layer.parameters().items()}
    assert {name: a.shape for name, a in net.params.items()} == asked
    y = net.forward(np.ones((N, D), dtype=np.float32), train=True)
    net.backward(np.ones_like(y))
    assert {name: a.shape for name, a in net.grads.items()} == asked


@pytest.mark.parametrize(
    ("layer", "match"),
    [
        (
            xbp.Affine(7, 3),
            r"Affine\(in_features=7, out_features=3\) takes rows of width 7, but .* \(5,\).*Set in_features",
        ),
        (xbp.LayerNorm(7), r"LayerNorm\(size=7\) takes rows of width 7, but gets rows of shape \(5,\)\. Set size"),
        (xbp.BatchNorm(7), r"BatchNorm\(size=7\) takes rows of width 7"),
    ],
    ids=str,
)
def test_widths_that_do_not_fit_are_refused_when_the_network_is_made(layer, match):
    with pytest.raises(ShapeError, match=rf"^Layer '2', after '1': {match}"):
        xbp.Network([xbp.Affine(4, D), xbp.ReLU(), layer], backend="numpy")


def test_rows_of_a_wrong_rank_are_refused():
    with pytest.raises(ShapeError, match=r"gets rows of shape \(2, 3\).*flatten each row first"):
        xbp.Affine(6, 3).output_shape((2, 3))
    with pytest.raises(ShapeError, match=r"Dropout takes \(N, D\) batches, but gets rows of shape \(2, 3\)"):
        xbp.Dropout().output_shape((2, 3))
    with pytest.raises(ShapeError, match=r"Softmax normalises the entries of a row"):
        xbp.Softmax().output_shape(())


@pytest.mark.parametrize(
    ("a", "b", "y"),
    [
        ((3,), (3,), (3,)),
        ((3,), (1,), (3,)),
        ((), (3,), (3,)),
        ((2, 3), (3,), (2, 3)),
        ((2, 1), (1, 3), (2, 3)),
        (None, (3,), None),
        ((), (), ()),
    ],
    ids=str,
)
@pytest.mark.parametrize("layer", [xbp.Add(), xbp.Mul()], ids=str)
def test_shapes_of_two_inputs_broadcast(layer, a, b, y):
    assert layer.output_shape(a, b) == y
    assert layer.output_shape(b, a) == y
    if y is not None:
        assert np.broadcast_shapes(a, b) == y


def test_shapes_that_do_not_broadcast_are_refused():
    with pytest.raises(ShapeError, match=r"Add gets rows of shapes \(3,\) and \(2,\), which do not broadcast"):
        xbp.Add().output_shape((3,), (2,))


# Options.

WIDTHS = (0, -1, 2.0, "4", None, True, np.float64(4.0))
BAD = [
    *((lambda v=v: xbp.Affine(v, 3), ShapeError, "Affine: in_features must be a whole number") for v in WIDTHS),
    *((lambda v=v: xbp.Affine(3, v), ShapeError, "Affine: out_features must be a whole number") for v in WIDTHS),
    *((lambda v=v: xbp.LayerNorm(v), ShapeError, "LayerNorm: size must be a whole number") for v in WIDTHS),
    *((lambda v=v: xbp.BatchNorm(v), ShapeError, "BatchNorm: size must be a whole number") for v in WIDTHS),
    *((lambda c=c, v=v: c(4, eps=v), ValueError, f"{c.__name__}: eps must be a finite number above 0; it is {v!r}")
      for c in (xbp.LayerNorm, xbp.BatchNorm) for v in (0.0, -1e-5, math.nan, math.inf, None)),
    *((lambda v=v: xbp.BatchNorm(4, momentum=v), ValueError, f"momentum must be .*0 and at most 1; it is {v!r}")
      for v in (-0.1, 1.1, math.nan, "slow")),
    *((lambda v=v: xbp.Dropout(v), ValueError, f"Dropout: p must be .*at least 0 and below 1; it is {v!r}")
      for v in (-0.1, 1.0, 50, math.nan, None, True)),
    *((lambda v=v: xbp.LeakyReLU(v), ValueError, f"negative_slope must be .*at least 0; it is {v!r}")
      for v in (-0.1, math.nan, math.inf)),
    *((lambda v=v: xbp.ELU(v), ValueError, f"ELU: alpha must be .*above 0; it is {v!r}") for v in (0, -1.0, math.nan)),
    *((lambda v=v: xbp.Softplus(v), ValueError, f"Softplus: beta must be .*above 0; it is {v!r}") for v in (0, -1.0)),
    (lambda: xbp.GELU("tan"), NameUnknown, r"approximation of GELU 'tan'\. Did you mean 'tanh'\? Known: none"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "error", "match"), BAD, ids=lambda v: "" if callable(v) else None)
def test_bad_options_are_refused_with_name_and_value(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_widths_and_numbers_of_numpy_are_taken_and_become_plain():
    assert xbp.Affine(np.int64(4), np.uint8(3)) == xbp.Affine(4, 3)
    assert type(xbp.LayerNorm(np.int32(4)).size) is int
    assert type(xbp.Dropout(np.float32(0.5)).p) is float
    assert describe(xbp.BatchNorm(np.int64(4), np.float64(0.5))) == describe(xbp.BatchNorm(4, 0.5))


@pytest.mark.parametrize(
    "layer",
    [
        xbp.LeakyReLU(np.float64(0.1)),
        xbp.ELU(np.float64(1.5)),
        xbp.Softplus(np.float64(2.0)),
        xbp.Dropout(np.float64(0.5)),
        xbp.LayerNorm(D, np.float64(1e-3)),
        xbp.BatchNorm(D, np.float64(1e-3), np.float64(0.2)),
    ],
    ids=str,
)
def test_options_that_are_numpy_scalars_do_not_widen_float32(layer):
    net = xbp.Network([layer], backend="numpy")
    y = net.forward(np.ones((N, D), dtype=np.float32), train=True)
    dx = net.backward(y, input_gradient=True)
    assert {a.dtype for a in (y, dx, *net.grads.values(), *net.buffers.values())} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_names(name):
    assert get_activation(name) == ACTIVATIONS[name]
    assert type(get_activation(name)).__name__.lower() == name.replace("_", "")


def test_unknown_activations_get_the_nearest():
    with pytest.raises(NameUnknown, match=r"Unknown activation 'rellu'\. Did you mean 'relu'\? Known: elu, gelu, "):
        get_activation("rellu")


# Descriptions.

EVERY = [*CHAIN, xbp.Add(), xbp.Mul()]


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        (xbp.Affine(4, 3), "Affine(in_features=4, out_features=3)"),
        (xbp.Affine(4, 3, False, init="lecun"), "Affine(in_features=4, out_features=3, bias=False, init='lecun')"),
        (xbp.ReLU(), "ReLU()"),
        (xbp.LeakyReLU(), "LeakyReLU()"),
        (xbp.LeakyReLU(0.2), "LeakyReLU(negative_slope=0.2)"),
        (xbp.Dropout(0.5), "Dropout()"),
        (xbp.BatchNorm(4, momentum=0.5), "BatchNorm(size=4, momentum=0.5)"),
        (xbp.Add(), "Add()"),
    ],
    ids=str,
)
def test_a_layer_prints_its_class_and_what_differs_from_the_default(layer, text):
    assert str(layer) == text


@pytest.mark.parametrize("layer", EVERY, ids=str)
def test_repr_and_str_are_code_and_a_description_is_the_layer_again(layer):
    names = {**vars(initializers), **LAYERS}
    assert eval(repr(layer), names) == layer
    assert eval(str(layer), names) == layer
    assert build(describe(layer), CLASSES) == layer


def test_layers_are_values():
    assert len(set(EVERY)) == len(EVERY)
    for layer in EVERY:
        twin = replace(layer)
        assert twin is not layer
        assert twin == layer
        assert hash(twin) == hash(layer)
        for name in vars(layer):
            with pytest.raises(FrozenInstanceError):
                setattr(layer, name, None)
    assert xbp.GELU() != xbp.GELU("tanh")
    assert xbp.ReLU() != xbp.Tanh()


def test_every_layer_is_registered_under_its_name():
    assert {type(layer).__name__ for layer in EVERY} == set(LAYERS)


def test_one_layer_may_stand_at_two_places_with_parameters_of_its_own():
    layer = xbp.Affine(3, 3)
    net = xbp.Network([layer, xbp.ReLU(), layer], backend="numpy")
    assert list(net.params) == ["0.W", "0.b", "2.W", "2.b"]
    assert not np.array_equal(net.params["0.W"], net.params["2.W"])


# Dropout in a network.


def dropped(space, net, **options):
    return space.get(net.forward(space.put(np.ones((40, 30), dtype=np.float32)), **options))


def test_dropout_draws_the_same_mask_everywhere_for_one_seed_step_and_place(space):
    layers = [xbp.Dropout(0.25), xbp.Identity(), xbp.Dropout(0.5)]
    here = xbp.Network(layers, backend=space.backend, seed=9)
    host = xbp.Network(layers, backend="numpy", seed=9)
    for step in (0, 1, 1000):
        y = dropped(space, here, train=True, step=step)
        np.testing.assert_array_equal(y, dropped(xbp.testing.space("numpy"), host, train=True, step=step))


def test_dropout_drops_its_share_and_scales_the_rest():
    host = xbp.testing.space("numpy")
    y = dropped(host, xbp.Network([xbp.Dropout(0.25)], backend="numpy"), train=True)
    assert set(np.unique(y)) == {np.float32(0.0), np.float32(1.0 / 0.75)}
    assert np.mean(y == 0.0) == pytest.approx(0.25, abs=0.05)


def test_masks_differ_between_steps_places_and_seeds_and_repeat_otherwise():
    host = xbp.testing.space("numpy")

    def mask(seed=0, step=0, place=0):
        layers = [*[xbp.Identity()] * place, xbp.Dropout()]
        return dropped(host, xbp.Network(layers, backend="numpy", seed=seed), train=True, step=step) > 0

    np.testing.assert_array_equal(mask(), mask())
    for other in (mask(seed=1), mask(step=1), mask(place=1)):
        assert 0.4 < np.mean(other == mask()) < 0.6


def test_dropout_does_nothing_in_prediction_and_with_p_0(space):
    for layers, options in (([xbp.Dropout(0.9)], {}), ([xbp.Dropout(0.0)], {"train": True})):
        net = xbp.Network(layers, backend=space.backend)
        np.testing.assert_array_equal(dropped(space, net, **options), np.ones((40, 30)))
        dx = net.backward(space.put(np.full((40, 30), 2.0, dtype=np.float32)), input_gradient=True)
        assert_close(dx, np.full((40, 30), 2.0), space, dtype="float32")


def test_dropout_without_a_key_says_who_makes_one():
    with pytest.raises(
        ValueError, match=r"needs a key to draw its mask from; Network\.forward\(train=True\) makes one"
    ):
        xbp.Dropout().forward(np.ones((2, 2)), params={}, buffers={}, mode=xbp.layers.Mode(train=True), xp=np)


# BatchNorm in a network.


def test_batch_norm_learns_its_statistics_in_training_and_uses_them_in_prediction(space):
    net = xbp.Network([xbp.BatchNorm(D, eps=0.1, momentum=0.25)], backend=space.backend, dtype=space.dtype)
    mean, var = np.zeros(D), np.ones(D)
    for seed in range(3):
        x = np.random.default_rng(seed).normal(size=(N, D)) * 2.0 + 3.0
        y = net.forward(space.put(x), train=True)
        normal = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 0.1)
        atol = 1e-12 if space.dtype == "float64" else 1e-5
        assert_close(y, normal, space, atol=atol)
        mean, var = 0.75 * mean + 0.25 * x.mean(axis=0), 0.75 * var + 0.25 * x.var(axis=0, ddof=1)
        assert_close(net.buffers["0.running_mean"], mean, space, atol=atol)
        assert_close(net.buffers["0.running_var"], var, space, atol=atol)
    held = dict(net.buffers)
    for y in (net.forward(space.put(x)), net.predict(space.put(x))):
        assert_close(y, (x - mean) / np.sqrt(var + 0.1), space, atol=atol)
    assert all(net.buffers[n] is a for n, a in held.items())  # prediction moves nothing
    assert set(net.params) == {"0.gamma", "0.beta"}


@pytest.mark.parametrize(("momentum", "mean"), [(0.0, 0.0), (1.0, 4.0)])
def test_the_ends_of_momentum_keep_nothing_and_everything(momentum, mean):
    net = xbp.Network([xbp.BatchNorm(2, momentum=momentum)], backend="numpy")
    net.forward(np.array([[3.0, 3.0], [5.0, 5.0]]), train=True)
    np.testing.assert_array_equal(net.buffers["0.running_mean"], [mean, mean])


def test_one_row_has_no_variance_and_is_refused_before_anything_changes(space):
    net = xbp.Network([xbp.BatchNorm(D)], backend=space.backend)
    x = space.put(np.ones((1, D), dtype=np.float32))
    with pytest.raises(ShapeError, match=r"cannot train on a batch of 1 row, .* Use batches of at least 2"):
        net.forward(x, train=True)
    assert_close(net.buffers["0.running_mean"], np.zeros(D), space, dtype="float32")
    assert net.forward(x).shape == (1, D)


# Layers of your own.


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


def test_layers_of_your_own_work_in_a_graph_and_train(space):
    nodes = {"y": (xbp.Add(), "a", "b"), "a": (Scale(4), "x"), "b": (Square(), "x")}
    g = xbp.Graph(nodes, inputs=["x"], output="y", backend=space.backend, dtype=space.dtype)
    x = x_ND()
    y = g.forward(space.put(x))
    scale = space.get(g.params["a.s"])
    assert_close(y, scale * x + x * x, space, rtol=1e-5)
    dx = g.backward(space.put(np.ones((N, 4))), input_gradient=True)
    assert_close(dx["x"], scale + 2.0 * x, space, rtol=1e-5, atol=1e-6)
    trainer = xbp.Trainer(g, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.1))
    before = trainer.evaluate(space.put(x), space.put(x))["loss"]
    trainer.fit(space.put(x), space.put(x), epochs=3, batch_size=3)
    assert trainer.evaluate(space.put(x), space.put(x))["loss"] < before
    assert_close(g.buffers["a.passes"], np.full(1, 6.0), space)


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
