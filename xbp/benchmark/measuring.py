"""Measuring a case, or all of them, on the backends and engines that this machine has."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence

from ..backend import Backend, available_backends, get_backend
from .cases import CASES, Case, case_named
from .clock import BLOCKS, Load, time_all
from .contest import Training, verify
from .results import Result

__all__ = ["BUSY", "contestants", "measure", "run"]


BUSY = 0.25  # cores in use by others, beyond which numbers are doubtful


def contestants(case: Case, backends: Iterable[str | Backend] | None = None) -> list[Training]:
    """The case on every engine of these backends; None is all that are available, for "wide" those on accelerators.

    Raises `BackendUnavailable` for a backend asked for that cannot run.
    """
    chosen = _suited(case, _available()) if backends is None else [get_backend(b) for b in backends]
    return [Training(case, b, engine) for b in chosen for engine in b.engines]


def _available() -> list[Backend]:
    return [get_backend(info.name) for info in available_backends() if info.available]


def _suited(case: Case, backends: Iterable[Backend]) -> list[Backend]:
    """On the host "wide" takes minutes. That a device is the host's is a guess from its name, all that there is."""
    return [b for b in backends if case.name != "wide" or "cpu" not in str(b.device).lower()]


def measure(
    case: Case, backend: str | Backend, engine: str = "auto", *, seconds: float = 1.0, blocks: int = BLOCKS
) -> Result:
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
    cases       names or Cases; None is all. On the host "wide" runs only if it and the backend are both asked for
    seconds     a contestant and case is timed for by steps, and again by epochs
    progress    is told what comes next

    Warns where other programs keep the machine busy. Raises `XBPError` for a contestant that computes something else.
    """
    asked = _available() if backends is None else [get_backend(b) for b in backends]
    crowd = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    results: list[Result] = []
    for case in [case_named(c) if isinstance(c, str) else c for c in (CASES if cases is None else cases)]:
        group = contestants(case, asked if backends is not None and cases is not None else _suited(case, asked))
        if group:
            progress(f"{case.name}: {case}; {', '.join(c.name for c in group)}")
            results += _measured(group, seconds, blocks)
    told = [r.others for r in results if math.isfinite(r.others)]
    crowd = max(told) if told else crowd  # the load average counts programs that are done, and us
    if crowd > BUSY:
        warnings.warn(
            f"This machine is busy: other programs used up to {crowd:.1f} of its {os.cpu_count()} cores. Trust at most "
            "the ratios within a network, and repeat the benchmark in a quieter moment.",
            UserWarning,
            stacklevel=2,
        )
    return results
