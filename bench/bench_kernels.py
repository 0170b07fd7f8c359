"""Forward and backward of every kernel, on widths that double, on every backend that is here.

A batch has 128 rows. Before it is timed, a kernel's output and gradients are compared with NumPy's in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest

from xbp import available_backends, get_backend
from xbp.kernels import (
    add,
    affine,
    batch_norm,
    dropout,
    elu,
    frozen_norm,
    gaussian_nll,
    gelu,
    huber,
    identity,
    layer_norm,
    leaky_relu,
    mean_absolute_error,
    mean_squared_error,
    mul,
    poisson_nll,
    quantile,
    relu,
    sigmoid,
    sigmoid_cross_entropy,
    silu,
    softmax,
    softmax_cross_entropy,
    softplus,
    tanh,
)

N = 128
WIDTHS = (64, 128, 256, 512, 1024)
RTOL = 2e-5  # of the largest entry: a product of 1024 terms loses some digits

Arrays = tuple[Any, ...]
Rng = np.random.Generator


def batch(rng: Rng, D: int) -> np.ndarray:
    return rng.standard_normal((N, D))


def one(rng: Rng, D: int) -> Arrays:
    return (batch(rng, D),)


def two(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), batch(rng, D)


def square(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), rng.standard_normal((D, D)) / D**0.5, rng.standard_normal(D)


def scaled(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), rng.standard_normal(D), rng.standard_normal(D)


def running(rng: Rng, D: int) -> Arrays:
    return (*scaled(rng, D), rng.standard_normal(D), rng.uniform(0.5, 2.0, D))


def kept(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), rng.random((N, D)) < 0.5


def labels(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), rng.integers(0, D, N, dtype=np.int32), None


def answers(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), rng.integers(0, 2, (N, D)).astype(np.float64), None


def numbers(rng: Rng, D: int) -> Arrays:
    return (*two(rng, D), None)


def counts(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), rng.poisson(2.0, (N, D)).astype(np.float64), None


def halves(rng: Rng, D: int) -> Arrays:
    return batch(rng, D), rng.standard_normal((N, D // 2)), None


@dataclass(frozen=True)
class Kernel:
    name: str
    module: Any
    arguments: Callable[[Rng, int], Arrays] = one
    options: dict[str, Any] = field(default_factory=dict)


KERNELS = [
    Kernel("affine", affine, square),
    Kernel("add", add, two),
    Kernel("mul", mul, two),
    Kernel("identity", identity),
    Kernel("relu", relu),
    Kernel("leaky_relu", leaky_relu, options={"negative_slope": 0.01}),
    Kernel("elu", elu, options={"alpha": 1.0}),
    Kernel("gelu", gelu, options={"approximate": "none"}),
    Kernel("gelu-tanh", gelu, options={"approximate": "tanh"}),
    Kernel("sigmoid", sigmoid),
    Kernel("silu", silu),
    Kernel("softplus", softplus, options={"beta": 1.0}),
    Kernel("softmax", softmax),
    Kernel("tanh", tanh),
    Kernel("dropout", dropout, kept, {"p": 0.5}),
    Kernel("layer_norm", layer_norm, scaled, {"eps": 1e-5}),
    Kernel("batch_norm", batch_norm, scaled, {"eps": 1e-5}),
    Kernel("frozen_norm", frozen_norm, running, {"eps": 1e-5}),
    Kernel("softmax_cross_entropy", softmax_cross_entropy, labels, {"label_smoothing": 0.0}),
    Kernel("sigmoid_cross_entropy", sigmoid_cross_entropy, answers),
    Kernel("mean_squared_error", mean_squared_error, numbers),
    Kernel("mean_absolute_error", mean_absolute_error, numbers),
    Kernel("huber", huber, numbers, {"delta": 1.0}),
    Kernel("quantile", quantile, numbers, {"q": (0.3,)}),
    Kernel("poisson_nll", poisson_nll, counts),
    Kernel("gaussian_nll", gaussian_nll, halves),
]
BACKENDS = [info.name for info in available_backends() if info.available]


def placed(backend: Any, value: Any, dtype: str) -> Any:
    if value is None:
        return None
    return backend.asarray(value, dtype if value.dtype.kind == "f" else None)


def prepared(
    kernel: Kernel, backend: Any, D: int, dtype: str
) -> tuple[Callable[[], Any], Callable[[], Any], list[Any]]:
    """(forward, backward) as calls without arguments, and what they give, on the host."""
    rng = np.random.default_rng(D)
    arguments = [placed(backend, a, dtype) for a in kernel.arguments(rng, D)]
    forward = partial(kernel.module.forward, *arguments, **kernel.options, xp=backend.xp)
    y, cache = forward()[:2]
    # A loss is a number, and its upstream gradient 1; a layer's is any array.
    dy = 1.0 if not y.shape else placed(backend, rng.standard_normal(tuple(y.shape)), dtype)
    backward = partial(kernel.module.backward, dy, cache, **kernel.options, xp=backend.xp)
    grads = backward()
    return forward, backward, [backend.to_host(a) for a in (y, *(grads if isinstance(grads, tuple) else (grads,)))]


def check(kernel: Kernel, D: int, found: list[np.ndarray]) -> None:
    """Raise where an output or a gradient is not NumPy's in float64."""
    _, _, desired = prepared(kernel, get_backend("numpy"), D, "float64")
    for a, exact in zip(found, desired, strict=True):
        assert a.dtype == np.float32
        np.testing.assert_allclose(a, exact, rtol=0, atol=RTOL * float(np.abs(exact).max()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("D", WIDTHS)
@pytest.mark.parametrize("way", ["forward", "backward"])
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.name)
def bench_kernel(benchmark: Any, waits_for: Any, kernel: Kernel, way: str, D: int, backend: str) -> None:
    where = get_backend(backend)
    forward, backward, found = prepared(kernel, where, D, "float32")
    check(kernel, D, found)
    call = forward if way == "forward" else backward
    for _ in range(3):
        call()
    waits_for(where.synchronize)
    benchmark.group = f"{kernel.name}, {way}, ({N}, {D})"
    benchmark(call)
