"""What every contestant of the GPU benchmark offers, what it has to get right first, and how it is timed.

A contestant starts from the same weights, takes the same batches, and is compared with a training by NumPy in float64:
the losses of some steps, and how far the parameters moved. The second says more than the first: a library that does not
train at all has nearly the right losses for a while.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np

from xbp.benchmark import Case, Training

__all__ = [
    "FIRST_SCALE",
    "PRECISIONS",
    "TOLERANCE",
    "Entrant",
    "Reference",
    "Timed",
    "Way",
    "WrongError",
    "calls_for",
    "chosen_rows",
    "plain",
    "reference",
    "seconds_to_first_step",
    "steps_together",
    "summary",
    "timed",
    "verify",
    "work",
]

PRECISIONS = ("float32", "tf32", "mixed-bfloat16", "mixed-float16")
# Of the loss in mixed-float16, for everybody: with the usual 2^16 a first step may overflow and be skipped, by some.
FIRST_SCALE = 2.0**10
CHECKED = 5  # steps; of a large network fewer, see `Case.checked`
# (of a loss, relative; of how far the parameters moved, relative to how far they should). The second has to be wide:
# Adam's first steps are as long for a gradient that is nothing but rounding as for any other.
TOLERANCE = {
    "float32": (3e-5, 0.05),
    "tf32": (5e-3, 0.25),
    "mixed-bfloat16": (3e-2, 0.4),
    "mixed-float16": (5e-3, 0.25),
}


class WrongError(Exception):
    """A contestant that computes something else."""


@dataclass(frozen=True)
class Way:
    """A way to train: `call` takes `steps` steps, and returns their losses, not waited for."""

    call: Callable[[], Any]
    steps: int = 1


class Entrant(Protocol):
    """One library in one case and one precision, on a device.

    ways    "step", one call a step on a batch that lies ready; "many", the fewest calls for many steps on rows that
            are chosen on the device; "fit", an epoch with all that belongs to one
    """

    version: str
    engine: str
    ways: dict[str, Way]

    def restart(self, way: str) -> None:
        """Back to the initial weights; before the first step of a way, to the beginning of everything."""

    def numbers(self, losses: Any) -> np.ndarray:
        """What a call returned, on the host."""

    def params(self, way: str) -> list[np.ndarray]:
        """The parameters on the host, as `Case.weights` orders and lays them out."""

    def synchronize(self) -> None:
        """Wait until everything asked for has been computed."""

    def mark(self) -> Any:
        """An event of the device, recorded now; None where the library has none."""

    def between(self, start: Any, stop: Any) -> float:
        """Seconds between two events that are over."""

    def told(self) -> dict[str, Any]:
        """What else it can tell: memory, launches."""


def steps_together(case: Case) -> int:
    """The steps of one call of the way "many"."""
    return 64 if case.batch <= 128 else 16 if case.batch <= 1024 else 4


def chosen_rows(case: Case) -> np.ndarray:
    """The rows (K, B), int32, of each step of the way "many"."""
    rng = np.random.default_rng(1)
    return rng.integers(0, case.batch * case.steps, (steps_together(case), case.batch)).astype(np.int32)


# --- verification -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reference:
    """What NumPy computes in float64 from the weights `start`: losses, and the parameters after those steps."""

    start: list[np.ndarray]
    losses: np.ndarray
    params: list[np.ndarray]


def reference(case: Case, way: str = "step") -> Reference:
    """The first steps of a way. Of "many" these are the first ones of its single call."""
    training = Training(replace(case, dtype="float64"), "numpy", "eager")
    start = {name: a.astype(np.float64) for name, a in case.weights().items()}
    training.net.load_params(start)
    x, t = replace(case, dtype="float64").data()
    checked = min(CHECKED, case.checked)
    in_order = np.arange(case.batch * case.steps).reshape(case.steps, case.batch)
    rows = in_order if way == "step" else chosen_rows(case)
    count = checked if way == "step" else len(rows)  # after the one call, all of its steps count
    losses = [float(training.trainer.step(x[r], t[r])) for r in (rows[k % len(rows)] for k in range(count))]
    return Reference(list(start.values()), np.asarray(losses), [np.array(a) for a in training.net.params.values()])


def verify(entrant: Entrant, way: str, right: Reference, precision: str) -> dict[str, float]:
    """{"loss": ..., "update": ...}: errors of a fresh contestant. Raises `WrongError` where they are no rounding."""
    entrant.restart(way)
    losses: list[np.ndarray] = []
    while sum(map(len, losses)) < len(right.losses):
        losses.append(np.atleast_1d(entrant.numbers(entrant.ways[way].call())).astype(np.float64))
    found = np.concatenate(losses)
    first = slice(0, CHECKED)  # later ones have drifted
    error = float(np.max(np.abs(found[first] - right.losses[first]) / np.abs(right.losses[first])))
    allowed, far = TOLERANCE[precision]
    if not error <= allowed:  # NaN is refused too
        raise WrongError(
            f"the losses of the first steps ({way}) are {found[first].tolist()}, by NumPy in float64 they are "
            f"{right.losses[first].tolist()}: {error:.1e} apart, relative; {allowed:.0e} is allowed for {precision}."
        )
    moved = _moved(entrant.params(way), right)
    if not moved <= far:
        raise WrongError(
            f"after {len(found)} steps ({way}) the parameters moved otherwise than NumPy's in float64, by {moved:.2f} "
            f"of how far those moved; {far:g} is allowed for {precision}."
        )
    return {"loss": error, "update": moved}


def _moved(params: Sequence[np.ndarray], right: Reference) -> float:
    """The length of the difference of two paths, relative to the path that is right."""
    off = far = 0.0
    for start, there, found in zip(right.start, right.params, params, strict=True):
        off += float(np.sum((found.astype(np.float64) - there) ** 2))
        far += float(np.sum((there - start) ** 2))
    return math.sqrt(off / far)


# --- time -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timed:
    """Seconds a step of one block, by the host's clock and between two events; NaN where the library has none."""

    host: float
    device: float


