"""The entry point of the `xbp` script and of `python -m xbp`.

The command line needs typer and rich, which the core does not ask for. So this module stands between the two: where
the extra is missing it says how to get it, in one line and without a traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

__all__ = ["main"]

app: Callable[[], object] | None
missing = ""
try:
    from .cli import app
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in ("typer", "rich", "click"):  # anything else is a fault, and its traceback is wanted
        raise
    app = None


def main() -> None:
    """Run the command line; exits with its code, or with 1 and a hint where the extra `cli` is not installed."""
    if app is None:
        sys.exit(f"The command line needs {missing}, which is not installed. Get it with: pip install 'xbp[cli]'")
    app()


if __name__ == "__main__":
    main()
