"""The comparison on a GPU: xbp beside PyTorch and JAX, five networks in four precisions, as one command.

    python bench/gpu.py --out bench/results/gpu.json    # under 8 minutes on a large GPU
    python bench/report.py                              # writes the README's table from it

Everyone is verified first, then warmed up, then timed in blocks that take turns, by the host's clock and by events of
the device. Who fails, or takes too long, is recorded with the reason, and the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import checkout
import numpy as np
from gpu_contest import PRECISIONS, plain, reference, summary, work
from gpu_worker import ENTRANTS, FailedError, Worker, seconds_left, stored

import xbp
from xbp.benchmark import Case, case_named, commit

FORMAT = 1
# What matters most comes first: at the end of the time the rest is left out, and the file says so.
ORDER = (
    *(("mid", p) for p in PRECISIONS[:3]),
    *(("tiny", p) for p in PRECISIONS[:1]),
    *(("book", p) for p in PRECISIONS[:1]),
    ("wide", "mixed-bfloat16"),
    ("wide", "tf32"),
    ("wide", "float32"),
    ("big", "float32"),
    ("big", "mixed-bfloat16"),
    ("big", "tf32"),
    *((case, p) for p in PRECISIONS[1:3] for case in ("book", "tiny")),
    *((case, "mixed-float16") for case in ("mid", "wide", "big", "book", "tiny")),
)
TUNES = {"xbp, graph", "torch, compile, max-autotune"}  # they time kernels while they prepare, so nobody else works
# Seconds that a contestant may take to get ready: in one case, and in all of them together.
READY = {"torch, compile, reduce-overhead": (60.0, 150.0), "torch, compile, max-autotune": (75.0, 110.0)}
READY_OTHERS = (45.0, 200.0)
ANSWER = 30.0  # seconds for a block
STARTING = 90.0  # seconds for a process to import its library
RESERVE = 10.0  # seconds kept for the end
LIBRARIES = ("torch", "triton", "jax", "jaxlib", "cupy-cuda13x", "cupy-cuda12x", "nvidia-cublas", "scikit-learn")

Json = dict[str, Any]


@dataclass
class Comparison:
    """All contestants, what is known of them, and the time that is left."""

    workers: dict[str, Worker]
    folder: Path
    deadline: float
    block: float
    blocks: int
    cells: list[Json] = field(default_factory=list)
    left_out: list[Json] = field(default_factory=list)
    spent: dict[str, float] = field(default_factory=dict)
    references: dict[str, dict[str, Path]] = field(default_factory=dict)

    def prepare(self, cases: Sequence[Case]) -> None:
        """What NumPy computes, which everyone's first steps are compared with; the quick ones first.

        A processor that would need too long for a large network leaves it out, as far as that can be told.
        """
        rate = math.inf  # multiplications a second
        for case in sorted(cases, key=work):
            needed = work(case) / rate
            if needed > seconds_left(self.deadline, math.inf) / 3:
                reason = f"NumPy needs about {needed:.0f} s for what everyone is compared with"
                self.left_out.append({"case": case.name, "precision": "", "name": "", "reason": reason})
                continue
            began = time.monotonic()
            self.references[case.name] = {way: stored(reference(case, way), self.folder) for way in ("step", "many")}
            rate = work(case) / max(time.monotonic() - began, 1e-3)

    def cell(self, case: Case, precision: str) -> None:
        """One network in one precision."""
        found = self._opened(case, precision)
        self._time(case, precision, found)
        for who, entry in found.items():
            try:
                entry |= self.workers[who].ask("told", seconds=seconds_left(self.deadline, ANSWER))
            except FailedError as reason:
                self._leave_out(case, precision, who, str(reason))
            blocks = entry.pop("blocks")
            entry["ways"] = {
                way: {
                    "steps": entry["steps"][way],
                    "host": summary([b[0] for b in b_of]),
                    "device": summary([b[1] for b in b_of]),
                }
                for way, b_of in blocks.items()
                if b_of
            }
            del entry["steps"]
            if entry["ways"]:
                self.cells.append(entry)

    # --- getting ready --------------------------------------------------------------------------------------------

    def _opened(self, case: Case, precision: str) -> dict[str, Json]:
        """Everyone who is ready and right. Those who tune themselves do so alone, the others side by side."""
        found: dict[str, Json] = {}
        together = [who for who in self.workers if who not in TUNES]
        for group in ([w for w in self.workers if w == "xbp, graph"], together, self._tuners()):
            asked = []
            for who in group:
                longest, in_all = READY.get(who, READY_OTHERS)
                left = seconds_left(self.deadline - RESERVE, min(longest, in_all - self.spent.get(who, 0.0)))
                if left < 1.0:
                    self._leave_out(case, precision, who, "no time is left for getting it ready")
                    continue
                self.workers[who].send("open", case, precision, self.references[case.name])
                asked.append((who, left))
            began = time.monotonic()
            for who, left in asked:
                self._opened_one(case, precision, who, began, left, found)
        return found

    def _tuners(self) -> list[str]:
        return [who for who in self.workers if who in TUNES and who != "xbp, graph"]

    def _opened_one(
        self, case: Case, precision: str, who: str, began: float, left: float, found: dict[str, Json]
    ) -> None:
        try:
            answer = self.workers[who].answer(left - (time.monotonic() - began))
        except FailedError as reason:
            self._leave_out(case, precision, who, str(reason))
            took = time.monotonic() - began
        else:
            took = answer["ready_seconds"]
            library = who.partition(",")[0]
            head = {"case": plain(case), "precision": precision, "name": who, "library": library}
            found[who] = {**head, **answer, "blocks": {way: [] for way in answer["steps"]}}
        self.spent[who] = self.spent.get(who, 0.0) + took

    def _leave_out(self, case: Case, precision: str, who: str, reason: str) -> None:
        self.left_out.append({"case": case.name, "precision": precision, "name": who, "reason": reason})
        print(f"  {who} is left out: {reason}", file=sys.stderr)

    # --- time -----------------------------------------------------------------------------------------------------

    def _time(self, case: Case, precision: str, found: dict[str, Json]) -> None:
        """Blocks of everyone who is still there, every round in another order."""
        rng = np.random.default_rng(0)
        calls: dict[tuple[str, str], int] = {}
        for who in list(found):
            for way in found[who]["steps"]:
                self._asked(case, precision, who, found, calls, "calls", way, self.block)
        for _ in range(self.blocks):
            for k in rng.permutation(len(calls)):
                who, way = list(calls)[k]
                if who in found:
                    self._asked(case, precision, who, found, calls, "time", way, calls[who, way])

    def _asked(
        self,
        case: Case,
        precision: str,
        who: str,
        found: dict[str, Json],
        calls: dict[tuple[str, str], int],
        command: str,
        way: str,
        given: float,
    ) -> None:
        if who not in found:
            return
        try:
            left = seconds_left(self.deadline - RESERVE / 2, ANSWER)
            answer = self.workers[who].ask(command, way, given, seconds=left)
        except FailedError as reason:
            self._leave_out(case, precision, who, f"{way}: {reason}")
            del found[who]
            return
        if command == "calls":
            calls[who, way] = answer
        else:
            found[who]["blocks"][way].append(answer)


# --- what the numbers are published with ------------------------------------------------------------------------------


def device_of(device: str) -> Json:
    """Name, driver and memory, as nvidia-smi tells them."""
    if device == "cpu":
        return {"name": "the host, which is no GPU", "driver": None, "memory": None}
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        name, driver, memory = (part.strip() for part in out.splitlines()[0].split(","))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return {"name": "unknown", "driver": None, "memory": None}
    return {"name": name, "driver": driver, "memory": memory}


def conditions(device: str, named: str | None) -> Json:
    versions = {"python": platform.python_version(), "xbp": xbp.__version__, "numpy": np.__version__}
    for name in LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "gpu": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": named or os.environ.get("XBP_COMMIT") or commit() or "unknown",
        "device": device_of(device),
        "machine": {"system": f"{platform.system()} {platform.machine()}", "cores": os.cpu_count()},
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("XLA_", "CUPY_", "NVIDIA_TF32"))},
        "versions": versions,
    }


def extra(comparison: Comparison, what: str, who: str, module: str, function: str, *given: Any) -> Any:
    """One of the measurements beside the steps; None, and a line in the file, where it fails."""
    try:
        if who not in comparison.workers:
            raise FailedError(f"{who}, whom it needs, does not take part.")
        left = seconds_left(comparison.deadline - RESERVE / 2, 60.0)
        return comparison.workers[who].ask("ask", module, function, *given, seconds=left)
    except FailedError as reason:
        comparison.left_out.append({"case": "", "precision": "", "name": what, "reason": str(reason)})
        print(f"  {what}: {reason}", file=sys.stderr)
        return None


def finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def run(options: argparse.Namespace, folder: Path) -> Json:
    began = time.monotonic()
    quick, device = options.quick, options.device
    names = [n for n in ENTRANTS if not options.only or any(p.strip() in n for p in options.only.split(";"))]
    workers = {who: Worker(who, device, folder) for who in names}
    comparison = Comparison(workers, folder, began + 60 * options.minutes, options.block, options.blocks)
    cells = [(c, p) for c, p in ORDER if c in options.cases.split(",") and p in options.precisions.split(",")]
    cases = {name: small(case_named(name), quick) for name in dict.fromkeys(c for c, _ in cells)}
    found = conditions(device, options.commit)
    try:
        for worker in workers.values():
            worker.send("ready")  # starts it; the libraries are imported while NumPy computes
        comparison.prepare(list(cases.values()))
        for who, worker in list(workers.items()):
            try:
                worker.answer(seconds_left(comparison.deadline, STARTING))
            except FailedError as reason:
                comparison.left_out.append({"case": "", "precision": "", "name": who, "reason": str(reason)})
                del workers[who]
        torch, own = "torch, autograd, fused", "xbp, graph"
        sizes = (256, 2**20) if quick else (8192, 2**32)
        rates = extra(comparison, "floors", torch, "gpu_floors", "floors", device, *sizes)
        engine = "numba" if device == "cpu" else "graph"
        accuracy = extra(comparison, "digits", own, "gpu_xbp", "digits", device, [engine, "eager"])
        first = next(iter(cases.values()))
        moved = extra(comparison, "transfers", own, "gpu_xbp", "transfers", first, device, "graph")
        for name, precision in [c for c in cells if c[0] in comparison.references and workers]:
            if seconds_left(comparison.deadline - 3 * RESERVE, math.inf) == 0.0:
                comparison.left_out.append(
                    {"case": name, "precision": precision, "name": "", "reason": "the time was up"}
                )
                continue
            print(f"{name}, {precision} ({time.monotonic() - began:.0f} s)", file=sys.stderr)
            comparison.cell(cases[name], precision)
    finally:
        for worker in workers.values():
            worker.kill()
    settings = {
        "minutes": options.minutes,
        "block_seconds": options.block,
        "blocks": options.blocks,
        "quick": quick,
        "seconds": time.monotonic() - began,
    }
    told = {"floors": rates, "digits": accuracy, "transfers_of_an_epoch": moved}
    measured = {"cells": comparison.cells, "left_out": comparison.left_out}
    result: Json = finite({**found, "settings": settings, **told, **measured})
    return result


def small(case: Case, quick: bool) -> Case:
    return replace(case, steps=min(case.steps, 8)) if quick else case


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cases", default="tiny,book,mid,big,wide", help="names of networks (%(default)s)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="(%(default)s)")
    parser.add_argument("--only", help="parts of the contestants' names, separated by ';' (all)")
    parser.add_argument("--minutes", type=float, default=7.5, help="for everything; the rest is left out (%(default)s)")
    parser.add_argument("--block", type=float, default=0.02, help="seconds of a block (%(default)s)")
    parser.add_argument("--blocks", type=int, default=7, help="of each contestant and way (%(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the benchmark itself")
    parser.add_argument("--quick", action="store_true", help="small sizes, to try the benchmark itself")
    parser.add_argument("--commit", help="where git cannot tell it ($XBP_COMMIT)")
    parser.add_argument("--out", type=Path, default=checkout.ROOT / "bench" / "results" / "gpu.json")
    options = parser.parse_args(argv)
    checkout.register()
    with tempfile.TemporaryDirectory() as folder:
        found = run(options, Path(folder))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    for c in found["cells"]:
        ways = {way: w["host"] and w["host"]["median"] for way, w in c["ways"].items()}
        row = ", ".join(f"{way} {us:,.1f} µs" for way, us in ways.items() if us)
        print(f"{c['case']['name']:<5} {c['precision']:<15} {c['name']:<34} {row}")
    print(f"{found['settings']['seconds']:.0f} s; written to {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
