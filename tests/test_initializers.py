"""Initial values: the variances of their formulas, the choice by what comes next, and the same bits everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

import xbp
from xbp.describe import build, describe
from xbp.errors import NameUnknown, ShapeError
from xbp.initializers import BY_NAME, Constant, Glorot, He, LeCun, Normal, Uniform, Zeros, get_initializer
from xbp.model import CLASSES
from xbp.random import weight_generator

D, M = 300, 200
VARIANCES = {
    "he": 2 / D,
    "he_uniform": 2 / D,
    "glorot": 2 / (D + M),
    "glorot_uniform": 2 / (D + M),
    "lecun": 1 / D,
    "lecun_uniform": 1 / D,
    "normal": 0.01**2,
    "uniform": 0.1**2 / 12,
}


def moments(values):
    """Mean and variance in units of what chance leaves open: numbers of about 1."""
    n = values.size
    fourth = np.mean((values - values.mean()) ** 4) / values.var() ** 2
    return values.mean() / (values.std() / math.sqrt(n)), values.var(), math.sqrt((fourth - 1) / n)


@pytest.mark.parametrize("name", VARIANCES)
def test_mean_and_variance_are_those_of_the_formula(name):
    values = get_initializer(name)(weight_generator(5, 0), (D, M))
    mean, variance, spread = moments(values)
    assert values.shape == (D, M)
    assert values.dtype == np.float64
    assert abs(mean) < 4.0
    assert abs(variance / VARIANCES[name] - 1.0) < 4.0 * spread
    assert spread < 0.01  # narrow enough to tell 2 / D from 2 / (D + M) and 2 / M


@pytest.mark.parametrize("name", ["he_uniform", "glorot_uniform", "lecun_uniform"])
def test_uniform_values_fill_their_interval(name):
    values = get_initializer(name)(weight_generator(5, 0), (D, M))
    bound = math.sqrt(3.0 * VARIANCES[name])
    assert 0.999 * bound < values.max() <= bound
    assert -bound <= values.min() < -0.999 * bound


@pytest.mark.parametrize("name", ["he", "glorot", "lecun", "normal"])
def test_normal_values_have_normal_tails(name):
    values = get_initializer(name)(weight_generator(5, 0), (D, M)) / math.sqrt(VARIANCES[name])
    for k, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert np.mean(np.abs(values) < k) == pytest.approx(share, abs=0.01)


def test_constants_and_options_are_taken():
    rng = weight_generator(0, 0)
    np.testing.assert_array_equal(Zeros()(rng, (3,)), np.zeros(3))
    np.testing.assert_array_equal(Constant(2.5)(rng, (2, 3)), np.full((2, 3), 2.5))
    np.testing.assert_array_equal(get_initializer("ones")(rng, (2,)), np.ones(2))
    drawn = Normal(0.5, 3.0)(rng, (10_000,))
    assert drawn.mean() == pytest.approx(3.0, abs=0.02)
    assert drawn.std() == pytest.approx(0.5, rel=0.03)
    drawn = Uniform(1.0, 2.0)(rng, (10_000,))
    assert drawn.min() >= 1.0
    assert drawn.max() < 2.0


@pytest.mark.parametrize("init", [He(), Glorot(), LeCun(), He(uniform=True)], ids=str)
def test_what_follows_the_widths_needs_a_matrix(init):
    with pytest.raises(ShapeError, match=r"needs a matrix \(D, M\).*the shape is \(3,\)"):
        init(weight_generator(0, 0), (3,))
    with pytest.raises(ShapeError, match=r"the shape is \(3,\)"):
        xbp.Network([xbp.Affine(2, 3, bias_init=init)], backend="numpy")


def test_unknown_names_get_the_nearest_when_the_layer_is_made():
    with pytest.raises(NameUnknown, match=r"Unknown initialiser 'glorott'\. Did you mean 'glorot'\? Known: glorot, "):
        xbp.Affine(2, 3, init="glorott")
    with pytest.raises(NameUnknown, match=r"Unknown initialiser 'zero'\. Did you mean 'zeros'\?"):
        xbp.Affine(2, 3, bias_init="zero")
    for wrong in (42, 0.01, np.zeros((2, 3))):
        with pytest.raises(TypeError, match=r"An initialiser is a name \(he, .*\) or a function"):
            xbp.Affine(2, 3, init=wrong)


@pytest.mark.parametrize("name", BY_NAME)
def test_a_description_becomes_the_same_initialiser_again(name):
    init = BY_NAME[name]
    assert build(describe(init), CLASSES) == init
    assert type(init)(**vars(init)) == init
    assert hash(type(init)(**vars(init))) == hash(init)


# The default follows what comes next.

HIDDEN = [
    (xbp.ReLU(), "he"),
    (xbp.LeakyReLU(0.2), "he"),
    (xbp.ELU(), "he"),
    (xbp.GELU(), "he"),
    (xbp.SiLU(), "he"),
    (xbp.Softplus(), "he"),
    (xbp.Sigmoid(), "glorot"),
    (xbp.Tanh(), "glorot"),
    (xbp.Softmax(), "glorot"),
    (xbp.Identity(), "glorot"),
]


def first_matrix(*after, width=40):
    net = xbp.Network([xbp.Affine(30, width), *after], backend="numpy", dtype="float64", seed=3)
    return np.asarray(net.params["0.W"])


def drawn(name, shape=(30, 40)):
    return BY_NAME[name](weight_generator(3, 0), shape)


@pytest.mark.parametrize(("activation", "name"), HIDDEN, ids=lambda v: str(v))
def test_default_suits_the_activation_that_comes_next(activation, name):
    np.testing.assert_array_equal(first_matrix(activation), drawn(name))
    between = (xbp.BatchNorm(40), xbp.Dropout(0.1), xbp.LayerNorm(40))
    np.testing.assert_array_equal(first_matrix(*between, activation, xbp.Affine(40, 2), xbp.Tanh()), drawn(name))


def test_default_is_glorot_where_no_activation_comes_before_the_next_matrix():
    np.testing.assert_array_equal(first_matrix(), drawn("glorot"))
    np.testing.assert_array_equal(first_matrix(xbp.Dropout()), drawn("glorot"))
    np.testing.assert_array_equal(first_matrix(xbp.Affine(40, 2), xbp.ReLU()), drawn("glorot"))


def test_default_follows_the_edges_of_a_graph():
    nodes = {
        "y": (xbp.Add(), "bent", "straight"),
        "bent": (xbp.ReLU(), "a"),
        "a": (xbp.Affine(30, 40), "x"),
        "straight": (xbp.Affine(30, 40), "x"),
    }
    g = xbp.Graph(nodes, inputs=["x"], output="y", backend="numpy", dtype="float64", seed=3)
    order = list(g.params)
    for name, init in (("a.W", "he"), ("straight.W", "glorot")):
        desired = BY_NAME[init](weight_generator(3, order.index(name)), (30, 40))
        np.testing.assert_array_equal(np.asarray(g.params[name]), desired)


def test_a_name_or_an_initialiser_goes_before_the_default_and_biases_start_at_zero():
    net = xbp.Network(
        [xbp.Affine(4, 5, init="lecun"), xbp.ReLU(), xbp.Affine(5, 3, init=Normal(2.0), bias_init=Constant(0.5))],
        backend="numpy",
        dtype="float64",
        seed=7,
    )
    np.testing.assert_array_equal(np.asarray(net.params["0.W"]), LeCun()(weight_generator(7, 0), (4, 5)))
    np.testing.assert_array_equal(np.asarray(net.params["0.b"]), np.zeros(5))
    np.testing.assert_array_equal(np.asarray(net.params["2.W"]), Normal(2.0)(weight_generator(7, 2), (5, 3)))
    np.testing.assert_array_equal(np.asarray(net.params["2.b"]), np.full(3, 0.5))


def test_an_initialiser_of_your_own_is_any_function_of_generator_and_shape():
    @dataclass(frozen=True)
    class Orthogonal:
        def __call__(self, rng, shape):
            return np.linalg.qr(rng.normal(size=shape))[0]

    W = np.asarray(xbp.Network([xbp.Affine(5, 5, init=Orthogonal())], backend="numpy", dtype="float64").params["0.W"])
    np.testing.assert_allclose(W.T @ W, np.eye(5), atol=1e-14)


def test_an_initialiser_that_gives_another_shape_is_refused():
    with pytest.raises(
        ShapeError, match=r"Parameter '0\.W' has shape \(4, 2\), but its initialiser .* of shape \(3,\)"
    ):
        xbp.Network([xbp.Affine(4, 2, init=lambda rng, shape: np.zeros(3))], backend="numpy")


# The same start everywhere.

LAYERS = [
    xbp.Affine(12, 9),
    xbp.BatchNorm(9),
    xbp.ReLU(),
    *(xbp.Affine(9, 9, init=name) for name in BY_NAME),
    xbp.LayerNorm(9),
    xbp.Affine(9, 4),
]


def test_initial_weights_are_the_same_bits_on_every_backend(space):
    for dtype in space.dtypes:
        here = xbp.Network(LAYERS, backend=space.backend, dtype=dtype, seed=11)
        host = xbp.Network(LAYERS, backend="numpy", dtype=dtype, seed=11)
        assert list(here.params) == list(host.params)
        for ours, theirs in ((here.params, host.params), (here.buffers, host.buffers)):
            for name, a in ours.items():
                got = space.get(a)
                assert got.dtype == np.dtype(dtype)
                assert got.tobytes() == np.asarray(theirs[name]).tobytes(), name


def test_float32_starts_where_float64_does():
    wide = xbp.Network(LAYERS, backend="numpy", dtype="float64", seed=11)
    narrow = xbp.Network(LAYERS, backend="numpy", dtype="float32", seed=11)
    for name, a in wide.params.items():
        np.testing.assert_array_equal(np.asarray(a).astype(np.float32), np.asarray(narrow.params[name]))


def test_seeds_and_positions_give_different_weights():
    def weights(seed):
        net = xbp.Network([xbp.Affine(6, 6), xbp.Affine(6, 6)], backend="numpy", seed=seed)
        return [np.asarray(net.params[n]) for n in ("0.W", "1.W")]

    drawn = [*weights(0), *weights(1)]
    for i, a in enumerate(drawn):
        for b in drawn[:i]:
            assert not np.any(a == b)
    np.testing.assert_array_equal(weights(0)[1], drawn[1])


def test_a_layer_appended_changes_no_weight_before_it():
    short = xbp.Network([xbp.Affine(6, 6), xbp.ReLU()], backend="numpy", seed=2)
    long = xbp.Network([xbp.Affine(6, 6), xbp.ReLU(), xbp.Affine(6, 2)], backend="numpy", seed=2)
    np.testing.assert_array_equal(np.asarray(short.params["0.W"]), np.asarray(long.params["0.W"]))
