"""How fast training runs here: networks of fixed sizes on every backend and engine that this machine has.

Whatever is timed has first to give the losses that NumPy gives in float64. It is then warmed up and timed in short
blocks, in which all contestants take turns, so that a busy moment of the machine falls on all of them alike. Ratios of
one run say something, times of two runs do not.
"""

from __future__ import annotations

import itertools
import math
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .backend import Backend, available_backends, get_backend
from .errors import XBPError, unknown_name
from .layers import Affine, Layer, ReLU
from .losses import SoftmaxCrossEntropy
from .network import Network
from .optimizers import SGD, Adam, Optimizer
from .training import Trainer

__all__ = [
    "BLOCKS",
    "CASES",
    "TOLERANCE",
    "Case",
    "Contestant",
    "Load",
    "Result",
    "Timing",
    "Training",
    "case_named",
    "commit",
    "conditions",
    "contestants",
    "document",
    "interleaved",
    "measure",
    "reference",
    "run",
    "table",
    "time_all",
    "verify",
]

BLOCKS = 7  # an odd number, so that the median is a time that was measured
PAUSE = 0.1  # seconds; a library's helper threads spin on after its last product, and would disturb the next one's
BUSY = 0.25  # cores in use by others, beyond which numbers are doubtful
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # of a loss, relative; four networks and four libraries give 8e-7, 1e-15


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
        pairs = itertools.pairwise(self.widths)
        return [layer for D, M in pairs for layer in (Affine(D, M), ReLU())][:-1]

    def weights(self) -> dict[str, np.ndarray]:
        """The start of every contestant, on the host."""
        return {name: np.asarray(a) for name, a in Network(self.layers(), backend="numpy", dtype=self.dtype).params.items()}

    def data(self) -> tuple[np.ndarray, np.ndarray]:
        """Normal x (N, D) in `dtype` and int32 labels (N,) that a linear map of x gives, so that there is something to learn."""
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
    Case("wide", (784, 4096, 4096, 10), 8192, Adam(1e-5), steps=8, checked=3),
)


def case_named(name: str) -> Case:
    """The case of that name. Raises `NameUnknown` with the nearest right one."""
    for case in CASES:
        if case.name == name:
            return case
    raise unknown_name("benchmark", name, [case.name for case in CASES])


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


# --- right before fast ------------------------------------------------------------------------------------------------


@lru_cache
def reference(case: Case) -> tuple[tuple[float, ...], float]:
    """The losses of the first steps, and of an epoch after them, by NumPy's eager engine in float64."""
    wide = _Wide(replace(case, dtype="float64"), "numpy", "eager")
    wide.net.load_params({name: a.astype(np.float64) for name, a in case.weights().items()})
    return tuple(wide.number(wide.step()) for _ in range(case.checked)), wide.epochs(1)


class _Wide(Training):
    """The reference; a class of its own, so that whoever breaks `Training` to see it refused leaves this one whole."""


def verify(contestant: Contestant, *, same_order: bool = True) -> float:
    """The largest relative difference between a fresh contestant's losses and the reference's.

    same_order    whether `epochs` takes the rows in xbp's order; else its loss only has to be finite

    Raises `XBPError` where the difference is beyond `TOLERANCE`: what computes something else is not timed.
    """
    case = contestant.case
    losses, epoch = reference(case)
    found = [contestant.number(contestant.step()) for _ in losses]
    desired = list(losses)
    last = contestant.epochs(1)
    if same_order or not math.isfinite(last):
        found, desired = [*found, last], [*desired, epoch]
    errors = [abs(a - b) / abs(b) for a, b in zip(found, desired, strict=True)]
    worst = max(range(len(errors)), key=lambda i: errors[i] if math.isfinite(errors[i]) else math.inf)
    if not errors[worst] <= TOLERANCE[case.dtype]:
        where = f"the loss of step {worst + 1}" if worst < len(losses) else "the mean loss of an epoch"
        raise XBPError(
            f"{contestant.name} is refused on {case.name!r} ({case}): {where} is {found[worst]!r}, by NumPy in float64 it "
            f"is {desired[worst]!r}. That is {errors[worst]:.1e} apart, relative; {TOLERANCE[case.dtype]:.0e} is allowed. "
            "Find out what it computes before its speed is of interest (xbp.testing helps)."
        )
    return errors[worst]


# --- the clock --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Timing:
    """Seconds a step, one number a block."""

    blocks: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.blocks)

    @property
    def spread(self) -> float:
        """Half of the blocks lie in a range of this width, relative to the median."""
        low, high = np.quantile(self.blocks, [0.25, 0.75])
        return float(high - low) / self.median


