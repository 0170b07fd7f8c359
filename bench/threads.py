"""The same number of threads for everyone, whoever made the library's pool and however it is told."""

from __future__ import annotations

import importlib
import os
from importlib.util import find_spec
from typing import Any

import threadpoolctl  # type: ignore[import-untyped]

__all__ = ["cores", "equal_threads", "pools"]


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def equal_threads(count: int | None = None) -> int:
    """Give every library `count` threads (None: one a core), and return the count.

    JAX counts the cores that the process may use when its first array is made, and cannot be told later: so this comes
    before that, and after the import of everything that brings a pool along.
    """
    if count is not None and count < cores():
        if not hasattr(os, "sched_setaffinity"):
            raise OSError(
                "On this system the cores of a process cannot be limited from inside it; leave --threads out."
            )
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    count = cores()
    for name in ("sklearn.neural_network", "torch"):
        if find_spec(name.partition(".")[0]) is not None:
            module = importlib.import_module(name)
            if name == "torch":
                module.set_num_threads(count)
    threadpoolctl.threadpool_limits(count)
    return count


def pools() -> list[dict[str, Any]]:
    """The pools of threads in this process: library, version, the processor it has chosen its kernels for, threads."""
    keys = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    return [{key: pool[key] for key in keys if pool.get(key)} for pool in threadpoolctl.threadpool_info()]
