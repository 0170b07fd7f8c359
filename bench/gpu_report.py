"""What bench/gpu.py measured, as Markdown: xbp beside the best peer, everyone's times, and the conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ratios import ratio

__all__ = ["BEGIN", "END", "NOTHING", "section"]

BEGIN, END = "<!-- gpu table -->", "<!-- end of gpu table -->"
NOTHING = (
    "Nothing has been measured on a GPU yet. `python bench/gpu.py` does so on a machine that has one: five networks in "
    "four precisions, beside PyTorch and JAX, each verified first."
)
WAYS = {"step": "a step", "many": "a step of many in one call"}
OWN = "xbp, graph"
RATES = {
    "copy_gb_per_s": "copies {:,.0f} GB/s",
    "float32_tflop_per_s": "float32 {:,.0f}",
    "tf32_tflop_per_s": "TF32 {:,.0f}",
    "bfloat16_tflop_per_s": "bfloat16 {:,.0f}",
    "float16_tflop_per_s": "float16 {:,.0f}",
}

Json = dict[str, Any]


def section(found: Json) -> str:
    """The whole section. Raises `ValueError` for a trial of the benchmark, which is nothing to publish."""
    if found["settings"]["quick"] or found["device"]["memory"] is None:
        raise ValueError("These results are of a trial, or of no GPU. The README gets those of bench/gpu.py as it is.")
    cells = found["cells"]
    everyone = "\n\n".join(
        f"{title[0].upper()}{title[1:]}, in µs:\n\n{table(cells, way)}" for way, title in WAYS.items()
    )
    details = f"<details><summary>Every contestant</summary>\n\n{everyone}\n\n</details>"
    return "\n\n".join([part for part in (comparison(cells), details, told(found), caption(found)) if part])


def shape(case: Json) -> str:
    rule = case["optimizer"].partition("(")[0]
    return f"`{case['name']}`<br>{'-'.join(map(str, case['widths']))}, {case['batch']}, {rule}"


def lines(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cases_of(cells: Sequence[Json]) -> dict[str, Json]:
    order = ("tiny", "book", "mid", "big", "wide")
    found = {c["case"]["name"]: c["case"] for c in cells}
    return {name: found[name] for name in sorted(found, key=lambda n: order.index(n) if n in order else len(order))}


def precisions_of(cells: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(c["precision"] for c in sorted(cells, key=lambda c: _rank(c["precision"]))))


def _rank(precision: str) -> int:
    order = ("float32", "tf32", "mixed-bfloat16", "mixed-float16")
    return order.index(precision) if precision in order else len(order)


def heads(cells: Sequence[Json], *first: str) -> list[list[str]]:
    shapes = [shape(case) for case in cases_of(cells).values()]
    return [[*first, *shapes], [*("---" for _ in first), *("---:" for _ in shapes)]]


def blocks(cell: Json, way: str) -> list[float] | None:
    timed = cell["ways"].get(way)
    return None if timed is None or timed["host"] is None else timed["host"]["blocks"]


def comparison(cells: Sequence[Json]) -> str:
    """xbp's times, and how many times as long the best peer takes; "" where there is nobody to compare."""
    rows = [
        [precision, title, *(answer(cells, case, precision, way) for case in cases_of(cells))]
        for precision in precisions_of(cells)
        for way, title in WAYS.items()
    ]
    rows = [row for row in rows if any(row[2:])]
    if not rows:
        return ""
    return (
        "xbp's times in µs, and how many times as long the fastest peer takes (above 1, xbp is the faster one; in "
        f"brackets the middle half of the ratios, block by block):\n\n{lines([*heads(cells, 'precision', ''), *rows])}"
    )


def answer(cells: Sequence[Json], case: str, precision: str, way: str) -> str:
    here = [c for c in cells if c["case"]["name"] == case and c["precision"] == precision and blocks(c, way)]
    own = next((c for c in here if c["name"] == OWN), None)
    if own is None:
        return ""
    shown = micro(own["ways"][way]["host"]["median"])
    peers = [c for c in here if c["library"] != "xbp"]
    if not peers:
        return shown
    best = min(peers, key=lambda c: float(c["ways"][way]["host"]["median"]))
    times = ratio(best["ways"][way]["host"]["blocks"], own["ways"][way]["host"]["blocks"])
    return f"{shown}, **{times['median']:.2f}** ({times['low']:.2f}-{times['high']:.2f})<br>{best['name']}"


def table(cells: Sequence[Json], way: str) -> str:
    """Everyone's medians, with the middle half."""
    names = list(dict.fromkeys(c["name"] for c in cells))
    times = {(c["precision"], c["name"], c["case"]["name"]): c["ways"][way]["host"] for c in cells if blocks(c, way)}
    rows = []
    for precision in precisions_of(cells):
        for name in names:
            row = [shown(times.get((precision, name, case))) for case in cases_of(cells)]
            if any(row):
                rows.append([precision, name, *row])
    return lines([*heads(cells, "precision", ""), *rows])


def shown(host: Json | None) -> str:
    return "" if host is None else f"{micro(host['median'])} ({micro(host['low'])}-{micro(host['high'])})"


def micro(us: float) -> str:
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def told(found: Json) -> str:
    """Launches, transfers, accuracy and what the device does at best, as far as they were measured."""
    parts = []
    rates = found["floors"]
    if rates:
        named = [text.format(rates[key]) for key, text in RATES.items() if key in rates]
        size = rates["size"]
        parts.append(f"At best the device {named[0]}; products of {size} by {size} in TFLOP/s: {', '.join(named[1:])}.")
    launches = {c["case"]["name"]: c["launches"] for c in found["cells"] if c.get("launches") and c["name"] == OWN}
    if launches:
        parts.append("Launches of a step: " + ", ".join(f"{n} (`{case}`)" for case, n in launches.items()) + ".")
    moved = found["transfers_of_an_epoch"]
    if moved:
        parts.append(
            f"An epoch of `fit` copies {moved['to_host']} times to the host ({moved['to_host_bytes']:,} bytes) and "
            f"{moved['to_device']} times to the device ({moved['to_device_bytes']:,} bytes)."
        )
    accuracy = found["digits"]
    if accuracy:
        named = [f"{name} {100 * a:.1f} %" for name, a in accuracy.items()]
        parts.append(f"The same training on scikit-learn's digits ends at a test accuracy of: {'; '.join(named)}.")
    return " ".join(parts)


def caption(found: Json) -> str:
    device, versions, s = found["device"], found["versions"], found["settings"]
    named = [f"{name} {v}" for name, v in versions.items() if name not in ("xbp", "python")]
    reasons = [e for e in found["left_out"] if e["name"]]
    left_out = f" {len(reasons)} times somebody could not take part; the file says who and why." if reasons else ""
    return (
        f"Commit {found['commit']}, {found['date'][:10]}. {device['name']}, driver {device['driver']}; Python "
        f"{versions['python']}, {', '.join(named)}. Medians of {s['blocks']} blocks of about "
        f"{1000 * s['block_seconds']:.0f} ms or a call, by the host's clock, the device waited for at the end of each "
        "block; everyone takes turns. All start from the same weights, take the same batches in the precision named, "
        f"and have first to give the losses and the steps of NumPy in float64.{left_out}"
    )
