"""What is there to compute with, what is not, and what to do about it: for whoever wonders why something does not run.

Each backend examines its own library, through an entry point in the group `xbp.doctors`: a function that takes nothing
and returns findings. An examination may fail in any way, or not come back, without stopping the others.
"""

from __future__ import annotations

import platform
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from typing import Literal

from .backend import available_backends, get_backend
from .checks import chosen_engine
from .errors import XBPError

__all__ = ["GROUP", "Finding", "findings", "healthy"]

GROUP = "xbp.doctors"
PATIENCE = 20.0  # seconds for one examination: a driver that hangs must not hang this


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    what      its name, such as "driver"
    state     "ok"; "missing", which something else makes up for; "wrong", which stands in the way
    text      what was found
    remedy    what to do about it, "" where nothing needs doing
    """

    what: str
    state: Literal["ok", "missing", "wrong"]
    text: str
    remedy: str = ""


def findings() -> list[Finding]:
    """Everything that was found: what "auto" takes, what each backend says of itself, and what their doctors say."""
    found = _safely("auto", _auto) + _safely("backends", _backends)
    try:
        doctors = sorted(metadata.entry_points(group=GROUP), key=lambda e: e.name)
    except Exception as error:  # metadata of a package that is damaged
        return [*found, _failed("entry points", error)]
    for entry in doctors:
        found += _safely(entry.name, lambda e=entry: e.load()())  # type: ignore[misc]
    return found


def healthy(found: Iterable[Finding]) -> bool:
    """Whether nothing is wrong; what is missing may stay so."""
    return all(f.state != "wrong" for f in found)


def _auto() -> list[Finding]:
    """What a training takes that asks for nothing."""
    about = f"xbp {metadata.version('xbp')} on Python {platform.python_version()}, {platform.platform(terse=True)}"
    try:
        backend = get_backend("auto")
        engine = chosen_engine(backend, "auto")
    except XBPError as error:
        return [Finding("xbp", "ok", about), Finding("auto", "wrong", str(error), "Install what it names.")]
    where = "" if backend.device is None else f" on {backend.device}"
    text = f"takes backend {backend.name} ({backend.version}){where}, engine {engine}"
    return [Finding("xbp", "ok", about), Finding("auto", "ok", text)]


def _backends() -> list[Finding]:
    """A line for each backend; one that cannot run says itself what to install."""
    found = []
    for info in available_backends():
        what = f"backend {info.name}"
        if info.available:
            text = f"{info.version} on {info.device}, engines {', '.join(info.engines)}"
            found.append(Finding(what, "ok", text))
        else:
            found.append(Finding(what, "missing", info.reason))
    return found


def _safely(what: str, examine: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What an examination finds, or that it failed, or that it does not come back."""
    found: list[Finding] = []

    def run() -> None:
        try:
            for finding in examine():
                found.append(_checked(what, finding))
        except BaseException as error:  # whatever is broken is what is to be told, also a library that exits
            found.append(_failed(what, error))

    thread = threading.Thread(target=run, name=f"examination of {what}", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if thread.is_alive():
        text = f"the examination has not come back after {PATIENCE:.0f} seconds"
        return [
            *found,
            Finding(what, "wrong", text, "Something hangs that it asked: a driver, a device, a file system."),
        ]
    return found


def _checked(what: str, answer: object) -> Finding:
    if not isinstance(answer, Finding):
        raise TypeError(f"the doctor {what!r} returned a {type(answer).__name__}, not an xbp.doctor.Finding")
    return answer


def _failed(what: str, error: BaseException) -> Finding:
    return Finding(what, "wrong", f"could not be examined: {type(error).__name__}: {error}", "Reinstall what it names.")
