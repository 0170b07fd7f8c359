"""One seed, one start: the same weights, the same batches and the same masks on every backend, in every dtype."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from training_helpers import BACKENDS, assert_same, backend_or_skip, blobs, host
from xbp.layers import Mode

LAYERS = [xbp.Affine(6, 32), xbp.ReLU(), xbp.Dropout(0.3), xbp.Affine(32, 16), xbp.Tanh(), xbp.Affine(16, 3)]


@pytest.mark.parametrize("name", BACKENDS)
def test_initial_weights_are_bit_identical(name):
    reference = xbp.Network(LAYERS, backend="numpy", seed=7)
    other = xbp.Network(LAYERS, backend=backend_or_skip(name), seed=7)
    assert_same(host(reference, reference.params), host(other, other.params))


@pytest.mark.parametrize("name", BACKENDS)
def test_dropout_masks_are_bit_identical(name):
    x = np.ones((50, 32), dtype=np.float32)
    reference = xbp.Network([xbp.Dropout(0.3)], backend="numpy", seed=3)
    other = xbp.Network([xbp.Dropout(0.3)], backend=backend_or_skip(name), seed=3)
    for step in range(3):
        np.testing.assert_array_equal(
            reference.forward(x, train=True, step=step), other.backend.to_host(other.forward(x, train=True, step=step))
        )


def test_float32_and_float64_draw_the_same_mask():
    key = np.asarray(12345, dtype=np.int32)
    import array_api_compat.numpy as xp

    kept = [
        xbp.Dropout(0.4)
        .forward(np.ones((40, 9), dtype=dtype), params={}, buffers={}, mode=Mode(True, key), xp=xp)
        .cache
        for dtype in ("float32", "float64")
    ]
    np.testing.assert_array_equal(*kept)


@pytest.mark.parametrize("name", BACKENDS)
def test_loss_curves_agree_over_200_steps_with_dropout(name):
    x, t = blobs(400)
    curves = []
    for backend in ("numpy", backend_or_skip(name)):
        model = xbp.Network(LAYERS, backend=backend, seed=1)
        trainer = xbp.Trainer(model, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.02))
        losses = []
        for _ in range(8):  # 25 steps an epoch
            source = trainer.fit(x, t, epochs=1, batch_size=16)
            losses.append(source["loss"][-1])
        assert trainer.steps == 200
        curves.append(losses)
    np.testing.assert_allclose(curves[1], curves[0], rtol=1e-5)


@pytest.mark.parametrize("name", BACKENDS)
def test_each_of_200_losses_agrees(name):
    x, t = blobs(64)
    losses = []
    for backend in ("numpy", backend_or_skip(name)):
        model = xbp.Network(LAYERS, backend=backend, seed=1)
        trainer = xbp.Trainer(model, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.02))
        rows = [slice(8 * (i % 8), 8 * (i % 8) + 8) for i in range(200)]
        losses.append([float(model.backend.to_host(trainer.step(x[r], t[r]))) for r in rows])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_another_seed_gives_other_weights_batches_and_masks():
    x, t = blobs()
    first, second = (
        xbp.Trainer(
            xbp.Network(LAYERS, backend="numpy", seed=seed), loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.05)
        ).fit(x, t)["loss"]
        for seed in (0, 1)
    )
    assert first != second
