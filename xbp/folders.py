"""The folder where xbp keeps what took time to find out, for one user: compiled code, the results of tuning.

What is read back from there is run, so the folder and its files are used only if nobody else could have written them.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

__all__ = ["cache_folder", "private"]


def cache_folder() -> Path | None:
    """The folder, of this user alone; None where there can be none, or the variable XBP_CACHE_DIR is empty."""
    chosen = os.environ.get("XBP_CACHE_DIR")
    if chosen == "":
        return None
    try:
        if chosen is not None:
            folder = Path(chosen).expanduser()
        elif sys.platform == "win32":
            folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "xbp" / "cache"
        else:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xbp"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return folder if private(folder) else None
    except (OSError, RuntimeError):  # no home, or nothing can be written there
        return None


def private(path: Path) -> bool:
    """Whether nobody else can have written it. Windows' profiles are private by themselves."""
    if not hasattr(os, "getuid"):
        return True
    status = path.stat()
    return status.st_uid == os.getuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
