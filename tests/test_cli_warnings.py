"""What the library warns of reaches whoever runs a command, although the library itself is silent."""

from __future__ import annotations

import logging

import pytest

from cli_helpers import run


@pytest.fixture(autouse=True)
def _handlers_of_before():
    log = logging.getLogger("xbp")
    before = list(log.handlers)
    yield
    log.handlers[:] = before


def test_warnings_of_the_library_are_shown_once(capsys):
    run("--version")
    run("--version")
    logging.getLogger("xbp.anything").warning("look out")
    logging.getLogger("xbp.anything").info("by the way")
    assert capsys.readouterr().err == "look out\n"
