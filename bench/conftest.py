"""What all benchmarks share: equal threads, a clock that waits for the device, verified and warm contestants."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
from peers import entrants, is_peer
from products import is_limit
from threads import equal_threads, pools

from xbp.benchmark import CASES, Contestant, case_named, commit, conditions, verify

HOST = [case.name for case in CASES if case.name != "wide"]
WARM = 0.2  # seconds
ENTRANTS: dict[str, Any] = {}


def nothing() -> None:
    """NumPy has no queue to wait for."""


class Device:
    """The device of the benchmark at hand, as far as the clock has to know it."""

    synchronize: Callable[[], None] = staticmethod(nothing)


def clock() -> float:
    """Seconds; read after everything queued has been computed, at the start and at the end of every round."""
    Device.synchronize()
    return time.perf_counter()


def pytest_configure(config: pytest.Config) -> None:
    equal_threads()
    ENTRANTS.update(entrants())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "contestant" in metafunc.fixturenames:
        pairs = [(case, name) for case in HOST for name in ENTRANTS]
        ids = [f"{case}-{name.replace(', ', '-').replace(' ', '-')}" for case, name in pairs]
        metafunc.parametrize("contestant", pairs, ids=ids, indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=clock))


@lru_cache(maxsize=len(HOST) * 2)
def verified(case: str, name: str) -> Contestant:
    """Refused if it computes something else; then a step costs what it will always cost."""
    contestant: Contestant = ENTRANTS[name](case_named(case))
    if not is_limit(contestant):
        verify(contestant, same_order=not is_peer(contestant))
    end = time.perf_counter() + WARM
    while time.perf_counter() < end:
        contestant.step()
    return contestant


@pytest.fixture
def contestant(request: pytest.FixtureRequest) -> Any:
    """One entrant in one case, at its start."""
    found = verified(*request.param)
    found.restart()
    Device.synchronize = found.synchronize
    yield found
    Device.synchronize = staticmethod(nothing)


@pytest.fixture
def waits_for() -> Any:
    """Call it with what the clock is to wait with in this benchmark."""

    def wait(synchronize: Callable[[], None]) -> None:
        Device.synchronize = synchronize
        synchronize()

    yield wait
    Device.synchronize = staticmethod(nothing)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info.pop("node", None)  # whose machine it was is nobody's business
    machine_info["conditions"] = conditions({}) | {"pools": pools()}


def pytest_benchmark_update_commit_info(config: pytest.Config, commit_info: dict[str, Any]) -> None:
    commit_info["xbp"] = commit()
