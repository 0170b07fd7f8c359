"""Each contestant of the GPU benchmark in a process of its own, asked over a pipe.

A kernel that reads where it must not leaves a process without its device, a compiler may take minutes, a library may
keep most of the memory for itself: none of that may end the comparison, or touch another contestant. What takes too
long is killed; whoever died is started again for the next case.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import checkout
from gpu_contest import Entrant, calls_for, seconds_to_first_step, timed, verify

from xbp.benchmark import Case
from xbp.errors import XBPError

__all__ = ["ENTRANTS", "FailedError", "Worker", "seconds_left", "stored"]

Maker = Callable[[Case, str, str], Entrant]


class FailedError(Exception):
    """What a contestant could not do, in words for the results."""


def _made_by(module: str, name: str, **options: Any) -> Callable[[], Maker]:
    """Imported in the process that needs it, and in no other."""

    def load() -> Maker:
        made: Maker = partial(getattr(importlib.import_module(module), name), **options)
        return made

    return load


def _tuned() -> Maker:
    compiled = importlib.import_module("gpu_torch").TorchCompiled
    return type("TorchTuned", (compiled,), {"mode": "max-autotune"})  # type: ignore[no-any-return]


ENTRANTS: dict[str, Callable[[], Maker]] = {
    "xbp, graph": _made_by("gpu_xbp", "Own", engine="graph"),
    "xbp, eager": _made_by("gpu_xbp", "Own", engine="eager"),
    "torch, autograd, fused": _made_by("gpu_torch", "TorchAutograd"),
    "torch, CUDA graph by hand, fused": _made_by("gpu_torch", "TorchGraph"),
    "torch, compile, reduce-overhead": _made_by("gpu_torch", "TorchCompiled"),
    "torch, compile, max-autotune": _tuned,
    "jax, jit": _made_by("gpu_jax", "Jax"),
}


class _Server:
    """The contestant's side."""

    def __init__(self, who: str, device: str) -> None:
        self.who, self.device = who, device
        self.entrant: Any = None

    def ready(self) -> None:
        """Import the library and wake the device, so that no first step pays for it."""
        ENTRANTS[self.who]()
        if self.who.startswith("torch"):
            importlib.import_module("torch").zeros(1, device=self.device)
        elif self.who.startswith("jax"):
            importlib.import_module("jax").numpy.zeros(1).block_until_ready()
        elif self.device != "cpu":
            importlib.import_module("cupy").zeros(1)

    def open(self, case: Case, precision: str, references: dict[str, Path]) -> dict[str, Any]:
        began = time.monotonic()
        self.close()
        make = ENTRANTS[self.who]()
        entrant, first = seconds_to_first_step(lambda: make(case, precision, self.device))
        errors = {}
        for way, path in references.items():
            if way in entrant.ways:
                errors[way] = verify(entrant, way, pickle.loads(path.read_bytes()), precision)
        self.entrant = entrant
        ways = {name: way.steps for name, way in entrant.ways.items()}
        told: dict[str, Any] = {"version": entrant.version, "engine": entrant.engine}
        told["ready_seconds"] = time.monotonic() - began
        return {**told, "first_step_seconds": first, "errors": errors, "steps": ways}

    def calls(self, way: str, seconds: float) -> int:
        return calls_for(self.entrant, way, seconds)

    def time(self, way: str, calls: int) -> tuple[float, float]:
        block = timed(self.entrant, way, calls)
        return block.host, block.device

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = self.entrant.told()
        return found

    def close(self) -> None:
        self.entrant = None
        gc.collect()
        with contextlib.suppress(Exception):  # what is kept for reuse would count as the next case's memory
            if self.who.startswith("xbp") and self.device != "cpu":
                importlib.import_module("cupy").get_default_memory_pool().free_all_blocks()
            if "compile" in self.who:
                importlib.import_module("torch").compiler.reset()

    def ask(self, module: str, function: str, *arguments: Any) -> Any:
        return getattr(importlib.import_module(module), function)(*arguments)


def serve(pipe: Any, who: str, device: str, log: str) -> None:
    """Answer until the pipe is closed."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)  # libraries print
    os.dup2(target, 2)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # JAX would take three quarters of the memory
    checkout.register()
    server = _Server(who, device)
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = ("done", getattr(server, command)(*arguments))
        except Exception as error:
            traceback.print_exc()
            # After an error of the device nothing works any more in this process; others leave it as it was.
            harmless = isinstance(error, XBPError | ValueError | ImportError) or type(error).__name__ == "WrongError"
            answer = ("failed" if harmless else "broken", _one_line(error))
        pipe.send(answer)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:600]


class Worker:
    """The benchmark's side: a process, which is started when it is needed."""

    def __init__(self, who: str, device: str, folder: Path) -> None:
        self.who, self._device = who, device
        self.log = folder / f"{who.replace(', ', '-').replace(' ', '-')}.log"
        self._process: Any = None
        self._pipe: Any = None

    def start(self) -> None:
        if self._process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self.who, self._device, str(self.log)))
        self._process.start()
        theirs.close()

    def send(self, command: str, *arguments: Any) -> None:
        self.start()
        try:
            self._pipe.send((command, *arguments))
        except OSError:
            self.kill()  # `answer` says so

    def answer(self, seconds: float) -> Any:
        """What the last command returned. Raises `FailedError`, with the reason, and kills what does not answer."""
        if self._process is None:
            raise FailedError("the process had ended.")
        try:
            if not self._pipe.poll(max(0.0, seconds)):
                self.kill()
                raise FailedError(f"no answer within {seconds:.0f} s.")
            state, value = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(1.0)
            code = self._process.exitcode
            self.kill()
            raise FailedError(f"the process ended, with exit code {code}: {self._last_line()}") from error
        if state == "done":
            return value
        if state == "broken":
            self.kill()
        raise FailedError(value)

    def ask(self, command: str, *arguments: Any, seconds: float) -> Any:
        self.send(command, *arguments)
        return self.answer(seconds)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None

    def _last_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            return lines[-1][:300] if lines else "nothing was said."
        return "nothing was said."


def stored(value: object, folder: Path) -> Path:
    """A value in a file, for all processes: one of a large network is too much for a pipe."""
    handle, name = tempfile.mkstemp(dir=folder, suffix=".pickle")
    with os.fdopen(handle, "wb") as file:
        pickle.dump(value, file, protocol=pickle.HIGHEST_PROTOCOL)
    return Path(name)


def seconds_left(deadline: float, longest: float) -> float:
    """How long something may take that may take `longest`."""
    return max(0.0, min(longest, deadline - time.monotonic()))
