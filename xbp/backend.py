"""Backends: where arrays live and how a training step runs there.

A backend is a small value: a namespace, a device, the way in and out, and its engines. It adds nothing that the Array
API has already. Backends are found by name through the entry-point group `xbp.backends`, so that xbp imports none of
them and a third party's is found exactly as ours are. There is no current backend: whoever chose one passes it on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, wraps
from importlib import import_module
from typing import Any, ClassVar, ParamSpec, TypeVar

import array_api_compat
import numpy as np

from .errors import BackendUnavailable, DTypeError, UnknownBackend, unknown_name_text
from .program import Interpreter, Program
from .typing import Array, Device, DType, Namespace

__all__ = [
    "GROUP",
    "Backend",
    "BackendInfo",
    "Transfers",
    "available_backends",
    "get_backend",
    "load_library",
    "on_device",
    "register_backend",
]

P = ParamSpec("P")
R = TypeVar("R")

GROUP = "xbp.backends"
AUTO = ("cupy", "numpy")  # what "auto" tries, in this order

# The standard's dtypes by name. A library's own answer to "which of them has this device" is taken for the 64-bit
# ones; the half-precision ones are outside the standard and are taken where a library has them.
WIDE = frozenset({"float64", "int64", "uint64", "complex128"})
NARROW = frozenset({"bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float32", "complex64"})
HALF = frozenset({"float16", "bfloat16"})

Factory = Callable[[str | None], "Backend"]


@dataclass
class Transfers:
    """Copies between host and device since the backend was made: how many, and how many bytes, each way."""

    to_device: int = 0
    to_device_bytes: int = 0
    to_host: int = 0
    to_host_bytes: int = 0


@dataclass(frozen=True)
class BackendInfo:
    """One line of `available_backends()`. `reason` says why a backend is not available, and how to get it."""

    name: str
    available: bool
    reason: str = ""
    device: str = ""
    engines: tuple[str, ...] = ()
    version: str = ""
    precisions: tuple[str, ...] = ()


class Backend:
    """The base of every backend; complete as it stands for any Array API library on one device.

    A plug-in makes one from its namespace and overrides only what its library does differently:

        def backend(device=None):
            import mylib
            return Backend("mylib", mylib, device=device)

    name        what `get_backend` finds it by
    xp          the namespace that kernels compute with; may replace functions, such as `matmul`, by its own
    device      passed to every creation function; None is the library's default
    engines     ways to run a step, best first; "eager" is written once in xbp and works everywhere
    precisions  those of `xbp.program.PRECISIONS` that all its engines have
    """

    engines: ClassVar[tuple[str, ...]] = ("eager",)
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    extras: ClassVar[Mapping[str, str]] = {}  # engines that need something more, and how to get it
    keeps_device: ClassVar[bool] = False  # True where the library has a current device a thread: see `active`
    on_host: ClassVar[bool] = False  # True where the library's arrays are NumPy's own: nothing is ever transferred

    def __init__(self, name: str, xp: Namespace, device: Device = None, version: str = "") -> None:
        self.name = name
        self.xp = xp
        self.device = device
        self.version = version
        self.transfers = Transfers()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, device={str(self.device)!r})"

    def dtype(self, name: str) -> DType:
        """The library's dtype of that name; raises `DTypeError` where the device does not have it."""
        dtype = getattr(self.xp, name, None) if name in WIDE | NARROW | HALF else None
        if dtype is None or (name in WIDE and name not in self._wide):
            where = "" if self.device is None else f" on device {str(self.device)!r}"
            raise DTypeError(f"Backend {self.name!r} has no dtype {name!r}{where}.")
        return dtype

    @cached_property
    def _wide(self) -> frozenset[str]:
        """The 64-bit dtypes of the device, by the standard's inspection where the library implements it."""
        inspect = getattr(self.xp, "__array_namespace_info__", None)
        return WIDE if inspect is None else WIDE.intersection(inspect().dtypes(device=self.device))

    def asarray(self, host: Any, dtype: str | None = None) -> Array:
        """Host data (anything NumPy reads) as an array of this backend, counted in `transfers`; always a copy."""
        a = self._read(host)
        self.dtype(dtype or a.dtype.name)  # refuses before anything is copied
        if dtype is not None:
            a = a.astype(dtype, copy=False)
        if not self.on_host:
            self.transfers.to_device += 1
            self.transfers.to_device_bytes += a.nbytes
        return self._upload(a)

    def _read(self, host: Any) -> np.ndarray:
        """Host data as NumPy sees it, in this machine's byte order."""
        try:
            a = np.asarray(host)
        except Exception as error:  # each library refuses NumPy in its own way
            raise DTypeError(
                f"Backend {self.name!r} reads host data: NumPy arrays, lists, numbers; {type(host).__module__}."
                f"{type(host).__name__} is none of them ({error}). Give arrays of another library to the backend of "
                "that library (backend=...), or copy them to the host first."
            ) from error
        if a.dtype.kind not in "biufcV":
            raise DTypeError(
                f"Backend {self.name!r} cannot compute with host data of dtype {a.dtype}. Give numbers or booleans; "
                "code text and dates as numbers first."
            )
        return a if a.dtype.isnative else a.astype(a.dtype.newbyteorder("="))

    def _upload(self, a: np.ndarray) -> Array:
        """`a` on the device; shares no memory with it."""
        return self.xp.asarray(a, dtype=self.dtype(a.dtype.name), device=self.device, copy=True)

    def to_host(self, array: Array) -> np.ndarray:
        """An array of this backend as a NumPy array of its own, counted in `transfers`; waits for the device."""
        a = self._download(array)
        if not self.on_host:
            self.transfers.to_host += 1
            self.transfers.to_host_bytes += a.nbytes
        return a

    def _download(self, array: Array) -> np.ndarray:
        """`array` on the host; shares no memory with it."""
        return np.array(array)

    def owns(self, value: object) -> bool:
        """Whether `value` is an array of this backend's library."""
        return self.library_of(value) == self._library

    def bare(self, array: Array) -> Array:
        """An own array without what its library has hung on it, such as the record of PyTorch's autograd."""
        return array

    @cached_property
    def _library(self) -> str:
        return self.library_of(self.xp.zeros((), dtype=self.xp.int32, device=self.device))

    @staticmethod
    def library_of(value: object) -> str:
        """The name of the array library that `value` belongs to, "" where it is no array."""
        if not array_api_compat.is_array_api_obj(value):
            return ""
        name: str = array_api_compat.array_namespace(value).__name__
        return name.removeprefix("array_api_compat.").split(".")[0]

    def packed(self, array: Array) -> Array:
        """The array as engines read it fastest, which may be a copy; for data that is read in every epoch."""
        return array

    def active(self) -> AbstractContextManager[object]:
        """The context to compute in. Only a library that keeps a current device a thread, as CuPy does, needs it."""
        return nullcontext()

    def synchronize(self) -> None:
        """Wait until every queued operation has finished (needed before a clock is read)."""

    def memory(self) -> dict[str, int]:
        """Bytes of device memory: {"used": ..., "total": ...}, as far as the library tells."""
        return {}

    def compile(self, program: Program, engine: str) -> Any:
        """An `xbp.runner.Runner` for a step, on `engine`; `eager` needs no compiling, and the base has no other.

        Raises `NotCompiled`, with the operation and the reason, for a program that the engine cannot run.
        """
        raise self._without(engine)

    def function(self, program: Program, engine: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """`program` as a pure function on `engine`, from its inputs by name to its outputs by name, which are new.

        Scores, and what evaluation adds up, are such functions. Raises `NotCompiled` as `compile` does.
        """
        raise self._without(engine)

    def arena(self, program: Program, engine: str) -> Callable[[int], int] | None:
        """The bytes that an engine takes for what lies between a program's inputs and outputs, for n rows.

        None is the plan that `xbp.program.memory_of` makes.
        """
        return None

    def interpreted(self, program: Program) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """`program` as a pure function, computed operation by operation: `function` on the engine "eager"."""
        return Interpreter(program, self.xp, self.device, self.dtype)

    def _without(self, engine: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"Backend {self.name!r} has no engine {engine!r}. It has: {', '.join(self.engines)}; "
            'engine="auto" takes the best of them.'
        )


def load_library(module: str, backend: str, install: str) -> Any:
    """The array library of a backend, imported now; `BackendUnavailable` says why it cannot be, and what to install."""
    try:
        return import_module(module)
    except ImportError as error:
        root = module.partition(".")[0]
        missing = isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == root
        reason = f"{root} is not installed" if missing else f"importing {module} failed: {error}"
        raise BackendUnavailable(f"Backend {backend!r} cannot run: {reason}. Install it with: {install}") from error


def on_device(method: Callable[P, R]) -> Callable[P, R]:
    """A method of an object with a `backend`, run with that backend's device as the thread's own."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        backend = args[0].backend  # type: ignore[attr-defined]  # of the object that the method belongs to
        if not backend.keeps_device:
            return method(*args, **kwargs)
        with backend.active():
            return method(*args, **kwargs)

    return run


_registered: dict[str, Factory] = {}


def register_backend(name: str, factory: Factory) -> None:
    """Make `factory(device)` known under `name` in this process; packages have the entry point `xbp.backends`."""
    _registered[name] = factory


def _factories() -> dict[str, Callable[[], Factory]]:
    """A loader for each known name; nothing is imported before the loader is called."""
    from importlib import metadata  # a quarter of the time of `import xbp`, and not needed before this

    found: dict[str, Callable[[], Factory]] = {e.name: e.load for e in metadata.entry_points(group=GROUP)}
    found.update({name: (lambda f=factory: f) for name, factory in _registered.items()})  # type: ignore[misc]
    return found


def get_backend(name: str | Backend = "auto", device: str | None = None) -> Backend:
    """The backend of that name, ready to compute.

    name      "auto" (CuPy when a CUDA device answers, else NumPy), a registered name, a name with a device
              ("cupy:1", "torch:cuda"), or a Backend, which is returned as it is
    device    the device in the library's own words; None is its default

    Raises `BackendUnavailable` with the reason and what to install where a backend asked for by name cannot run.
    """
    if isinstance(name, Backend):
        if device is not None:
            raise BackendUnavailable(f"{name!r} has its device already; device={device!r} goes with a backend's name.")
        return name
    if not isinstance(name, str):
        raise DTypeError(f"backend= takes a name or a Backend, not {type(name).__name__} ({name!r}).")
    base, _, suffix = name.partition(":")
    if suffix and device is not None and suffix != device:
        raise BackendUnavailable(f"Backend {name!r} names a device, and device={device!r} another. Give one of them.")
    if base == "auto":
        return _first_available(AUTO, suffix or device)
    loaders = _factories()
    if base not in loaders:
        raise UnknownBackend(unknown_name_text("backend", base, [*loaders, "auto"]))
    return _make(base, loaders[base], suffix or device)


def _first_available(names: Iterable[str], device: str | None) -> Backend:
    loaders, reasons = _factories(), []
    for name in names:
        if name not in loaders:
            reasons.append(f"{name}: not registered (is xbp installed, so that its entry points exist?)")
            continue
        try:
            return _make(name, loaders[name], device)
        except BackendUnavailable as error:
            reasons.append(f"{name}: {error}")
    raise BackendUnavailable("No backend can run here. " + " ".join(reasons))


def _make(name: str, load: Callable[[], Factory], device: str | None) -> Backend:
    try:
        backend = load()(device)
    except BackendUnavailable:
        raise
    except (Exception, SystemExit) as error:  # a plug-in may fail in any way; the user needs its name and its reason
        raise BackendUnavailable(f"Backend {name!r} failed to start: {type(error).__name__}: {error}") from error
    if not isinstance(backend, Backend):
        raise BackendUnavailable(
            f"The entry point of backend {name!r} returned a {type(backend).__name__}, not an xbp.backend.Backend."
        )
    return backend


def available_backends() -> list[BackendInfo]:
    """Every registered backend, whether it can run here, and if not, why. Imports each of their libraries."""
    infos = []
    for name, load in sorted(_factories().items()):
        try:
            b = _make(name, load, None)
        except BackendUnavailable as error:
            infos.append(BackendInfo(name, available=False, reason=str(error)))
        else:
            infos.append(BackendInfo(name, True, "", str(b.device), tuple(b.engines), b.version, tuple(b.precisions)))
    return infos
