"""Every layer in a network: shapes, gradients behind another layer, options, what it prints; and layers of your own."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

import xbp
from xbp import initializers
from xbp.describe import build, describe
from xbp.errors import NameUnknown, ShapeError
from xbp.layers import LAYERS
from xbp.layers.activations import ACTIVATIONS, get_activation
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
