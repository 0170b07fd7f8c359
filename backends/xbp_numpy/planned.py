"""The engine `planned`: a recorded program run by NumPy without allocating anything.

The eager step spends much of its time on the memory of its temporaries, which the system hands out afresh and empty
each time. Here each batch size has a plan, made once: every result is written to its place in one arena, and chains of
elementwise operations are worked off in blocks that stay in the cache. The sums are NumPy's, in NumPy's order, so the
results are those of the eager step to the last bit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np

from xbp.backend import Backend
from xbp.program import Program
from xbp.recording import flat, inputs_of, nested
from xbp.typing import Array, Inputs, Scalar, Tree

from .planned_ops import check
from .planned_plan import Plan

__all__ = ["PlannedRunner", "planned_function"]

ENGINE = "planned"
PLANS = 4  # batch sizes whose plans are kept: those of an epoch's batches and of its last one, and two more
NOTHING = np.empty(0, dtype=np.uint8)


class PlannedRunner:
    """An `xbp.runner.Runner` over arrays of its own, which every step changes in place.

    An interrupt leaves whole steps: while a plan runs, no signal is answered. Raises `NotCompiled` for a program with
    an operation that it does not have.
    """

    engine = ENGINE

    def __init__(self, program: Program, backend: Backend) -> None:
        check(program, ENGINE)
        self._program = program
        self._owned = {
            name: np.zeros(tuple(value.shape), value.dtype.name)
            for name, value in program.inputs.items()
            if not _is_batch(name)
        }
        self._scalars = {name[8:]: a for name, a in self._owned.items() if name.startswith("scalars.")}
        self._loss = program.outputs["loss"].dtype.name
        self._plans: OrderedDict[int, Plan] = OrderedDict()
        self._arena = NOTHING

    @property
    def arena(self) -> np.ndarray:
        """The memory in which steps are computed; nothing in it outlives a step."""
        return self._arena

    def load(self, tree: Tree) -> None:
        for name, a in flat(tree).items():
            self._owned[name][...] = cast(np.ndarray, a)

    def read(self) -> Tree:
        return nested(cast(Mapping[str, Array], self._owned))

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        arrays = cast(dict[str, np.ndarray], inputs_of(x, t, w))
        plan = self._plan(arrays["t"].shape[0])
        for name, a in arrays.items():
            plan.give(name, a)
        with np.errstate(all="ignore"):
            return cast(Array, self._step(plan, scalars))

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        count, n = index.shape
        plan = self._plan(n)
        data = [(a, plan.buffer(name)) for name, a in cast(dict[str, np.ndarray], inputs_of(x, t, w)).items()]
        for name in inputs_of(x, t, w):
            plan.give(name, plan.buffer(name))
        losses = np.empty(count, dtype=self._loss)
        chosen = np.empty(n, dtype=np.intp)
        with np.errstate(all="ignore"):
            for k in range(count):
                chosen[...] = cast(np.ndarray, index)[k]
                for a, buffer in data:
                    a.take(chosen, 0, buffer, "clip")  # "raise" would gather into a copy of the buffer first
                losses[k] = self._step(plan, {name: values[k] for name, values in scalars.items()})
        return cast(Array, losses)

    def _step(self, plan: Plan, scalars: Mapping[str, Scalar]) -> Any:
        for name, a in self._scalars.items():
            a[...] = cast(float, scalars[name])
        plan.run()
        return plan.output("loss")[()]  # a number of its own, which no later step changes

    def _plan(self, n: int) -> Plan:
        plan = self._plans.get(n)
        if plan is None:
            plan = self._plans[n] = Plan(self._program, n, self._owned, self._arena)
            if plan.arena is not self._arena:
                self._arena = plan.arena  # the largest serves all plans that are made from now on
            if len(self._plans) > PLANS:
                self._plans.popitem(last=False)
        else:
            self._plans.move_to_end(n)
        return plan


def _is_batch(name: str) -> bool:
    return name.partition(".")[0] in ("x", "t", "w")


def planned_function(program: Program, backend: Backend) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The program as a pure function of named arrays. Raises `NotCompiled` as `PlannedRunner` does."""
    check(program, ENGINE)
    # A plan is taken out while it is used, so that threads never share one.
    idle: OrderedDict[int, list[Plan]] = OrderedDict()
    batch = [name for name in program.inputs if _is_batch(name)]

    def function(inputs: Mapping[str, Array]) -> dict[str, Array]:
        n = program.batch_size(inputs)
        kept = idle.get(n)
        try:
            plan = (kept if kept is not None else []).pop()
        except IndexError:
            plan = Plan(program, n, {}, NOTHING)
        for name in program.inputs:
            plan.give(name, np.asarray(inputs[name]))
        with np.errstate(all="ignore"):
            plan.run()
        out = {name: cast(Array, plan.output(name).copy()) for name in program.outputs}
        for name in batch:
            plan.give(name, plan.buffer(name))  # so that nobody's data is kept alive
        idle.setdefault(n, []).append(plan)
        while len(idle) > PLANS:
            idle.popitem(last=False)
        return out

    return function
