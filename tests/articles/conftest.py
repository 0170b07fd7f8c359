"""What the tests of the articles share: networks in a space, and a backend that counts what it is asked to compute."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

import xbp


class CountingNamespace:
    """A namespace that counts the calls of its functions by name."""

    def __init__(self, xp):
        self._xp = xp
        self.calls = Counter()

    def __getattr__(self, name):
        value = getattr(self._xp, name)
        return value if isinstance(value, type) or not callable(value) else partial(self._counted, name, value)

    def _counted(self, name, function, *args, **options):
        self.calls[name] += 1
        return function(*args, **options)


class CountingBackend(xbp.Backend):
    on_host = True


@pytest.fixture
def counting():
    """NumPy as a backend whose `xp.calls` says how often each function was called."""
    numpy = xbp.get_backend("numpy")
    return CountingBackend("counting", CountingNamespace(numpy.xp), device=numpy.device)


@pytest.fixture
def network(space):
    """A function from layers to a Network in the space, in its widest dtype."""
    return partial(xbp.Network, backend=space.backend, dtype=space.dtype)


@pytest.fixture
def graph(space):
    return partial(xbp.Graph, backend=space.backend, dtype=space.dtype)
