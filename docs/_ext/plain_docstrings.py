"""xbp's docstrings are plain text, to be read in a terminal; for the site this makes reStructuredText of them.

`names` in backticks become code, with a link where there is something of that name; indented lines stay as they are;
and aligned lines "name    what it means" become a list of definitions.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator
from typing import Any

NAMES = r"\*{0,2}\w[\w.]*(?:, \*{0,2}\w[\w.]*)*"
ROW = re.compile(rf"^({NAMES}) {{2,}}(\S.*)$")
NAME = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")
OWN_PARAGRAPH = re.compile(r"\n(?=(?:Source|Shapes|Raises)\b)")


def to_rst(text: str) -> str:
    """The docstring as reStructuredText."""
    return "\n\n".join(part for block in _blocks(text) for part in _converted(block)) + "\n"


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, tables and indented blocks; blank lines within an indented one belong to it."""
    kept = ""
    for block in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        for part in _parts(block):
            if part.startswith(" ") and kept.startswith(" "):
                kept += "\n\n" + part
            else:
                yield from [kept] * bool(kept)
                kept = part
    yield from [kept] * bool(kept)


def _parts(block: str) -> Iterator[str]:
    """What no blank line parts: text, and indented lines, or a table, in any order."""
    table = False
    start, lines = 0, block.split("\n")
    for i, line in enumerate(lines):
        row = bool(ROW.match(line)) or (table and line.startswith(" "))
        if i > start and (row != table or (not row and line.startswith(" ") != lines[i - 1].startswith(" "))):
            yield "\n".join(lines[start:i])
            start = i
        table = row
    yield "\n".join(lines[start:])


def _converted(block: str) -> Iterator[str]:
    if ROW.match(block.partition("\n")[0]):
        yield _table(block.split("\n"))
    elif block.startswith(" ") or ("\n" not in block and re.search(r"\S {3,}\S", block)):
        yield _literal(block)
    else:
        yield from (inline(part) for part in OWN_PARAGRAPH.split(block))


def _literal(block: str) -> str:
    return ".. code-block:: none\n\n" + textwrap.indent(textwrap.dedent(block), "   ")


def _table(lines: list[str]) -> str:
    rows: list[list[str]] = []
    for line in lines:
        if row := ROW.match(line):
            rows.append([row[1], row[2]])
        else:
            rows[-1][1] += "\n" + line.strip()
    terms = (f"{', '.join(f'``{name}``' for name in names.split(', '))}\n{_indented(what)}" for names, what in rows)
    return ".. rst-class:: names\n\n" + textwrap.indent("\n".join(terms), "   ")


def _indented(text: str) -> str:
    return textwrap.indent(inline(text), "   ")


def inline(text: str) -> str:
    """Backticks as code or links; what means something else in reStructuredText, escaped."""
    parts = text.split("`")
    if len(parts) % 2 == 0:
        parts = [text.replace("`", "'")]
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = re.sub(r"([\\*|]|_\b|\b_)", r"\\\1", part)
        elif NAME.match(part):
            parts[i] = f":py:obj:`{part}`"
        else:
            parts[i] = f"``{part}``"
        if i % 2 and parts[i + 1][:1].isalnum():
            parts[i] += "\\ "
    done = "".join(parts)
    return "\\" + done if re.match(r"[(\-+]|\w+[.)] ", done) else done


def convert(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if any(map(str.strip, lines)):
        lines[:] = to_rst("\n".join(lines)).split("\n")


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", convert)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
