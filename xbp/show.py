"""Parameters and gradients as text, by name: what a network of a textbook's size is looked at with.

Printed before `backward`, after it, and after the update, it shows the three phases of a step one below the other.
"""

from __future__ import annotations

import numpy as np

from .model import Model

__all__ = ["show_params"]


def show_params(model: Model, *, digits: int = 4, entries: int = 1000) -> str:
    """Name, shape, values and gradient of every parameter of a Network or Graph, as text to be printed.

    digits     significant digits of each number
    entries    a larger array is shown by its corners

    A parameter that no `backward` has reached yet shows "none". Every parameter is copied to the host for it.
    """
    blocks = []
    for name, a in model.params.items():
        g = model.grads.get(name)
        gradient = "none" if g is None else _text(model.backend.to_host(g), digits, entries)
        values = _text(model.backend.to_host(a), digits, entries)
        blocks.append(f"{name}  {' x '.join(map(str, a.shape))}\n  value     {values}\n  gradient  {gradient}")
    return "\n".join(blocks)


def _text(values: np.ndarray, digits: int, entries: int) -> str:
    """Each number with an exponent of its own where it needs one, and all of one width."""
    width = digits + 6  # sign, point, and an exponent such as e-05
    return np.array2string(
        values,
        formatter={"float_kind": lambda v: f"{v:{width}.{digits}g}"},
        max_line_width=120,
        threshold=entries,
        prefix="  gradient  ",
    )
