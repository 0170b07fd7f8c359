"""NVIDIA's shared libraries, found and loaded the way CuPy finds them.

cuda-pathfinder, which CuPy depends on, knows the wheels, conda and the toolkit. Nothing is loaded before it is asked
for, so that importing this package needs none of them.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib import import_module

from xbp.errors import BackendUnavailable, XBPError

__all__ = ["INSTALL", "LibraryError", "load"]

INSTALL = "pip install 'xbp[cuda12]' or pip install 'xbp[cuda13]', whichever CUDA the driver supports"


class LibraryError(XBPError, RuntimeError):
    """A call that one of NVIDIA's libraries answered with a failure, in its own words."""


@cache
def load(name: str) -> ctypes.CDLL:
    """The library of that name ("cublasLt", "nvrtc", "cudart"); `BackendUnavailable` where there is none.

    Calls through it release the lock of the interpreter. It stays loaded to the end of the process.
    """
    try:
        found = import_module("cuda.pathfinder").load_nvidia_dynamic_lib(name)
    except ModuleNotFoundError as error:
        raise _unavailable(name, f"{error.name} is not installed, which finds NVIDIA's libraries") from error
    except (ImportError, OSError, RuntimeError) as error:  # pathfinder's own errors are RuntimeErrors
        raise _unavailable(name, f"{type(error).__name__}: {_first_line(error)}") from error
    if found.abs_path is None:
        raise _unavailable(name, "it is loaded already, from a place that cannot be told")
    try:
        return ctypes.CDLL(found.abs_path)
    except OSError as error:
        raise _unavailable(name, f"{found.abs_path} does not load: {error}") from error


def _unavailable(name: str, reason: str) -> BackendUnavailable:
    return BackendUnavailable(f"The CUDA library {name} cannot be used: {reason}. Install it with: {INSTALL}")


def _first_line(error: Exception) -> str:
    """Pathfinder lists every place where it looked, line by line."""
    return (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
