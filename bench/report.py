"""Writes the README's benchmark tables from the results in bench/results, so that no number is typed by hand.

python bench/report.py            # between the README's markers
python bench/report.py --print    # to the terminal
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["replaced", "report"]

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- benchmark table -->", "<!-- end of benchmark table -->"
WAYS = {
    "step": "One training step, in µs",
    "fit": "The same step as part of an epoch of `fit`, shuffling included, in µs",
}
CLOCKS = {"wall": "", "cpu": " of CPU time, because the machine was shared"}

Json = dict[str, Any]


def report(found: Json) -> str:
    """The tables of one file of results, with the conditions that they were measured under, as Markdown."""
    parts = [f"{title}:\n\n{one_table(found['results'], way)}" for way, title in WAYS.items()]
    if "numerical" in found:
        parts.append(numerical(found["numerical"]))
    return "\n\n".join([*parts, conditions(found)])


def one_table(results: list[Json], way: str) -> str:
    cases = {r["case"]["name"]: r["case"] for r in results}
    names = list(dict.fromkeys(r["name"] for r in results))
    cells = {(r["name"], r["case"]["name"]): cell(r, way) for r in results}
    head = [f"`{name}`<br>{layout(case)}" for name, case in cases.items()]
    rows = [["", *head], ["---", *("---:" for _ in head)]]
    rows += [[name, *(cells.get((name, case), "") for case in cases)] for name in sorted(names, key=place)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def place(name: str) -> tuple[bool, bool, str]:
    """NumPy first, then xbp on other libraries, then the peers."""
    return not name.startswith("xbp"), not name.startswith("xbp, numpy"), name


def layout(case: Json) -> str:
    rule = case["optimizer"].partition("(")[0]
    return f"{'-'.join(map(str, case['widths']))}, {case['batch']}, {rule}"


def cell(r: Json, way: str) -> str:
    """Median, then how many times as long as the base: the median, and the range that half of the blocks lie in."""
    us, times = r[f"{way}_us"], r[f"{way}_ratio"]
    shown = f"{us:,.0f}" if us >= 100 else f"{us:.1f}"
    if times["low"] == times["high"] == 1.0:
        return f"{shown} (1)"
    return f"{shown} (**{times['median']:.2f}**, {times['low']:.2f}-{times['high']:.2f})"


def numerical(n: Json) -> str:
    return (
        f"A whole gradient of {n['network']} ({n['parameters']:,} parameters): {n['backpropagation_us']:,.0f} µs by "
        f"back-propagation, {n['all_differences_seconds']:.1f} s by central differences, "
        f"{round(n['ratio'], -2):,.0f} times as long. The second time is extrapolated from {n['measured_differences']} "
        f"parameters, on which the two gradients differ by at most {n['largest_difference']:.0e} of the largest entry."
    )


def conditions(found: Json) -> str:
    machine, settings = found["machine"], found["settings"]
    libraries = sorted((name, v) for name, v in found["versions"].items() if name not in ("python", "xbp", "strict"))
    counted = settings["blocks_counted"]
    blas = {
        f"{p['internal_api']} {p['version']} ({p['architecture']})" for p in settings["pools"] if p.get("architecture")
    }
    threads = "one thread" if settings["threads"] == 1 else f"{settings['threads']} threads"
    block = 1000 * settings["seconds"] / settings["blocks"]
    return " ".join(
        [
            f"Commit {found['commit'] or 'unknown'}, {found['date'][:10]}.",
            f"{machine['processor']}, {machine['cores']} cores, {threads} for every library;",
            f"Python {found['versions']['python']}, {', '.join(f'{name} {v}' for name, v in libraries)};",
            f"{', '.join(sorted(blas))}. float32.",
            f"Medians of {settings['blocks']} blocks of about {block:.0f} ms or a step{CLOCKS[settings['clock']]};",
            f"all take turns. In brackets the ratio to {settings['base']}, block by block, and its middle half.",
            "Everyone starts from the same weights, takes the same batches, and has first to give the losses that",
            f"NumPy gives in float64, within 1e-5. During {counted['disturbed']} of the {counted['accepted']} blocks",
            f"other programs used more than {settings['quiet_below_cores']:g} cores.",
            "Times do not carry to another machine, ratios mostly do.",
        ]
    )


def replaced(readme: str, text: str) -> str:
    """The README with the text between its two markers. Raises `ValueError` where it does not have them."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"The README needs the lines {BEGIN} and {END}, in this order; the tables go between them.")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="files of results (all of bench/results)")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument("--print", action="store_true", help="print the tables and leave the README alone")
    options = parser.parse_args(argv)
    files = options.results or sorted((HERE / "results").glob("*.json"))
    if not files:
        sys.exit(f"There are no results in {HERE / 'results'}; bench/compare.py makes them.")
    text = "\n\n".join(report(json.loads(file.read_text(encoding="utf-8"))) for file in files)
    if options.print:
        print(text)
        return
    options.readme.write_text(replaced(options.readme.read_text(encoding="utf-8"), text), encoding="utf-8")


if __name__ == "__main__":
    main()
