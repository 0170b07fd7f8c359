"""What changes from step to step: the learning rate, and a key for each layer that draws numbers.

They are inputs of the step, so that one recorded step serves a whole training. On the host they follow from the numbers
of the steps alone, which is why a resumed training needs to remember nothing else.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .model import Model
from .random import step_keys
from .schedules import Schedule, rate_at
from .typing import Array

__all__ = ["Scalars"]

AHEAD = 64  # steps whose keys are computed together, for whoever asks for them one by one


class Scalars:
    """The scalar inputs of the steps of one training: "lr", and "key.<layer>" (int32) for every random layer."""

    def __init__(self, model: Model, lr: float | Schedule) -> None:
        self.lr = lr
        self._backend = model.backend
        self._dtype = model.dtype
        self._seed = model.seed
        self._ahead: dict[str, np.ndarray] = {}  # keys of AHEAD steps, from `_first` on
        self._first = -AHEAD
        self._float = np.dtype(self._dtype).type
        self._rate: Any = None
        self._rate_of: object = None  # what `_rate` was made of
        self._on_device: dict[str, tuple[Any, Array]] = {}
        self._layers = {name: model.position(name) for name in model.plan.random_nodes()}

    def rate(self, step: int) -> float:
        """The learning rate of the step of that number."""
        return rate_at(self.lr, step)

    def set_rate(self, value: Any) -> None:
        """Replace the rate or schedule by a number. Raises `ValueError` for anything but a finite one of at least 0."""
        number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if not number or not 0 <= float(value) < math.inf:
            raise ValueError(f"lr must be a finite number of at least 0; it is {value!r}.")
        self.lr = float(value)

    def on_host(self, steps: np.ndarray) -> dict[str, np.ndarray]:
        """The inputs of the steps of these numbers, (K,) each."""
        rates = [self.rate(int(s)) for s in steps] if callable(self.lr) else np.full(len(steps), self.lr)
        keys = {f"key.{name}": step_keys(self._seed, layer, steps) for name, layer in self._layers.items()}
        return {"lr": np.asarray(rates, dtype=np.float64), **keys}

    def table(self, first: int, count: int) -> dict[str, Array]:
        """The inputs of `count` steps, moved to the device together, (count,) each."""
        host = self.on_host(np.arange(first, first + count))
        return {n: self._backend.asarray(v, self._dtype if v.dtype.kind == "f" else None) for n, v in host.items()}

    def single(self, step: int) -> dict[str, Array]:
        """The inputs of one step as 0-d arrays, filled on the device: nothing is copied from the host."""
        if self._layers and not 0 <= step - self._first < AHEAD:
            self._first = step
            steps = np.arange(step, step + AHEAD)
            self._ahead = {f"key.{name}": step_keys(self._seed, layer, steps) for name, layer in self._layers.items()}
        if self.lr is not self._rate_of or callable(self.lr):  # a schedule is asked for each step when it comes
            self._rate_of, self._rate = self.lr, self._float(self.rate(step))
        now = {"lr": self._rate} | {name: keys[step - self._first] for name, keys in self._ahead.items()}
        return now if self._backend.on_host else {name: self._filled(name, value) for name, value in now.items()}

    def _filled(self, name: str, value: Any) -> Array:
        """A number on the device; the one of the step before, where it is the same."""
        known = self._on_device.get(name)
        if known is None or known[0] != value:
            xp = self._backend.xp
            dtype = self._backend.dtype(self._dtype) if value.dtype.kind == "f" else xp.int32
            known = (value, xp.full((), value.item(), dtype=dtype, device=self._backend.device))
            self._on_device[name] = known
        return known[1]
