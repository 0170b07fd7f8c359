"""Warnings that point at the line of the user's which called, however many wrappers lie between."""

from __future__ import annotations

import sys
import warnings

__all__ = ["warned"]

INSIDE = ("xbp", "sklearn")  # whose frames are no user's


def warned(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn of something, at the first line outside of this library and of scikit-learn."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)
