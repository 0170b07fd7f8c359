"""Layers that do one thing in training and another in prediction: dropout and batch normalisation, in a network."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.errors import ShapeError
from xbp.testing import assert_close

D, N = 5, 6


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


# BatchNorm.


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
    with pytest.raises(ShapeError, match=r"cannot train on a batch of 1 row, .*at least 2"):
        net.forward(x, train=True)
    assert_close(net.buffers["0.running_mean"], np.zeros(D), space, dtype="float32")
    assert net.forward(x).shape == (1, D)
