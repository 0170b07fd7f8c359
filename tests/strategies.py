"""Inputs for the tests, named by their shapes, and the strategies that draw those shapes.

A generator such as `x_ND` is a function of `Sizes`, so that hypothesis varies, and shrinks, the lengths behind the
letters of the kernels' docstrings. What is random inside follows from the seed: the same failure appears again
anywhere. All arrays are made in float64 on the host; a test puts them where it needs them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Sizes:
    """Lengths: N rows; D inputs and M outputs of a layer; C classes; K outputs of a regression.

    Three widths are equal by default, so that what was compiled for one kernel serves others; hypothesis varies them.
    """

    N: int = 3
    D: int = 4
    M: int = 2
    C: int = 4
    K: int = 4
    seed: int = 0

    @property
    def rng(self) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.N, self.D, self.M, self.C, self.K])


TYPICAL = Sizes()


def compiles(space: Any) -> bool:
    """Whether every new shape costs the space a compilation, as on JAX."""
    return space.name.startswith("jax")


def dtypes(space: Any) -> tuple[str, ...]:
    """The space's floating dtypes, but for float32 on jax-x64, which jax runs anyway."""
    return space.dtypes[-1:] if compiles(space) else space.dtypes


def sizes(space: Any) -> st.SearchStrategy[Sizes]:
    """Lengths from 1 to 4; one choice of them where a space compiles."""
    if compiles(space):
        return st.just(TYPICAL)
    length = st.integers(1, 4)
    return st.builds(Sizes, length, length, length, length, length, st.integers(0, 99))


def for_all(space: Any, strategy: st.SearchStrategy[Any], examples: int = 8) -> Callable[[Callable[[Any], None]], None]:
    """A decorator that runs the function below it at once on drawn examples: two where a space compiles.

    Inside a test, so that hypothesis sees no fixture; derandomised and without a store of old failures, so that every
    machine runs the same examples.
    """
    chosen = settings(
        max_examples=2 if compiles(space) else examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
    )

    def run(body: Callable[[Any], None]) -> None:
        chosen(given(strategy)(body))()

    return run


def broadcastable(max_side: int = 3) -> st.SearchStrategy[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Two shapes that broadcast against each other, 0-d and axes of length one included."""
    drawn = hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=0, max_dims=3, min_side=1, max_side=max_side)
    return drawn.map(lambda found: (found.input_shapes[0], found.input_shapes[1]))


def grid(low: float, high: float) -> np.ndarray:
    """A thousand points and the middle one, in one shape for all tests; float32 has these numbers too."""
    return np.linspace(low, high, 1001).astype(np.float32).astype(np.float64)


# Inputs of layers.


def x_ND(s: Sizes) -> Arrays:
    return (s.rng.normal(size=(s.N, s.D)),)


def x_ND_off_zero(s: Sizes) -> Arrays:
    """No entry within 0.1 of 0, where some slopes jump."""
    return (_off_zero(s.rng, (s.N, s.D)),)


def a_ND_b_ND(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, s.D)), rng.normal(size=(s.N, s.D))


def a_ND_b_D(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, s.D)), rng.normal(size=(s.D,))


def a_N1_b_1D(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, 1)), rng.normal(size=(1, s.D))


def x_ND_W_DM_b_M(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, s.D)), rng.normal(size=(s.D, s.M)), rng.normal(size=(s.M,))


def x_ND_W_DM(s: Sizes) -> Arrays:
    return x_ND_W_DM_b_M(s)[:2]


def x_ND_g_D_b_D(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, s.D)) * 2.0 + 1.0, rng.uniform(0.5, 1.5, (s.D,)), rng.normal(size=(s.D,))


def m_D_v_D(s: Sizes) -> Arrays:
    rng = np.random.default_rng([s.seed, 1])
    return rng.normal(size=(s.D,)), rng.uniform(0.5, 2.0, (s.D,))


def keep_ND(s: Sizes) -> Arrays:
    return (np.random.default_rng([s.seed, 2]).random((s.N, s.D)) < 0.6,)


# Inputs of losses: scores or predictions y, then targets t.


def y_NC_t_N(s: Sizes) -> Arrays:
    """Integer labels, int32: JAX has nothing wider unless asked."""
    rng = s.rng
    return rng.normal(size=(s.N, s.C)) * 2.0, rng.integers(0, s.C, (s.N,), dtype=np.int32)


def y_NC_t_NC_one_hot(s: Sizes) -> Arrays:
    y, labels = y_NC_t_N(s)
    return y, np.eye(s.C)[labels]


def y_NC_t_NC_soft(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, s.C)) * 2.0, rng.dirichlet(np.ones(s.C), s.N)


def y_NC_t_NC_unnormalised(s: Sizes) -> Arrays:
    """Targets that sum to anything but one: the slope has the factor sum of q."""
    y, t = y_NC_t_NC_soft(s)
    return y, t * 0.7 + 0.05


def y_NK_t_NK(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, s.K)), rng.normal(size=(s.N, s.K))


def y_NK_t_NK_apart(s: Sizes) -> Arrays:
    """y - t has no entry within 0.1 of 0 or of 1 and -1: between the kinks of the absolute errors and of Huber's."""
    rng = s.rng
    t = rng.normal(size=(s.N, s.K))
    d = np.where(rng.random(t.shape) < 0.5, rng.uniform(0.15, 0.85, t.shape), rng.uniform(1.15, 3.0, t.shape))
    return t + d * rng.choice([-1.0, 1.0], t.shape), t


def y_NK_t_NK_probabilities(s: Sizes) -> Arrays:
    rng = s.rng
    return _off_zero(rng, (s.N, s.K)) * 2.0, rng.random((s.N, s.K))


def y_NK_t_NK_bits(s: Sizes) -> Arrays:
    y, t = y_NK_t_NK_probabilities(s)
    return y, np.round(t)


def y_NK_t_NK_counts(s: Sizes) -> Arrays:
    rng = s.rng
    return rng.normal(size=(s.N, s.K)), rng.poisson(1.5, (s.N, s.K)).astype(float)


def y_N2K_t_NK(s: Sizes) -> Arrays:
    """Means, then log-variances."""
    rng = s.rng
    return rng.normal(size=(s.N, 2 * s.K)) * 0.7, rng.normal(size=(s.N, s.K))


def w_N(s: Sizes) -> np.ndarray:
    """Weights with a zero among them where there are several rows."""
    w = np.random.default_rng([s.seed, 3]).uniform(0.5, 2.0, (s.N,))
    if s.N > 1:
        w[s.seed % s.N] = 0.0
    return w


def _off_zero(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 2.5, shape) * rng.choice([-1.0, 1.0], shape)
