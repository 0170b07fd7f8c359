"""Checks for whoever writes a kernel, a layer or a backend; public, because plug-ins live by them.

spaces, space                         where arrays may live: numpy, read-only numpy, strict, torch, jax, cupy
assert_close                          values, and dtype, shape, library and device besides
numerical_gradient, check_backward    gradients of a function, of a kernel against central differences
check_gradients                       those of a whole network, by the name of the parameter
check_engine                          the steps of an engine against the interpreter's
"""

from __future__ import annotations

from .assertions import assert_close
from .engines import check_engine
from .gradients import check_backward, numerical_gradient
from .network_gradients import GradientReport, GradientRow, check_gradients
from .spaces import Space, space, spaces

__all__ = [
    "GradientReport",
    "GradientRow",
    "Space",
    "assert_close",
    "check_backward",
    "check_engine",
    "check_gradients",
    "numerical_gradient",
    "space",
    "spaces",
]