class Load:
    """How much of this machine others use, in cores: what was busy, without this process. NaN where nobody tells."""

    def __init__(self) -> None:
        self._start = self._now()

    def others(self) -> float:
        """Cores in use by others since this object was made."""
        wall, busy, own = (b - a for a, b in zip(self._start, self._now(), strict=True))
        return max(0.0, busy - own) / wall if wall > 0 else math.nan

    @staticmethod
    def _now() -> tuple[float, float, float]:
        try:
            user, nice, system, _idle, _wait, irq, soft, steal = map(int, _first_line("/proc/stat").split()[1:9])
        except (OSError, ValueError):
            return time.monotonic(), math.nan, math.nan
        ticks = user + nice + system + irq + soft + steal
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()


def _first_line(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.readline()


Work = Callable[[Contestant, int], object]


def _steps(contestant: Contestant, n: int) -> None:
    for _ in range(n):
        contestant.step()


def _epochs(contestant: Contestant, n: int) -> None:
    contestant.epochs(n)


def _timed(contestant: Contestant, work: Work, n: int) -> float:
    contestant.synchronize()
    start = time.perf_counter()
    work(contestant, n)
    contestant.synchronize()
    return time.perf_counter() - start


def _count(contestant: Contestant, work: Work, seconds: float) -> int:
    """How often a block of that length does the work; finding out is the warm-up, compilation included."""
    work(contestant, 1)
    n = 1
    while (took := _timed(contestant, work, n)) < seconds / 2:
        n *= 2
    return max(1, round(n * seconds / took))


def interleaved(
    group: Sequence[Contestant],
    work: Work,
    seconds: float,
    blocks: int = BLOCKS,
    accept: Callable[[float], bool] = lambda others: True,
) -> list[Timing]:
    """Seconds for one unit of work of each contestant, in rounds of one block each, every round in another order.

    seconds    of each contestant's blocks together
    accept     whether to keep a block, given how many cores others used in it; the time that it took is not asked
    """
    counts = [_count(contestant, work, seconds / blocks) for contestant in group]
    times: list[list[float]] = [[] for _ in group]
    rng = np.random.default_rng(0)
    while (missing := [i for i, t in enumerate(times) if len(t) < blocks]):
        for i in rng.permutation(missing):
            contestant, n = group[i], counts[i]
            contestant.restart()
            contestant.synchronize()
            time.sleep(min(PAUSE, seconds / blocks))
            contestant.step()  # wakes the library's threads
            load = Load()
            took = _timed(contestant, work, n)
            if accept(load.others()):
                times[i].append(took / n)
    return [Timing(tuple(t)) for t in times]


def time_all(
    group: Sequence[Contestant], seconds: float, blocks: int = BLOCKS, accept: Callable[[float], bool] = lambda others: True
) -> list[tuple[Timing, Timing]]:
    """(a step by itself, a step as part of an epoch) of contestants in one case, interleaved."""
    steps = interleaved(group, _steps, seconds, blocks, accept)
    epochs = interleaved(group, _epochs, seconds, blocks, accept)
    return [
        (step, Timing(tuple(s / c.case.steps for s in epoch.blocks)))
        for c, step, epoch in zip(group, steps, epochs, strict=True)
    ]


# --- results ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What was measured of one contestant in one case.

    step      through `Trainer.step`, on batches that lie on the device
    fit       a step as part of an epoch of `Trainer.fit`: with shuffling, checks, history and all that an epoch is
    error     the largest relative difference of a loss to float64, found before the timing
    others    cores that other programs used meanwhile, NaN where the system does not tell
    """

    case: Case
    name: str
    backend: str
    engine: str
    version: str
    device: str
    step: Timing
    fit: Timing
    error: float
    others: float

    @property
    def samples_per_second(self) -> float:
        """Through `fit`."""
        return self.case.batch / self.fit.median


def contestants(case: Case, backends: Iterable[str | Backend] | None = None) -> list[Training]:
    """The case on every engine of these backends; None is all that are available, and suit it.

    Raises `BackendUnavailable` for a backend asked for that cannot run.
    """
    if backends is None:
        names = [info.name for info in available_backends() if info.available]
        backends = [b for b in map(get_backend, names) if case.name != "wide" or _is_accelerator(b)]
    chosen = [get_backend(b) for b in backends]
    return [Training(case, b, engine) for b in chosen for engine in b.engines]


def _is_accelerator(backend: Backend) -> bool:
    """A guess from the device's name, which is all that the standard gives."""
    return "cpu" not in str(backend.device).lower()


def measure(case: Case, backend: str | Backend, engine: str = "auto", *, seconds: float = 1.0, blocks: int = BLOCKS) -> Result:
    """One case on one engine: verified, warmed up, timed for about `seconds` each by steps and by epochs."""
    return _measured([Training(case, backend, engine)], seconds, blocks)[0]


def _measured(group: Sequence[Training], seconds: float, blocks: int) -> list[Result]:
    errors = [verify(contestant) for contestant in group]
    load = Load()
    timings = time_all(group, seconds, blocks)
    others = load.others()
    return [
        Result(
            c.case, c.name, c.backend.name, c.engine, c.backend.version, str(c.backend.device), step, fit, error, others
        )
        for c, error, (step, fit) in zip(group, errors, timings, strict=True)
    ]


def run(
    backends: Iterable[str | Backend] | None = None,
    cases: Iterable[str | Case] | None = None,
    seconds: float = 1.0,
    *,
    blocks: int = BLOCKS,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Every case on every engine of every backend, the contestants of a case taking turns.

    backends    names or Backends; None is all that are available
    cases       names or Cases; None is all; "wide" then runs on accelerators only
    seconds     a contestant and case is timed for by steps, and again by epochs
    progress    is told what comes next

    Warns where other programs keep the machine busy. Raises `XBPError` for a contestant that computes something else.
    """
    asked = None if backends is None else [get_backend(b) for b in backends]
    results: list[Result] = []
    for case in [case_named(c) if isinstance(c, str) else c for c in (CASES if cases is None else cases)]:
        fitting = asked if asked is None or cases is not None or case.name != "wide" else filter(_is_accelerator, asked)
        group = contestants(case, fitting)
        if not group:
            continue
        progress(f"{case.name}: {case}; {', '.join(c.name for c in group)}")
        results += _measured(group, seconds, blocks)
    others = max((r.others for r in results if math.isfinite(r.others)), default=0.0)
    if others > BUSY:
        warnings.warn(
            f"This machine is busy: other programs used up to {others:.1f} of its {os.cpu_count()} cores during the "
            "benchmark. Trust the ratios within a network at most, and repeat it in a quieter moment.",
            UserWarning,
            stacklevel=2,
        )
    return results


HEAD = ("network", "backend", "engine", "µs a step", "spread", "µs in fit", "spread", "ratio", "samples/s")
NUMBERS = range(3, len(HEAD))


def table(results: Sequence[Result], style: str = "text") -> str:
    """The results as a table, "text" for a terminal or "markdown"; times are medians, ratios are of those in `fit`.

    The ratio is to NumPy's eager engine in the same network, or to the first contestant where that one is missing.
    """
    if style not in ("text", "markdown"):
        raise unknown_name("style of table", style, ("text", "markdown"))
    base: dict[str, Result] = {}
    for r in sorted(results, key=lambda r: (r.backend, r.engine) != ("numpy", "eager")):
        base.setdefault(r.case.name, r)
    rows = [HEAD, *(_row(r, base[r.case.name]) for r in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    cells = [[c.rjust(w) if i in NUMBERS else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))] for r in rows]
    if style == "markdown":
        cells.insert(1, ["-" * (w - 1) + (":" if i in NUMBERS else "-") for i, w in enumerate(widths)])
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in cells)


def _row(r: Result, base: Result) -> tuple[str, ...]:
    times = [s for t in (r.step, r.fit) for s in (_micro(t.median), f"{100 * t.spread:.0f} %")]
    return (r.case.name, r.backend, r.engine, *times, f"{r.fit.median / base.fit.median:.2f}", f"{r.samples_per_second:,.0f}")


def _micro(seconds: float) -> str:
    us = 1e6 * seconds
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def document(results: Sequence[Result], **settings: Any) -> dict[str, Any]:
    """The results with the conditions they were measured under, ready for `json.dump`."""
    versions = {r.backend: r.version for r in results}
    return {**conditions(versions), "settings": settings, "results": [_plain(r) for r in results]}


def _plain(r: Result) -> dict[str, Any]:
    medians = {"step_us": 1e6 * r.step.median, "fit_us": 1e6 * r.fit.median, "samples_per_second": r.samples_per_second}
    others = r.others if math.isfinite(r.others) else None  # JSON has no NaN
    case = {**asdict(r.case), "optimizer": str(r.case.optimizer)}
    return {**asdict(r), **medians, "others": others, "case": case}


def conditions(versions: Mapping[str, str]) -> dict[str, Any]:
    """Date, commit, machine, versions and load: what a number has to be published with."""
    own = {"python": platform.python_version(), "xbp": metadata.version("xbp"), "numpy": np.__version__}
    threads = {k: v for k, v in sorted(os.environ.items()) if k.startswith(("OPENBLAS_", "OMP_", "MKL_")) or k == "XLA_FLAGS"}
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"},
        "environment": threads,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {**own, **versions},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the git checkout that this very file is part of, "-dirty" where files differ; None for an install."""
    root = Path(__file__).resolve().parent.parent
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        if Path(top.strip()).resolve() != root:
            return None  # installed into an environment that lies inside somebody else's checkout
        named = [*git, "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
