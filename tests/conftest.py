"""One suite over all spaces: a test that asks for `space` runs in each, and skips with the reason where it cannot."""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from xbp.errors import BackendUnavailable
from xbp.testing import space as find_space
from xbp.testing import spaces

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell without job control starts background processes so; Ctrl-C is tested all the same, in child processes too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "xbp",
    deadline=None,  # the first call of an operation compiles it on some libraries
    # `space` stays the same from one example to the next, and is meant to.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("xbp")


@pytest.fixture(autouse=True, scope="session")
def _compiled_code_stays_here(tmp_path_factory):
    """What the tests compile goes into their own folder, which all their processes share, and not to the user's."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if os.environ.get("PYTEST_XDIST_WORKER") else folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XBP_CACHE_DIR", os.environ.get("XBP_CACHE_DIR", str(folder / "compiled")))
        yield


@pytest.fixture(autouse=True)
def _no_engine_gives_up(request):
    """Everything of xbp's own runs on every engine; a test of what does not has the marker `falls_back`."""
    if request.node.get_closest_marker("falls_back"):
        yield
        return
    told = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = told.append
    log = logging.getLogger("xbp.engine")
    log.addHandler(handler)
    yield
    log.removeHandler(handler)
    assert not told, told[0].getMessage()


@pytest.fixture(
    params=[pytest.param(s.name, marks=[pytest.mark.cuda] if s.name == "cupy" else []) for s in spaces()],
)
def space(request):
    """A place where arrays live (`xbp.testing.Space`), switched on for the time of the test."""
    try:
        found = find_space(request.param)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    with found.active():
        yield found


def pytest_collection_modifyitems(config, items):
    """Leave out the spaces in which a test has no meaning: `not_in` says which, and why."""
    kept, left_out = [], []
    for item in items:
        marker = item.get_closest_marker("not_in")
        params = getattr(item, "callspec", None)
        meaningless = marker is not None and params is not None and params.params.get("space") in marker.args
        (left_out if meaningless else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


@pytest.fixture
def bench(monkeypatch):
    """A module of bench/, by name. They import each other as scripts of one folder do, in processes of theirs too."""
    folder = Path(__file__).resolve().parent.parent / "bench"
    monkeypatch.syspath_prepend(str(folder))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if (folder / f"{name}.py").exists():
            del sys.modules[name]


@pytest.fixture
def dispatch():
    """scikit-learn, told to leave arrays in their own library."""
    sklearn = pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")
    try:
        with sklearn.config_context(array_api_dispatch=True):
            yield
    except RuntimeError as error:
        pytest.skip(f"SciPy was imported without SCIPY_ARRAY_API=1: {error}")
