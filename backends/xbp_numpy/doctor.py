"""What `xbp doctor` asks of NumPy: whether the engine that makes machine code works, and keeps what it made."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec

from xbp.doctor import Finding
from xbp.folders import cache_folder

from .native.compiler import compiled

__all__ = ["findings"]

TRIAL = "define i32 @answer() {\n  ret i32 42\n}\n"


def findings() -> Iterator[Finding]:
    if not find_spec("llvmlite"):
        text = "llvmlite is not installed; the engine planned takes the place of numba, which is faster"
        yield Finding("machine code", "missing", text, "pip install 'xbp[numba]'")
    else:
        try:
            compiled(TRIAL).address("answer")
        except Exception as error:  # a broken installation fails in its own way
            remedy = "Reinstall it: pip install --force-reinstall llvmlite"
            yield Finding("machine code", "wrong", f"llvmlite does not work: {type(error).__name__}: {error}", remedy)
        else:
            yield Finding("machine code", "ok", f"llvmlite {version('llvmlite')} compiles")
    folder = cache_folder()
    if folder is None:
        remedy = "Let XBP_CACHE_DIR name a folder that only you can write."
        yield Finding("cache", "missing", "there is no folder to keep compiled code in; it is made in each run", remedy)
    else:
        yield Finding("cache", "ok", str(folder))
