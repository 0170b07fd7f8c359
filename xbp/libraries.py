"""Optional libraries, imported when something needs them and not before.

`import xbp` stays quick and needs NumPy alone. Whoever asks for a picture, a bar or another program's format without
having its library is told what to install.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from .errors import LibraryMissing

__all__ = ["installed", "need"]


def need(module: str, what: str, extra: str) -> Any:
    """The module of an optional library, imported now.

    what     what needs it, for the error: "export_onnx"
    extra    the extra of xbp that brings it

    Raises `LibraryMissing` where it is not there, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == root
        reason = f"{root}, which is not installed" if missing else f"{root}, and importing {module} failed: {error}"
        raise LibraryMissing(f"{what} needs {reason}. Install it with: pip install 'xbp[{extra}]'") from error


def installed(module: str) -> bool:
    """Whether a library is there, without importing it."""
    return find_spec(module) is not None
