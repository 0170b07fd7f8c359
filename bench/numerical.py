"""What back-propagation is for: a whole gradient by it, and by central differences, of a network 784-50-10.

Both give the same numbers, which is looked at first; what differs is that differences take two forward passes for each
of the 39,760 parameters. Nobody waits for all of them here: a random subset, with every bias in it, is computed and
timed, and the time of the whole is that of the subset, multiplied. In float64, because in float32 differences drown.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from xbp import SGD, Network, SoftmaxCrossEntropy, get_backend
from xbp.benchmark import case_named
from xbp.step import Step
from xbp.traversal import forward

__all__ = ["CASE", "Problem", "compare", "largest_difference", "problem", "subset"]

CASE = case_named("book")
SUBSET = 400
H = 1e-5  # large enough against rounding, 1e-16 / h, and small against what bends, h^2
AGREE = 1e-7  # relative to the largest entry of the gradient

Entries = list[tuple[str, int]]


class Problem(NamedTuple):
    """One batch, and the parameters, whose entries are moved in place."""

    step: Step
    params: dict[str, Any]
    x: Any
    t: Any
    xp: Any

    @property
    def size(self) -> int:
        return sum(int(a.size) for a in self.params.values())

    def loss(self) -> float:
        """One forward pass."""
        y = forward(self.step.plan, self.params, {}, self.x, xp=self.xp, keep=False).y
        loss: Any = self.step.loss.forward(y, self.t, None, xp=self.xp)[0]
        return float(loss)

    def gradient(self) -> dict[str, Any]:
        """One forward and one backward pass."""
        return dict(self.step.gradients(self.params, {}, self.x, self.t, None, {}, xp=self.xp).grads)

    def slope(self, name: str, i: int) -> float:
        """The central difference along entry i of a parameter: two forward passes."""
        flat = self.params[name].reshape(-1)
        kept = flat[i]
        flat[i] = kept + H
        up = self.loss()
        flat[i] = kept - H
        down = self.loss()
        flat[i] = kept
        return (up - down) / (2 * H)


def problem() -> Problem:
    net = Network(CASE.layers(), backend="numpy", dtype="float64")
    params = {name: a.astype(np.float64) for name, a in CASE.weights().items()}
    x, t = CASE.data()
    step = Step(net.plan, SoftmaxCrossEntropy(), SGD(0.1), tuple(params))
    return Problem(step, params, x[: CASE.batch].astype(np.float64), t[: CASE.batch], get_backend("numpy").xp)


def subset(p: Problem) -> Entries:
    """Every bias, and weights at random."""
    biases = [(name, i) for name, a in p.params.items() if a.ndim == 1 for i in range(a.size)]
    weights = [(name, i) for name, a in p.params.items() if a.ndim == 2 for i in range(a.size)]
    chosen = np.random.default_rng(0).choice(len(weights), SUBSET - len(biases), replace=False)
    return biases + [weights[k] for k in chosen]


def largest_difference(p: Problem, entries: Entries) -> float:
    """Between the two gradients on these entries, relative to the gradient's largest; raises if it is no rounding."""
    grads = p.gradient()
    scale = max(float(np.abs(g).max()) for g in grads.values())
    error = max(abs(p.slope(name, i) - float(grads[name].reshape(-1)[i])) for name, i in entries) / scale
    if not error < AGREE:
        raise AssertionError(f"back-propagation and differences disagree by {error:.1e} of the largest entry")
    return error


def compare(
    blocks: int, accept: Callable[[float], bool], load: Callable[[], Any], clock: Callable[[], float]
) -> dict[str, Any]:
    """Both ways, verified and then timed in blocks that take turns; the time of all differences is extrapolated."""
    p = problem()
    entries = subset(p)
    error = largest_difference(p, entries)
    times: dict[str, list[float]] = {"backpropagation": [], "difference": []}
    while min(map(len, times.values())) < blocks:
        for way, seconds in times.items():
            if len(seconds) == blocks:
                continue
            meanwhile, start = load(), clock()
            if way == "difference":
                count = len(entries)
                for name, i in entries:
                    p.slope(name, i)
            else:
                count = 2 * len(entries)
                for _ in range(count):
                    p.gradient()
            took = clock() - start
            if accept(meanwhile.others()):
                seconds.append(took / count)
    one, other = (statistics.median(seconds) for seconds in times.values())
    return {
        "network": f"{'-'.join(map(str, CASE.widths))}, batch {CASE.batch}, float64",
        "parameters": p.size,
        "measured_differences": len(entries),
        "largest_difference": error,
        "backpropagation_us": 1e6 * one,
        "difference_us": 1e6 * other,
        "all_differences_seconds": other * p.size,
        "ratio": other * p.size / one,
        "blocks": times,
    }
