"""The comparison that is published: xbp and its peers on the four networks, in blocks that take turns, as ratios.

    python bench/compare.py                 # writes bench/results/cpu.json
    python bench/report.py                  # writes the README's table from it

pytest-benchmark, which the other files here use, times one contestant after the other. On a machine that is not idle,
or whose clock changes, that compares moments more than libraries; a ratio of blocks from the same seconds does not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numerical
from peers import entrants, is_peer
from products import is_limit
from ratios import ratio
from threads import equal_threads, pools

from xbp.benchmark import (
    CASES,
    Case,
    Clock,
    Contestant,
    Load,
    Result,
    Timing,
    Training,
    case_named,
    document,
    table,
    time_all,
    verify,
)

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
RESULTS = Path(__file__).resolve().parent / "results"
BASE = "xbp, numpy, eager"
# XLA sums the 1,024 rows of `big` in one go where OpenBLAS and xbp sum stretches of some hundred, and rounds more: the
# square root in Adam makes a difference of 1.0e-5 in the loss of that in eleven steps.
PEERS_SLACK = 3.0
HOST = [case.name for case in CASES if case.name != "wide"]


class Quiet:
    """Accepts the blocks during which others used few cores; when `patience` seconds were lost to them, accepts all."""

    def __init__(self, cores: float, patience: float) -> None:
        self.cores, self.patience = cores, patience
        self.refused = self.accepted = self.disturbed = 0
        self._waited = 0.0

    def __call__(self, others: float) -> bool:
        calm = not others > self.cores  # NaN, where nobody tells, is calm
        if not calm and self._waited < self.patience:
            self.refused += 1
            self._waited += 0.5
            time.sleep(0.5)
            return False
        self.accepted += 1
        self.disturbed += not calm
        return True


def checked(c: Contestant) -> float:
    """The error of a contestant, which is refused if it is no rounding; NaN for the limit, which computes no loss."""
    if is_limit(c):
        return math.nan
    return verify(c, same_order=not is_peer(c), slack=PEERS_SLACK if is_peer(c) else 1.0)


def too_slow(c: Contestant, longest: float, clock: Clock) -> float | None:
    """The seconds of a warm epoch where both of two take more than `longest`, else None. BASE is never too slow."""
    took = math.inf
    for _ in range(2):  # one may be disturbed
        if c.name == BASE or took <= longest:
            return None
        c.synchronize()
        start = clock()
        c.epochs(1)
        c.synchronize()
        took = min(took, clock() - start)
    return took if took > longest else None


def compare(
    case: Case, names: Sequence[str], seconds: float, blocks: int, longest: float, quiet: Quiet, clock: Clock
) -> tuple[list[Result], list[dict[str, Any]]]:
    """One case, verified and timed, for everyone of these names; and who was left out, because it takes too long."""
    makers = entrants()
    group: list[Contestant] = []
    errors: list[float] = []
    left_out: list[dict[str, Any]] = []
    for name in names:
        contestant = makers[name](case)
        error = checked(contestant)
        took = too_slow(contestant, longest, clock)
        if took is None:
            group.append(contestant)
            errors.append(error)
        else:
            left_out.append({"case": case.name, "name": name, "epoch_seconds": took})
            print(f"  {name} is left out: an epoch takes {took:.1f} s, more than {longest:g} s", file=sys.stderr)
    load = Load()
    timings = time_all(group, seconds, blocks, quiet, clock)
    others = load.others()
    return [result(c, *times, e, others) for c, times, e in zip(group, timings, errors, strict=True)], left_out


def result(c: Contestant, step: Timing, fit: Timing, error: float, others: float) -> Result:
    if isinstance(c, Training):
        who = (c.backend.name, c.engine, c.backend.version, str(c.backend.device))
    else:
        peer: Any = c
        who = (peer.library, peer.engine, peer.version, peer.device)
    return Result(c.case, c.name, *who, step, fit, error, others)


def with_ratios(results: Sequence[Result], plain: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results as JSON has them, each with its ratios to xbp's eager NumPy in the same case."""
    base = {r.case.name: r for r in results if r.name == BASE}
    return [
        {
            **entry,
            "step_ratio": ratio(r.step.blocks, base[r.case.name].step.blocks),
            "fit_ratio": ratio(r.fit.blocks, base[r.case.name].fit.blocks),
        }
        for r, entry in zip(results, plain, strict=True)
    ]


