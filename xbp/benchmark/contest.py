"""Who takes part, and who is let in: only what computes the losses that NumPy computes in float64 is timed at all."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from ..backend import Backend, get_backend
from ..errors import XBPError
from ..losses import SoftmaxCrossEntropy
from ..network import Network
from ..training import Trainer
from .cases import Case

__all__ = ["TOLERANCE", "Contestant", "Training", "reference", "verify"]


# Of a loss, relative. The first four networks on NumPy, torch and JAX stay within 8e-7.
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


class Contestant(Protocol):
    """One way to train one case. xbp's own is `Training`; anything that takes part in a comparison is written alike."""

    name: str
    case: Case

    def restart(self) -> None:
        """Go back to the initial weights, so that every block does the same work."""

    def step(self) -> Any:
        """Train on the next batch, which lies on the device already; the loss, not waited for."""

    def epochs(self, n: int) -> float:
        """Train for n epochs of shuffled batches; the mean loss of the last of them."""

    def number(self, loss: Any) -> float:
        """What `step` returned, as a number."""

    def synchronize(self) -> None:
        """Wait until everything asked for has been computed."""


class Training:
    """xbp on one backend and one engine."""

    def __init__(self, case: Case, backend: str | Backend, engine: str = "auto") -> None:
        self.case = case
        self.backend = get_backend(backend)
        self.net = Network(case.layers(), backend=self.backend, dtype=case.dtype)
        self._start = case.weights()
        self.net.load_params(self._start)
        self.trainer = Trainer(self.net, loss=SoftmaxCrossEntropy(), optimizer=case.optimizer, engine=engine)
        self.engine = self.trainer.engine
        self.name = f"xbp, {self.backend.name}, {self.engine}"
        self._x, self._t = (self.backend.asarray(a) for a in case.data())
        bounds = [(i * case.batch, (i + 1) * case.batch) for i in range(case.steps)]
        self._batches = itertools.cycle([(self._x[a:b, ...], self._t[a:b]) for a, b in bounds])

    def restart(self) -> None:
        self.net.load_params(self._start)

    def step(self) -> Any:
        return self.trainer.step(*next(self._batches))

    def epochs(self, n: int) -> float:
        return self.trainer.fit(self._x, self._t, epochs=n, batch_size=self.case.batch)["loss"][-1]

    def number(self, loss: Any) -> float:
        return float(self.backend.to_host(loss))

    def synchronize(self) -> None:
        self.backend.synchronize()


@lru_cache
def reference(case: Case) -> tuple[tuple[float, ...], float]:
    """The losses of the first steps, and of an epoch after them, by NumPy's eager engine in float64."""
    training = Training(replace(case, dtype="float64"), "numpy", "eager")
    training.net.load_params({name: a.astype(np.float64) for name, a in case.weights().items()})
    return tuple(training.number(training.step()) for _ in range(case.checked)), training.epochs(1)


def verify(contestant: Contestant, *, same_order: bool = True, slack: float = 1.0) -> float:
    """The largest relative difference between a fresh contestant's losses and the reference's.

    same_order    whether `epochs` takes the rows in xbp's order; else the loss of an epoch only has to be finite
    slack         how many times `TOLERANCE` is allowed

    Raises `XBPError` where the difference is beyond `TOLERANCE`: what computes something else is not timed.
    """
    losses, epoch = reference(contestant.case)
    errors = []
    for i, desired in enumerate(losses):
        found = contestant.number(contestant.step())
        errors.append(_checked(contestant, f"the loss of step {i + 1}", found, desired, slack))
    found = contestant.epochs(1)
    if same_order or not math.isfinite(found):
        errors.append(_checked(contestant, "the mean loss of an epoch", found, epoch, slack))
    return max(errors)


def _checked(contestant: Contestant, what: str, found: float, desired: float, slack: float) -> float:
    case, error = contestant.case, abs(found - desired) / abs(desired)
    if not error <= slack * TOLERANCE[case.dtype]:
        raise XBPError(
            f"{contestant.name} is refused on {case.name!r} ({case}): {what} is {found!r}, by NumPy in float64 it is "
            f"{desired!r}. That is {error:.1e} apart, relative; {slack * TOLERANCE[case.dtype]:.0e} is allowed. "
            "Find out what it computes before its speed is of interest (xbp.testing helps)."
        )
    return error
