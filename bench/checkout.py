"""Import this first: the scripts of the GPU benchmark then run from a checkout, whether xbp is installed or not.

A machine with a GPU is often a borrowed one, on which nothing is installed for an afternoon.
"""

from __future__ import annotations

import sys
from importlib import import_module, metadata
from pathlib import Path

__all__ = ["ROOT", "register"]

ROOT = Path(__file__).resolve().parent.parent

for _folder in (ROOT / "backends", ROOT):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))


def register() -> None:
    """Make the backends known that an installation would have made known."""
    from xbp.backend import GROUP, register_backend

    known = {e.name for e in metadata.entry_points(group=GROUP)}
    for name in ("numpy", "cupy"):
        if name not in known:
            register_backend(name, import_module(f"xbp_{name}").backend)
