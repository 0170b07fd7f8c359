"""The pages on the engines are true: their examples run one after the other, and print what stands below them."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return [(match[1], match[2]) for match in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def pattern(shown):
    """What is shown, where a line of "..." stands for any lines."""
    return "".join(r"(?:.*\n)*?" if line == "...\n" else re.escape(line) for line in shown.splitlines(keepends=True))


@pytest.mark.parametrize(("page", "least"), [("engine.md", 5), ("cuda.md", 3)])
def test_every_example_runs_and_prints_what_is_shown(page, least):
    page = DOCS / page
    names, printed, compared = {"__name__": "page"}, "", 0
    for language, text in blocks(page):
        if language == "python":
            assert printed == "", "what an example prints is shown below it"
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(text, f"{page.name}: {text.splitlines()[0]}", "exec"), names)
            printed = out.getvalue()
        else:
            assert language == "text"
            assert re.fullmatch(pattern(text), printed), printed
            printed, compared = "", compared + 1
    assert printed == ""
    assert compared >= least


@pytest.mark.parametrize("printed", ["a\nb\n", "a\nx\ny\nb\n", "x\nb\n", "a\nb\nc\n", "a\nb"])
def test_three_dots_stand_for_whole_lines(printed):
    assert bool(re.fullmatch(pattern("a\n...\nb\n"), printed)) == (printed in ("a\nb\n", "a\nx\ny\nb\n"))
