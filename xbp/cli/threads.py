"""How many threads BLAS takes for the products of a network of MNIST's size or smaller: one.

BLAS cuts a product among all cores, and its threads then wait for each other in a loop that asks for nothing. For the
matrices of such a network that gains little on an idle machine, and where another program runs beside, each of
the many short waits lasts until the scheduler comes round: trainings took ten times as long, and more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from ..layers import Affine
from ..model import Model

__all__ = ["calm_blas"]

SMALL = 1 << 25  # multiplications in the largest product of a step: milliseconds on one core
CHOSEN = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


@contextmanager
def calm_blas(model: Model, batch_size: int) -> Iterator[None]:
    """While entered, NumPy's BLAS runs in one thread if the model is small.

    Left alone are the larger ones, whose sums depend on how BLAS cuts them: the number of threads must not follow from
    how busy the machine happens to be. So is whoever has set an environment variable, or lacks threadpoolctl, which
    scikit-learn brings.
    """
    chosen = any(os.environ.get(name) for name in CHOSEN)
    if chosen or not model.backend.on_host or _largest_product(model, batch_size) > SMALL:
        yield
        return
    try:
        limits = import_module("threadpoolctl").threadpool_limits
    except ImportError:
        yield
        return
    with limits(1, user_api="blas"):
        yield


def _largest_product(model: Model, batch_size: int) -> int:
    layers = (node.layer for node in model.plan.nodes)
    return max((batch_size * n.in_features * n.out_features for n in layers if isinstance(n, Affine)), default=0)