def chosen(wanted: str | None) -> list[str]:
    """Who takes part: those asked for; else everyone here but whom nobody would train on to be fast.

    That is `strict`, which is made to be strict, and the eager engine on libraries that xbp has a compiled one for.
    """
    names = list(entrants())
    if wanted is not None:
        return [n for n in names if n == BASE or any(part.strip() in n for part in wanted.split(";"))]
    slow = {n for n in names if n.startswith("xbp, ") and n.endswith(", eager") and n != BASE}
    compiled = {n.split(", ")[1] for n in names if n.startswith("xbp, ") and not n.endswith(", eager")}
    return [n for n in names if n not in slow or n.split(", ")[1] not in {*compiled, "strict"}]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", default=",".join(HOST), help="names of networks (%(default)s)")
    parser.add_argument("--only", help="parts of names, separated by ';' (all but eager engines beside compiled ones)")
    parser.add_argument("--seconds", type=float, default=1.0, help="for a contestant, network and way (%(default)s)")
    parser.add_argument("--blocks", type=int, default=7, help="that the seconds are cut into (%(default)s)")
    parser.add_argument(
        "--longest", type=float, default=2.0, help="seconds of an epoch; who needs more is left out (%(default)s)"
    )
    parser.add_argument("--threads", type=int, help="for every library (one a core)")
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: for a busy machine, with --threads 1 and --patience 0 (%(default)s)",
    )
    parser.add_argument("--quiet", type=float, default=0.2, help="cores that others may use in a block (%(default)s)")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds to wait for quiet, a case (%(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json", help="(bench/results/cpu.json)")
    options = parser.parse_args(argv)

    before = list(os.getloadavg()) if hasattr(os, "getloadavg") else None
    threads = equal_threads(options.threads)
    if options.clock == "cpu" and threads > 1:
        parser.error("CPU time counts threads that spin while they wait; --clock cpu goes with --threads 1.")
    names = chosen(options.only)
    results: list[Result] = []
    left_out: list[dict[str, Any]] = []
    blocks = {"accepted": 0, "disturbed": 0, "repeated": 0}
    for case in [case_named(name.strip()) for name in options.cases.split(",")]:
        print(f"{case.name}: {case}; {len(names)} contestants", file=sys.stderr)
        quiet = Quiet(options.quiet, options.patience)
        start = time.perf_counter()
        found_here, slow = compare(
            case, names, options.seconds, options.blocks, options.longest, quiet, CLOCKS[options.clock]
        )
        results += found_here
        left_out += slow
        print(f"  {time.perf_counter() - start:.0f} s", file=sys.stderr)
        for key, count in zip(blocks, (quiet.accepted, quiet.disturbed, quiet.refused), strict=True):
            blocks[key] += count
    found = document(
        results,
        threads=threads,
        clock=options.clock,
        seconds=options.seconds,
        blocks=options.blocks,
        quiet_below_cores=options.quiet,
        blocks_counted=blocks,
        longest_epoch=options.longest,
        slack_of_peers=PEERS_SLACK,
        base=BASE,
        load_average_before=before,
        pools=pools(),
    )
    quiet = Quiet(options.quiet, options.patience)
    found["numerical"] = numerical.compare(options.blocks, quiet, Load, CLOCKS[options.clock])
    found["results"] = with_ratios(results, found["results"])
    found["left_out"] = left_out
    found["versions"] |= {name: metadata.version(name) for name in ("scikit-learn",) if "scikit-learn" in str(names)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    print(
        f"{blocks['disturbed']} of {blocks['accepted']} blocks were disturbed; written to {options.out}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
