"""Runners: who executes steps, and owns parameters, buffers and optimiser state while it lives.

Trainer knows nothing of engines but this contract. The eager Runner, here, calls the step as it is written, on any
namespace; the others are made by `backend.compile`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

from .backend import Backend
from .program import Program
from .recording import flat, inputs_of, nested
from .step import Step
from .typing import Array, Inputs, Scalar, Tree

__all__ = ["EagerRunner", "FunctionRunner", "Preparing", "Runner", "take_rows"]


class Runner(Protocol):
    """What an engine offers. A loss that was returned is never overwritten."""

    engine: str

    def load(self, tree: Tree) -> None:
        """Take over parameters, buffers and optimiser state; the arrays given are never written to."""

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        """One step; the loss () as an array of the backend, not waited for."""

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        """K steps over rows `index` (K, B) of arrays on the device, with scalars (K,) each; the losses (K,)."""

    def read(self) -> Tree:
        """The values after the last finished step, valid until the next."""


@runtime_checkable
class Preparing(Protocol):
    """What a Runner may offer besides: an engine that compiles late says before the first step what it cannot do."""

    def prepare(self, rows: int) -> None:
        """Get ready for batches of so many rows. Raises an `XBPError` for what cannot be run, or does not fit."""


def take_rows(x: Inputs, index: Array, backend: Backend) -> Inputs:
    if isinstance(x, Mapping):
        return {name: backend.xp.take(a, index, axis=0) for name, a in x.items()}
    return backend.xp.take(x, index, axis=0)


class EagerRunner:
    """The step, called operation by operation. A step is taken over whole, so an interrupt leaves the one before."""

    def __init__(self, step: Step, backend: Backend, engine: str = "eager") -> None:
        self.engine = engine
        self._step = step
        self._backend = backend
        self._tree: Tree = {}

    def load(self, tree: Tree) -> None:
        self._tree = {section: dict(arrays) for section, arrays in tree.items()}

    def read(self) -> Tree:
        return self._tree

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        tree = self._tree
        params, buffers, state, loss = self._step(
            tree["params"], tree["buffers"], tree["state"], x, t, w, scalars, xp=self._backend.xp
        )
        self._tree = {"params": params, "buffers": buffers, "state": state}
        return loss

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        return _one_by_one(self, self._backend, x, t, w, index, scalars)


class FunctionRunner:
    """A step program run by a pure function of named arrays, for engines that compile functions and own no memory."""

    def __init__(
        self,
        program: Program,
        backend: Backend,
        engine: str,
        function: Callable[[Mapping[str, Array]], dict[str, Array]],
    ) -> None:
        self.engine = engine
        self._backend = backend
        self._function = function
        self._names = tuple(program.inputs)
        self._arrays: dict[str, Array] = {}

    def load(self, tree: Tree) -> None:
        self._arrays = flat(tree)

    def read(self) -> Tree:
        return nested(self._arrays)

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        given = {**self._arrays, **inputs_of(x, t, w), **{f"scalars.{name}": v for name, v in scalars.items()}}
        out = self._function({name: given[name] for name in self._names})  # type: ignore[misc]  # 0-d arrays
        loss = out.pop("loss")
        self._arrays = {**self._arrays, **out}  # at once, so that an interrupt leaves the step before
        return loss

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        return _one_by_one(self, self._backend, x, t, w, index, scalars)


def _one_by_one(
    runner: Runner,
    backend: Backend,
    x: Inputs,
    t: Array,
    w: Array | None,
    index: Array,
    scalars: Mapping[str, Array],
) -> Array:
    """`Runner.run` as a loop over `Runner.step`."""
    xp, losses = backend.xp, []
    for k in range(index.shape[0]):
        rows = index[k, :]
        batch = take_rows(x, rows, backend)
        weight = None if w is None else xp.take(w, rows, axis=0)
        now = {name: values[k] for name, values in scalars.items()}
        losses.append(runner.step(batch, xp.take(t, rows, axis=0), weight, now))
    return xp.stack(losses)
