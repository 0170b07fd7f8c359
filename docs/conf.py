"""How the site is built: `python -m sphinx -W -b html docs docs/_build/html`. It fetches nothing, then or later."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import xbp

sys.path.insert(0, str(Path(__file__).resolve().parent / "_ext"))

project = "xbp"
author = "The xbp authors"
project_copyright = author
release = version = xbp.__version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode", "plain_docstrings", "plain_math", "reference"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["amsmath", "attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
add_module_names = False
highlight_language = "none"
smartquotes = False  # quotes are part of what is quoted, most of the time

html_theme = "furo"
html_title = f"xbp {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_math_renderer = "mathml"
html_theme_options: dict[str, Any] = {"navigation_with_keys": True}


def tell_language(app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Pages in Chinese say so, that browsers take the right glyphs."""
    if pagename.startswith("zh/"):
        context["language"] = "zh-Hans"


def setup(app: Any) -> None:
    app.connect("html-page-context", tell_language)
