"""What the reference shows besides docstrings: the code of kernels, short signatures, links by a class's last name.

What it does not show: how Python describes dicts, tuples, numbers, and everything else that has no docstring of ours.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from typing import Any

from docutils import nodes

ANY = re.compile(r": (?:~typing\.)?Any\b(?! \|)( = )?")


def show_code(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """The code of a kernel in the place of its docstring, which is part of it."""
    if _of_a_kernel(what, name):
        lines[:] = [".. code-block:: python", "", *textwrap.indent(inspect.getsource(obj), "   ").split("\n"), ""]


def leave_out_the_type(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A value has no docstring of its own, and its type's is not about it; the page has a sentence in its place."""
    if what == "data" and [*filter(None, lines)] == [*filter(None, (inspect.getdoc(type(obj)) or "").split("\n"))]:
        lines.clear()


def shorten(app: Any, what: str, name: str, obj: Any, options: Any, given: str | None, returned: str | None) -> Any:
    """Signatures without Any, which says nothing; those of kernels without types, which their code below has."""
    if given is None:
        return None
    if _of_a_kernel(what, name):
        parameters = inspect.signature(obj).parameters.values()
        return str(inspect.Signature([p.replace(annotation=p.empty) for p in parameters])), None
    bare = ANY.sub(lambda found: "=" if found[1] else "", given.replace("<factory>", "..."))
    return bare, None if returned in ("Any", "~typing.Any") else returned


def _of_a_kernel(what: str, name: str) -> bool:
    return what == "function" and name.startswith("xbp.kernels.")


def find_by_last_name(app: Any, env: Any, node: Any, content: nodes.Node) -> nodes.Node | None:
    """Link a class that is documented under another module than it is named by, where only one has its name."""
    before, _, last = node["reftarget"].rpartition(".")
    if before and before.partition(".")[0] != "xbp":
        return None
    domain = env.get_domain("py")
    full = [name for name, entry in domain.objects.items() if name.rpartition(".")[2] == last and not entry.aliased]
    if len(full) != 1 or node["refdomain"] != "py" or not last[0].isupper():
        return None
    found: nodes.Node | None = domain.resolve_xref(env, node["refdoc"], app.builder, "obj", full[0], node, content)
    return found


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", leave_out_the_type, priority=100)  # while it is what Python says
    app.connect("autodoc-process-docstring", show_code, priority=900)  # when it is reStructuredText
    app.connect("autodoc-process-signature", shorten)
    app.connect("missing-reference", find_by_last_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
