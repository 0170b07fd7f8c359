"""The folder where xbp keeps what took time to find out, for one user: compiled code, the results of tuning.

What is read back from there is run, so the folder and its files are used only if nobody else could have written them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["cache_folder", "keep", "kept", "private"]

MOST_FILES = 500  # of a kind; some ten kilobytes each


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


def kept(about: str, suffix: str) -> bytes | None:
    """The machine code that was kept for what is described so; None where it is not there, not ours, or not whole."""
    folder = cache_folder()
    if folder is None:
        return None
    path = _named(folder, about, suffix)
    try:
        if not private(path):
            return None
        content = path.read_bytes()
    except OSError:
        return None
    code = content[32:]
    return code if hashlib.sha256(code).digest() == content[:32] else None


def keep(about: str, suffix: str, code: bytes) -> None:
    """Write a file of the cache, whole or not at all. A cache that cannot be written costs time, never the training."""
    folder = cache_folder()
    if folder is None:
        return
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            os.replace(name, _named(folder, about, suffix))
            _make_room(folder, suffix)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _named(folder: Path, about: str, suffix: str) -> Path:
    return folder / f"{hashlib.sha256(about.encode()).hexdigest()}{suffix}"


def _make_room(folder: Path, suffix: str) -> None:
    """Drop the files that were written longest ago, where there are too many, and what was left half written."""
    files = sorted((file.stat().st_mtime, file) for file in folder.glob(f"*{suffix}"))
    dropped = [file for _, file in files[: max(0, len(files) - MOST_FILES)]]
    an_hour_ago = time.time() - 3600
    dropped += [file for file in folder.glob("*.tmp") if file.stat().st_mtime < an_hour_ago]
    for file in dropped:
        file.unlink(missing_ok=True)
