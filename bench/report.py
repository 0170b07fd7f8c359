"""Writes the README's benchmark section from the results in bench/results, so that no number is typed by hand.

python bench/report.py            # between the README's markers, and docs/benchmark.svg
python bench/report.py --print    # to the terminal
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chart
import gpu_report
import numpy as np
from products import LIMIT
from ratios import find, fraction

__all__ = ["replaced", "report"]

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- benchmark table -->", "<!-- end of benchmark table -->"
WAYS = {
    "step": "One training step, in µs",
    "fit": "The same step as part of an epoch of `fit`, shuffling included, in µs",
}
CLOCKS = {"wall": "", "cpu": " of CPU time, because the machine was shared"}

NUMBA, PLANNED, EAGER = (f"xbp, numpy, {engine}" for engine in ("numba", "planned", "eager"))
JAX, COMPILED = "jax, jit, by hand", "torch, compile, by hand"
AUTOGRAD = ("torch, autograd, fused", "torch, autograd, foreach")
SKLEARN = "scikit-learn, MLPClassifier"
SHORT = {JAX: "JAX", COMPILED: "torch.compile", SKLEARN: "scikit-learn", **dict.fromkeys(AUTOGRAD, "torch autograd")}
STEP, FIT = "step", "fit"
# (who of xbp, and compared with whom, in words; ours; theirs, of which the fastest counts; by step or in fit)
QUESTIONS: tuple[tuple[str, str, str, tuple[str, ...], str], ...] = (
    ("`numba`, a step", "**the fastest peer**", NUMBA, (JAX, COMPILED, *AUTOGRAD, SKLEARN), STEP),
    ("", "JAX by hand, one jitted function", NUMBA, (JAX,), STEP),
    ("", "`torch.compile`, by hand", NUMBA, (COMPILED,), STEP),
    ("", "torch autograd, fused or foreach", NUMBA, AUTOGRAD, STEP),
    ("", "scikit-learn's `partial_fit`", NUMBA, (SKLEARN,), STEP),
    ("`numba`, `fit`", "JAX by hand, an epoch in one `lax.scan`", NUMBA, (JAX,), FIT),
    ("`planned`, a step", "`eager`", PLANNED, (EAGER,), STEP),
    ("JAX, `jit`, a step", "JAX by hand, one jitted function", "xbp, jax, jit", (JAX,), STEP),
    ("torch, `compile`, a step", "`torch.compile`, by hand", "xbp, torch, compile", (COMPILED,), STEP),
)

Json = dict[str, Any]


def report(found: Json) -> str:
    """What one file of results says, with the conditions that it was measured under, as Markdown."""
    if "fashion" in found:
        return fashion(found)
    if "estimators" in found:
        return estimators(found)
    if "gpu" in found:
        return gpu_report.section(found)
    results = found["results"]
    tables = "\n\n".join(f"{title}:\n\n{one_table(results, way)}" for way, title in WAYS.items())
    parts = [how_xbp_compares(results), f"<details><summary>Every contestant</summary>\n\n{tables}\n\n</details>"]
    if "numerical" in found:
        parts.append(numerical(found["numerical"]))
    return "\n\n".join([*(part for part in parts if part), conditions(found)])


def cases_of(results: Sequence[Json]) -> dict[str, Json]:
    return {r["case"]["name"]: r["case"] for r in results}


def heads(cases: dict[str, Json], *first: str) -> list[list[str]]:
    head = [f"`{name}`<br>{layout(case)}" for name, case in cases.items()]
    return [[*first, *head], [*("---" for _ in first), *("---:" for _ in head)]]


def lines(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


# --- how xbp compares -----------------------------------------------------------------------------------------------


def how_xbp_compares(results: Sequence[Json]) -> str:
    """One line for each question; "" where nobody took part whom it could be asked of."""
    cases = cases_of(results)
    rows = [
        [who, against, *(answer(results, case, ours, theirs, way) for case in cases)]
        for who, against, ours, theirs, way in QUESTIONS
    ]
    rows += [
        [f"`{name.rpartition(' ')[2]}`, a step", "share of it that NumPy's products alone take", *shares]
        for name in (NUMBA, PLANNED)
        for shares in [[share(results, case, name) for case in cases]]
    ]
    rows = [row for row in rows if any(row[2:])]
    if not rows:
        return ""
    return (
        "How many times as fast xbp is; above 1, xbp is the faster one. In brackets the middle half of the ratios, "
        f"block by block:\n\n{lines([*heads(cases, 'xbp', 'compared with'), *rows])}"
    )


def answer(results: Sequence[Json], case: str, ours: str, theirs: Sequence[str], way: str) -> str:
    there = [r for name in theirs if (r := find(results, case, name)) is not None]
    fastest = min(there, key=lambda r: r[f"{way}_us"], default=None)
    times = None if fastest is None else fraction(results, case, fastest["name"], ours, way)
    if fastest is None or times is None:
        return ""
    who = f"<br>{SHORT[fastest['name']]}" if len(theirs) > len(AUTOGRAD) else ""
    return f"**{times['median']:.2f}** ({times['low']:.2f}-{times['high']:.2f}){who}"


def share(results: Sequence[Json], case: str, name: str) -> str:
    part = fraction(results, case, LIMIT, name)
    if part is None:
        return ""
    return f"**{100 * part['median']:.0f} %** ({100 * part['low']:.0f}-{100 * part['high']:.0f})"


# --- everyone -------------------------------------------------------------------------------------------------------


def one_table(results: list[Json], way: str) -> str:
    cases = cases_of(results)
    names = list(dict.fromkeys(r["name"] for r in results))
    cells = {(r["name"], r["case"]["name"]): cell(r, way) for r in results}
    rows = [[name, *(cells.get((name, case), "") for case in cases)] for name in sorted(names, key=place)]
    return lines([*heads(cases, ""), *rows])


def place(name: str) -> tuple[bool, bool, bool, str]:
    """NumPy first, then xbp on other libraries, then the peers, and the limit at the end."""
    return name == LIMIT, not name.startswith("xbp"), not name.startswith("xbp, numpy"), name


def layout(case: Json) -> str:
    rule = case["optimizer"].partition("(")[0]
    return f"{'-'.join(map(str, case['widths']))}, {case['batch']}, {rule}"


def cell(r: Json, way: str) -> str:
    """Median, then how many times as long as the base: the median, and the range that half of the blocks lie in."""
    shown, times = chart.micro(r[f"{way}_us"]), r[f"{way}_ratio"]
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


def fashion(found: Json) -> str:
    """What bench/fashion.py measured: a training on real data, and the memory that it takes."""
    fits, s = found["fashion"], found["settings"]
    steps, rows = fits["xbp"]["steps"], [["", "`fit`, s", "test accuracy", "peak memory, MB"], ["---", *["---:"] * 3]]
    rows += [
        [f"{f['name']} {f['version']}", f"{f['seconds']:.1f}", f"{100 * f['accuracy']:.1f} %", f"{f['peak_mb']:,.0f}"]
        for f in fits.values()
    ]
    return (
        f"{s['epochs']} epochs on Fashion-MNIST, {s['rows']:,} pictures, network {s['network']}, batch {s['batch']}, "
        f"Adam, float32, on {s['threads']} threads, each in a process of its own (its memory includes the library and "
        f"the {s['data_mb']:.0f} MB of data):\n\n{lines(rows)}\n\n"
        f"An epoch of xbp's `fit` takes **{steps['ratio']:.2f}** times as long as its {s['steps']} single steps on "
        f"batches that lie ready ({steps['low']:.2f}-{steps['high']:.2f} in {steps['rounds']} rounds); all of its "
        f"first `fit`, compilation included, {steps['ratio_of_whole_fit']:.2f} times as long as as many steps. "
        f"{where(found)}"
    )


def estimators(found: Json) -> str:
    """What bench/estimators.py measured: scikit-learn's estimators and xbp's, with the same settings."""
    s = found["settings"]
    rows = [["", "network", "times as fast", "`fit`, s", "scikit-learn's, s", "score", "scikit-learn's score"]]
    rows.append(["---", "---", *["---:"] * 5])
    for f in found["estimators"]:
        seconds, scores, times = f["seconds"], f["scores"], f["times_as_fast"]
        rows.append(
            [
                f["name"],
                f"{f['network']}, batch {f['settings'].get('batch_size', min(200, f['rows']))}, `{f['engine']}`",
                f"**{times['median']:.2f}** ({times['low']:.2f}-{times['high']:.2f})",
                *(f"{np.median(seconds[who]):.2f}" for who in ("xbp", "sklearn")),
                *(f"{np.mean(scores[who]):.4f}" for who in ("xbp", "sklearn")),
            ]
        )
    streams = [
        f"**{p['times_as_fast']['median']:.0f}** times as fast with the engine `{p['engine']}` "
        f"({p['microseconds']['xbp']:.0f} µs)"
        for p in found["partial_fit"]
    ]
    p = found["partial_fit"][0]
    return (
        "xbp's estimators beside scikit-learn's, with the same settings and `random_state`, default where the network "
        "does not say otherwise; the score is the accuracy, or R² for regressions, on rows held out; means of "
        f"{s['seeds']} seeds, medians for times:\n\n{lines(rows)}\n\n"
        f"`partial_fit` on batches of {p['batch']} rows, network {p['network']}: {' and '.join(streams)}, where "
        f"scikit-learn takes {p['microseconds']['sklearn']:,.0f} µs. {where(found)}"
    )


def where(found: Json) -> str:
    machine, versions = found["machine"], found["versions"]
    return (
        f"Commit {found['commit'] or 'unknown'}, {found['date'][:10]}; {machine['processor']}, {machine['cores']} "
        f"cores; Python {versions['python']}, numpy {versions['numpy']}."
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
    limit = any(r["name"] == LIMIT for r in found["results"])
    left_out = "; ".join(f"{e['name']}, on `{e['case']}`" for e in found.get("left_out", ()))
    return " ".join(
        [
            f"Commit {found['commit'] or 'unknown'}, {found['date'][:10]}.",
            f"{machine['processor']}, {machine['cores']} cores, {threads} for every library;",
            f"Python {found['versions']['python']}, {', '.join(f'{name} {v}' for name, v in libraries)};",
            f"{', '.join(sorted(blas))}. float32.",
            f"Medians of {settings['blocks']} blocks of about {block:.0f} ms or a step{CLOCKS[settings['clock']]};",
            f"all take turns. In brackets the ratio to {settings['base']}, block by block, and its middle half.",
            "Everyone starts from the same weights, takes the same batches, and has first to give the losses that",
            f"NumPy gives in float64, within 1e-5 (peers: {settings.get('slack_of_peers', 1.0):g}e-5).",
            *(
                [
                    "Only the limit computes no loss: it is the products of a step by `numpy.matmul` into arrays that",
                    "are there already. xbp's own products may take less time than those.",
                ]
                * limit
            ),
            *(
                [f"Left out, for an epoch of more than {settings['longest_epoch']:g} s: {left_out}."]
                if left_out
                else []
            ),
            f"During {counted['disturbed']} of the {counted['accepted']} blocks",
            f"other programs used more than {settings['quiet_below_cores']:g} cores.",
            "Times do not carry to another machine, ratios mostly do.",
        ]
    )


def replaced(readme: str, text: str, first: str = BEGIN, last: str = END) -> str:
    """The README with the text between its two markers. Raises `ValueError` where it does not have them."""
    before, begin, rest = readme.partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ValueError(f"The README needs the lines {first} and {last}, in this order; the tables go between them.")
    return f"{before}{first}\n\n{text}\n\n{last}{after}"


def written(readme: str, found: Sequence[Json], above: Sequence[str]) -> str:
    """The README with these results: those of a GPU between markers of their own. What has none stays as it is."""
    on_host = [report(f) for f in found if "gpu" not in f]
    on_gpu = [report(f) for f in found if "gpu" in f]
    if on_host:
        readme = replaced(readme, "\n\n".join([*above, *on_host]))
    if on_gpu:
        readme = replaced(readme, "\n\n".join(on_gpu), gpu_report.BEGIN, gpu_report.END)
    return readme


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("results", nargs="*", type=Path, help="files of results (all of bench/results)")
    parser.add_argument("--readme", type=Path, default=HERE.parent / "README.md")
    parser.add_argument(
        "--chart", type=Path, default=HERE.parent / "docs" / "benchmark.svg", help="of the first file of steps"
    )
    parser.add_argument("--print", action="store_true", help="print the section and leave README and chart alone")
    options = parser.parse_args(argv)
    files = options.results or sorted((HERE / "results").glob("*.json"))
    if not files:
        sys.exit(f"There are no results in {HERE / 'results'}; bench/compare.py makes them.")
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    drawn = next((f for f in found if "results" in f), None)
    if options.print:
        print("\n\n".join(report(f) for f in found))
        return
    above = []
    if drawn is not None:
        chart.draw(drawn, options.chart)
        place_of_it = chart.relative(options.chart, options.readme)
        above.append(f"![{chart.description(drawn)}]({place_of_it})")
    text = written(options.readme.read_text(encoding="utf-8"), found, above)
    options.readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
