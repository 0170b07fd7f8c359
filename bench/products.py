"""The machine's limit: the matrix products of a training step and nothing else, by NumPy's BLAS into memory at hand.

It is no training: there is no loss to be verified, no weight moves. It is what is left of a step when everything but
its products costs nothing; what it takes of a contestant's time says how much of a step is not overhead.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from xbp.benchmark import Case

__all__ = ["LIMIT", "Products", "is_limit"]

LIMIT = "products alone (limit)"


class Products:
    """Forward, dW of every layer and dx of all but the first, in the order of a step, by `numpy.matmul(out=)`.

    It is the one contestant that `verify` is not asked about, since it computes no loss; `compare.py` says so in the
    file, where its error is null.
    """

    name, library, engine, device = LIMIT, "numpy", "products", "cpu"
    version = np.__version__

    def __init__(self, case: Case) -> None:
        self.case = case
        weights = [a for name, a in case.weights().items() if name.endswith(".W")]
        x, _ = case.data()
        rows = [slice(i * case.batch, (i + 1) * case.batch) for i in range(case.steps)]
        values = [np.empty((case.batch, width), x.dtype) for width in case.widths[1:]]
        slopes = [np.full_like(a, 1e-3) for a in values]  # the last is never written: nobody computes a loss
        self.grads = [np.empty_like(W) for W in weights]
        self._forward = list(zip(weights, values, strict=True))
        self._backward = [
            (values[i - 1].T if i else None, slopes[i], self.grads[i], weights[i].T, slopes[i - 1] if i else None)
            for i in reversed(range(len(weights)))
        ]
        self._batches = itertools.cycle([x[r] for r in rows])

    def restart(self) -> None:
        """No value changes from step to step."""

    def step(self) -> Any:
        matmul = np.matmul
        first = h = next(self._batches)
        for W, y in self._forward:
            h = matmul(h, W, out=y)
        for h_T, dy, dW, W_T, dx in self._backward:
            if dx is None:
                matmul(first.T, dy, out=dW)
            else:
                matmul(h_T, dy, out=dW)
                matmul(dy, W_T, out=dx)
        return None

    def epochs(self, n: int) -> float:
        for _ in range(n * self.case.steps):
            self.step()
        return float("nan")

    def number(self, loss: Any) -> float:
        raise NotImplementedError(f"{self.name} has no loss.")

    def synchronize(self) -> None:
        """NumPy returns when it is done."""


def is_limit(contestant: Any) -> bool:
    return isinstance(contestant, Products)
