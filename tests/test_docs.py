"""The pages of the site are true: their examples run one after the other, and print what stands below them.

A block of `text` is what the block of `python` or `sh` before it prints; "..." stands for what was left out of a line,
and alone on a line for any lines. `<!-- needs NAME, ... -->` before a block names the libraries without which it cannot
run; `cuda` is a device, `scipy_array_api` a variable of the environment. Commands that nothing is shown of are not run,
but they and their options have to exist.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import pytest

import xbp
from xbp.errors import BackendUnavailable

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported, where this file runs on its own

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGES = [p.relative_to(DOCS).as_posix() for p in sorted(DOCS.rglob("*.md")) if p.relative_to(DOCS).parts[0][0] != "_"]
BLOCK = re.compile(r"^(?:<!-- needs (?P<needs>[\w, ]+) -->\n)?```(?P<kind>\S*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S)
LANGUAGES = {"", "diff", "python", "sh", "text", "toml"}
FENCE = re.compile(r"^```", re.M)


def blocks(text):
    """(language, text, libraries it needs) of each fenced block."""
    found = [(m["kind"], m["text"], set(re.findall(r"\w+", m["needs"] or ""))) for m in BLOCK.finditer(text)]
    assert 2 * len(found) == len(FENCE.findall(text)), "every fence begins or ends a block"
    return found


def pattern(shown):
    """What is shown, where "..." stands for any text of a line, or for any lines."""
    lines = shown.splitlines(keepends=True)
    return "".join(
        r"(?:.*\n)*?" if line == "...\n" else r".*?".join(map(re.escape, line.split("..."))) for line in lines
    )


def dispatches():
    """Whether scikit-learn may dispatch by array API: SciPy has to have been imported under its variable for that."""
    try:
        import scipy._lib._array_api  # where it looks for the variable
        import sklearn

        with sklearn.config_context(array_api_dispatch=True):
            return bool(scipy._lib._array_api.SCIPY_ARRAY_API)
    except (ImportError, AttributeError, RuntimeError):
        return False


def missing(needs):
    if needs & {"cuda", "cupy"}:
        try:
            xbp.get_backend("cupy")
        except BackendUnavailable:
            return needs
    variable = {"SCIPY_ARRAY_API=1"} if "scipy_array_api" in needs and not dispatches() else set()
    return {name for name in needs - {"cuda", "scipy_array_api"} if find_spec(name) is None} | variable


def commands(text):
    """The xbp commands of a block as lists of words."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [words[1:] for words in lines if words and words[0] == "xbp"]


def check_command(words):
    """The command exists, and has the options."""
    main = pytest.importorskip("typer.main", reason="commands need the extra: pip install 'xbp[cli]'")
    group = main.get_command(pytest.importorskip("xbp.cli").app)
    command = group.commands.get(words[0])
    assert command is not None, f"there is no command xbp {words[0]}"
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)} | {"--help"}
    unknown = [word for word in words[1:] if word.startswith("--") and word.partition("=")[0] not in options]
    assert not unknown, f"xbp {words[0]} has no {', '.join(unknown)}"


def output_of(words):
    from cli_helpers import run  # it skips where there is no typer, and most pages do without

    return run(*words).output


def walk(name, text):
    """Run a page; the libraries that were missing."""
    names, printed, lacking, left_out = {"__name__": "page"}, "", set(), False
    found = blocks(text)
    for i, (language, block, needs) in enumerate(found):
        if language in ("python", "sh"):
            assert printed == "", "what an example prints is shown below it"
            left_out = bool(missing(needs))
            lacking |= missing(needs)
        if language == "python" and not left_out:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, f"{name}: {block.splitlines()[0]}", "exec"), names)
            printed = out.getvalue()
        elif language == "sh" and not left_out:
            shown = i + 1 < len(found) and found[i + 1][0] == "text"
            for words in commands(block):
                check_command(words)
                printed += output_of(words) if shown else ""
        elif language == "text" and not left_out:
            assert re.fullmatch(pattern(block), printed), printed
            printed = ""
        else:
            assert language in LANGUAGES or language.startswith("{"), f"a block of {language}?"
    assert printed == "", "what an example prints is shown below it"
    return lacking


@pytest.mark.parametrize("page", PAGES)
def test_every_example_runs_and_prints_what_is_shown(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    with mock.patch.dict(os.environ):  # a page may change it
        lacking = walk(page, (DOCS / page).read_text(encoding="utf-8"))
    if lacking:
        pytest.skip(f"the rest of docs/{page} ran; some examples need {', '.join(sorted(lacking))}")


@pytest.mark.parametrize("printed", ["a\nb\n", "a\nx\ny\nb\n", "x\nb\n", "a\nb\nc\n", "a\nb"])
def test_three_dots_stand_for_whole_lines(printed):
    assert bool(re.fullmatch(pattern("a\n...\nb\n"), printed)) == (printed in ("a\nb\n", "a\nx\ny\nb\n"))


@pytest.mark.parametrize("printed", ["took 3 s\nend\n", "took  s\nend\n", "took 3\ns\nend\n", "took 3 s end\n"])
def test_three_dots_in_a_line_stay_within_it(printed):
    assert bool(re.fullmatch(pattern("took ... s\nend\n"), printed)) == printed.endswith(" s\nend\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\nprint(2)\n```\n```text\n3\n```\n", "2"),
        ("```python\nprint(2)\n```\n", "shown below"),
        ("```python\nprint(2)\n```\n```python\n3\n```\n", "shown below"),
        ("```text\n3\n```\n", "assert None"),
        ("```python\n", "every fence"),
        ("```ruby\n```\n", "a block of ruby"),
        ("```sh\nxbp learn\n```\n", "no command xbp learn"),
        ("```sh\nxbp train digits --epoch 3  # few\n```\n", "xbp train has no --epoch"),
    ],
)
def test_a_page_that_is_not_true_is_noticed(text, said):
    with pytest.raises(AssertionError, match=re.escape(said)):
        walk("page.md", text)


def test_an_example_waits_for_its_libraries():
    text = "<!-- needs numpy, nothing_of_that_name -->\n```python\nprint(2)\n```\n```text\n3\n```\n"
    assert walk("page.md", text) == {"nothing_of_that_name"}
    assert walk("page.md", "<!-- needs numpy -->\n```python\nprint(2)\n```\n```text\n2\n```\n") == set()
