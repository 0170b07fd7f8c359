"""In which spaces a test of an article runs, where it is not all of them."""

from __future__ import annotations

import pytest

from xbp.testing import spaces

MARKS = {"cupy": [pytest.mark.cuda]}


def over(*names: str) -> pytest.MarkDecorator:
    """Run a test in these spaces only."""
    return pytest.mark.parametrize("space", [pytest.param(n, marks=MARKS.get(n, [])) for n in names], indirect=True)


# JAX compiles every operation for every new shape, so only tests of few shapes run on it.
few_shapes = over(*(s.name for s in spaces() if not s.name.startswith("jax")))
