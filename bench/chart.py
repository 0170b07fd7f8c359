"""The chart of the README: µs a training step, one panel a network, one line a contestant, as a small SVG.

A panel has its own logarithmic axis, because the networks are four decades apart; what compares is the place of the
dots within a panel. It has a white ground of its own, so that it can be read on a dark page too.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from products import LIMIT
from ratios import find

__all__ = ["description", "draw", "micro", "relative"]

Json = dict[str, Any]
LABELS = {
    "xbp, numpy, numba": "xbp, numba",
    "xbp, numpy, planned": "xbp, planned",
    "xbp, numpy, eager": "xbp, eager",
    "jax, jit, by hand": "JAX, by hand",
    "torch, compile, by hand": "torch.compile, by hand",
    "torch, autograd, fused": "torch autograd, fused",
    "torch, autograd, foreach": "torch autograd, foreach",
    "scikit-learn, MLPClassifier": "scikit-learn",
}
OURS, PEER, GREY, INK = "#c2410c", "#1d4ed8", "#6b7280", "#1f2937"


def micro(us: float) -> str:
    return f"{us:,.0f}" if us >= 100 else f"{us:.1f}"


def names_of(found: Json) -> list[str]:
    present = {r["name"] for r in found["results"]}
    return [name for name in LABELS if name in present]


def cases_of(found: Json) -> list[Json]:
    return list({r["case"]["name"]: r["case"] for r in found["results"]}.values())


def description(found: Json) -> str:
    """The chart in words, for whoever does not see it."""
    parts = []
    for case in cases_of(found):
        times = {n: r["step_us"] for n in names_of(found) if (r := find(found["results"], case["name"], n)) is not None}
        peers = {n: us for n, us in times.items() if not n.startswith("xbp")}
        best = [
            min(group, key=group.__getitem__) for group in ({n: times[n] for n in times.keys() - peers}, peers) if group
        ]
        parts.append(f"{case['name']}: {', '.join(f'{LABELS[n]} {micro(times[n])}' for n in best)}")
    return f"Chart: µs a training step, of xbp's engines and of peers. The fastest of each, {'; '.join(parts)}."


def relative(path: Path, readme: Path) -> str:
    """The path of the chart as a link in the README."""
    return Path(os.path.relpath(path.resolve(), readme.resolve().parent)).as_posix()


def draw(found: Json, path: Path) -> None:
    """Write the chart of one file of results as SVG, the same bytes for the same results."""
    if find_spec("matplotlib") is None:
        sys.exit("The chart needs matplotlib: pip install 'xbp[cli]'. `bench/report.py --print` goes without it.")
    import matplotlib
    from matplotlib.figure import Figure

    names, cases = names_of(found), cases_of(found)
    style: Json = {"svg.fonttype": "none", "svg.hashsalt": "xbp", "font.size": 9}
    style |= {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"]}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(2.6 + 2.25 * len(cases), 1.55 + 0.3 * len(names)), facecolor="white")
        panels = figure.subplots(1, len(cases), sharey=True, squeeze=False)[0]
        for axes, case in zip(panels, cases, strict=True):
            _panel(axes, found["results"], case, names)
        panels[0].set_yticks(range(len(names)), [LABELS[name] for name in names], color=INK)
        for tick, name in zip(panels[0].get_yticklabels(), names, strict=True):
            tick.set_fontweight("bold" if name.startswith("xbp") else "normal")
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        _words(figure, found, limit=any(r["name"] == LIMIT for r in found["results"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None, "Title": "µs per training step"})


def _panel(axes: Any, results: Sequence[Json], case: Json, names: Sequence[str]) -> None:
    limit = find(results, case["name"], LIMIT)
    every = [r[way] for r in results if r["case"] == case and r["name"] in (*names, LIMIT) for way in WAYS]
    low, high = min(every), max(every)
    axes.set_xscale("log")
    axes.set_xlim(low / (high / low) ** 0.1 / 1.05, high * (high / low) ** 0.42 * 1.1)  # to the right, for the numbers
    if limit is not None:
        axes.axvline(limit["step_us"], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
    for i, name in enumerate(names):
        r = find(results, case["name"], name)
        if r is None:
            continue
        colour = OURS if name.startswith("xbp") else PEER
        axes.plot([r["step_us"], r["fit_us"]], [i, i], color=colour, linewidth=1.2, alpha=0.5, zorder=2)
        axes.plot(r["fit_us"], i, "o", markersize=6, markerfacecolor="white", markeredgecolor=colour, zorder=3)
        axes.plot(r["step_us"], i, "o", markersize=6, color=colour, zorder=4)
        axes.annotate(
            micro(r["step_us"]),
            (max(r["step_us"], r["fit_us"]), i),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            fontsize=8,
            fontweight="bold" if name.startswith("xbp") else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            zorder=1.5,
        )
    axes.set_title(
        f"{case['name']}\n{'-'.join(map(str, case['widths']))}, batch {case['batch']}",
        fontsize=9,
        color=INK,
        linespacing=1.4,
    )
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, colors=INK, labelsize=9)
    _decades(axes)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9ca3af")


WAYS = ("step_us", "fit_us")


def _decades(axes: Any) -> None:
    """Ticks at 1, 3 and 10, with numbers that read as numbers; two or more of them in every panel."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    low, high = axes.get_xlim()
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 6, 8)):
        ticks = [d * 10.0**e for e in range(-1, 9) for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) >= 2:
            break
    axes.xaxis.set_major_locator(FixedLocator(ticks[:5]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda us, _: _short(us)))
    axes.tick_params(axis="x", labelsize=8)


def _short(us: float) -> str:
    return f"{us:,.0f}" if us < 1e4 else f"{us / 1e3:,.0f}k"


def _words(figure: Any, found: Json, *, limit: bool) -> None:
    machine, threads = found["machine"], found["settings"]["threads"]
    figure.suptitle("µs per training step (log axis, less is better)", fontsize=11, fontweight="bold", color=INK)
    dashed = "  ·  dashed: NumPy's matrix products of a step alone" if limit else ""
    figure.text(
        0.5,
        0.015,
        f"● a step by itself (the number)  ·  ○ a step in an epoch of fit{dashed}\n"
        f"{machine['processor']}, {threads} threads, float32, {found['date'][:10]}",
        ha="center",
        va="bottom",
        fontsize=8,
        color=GREY,
        linespacing=1.5,
    )
    figure.tight_layout(rect=(0.0, 0.09, 1.0, 1.0), w_pad=0.6)
