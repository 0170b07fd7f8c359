"""The site builds without a warning, all that is public is in the reference, and docstrings look well there."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import zlib
from html import unescape
from importlib import import_module
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the site is built with the extra: pip install 'xbp[docs]'")
pytest.importorskip("myst_parser", reason="the site is built with the extra: pip install 'xbp[docs]'")

import xbp.kernels

DOCS = Path(__file__).resolve().parent.parent / "docs"
MODULES = """
    xbp xbp.backend xbp.callbacks xbp.datasets xbp.errors xbp.estimators xbp.initializers xbp.interchange xbp.journal
    xbp.layers xbp.losses xbp.metrics xbp.optimizers xbp.plots xbp.program xbp.progress xbp.schedules xbp.testing
"""


def things(names):
    """The objects that have these names, by their identity."""
    found = set()
    for name in names:
        owner, _, last = name.rpartition(".")
        try:
            found.add(id(getattr(import_module(owner), last)))
        except (ImportError, AttributeError, ValueError):
            continue  # a member of a class, or a module
    return found


@pytest.mark.slow
def test_the_site_builds_and_its_reference_is_complete(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-d", tmp_path / "trees", DOCS]
    built = subprocess.run([*command, tmp_path / "html"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    *_, packed = (tmp_path / "html" / "objects.inv").read_bytes().split(b"\n", 4)  # behind four lines of comment
    names = set(re.findall(r"^(\S+) py:", zlib.decompress(packed).decode(), re.MULTILINE))
    there, missing = things(names), []
    for module in map(import_module, MODULES.split()):
        for name in module.__all__:
            full = f"{module.__name__}.{name}"
            if full not in names and id(getattr(module, name)) not in there and not name.startswith("__"):
                missing.append(full)
    for path in Path(xbp.kernels.__file__).parent.glob("[a-z]*.py"):
        kernel = import_module(f"xbp.kernels.{path.stem}")
        passes = [f"{kernel.__name__}.{name}" for name in ("forward", "backward") if hasattr(kernel, name)]
        missing += [name for name in (kernel.__name__, *passes) if name not in names]
    assert not missing, f"docs/api has nothing on {', '.join(missing)}"
    for page in sorted((tmp_path / "html" / "api").glob("*.html")):
        text = unescape(re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8")))
        raw = re.findall(r"(?<!\w):[a-z]+:[`~\w]\S*|new empty dictionary|int\(\[x\]\)|Built-in immutable", text)
        assert not raw, f"{page.name} shows {raw}: markup, or what Python says of a type"


def converted(text):
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        return import_module("plain_docstrings").to_rst(text)
    finally:
        sys.path.remove(str(DOCS / "_ext"))


def html_of(text):
    """What a browser is given for a docstring, by docutils alone, in which the role for names is plain code."""
    from docutils.core import publish_parts
    from docutils.writers.html5_polyglot import Writer

    rst = converted(text).replace(":py:obj:", ":literal:").replace("rst-class::", "class::")
    settings = {"report_level": 1, "halt_level": 1, "syntax_highlight": "none", "smart_quotes": False}
    return publish_parts(rst, writer=Writer(), settings_overrides=settings)["body"]


def test_backticks_are_code_and_signs_are_themselves():
    html = html_of("Mean of |y - t| over *all* rows; `x_` is `f(x, *a)`, x_ and __y__ too: a `0`th, 2 ** 3 \\ 4.")
    assert "Mean of |y - t| over *all* rows" in html
    assert "x_ and __y__ too" in html
    assert "2 ** 3 \\ 4." in html
    assert html.count("</span>") == 3


def test_names_are_links():
    assert converted("See `Trainer.fit`, `xbp.kernels.relu`, `a + b`.").strip() == (
        "See :py:obj:`Trainer.fit`, :py:obj:`xbp.kernels.relu`, ``a + b``."
    )


def test_a_table_of_names_is_a_list_of_definitions():
    text = """First.

    x, t     (N, D) inputs,
             and targets of `MeanSquaredError`
    *rest    - everything else

    Raises `ShapeError`.
    """
    html = html_of(text)
    assert html.count("<dt>") == html.count("<dd>") == 2
    assert '<dl class="simple names">' in html
    assert "inputs,\nand targets of" in html
    assert "- everything else" in html
    assert html.rindex("Raises") > html.index("</dl>")


def test_formulas_stay_as_they_are():
    text = """y = x W + b.

        dx = dy W^T      dW = x^T dy
          |further in|

        z = 1
    Shapes: x (N, D).
    Source: a book.
    """
    html = html_of(text)
    assert "dx = dy W^T      dW = x^T dy\n  |further in|\n\nz = 1" in html
    assert "<p>Shapes: x (N, D).</p>" in html
    assert "<p>Source: a book.</p>" in html
    assert "h &lt;- h + g^2        p &lt;- p - g" in html_of("h <- h + g^2        p <- p - g\n\nMore.")


@pytest.mark.parametrize("text", ["(N, D) rows.", "(N) rows.", "- 1 is the last.", "A. Nobody.", "x) y", "2. So."])
def test_nothing_becomes_a_list_by_accident(text):
    html = html_of(text)
    assert f"<p>{text}</p>" in html
    assert "<li>" not in html


def test_values_are_not_described_by_their_type():
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        leave_out = import_module("reference").leave_out_the_type
    finally:
        sys.path.remove(str(DOCS / "_ext"))
    for value in ({"a": 1}, 18, ("a",), "text"):
        lines = [*type(value).__doc__.splitlines(), ""]
        leave_out(None, "class", "xbp.Thing", value, None, lines)
        assert len(lines) > 1, "a class that is documented keeps what its docstring says"
        lines = [*inspect.cleandoc(type(value).__doc__).splitlines(), ""]
        leave_out(None, "data", "xbp.VALUE", value, None, lines)
        assert lines == []
    own = ["The version of a format.", ""]
    leave_out(None, "data", "xbp.VALUE", 18, None, own)
    assert own == ["The version of a format.", ""]
