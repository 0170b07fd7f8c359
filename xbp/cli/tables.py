"""`xbp backends` and `xbp bench`: what this machine has, and how fast it is."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from ..backend import BackendInfo, available_backends
from ..benchmark import document, run, table
from .console import console, json_line, note, show

__all__ = ["backends", "bench"]


def backends(as_json: bool) -> None:
    """A line for each registered backend; why, and what to install, where one cannot run."""
    infos = available_backends()
    if as_json:
        json_line({"backends": [vars(info) for info in infos]})
        return
    out = console()
    if not out.is_terminal:
        show(_plain(infos))
        return
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("name", "available", "device", "engines", "version", "reason"):
        grid.add_column(head, header_style="bold", no_wrap=head != "reason", overflow="fold")
    for info in infos:
        cells = _row(info)
        style = "" if info.available else "dim"
        mark = Text(cells[1], "green" if info.available else "yellow")
        grid.add_row(Text(cells[0], style), mark, *(Text(c, style) for c in cells[2:]))
    out.print(grid)


def _row(info: BackendInfo) -> list[str]:
    return [
        info.name, "yes" if info.available else "no", info.device or "-", ", ".join(info.engines) or "-",
        info.version or "-", info.reason or "-",
    ]  # fmt: skip


def _plain(infos: list[BackendInfo]) -> str:
    """The table as text of any width, with each backend on a line of its own for whoever searches it."""
    rows = [["name", "available", "device", "engines", "version", "reason"], *map(_row, infos)]
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[5]]) for row in rows)


def bench(names: list[str] | None, cases: list[str] | None, seconds: float, as_json: bool, style: str) -> None:
    """Measure networks of fixed sizes on backends and print the table, or the whole record as JSON."""
    results = run(names or None, cases or None, seconds, progress=note)
    if as_json:
        json_line(document(results, seconds=seconds))
        return
    show(table(results, style))
