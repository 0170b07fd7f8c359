"""Which of the library's algorithms is fastest for a product, found by trying, and remembered from run to run.

The library's own first choice is a guess from the sizes. The winners are kept in one small file of JSON in the folder
of `xbp.folders`; a file that is missing, damaged, another's or not writable costs time, and nothing else.

Trying launches work and waits for it, so no stream may be captured meanwhile: tune first, then capture.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from xbp.errors import ShapeError, XBPError
from xbp.folders import cache_folder, private

from .lt import Algorithm
from .products import Product

__all__ = ["DeviceKind", "Tuning", "key_of"]

FILE = "cublaslt.json"
FORMAT = 1
MOST = 20_000  # products in the file; some 200 bytes each
_lock = threading.Lock()  # of the file, between the threads of this process


@dataclass(frozen=True)
class DeviceKind:
    """The kind of device: two of the same kind share what was found.

    name          such as "NVIDIA H200"
    capability    such as "90"
    """

    name: str
    capability: str


def key_of(
    product: Product, workspace: int, version: int, device: DeviceKind, aligned: tuple[int, int, int] = (256, 256, 256)
) -> str:
    """Everything that decides which algorithm is best, as text.

    workspace    bytes that an algorithm may use
    version      of cuBLASLt
    aligned      what divides the addresses of A, B and D, as it was given to `Handle.candidates`
    """
    return json.dumps([version, device.name, device.capability, workspace, list(aligned), astuple(product)])


class Tuning:
    """The winners in the file, and the search for new ones. Threads may share it.

    folder     where the file is; None keeps the winners in memory
    repeats    timings of each candidate, of which the median counts
    """

    def __init__(self, folder: Path | None = None, repeats: int = 5) -> None:
        if repeats < 1:
            raise ShapeError(f"The median of {repeats} timings: time each candidate once or more.")
        self.path = None if folder is None else folder / FILE
        self.repeats = repeats
        self._known: dict[str, Algorithm] | None = None

    @classmethod
    def of_user(cls, repeats: int = 5) -> Tuning:
        """With the file in the user's folder, which the variable XBP_CACHE_DIR names; empty is none."""
        return cls(cache_folder(), repeats)

    def best(
        self,
        key: str,
        candidates: Callable[[], Sequence[Algorithm]],
        seconds: Callable[[Algorithm], float],
        accepted: Callable[[Algorithm], Algorithm | None] | None = None,
    ) -> Algorithm:
        """The fastest algorithm for the product that `key` (see `key_of`) stands for.

        candidates    lists them, the library's favourite first; called only where nothing usable is known, and what
                      it raises, such as `Declined`, gets through
        seconds       runs one and says how long it took, in any unit, best on operands that are not in a cache from
                      the last time; an algorithm for which it raises an `XBPError` is out of the race
        accepted      what the library makes of a stored algorithm; None, as from `Handle.accepted`, drops it
        """
        stored = self._read().get(key)
        if stored is not None:
            usable = stored if accepted is None else accepted(stored)
            if usable is not None:
                return usable
        best = self._fastest(candidates(), seconds)
        with _lock:
            self._write(key, best)
        return best

    def _fastest(self, candidates: Sequence[Algorithm], seconds: Callable[[Algorithm], float]) -> Algorithm:
        """The one with the least median; the earlier of two that are equal. Rounds, not rows of timings of one: what
        disturbs the device for a while disturbs all of them."""
        if not candidates:
            raise ShapeError("There is no algorithm to choose from.")
        if len(candidates) == 1:
            return candidates[0]
        times: dict[int, list[float]] = {i: [] for i in range(len(candidates))}
        failure: XBPError | None = None
        for _ in range(self.repeats):
            for i in list(times):
                try:
                    times[i].append(seconds(candidates[i]))
                except XBPError as error:  # it was offered, and does not run: one choice less
                    failure = error
                    del times[i]
        if not times and failure is not None:
            raise failure
        medians = {i: statistics.median(measured) for i, measured in times.items()}
        return candidates[min(medians, key=lambda i: (medians[i], i))]

    def forget(self) -> None:
        """Read the file again, next time."""
        with _lock:
            self._known = None

    def _read(self) -> dict[str, Algorithm]:
        with _lock:
            if self._known is None:
                self._known = _content(self.path)
            return self._known

    def _write(self, key: str, algorithm: Algorithm) -> None:
        """Add a winner to what the file holds by now: other processes write it too, and it is replaced as a whole."""
        if self._known is None:
            self._known = {}
        self._known[key] = algorithm
        if self.path is None:
            return
        known = {**_content(self.path), **self._known}
        newest = list(known.items())[-MOST:]
        document = {"format": FORMAT, "algorithms": {k: [a.to_hex(), a.workspace, a.waves] for k, a in newest}}
        with contextlib.suppress(OSError):
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=FILE, suffix=".tmp")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    json.dump(document, file, indent=0)
                os.replace(name, self.path)
            except OSError:
                Path(name).unlink(missing_ok=True)
                raise


def _content(path: Path | None) -> dict[str, Algorithm]:
    """The winners in a file; none where it is not there, not ours or not whole, and no line that is not one."""
    try:
        if path is None or not private(path):
            return {}
        document: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(document, dict) or type(document.get("format")) is not int or document["format"] != FORMAT:
        return {}
    lines = document.get("algorithms")
    found = {key: _algorithm(line) for key, line in lines.items()} if isinstance(lines, dict) else {}
    return {key: algorithm for key, algorithm in found.items() if algorithm is not None}


def _algorithm(line: Any) -> Algorithm | None:
    match line:
        case [str(text), int(workspace), int() | float() as waves] if _sensible(workspace, waves):
            with contextlib.suppress(ValueError, OverflowError):  # ShapeError is a ValueError
                return Algorithm.from_hex(text, workspace, float(waves))
    return None


def _sensible(workspace: int, waves: float) -> bool:
    sizes = type(workspace) is int and 0 <= workspace < 2**40
    return sizes and type(waves) is not bool and -(2**40) < waves < 2**40  # which no NaN is


def _forget_lock() -> None:
    """After a fork the lock may be held by a thread that the child does not have."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
