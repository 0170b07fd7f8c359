"""`xbp doctor`: a line for each thing that was looked at, and below it what to do where something is to be done."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.text import Text

from ..doctor import Finding, findings, healthy
from .console import console, json_line, show

__all__ = ["doctor"]

COLOURS = {"ok": "green", "missing": "yellow", "wrong": "bold red"}


def doctor(as_json: bool) -> None:
    """Print what was found. Exits with 1 where something is wrong."""
    found = findings()
    if as_json:
        json_line({"ok": healthy(found), "findings": [asdict(f) for f in found]})
    else:
        _print(found)
    if not healthy(found):
        raise typer.Exit(1)


def _print(found: list[Finding]) -> None:
    out = console()
    width = max(len(f.what) for f in found)
    for finding in found:
        state, rest = f"{finding.state:<7}", f"  {finding.what:<{width}}  {finding.text}"
        indent = " " * (width + 11)
        lines = [rest, *([f"\n{indent}{finding.remedy}"] if finding.remedy else [])]
        if out.is_terminal:
            out.print(Text.assemble((state, COLOURS[finding.state]), *lines), soft_wrap=True)
        else:
            show(f"{state}{''.join(lines)}")
