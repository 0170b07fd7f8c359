"""Formulas as MathML, which browsers draw themselves: no script, no font and no picture has to be fetched for them."""

from __future__ import annotations

from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

log = logging.getLogger(__name__)


def drawn(node: nodes.Element, *, block: bool) -> str:
    try:
        return str(tex2mathml(node.astext(), as_block=block))
    except MathError as error:
        log.warning("%s In the formula: %s", error, node.astext(), location=node)
        return f"<code>{escape(node.astext())}</code>"


def show(writer: Any, node: nodes.math) -> None:
    writer.body.append(drawn(node, block=False))
    raise nodes.SkipNode


def show_block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math">{drawn(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (show, None), (show_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