def timed(entrant: Entrant, way: str, calls: int) -> Timed:
    """One block. The device has finished before and after it, and has just been at work."""
    how = entrant.ways[way]
    entrant.restart(way)
    how.call()
    entrant.synchronize()
    began = time.perf_counter()
    start = entrant.mark()
    for _ in range(calls):
        how.call()
    stop = entrant.mark()
    entrant.synchronize()
    host = time.perf_counter() - began
    device = math.nan if start is None else entrant.between(start, stop)
    return Timed(host / (calls * how.steps), device / (calls * how.steps))


def calls_for(entrant: Entrant, way: str, seconds: float) -> int:
    """How many calls fill a block of that length; finding out is the warm-up."""
    calls = 1
    while (took := timed(entrant, way, calls).host * calls * entrant.ways[way].steps) < seconds / 2:
        calls *= 2
    return max(1, round(calls * seconds / took))


def seconds_to_first_step(make: Callable[[], Entrant]) -> tuple[Entrant, float]:
    """(the contestant, seconds from nothing to the first loss of single steps): recording, compiling, tuning."""
    began = time.perf_counter()
    entrant = make()
    loss = entrant.numbers(entrant.ways["step"].call())
    if not np.isfinite(loss).all():
        raise WrongError(f"the loss of the first step is {loss}.")
    return entrant, time.perf_counter() - began


def summary(blocks: Sequence[float]) -> dict[str, Any] | None:
    """Microseconds: the blocks, their median, and what the middle half of them lies between."""
    if not blocks or not all(map(math.isfinite, blocks)):
        return None
    low, middle, high = 1e6 * np.quantile(blocks, [0.25, 0.5, 0.75])
    return {"median": float(middle), "low": float(low), "high": float(high), "blocks": [1e6 * s for s in blocks]}


def work(case: Case) -> float:
    """Multiplications of a reference, roughly."""
    pairs = zip(case.widths, case.widths[1:], strict=False)
    steps = min(CHECKED, case.checked) + steps_together(case)
    return 3.0 * case.batch * steps * sum(D * M for D, M in pairs)


def plain(case: Case) -> dict[str, Any]:
    """A case as JSON has it."""
    return {**asdict(case), "optimizer": str(case.optimizer)}
