"""The networks that are trained: small enough to be all call overhead, large enough to be all matrix products."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ..errors import unknown_name
from ..layers import Affine, Layer, ReLU
from ..network import Network
from ..optimizers import SGD, Adam, Optimizer

__all__ = ["CASES", "Case", "case_named"]


@dataclass(frozen=True)
class Case:
    """A network to train, with ReLU between the layers and softmax cross entropy at its end.

    steps      in an epoch, which has batch times steps rows
    checked    steps that are compared with NumPy's in float64 before anything is timed
    """

    name: str
    widths: tuple[int, ...]
    batch: int
    optimizer: Optimizer
    steps: int
    dtype: str = "float32"
    checked: int = 20

    def __str__(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}, {type(self.optimizer).__name__}, {self.dtype}"

    def layers(self) -> list[Layer]:
        layers: list[Layer] = []
        for D, M in itertools.pairwise(self.widths):
            layers += [Affine(D, M), ReLU()]
        return layers[:-1]

    def weights(self) -> dict[str, np.ndarray]:
        """The start of every contestant, on the host."""
        net = Network(self.layers(), backend="numpy", dtype=self.dtype)
        return {name: net.backend.to_host(a) for name, a in net.params.items()}

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Normal x (N, D) in `dtype`; int32 labels (N,), the largest of some linear maps of x, which can be learned."""
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.batch * self.steps, self.widths[0]), dtype=np.float32)
        A = rng.standard_normal((self.widths[0], self.widths[-1]), dtype=np.float32)
        return x.astype(self.dtype, copy=False), np.argmax(np.matmul(x, A), axis=1).astype(np.int32)


# With Adam's usual rate the first steps overshoot on such data, and rounding shows in the losses that are compared.
CASES = (
    Case("tiny", (10, 20, 10, 5), 4, SGD(0.1), steps=500),
    Case("book", (784, 50, 10), 100, SGD(0.1), steps=100),
    Case("mid", (784, 512, 256, 10), 128, Adam(1e-4), steps=40),
    Case("big", (784, 1024, 1024, 10), 1024, Adam(1e-4), steps=8),
    # A GPU's work; on the host a step of it takes seconds, and so does each one of the reference.
    Case("wide", (784, 4096, 4096, 10), 8192, Adam(1e-5), steps=4, checked=3),
)


def case_named(name: str) -> Case:
    """The case of that name. Raises `NameUnknown` with the nearest right one."""
    for case in CASES:
        if case.name == name:
            return case
    raise unknown_name("benchmark", name, [case.name for case in CASES])
