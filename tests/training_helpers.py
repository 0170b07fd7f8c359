"""A small learnable problem and the networks that the training tests share."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.errors import BackendUnavailable


def blobs(n=120, d=6, classes=3, seed=0):
    """Points around one centre a class: x (n, d) float32, t (n,) int."""
    rng = np.random.default_rng(seed)
    t = rng.integers(0, classes, n)
    centres = rng.normal(0.0, 2.0, (classes, d))
    return (centres[t] + rng.normal(0.0, 0.7, (n, d))).astype(np.float32), t


def line(n=80, d=4, outputs=2, seed=1):
    """A linear regression problem without noise: x (n, d), t (n, outputs)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    return x, x @ rng.normal(size=(d, outputs)) + 0.5


def backend_or_skip(name):
    try:
        return xbp.get_backend(name)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def classifier(backend="numpy", dtype="float32", seed=0, extra=()):
    return xbp.Network(
        [xbp.Affine(6, 16), *extra, xbp.ReLU(), xbp.Affine(16, 3)], backend=backend, dtype=dtype, seed=seed
    )


def trainer_for(model, **options):
    options = {"loss": xbp.SoftmaxCrossEntropy(), "optimizer": xbp.Adam(1e-2)} | options
    return xbp.Trainer(model, **options)


def host(model, arrays):
    return {name: model.backend.to_host(a).copy() for name, a in arrays.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name, strict=True)


BACKENDS = ["numpy", "torch", "jax", "strict", pytest.param("cupy", marks=pytest.mark.cuda)]
