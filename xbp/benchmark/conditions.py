"""What a number has to be published with: date, commit, machine, versions, load."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["commit", "conditions"]


def conditions(versions: Mapping[str, str]) -> dict[str, Any]:
    """Date, commit, machine, versions and load: what a number has to be published with."""
    own = {"python": platform.python_version(), "xbp": metadata.version("xbp"), "numpy": np.__version__}
    threads = {
        k: v for k, v in sorted(os.environ.items()) if k.startswith(("OPENBLAS_", "OMP_", "MKL_")) or k == "XLA_FLAGS"
    }
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "environment": threads,
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "versions": {**own, **versions},
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the git checkout that this file is part of, "-dirty" where files differ; None for an install."""
    root = Path(__file__).resolve().parents[2]
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=True).stdout
        if Path(top.strip()).resolve() != root:
            return None  # installed into an environment that lies inside somebody else's checkout
        named = [*git, "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
