"""The clock: short blocks in which all contestants take turns, and how busy the machine was meanwhile."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .contest import Contestant

__all__ = ["BLOCKS", "Accept", "Clock", "Load", "Timing", "interleaved", "time_all"]


BLOCKS = 7  # an odd number, so that the median is a time that was measured
PAUSE = 0.1  # seconds; a library's helper threads spin on after its last product, and would disturb the next one's


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
        used = (busy - own) / wall if wall > 0 else math.nan
        return used if math.isnan(used) else max(0.0, used)

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
Clock = Callable[[], float]
Accept = Callable[[float], bool]


def _every(others: float) -> bool:
    return True


def _steps(contestant: Contestant, n: int) -> None:
    for _ in range(n):
        contestant.step()


def _epochs(contestant: Contestant, n: int) -> None:
    contestant.epochs(n)


def _timed(contestant: Contestant, work: Work, n: int, clock: Clock) -> float:
    contestant.synchronize()
    start = clock()
    work(contestant, n)
    contestant.synchronize()
    return clock() - start


def _count(contestant: Contestant, work: Work, seconds: float, clock: Clock) -> int:
    """How often a block of that length does the work; finding out is the warm-up, compilation included."""
    work(contestant, 1)
    n = 1
    while (took := _timed(contestant, work, n, clock)) < seconds / 2:
        n *= 2
    return max(1, round(n * seconds / took))


def interleaved(
    group: Sequence[Contestant],
    work: Work,
    seconds: float,
    blocks: int = BLOCKS,
    accept: Accept = _every,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Seconds for one unit of work of each contestant, in rounds of one block each, every round in another order.

    seconds    of each contestant's blocks together
    accept     whether to keep a block, given how many cores others used in it; the time that it took is not asked
    clock      time.process_time gives CPU time, which says something on a busy machine too, with one thread a library
    """
    counts = [_count(contestant, work, seconds / blocks, clock) for contestant in group]
    times: list[list[float]] = [[] for _ in group]
    rng = np.random.default_rng(0)
    while missing := [i for i, t in enumerate(times) if len(t) < blocks]:
        for i in rng.permutation(missing):
            contestant, n = group[i], counts[i]
            contestant.restart()
            contestant.synchronize()
            time.sleep(min(PAUSE, seconds / blocks))
            contestant.step()  # wakes the library's threads
            load = Load()
            took = _timed(contestant, work, n, clock)
            if accept(load.others()):
                times[i].append(took / n)
    return [Timing(tuple(t)) for t in times]


def time_all(
    group: Sequence[Contestant],
    seconds: float,
    blocks: int = BLOCKS,
    accept: Accept = _every,
    clock: Clock = time.perf_counter,
) -> list[tuple[Timing, Timing]]:
    """(a step by itself, a step as part of an epoch) of contestants in one case, interleaved."""
    steps = interleaved(group, _steps, seconds, blocks, accept, clock)
    epochs = interleaved(group, _epochs, seconds, blocks, accept, clock)
    return [
        (step, Timing(tuple(s / c.case.steps for s in epoch.blocks)))
        for c, step, epoch in zip(group, steps, epochs, strict=True)
    ]
