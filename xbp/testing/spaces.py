"""Where arrays may live, for tests that run over all of it.

Each space stands for a rule that some library has: read-only NumPy for "no argument is written to", array-api-strict
for "nothing beside the standard", its second device for "no array appears on another device", its device without
float64 for "float32 stays float32". A kernel that runs in all of them runs on a GPU, and this is known without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cached_property, wraps
from importlib import import_module
from typing import Any, cast

import numpy as np

from ..backend import Backend, get_backend
from ..errors import BackendUnavailable, unknown_name
from ..typing import Array, DType, Namespace

__all__ = ["Space", "space", "spaces"]

Context = Callable[[], AbstractContextManager[object]]


class Space:
    """A backend under the conditions of a test. Compute with its arrays inside `with space.active():`.

    name      "numpy", "strict-device1", "jax-x64", ...
    dtypes    the floating dtypes by name, the widest last
    """

    def __init__(
        self,
        name: str,
        make: Callable[[], Backend],
        dtypes: tuple[str, ...] = ("float32", "float64"),
        context: Context = nullcontext,
    ) -> None:
        self.name = name
        self.dtypes = dtypes
        self._make = make
        self._context = context

    def __repr__(self) -> str:
        return f"Space({self.name!r})"

    @cached_property
    def backend(self) -> Backend:
        """Made on first use; raises `BackendUnavailable` where the library is missing or no device answers."""
        return self._make()

    @property
    def reason(self) -> str:
        """Why the space cannot be used here; "" where it can."""
        try:
            _ = self.backend
        except BackendUnavailable as error:
            return str(error)
        return ""

    @property
    def xp(self) -> Namespace:
        return self.backend.xp

    @property
    def dtype(self) -> str:
        """The widest floating dtype, by name."""
        return self.dtypes[-1]

    def dtype_of(self, name: str) -> DType:
        return self.backend.dtype(name)

    def put(self, host: Any) -> Array:
        """A copy of a host array in this space; float64 becomes float32 where the space has nothing wider."""
        a = np.asarray(host)
        narrow = a.dtype == np.float64 and "float64" not in self.dtypes
        return self.backend.asarray(a, self.dtype if narrow else None)

    def get(self, array: Array) -> np.ndarray:
        """A copy of an array of this space on the host."""
        return self.backend.to_host(array)

    @contextmanager
    def active(self) -> Iterator[Space]:
        """The context in which the space is what its name says (x64 for JAX, flags for strict, a device for CuPy)."""
        with ExitStack() as stack:
            stack.enter_context(self.backend.active())
            stack.enter_context(self._context())
            yield self


class _ReadOnly:
    """A NumPy namespace that returns only arrays which refuse to be written to."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp
        self.__name__ = xp.__name__

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._xp, name)
        if isinstance(value, type) or not callable(value):
            return value

        @wraps(value)
        def frozen(*args: Any, **options: Any) -> Any:
            return _freeze(value(*args, **options))

        setattr(self, name, frozen)  # found without __getattr__ the next time
        return frozen


def _freeze(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.view()  # the flag is the view's: an argument handed back stays as writeable as it was
        value.flags.writeable = False
    elif type(value) in (tuple, list):
        value = type(value)(map(_freeze, value))
    return value


class _ReadOnlyBackend(Backend):
    on_host = True


def _readonly() -> Backend:
    numpy = get_backend("numpy")
    return _ReadOnlyBackend("numpy-readonly", cast(Namespace, _ReadOnly(numpy.xp)), numpy.device, numpy.version)


def _no_lookups() -> AbstractContextManager[object]:
    """array-api-strict without indexing by masks and without shapes that depend on values: what a graph cannot hold."""
    strict: Any = import_module("array_api_strict")
    flags: AbstractContextManager[object] = strict.ArrayAPIStrictFlags(
        boolean_indexing=False, data_dependent_shapes=False
    )
    return flags


def _x64(on: bool) -> AbstractContextManager[object]:
    jax: Any = import_module("jax")
    home = jax if hasattr(jax, "enable_x64") else import_module("jax.experimental")  # where JAX had it until 0.8
    return cast("AbstractContextManager[object]", home.enable_x64(on))


def spaces() -> list[Space]:
    """Every space, also those that cannot be used here: their `reason` says why. Imports no library by itself."""
    single = ("float32",)
    return [
        Space("numpy", lambda: get_backend("numpy")),
        Space("numpy-readonly", _readonly),
        Space("strict", lambda: get_backend("strict"), context=_no_lookups),
        Space("strict-device1", lambda: get_backend("strict", "device1"), context=_no_lookups),
        Space("strict-no_float64", lambda: get_backend("strict", "no_float64"), single, context=_no_lookups),
        Space("torch", lambda: get_backend("torch", "cpu")),
        Space("jax", lambda: get_backend("jax", "cpu"), single, context=lambda: _x64(False)),
        Space("jax-x64", lambda: get_backend("jax", "cpu"), context=lambda: _x64(True)),
        Space("cupy", lambda: get_backend("cupy")),
    ]


def space(name: str) -> Space:
    """The space of that name; `BackendUnavailable` with the reason where it cannot be used here."""
    known = {s.name: s for s in spaces()}
    if name not in known:
        raise unknown_name("space", name, known)
    found = known[name]
    if found.reason:
        raise BackendUnavailable(f"Space {name!r}: {found.reason}")
    return found
