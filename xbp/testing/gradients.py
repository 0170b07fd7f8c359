"""Gradients against central differences, or, without the float64 to take them in, against those that NumPy has in it.

`numerical_gradient` is the slow and obvious way: every entry moved up and down. `check_backward` needs two evaluations
an argument: it moves all entries at once along one random direction, on which no wrong gradient stays unnoticed but by
an accident of probability zero.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import array_api_compat
import numpy as np

from ..errors import DTypeError, GradientError, ShapeError
from ..typing import Array, device_of
from .assertions import mismatch
from .spaces import Space
from .spaces import space as find_space

__all__ = ["check_backward", "numerical_gradient"]

RESULT = "the result of forward"


def numerical_gradient(f: Callable[[Array], Any], x: Array, step: float | None = None) -> Array:
    """The gradient of f at x by central differences; an array like x, whatever its library.

    f       any callable of one array that returns a single number: a Python number or a 0-d array
    x       a floating array; f is called twice for each of its entries
    step    how far an entry is moved each way; None is eps^(1/3) max(1, |entry|) with the eps of x's dtype, where the
            errors of truncation (step^2) and of rounding (eps / step) are of one size
    """
    xp = _namespace_of(x)
    if not xp.isdtype(x.dtype, "real floating"):
        raise DTypeError(f"numerical_gradient needs a floating array to move its entries; x has dtype {x.dtype}.")
    flat = xp.reshape(x, (-1,))
    count = xp.arange(flat.shape[0], dtype=xp.int32, device=device_of(x))
    relative = float(xp.finfo(x.dtype).eps) ** (1 / 3)
    slopes = []
    for i in range(flat.shape[0]):
        entry = float(flat[i])
        h = relative * max(1.0, abs(entry)) if step is None else step
        up, down = (xp.where(count == i, value, flat) for value in (entry + h, entry - h))
        rise = _number(f(xp.reshape(up, x.shape))) - _number(f(xp.reshape(down, x.shape)))
        way = float(up[i]) - float(down[i])  # not quite 2h, after rounding
        if way == 0.0:
            raise GradientError(f"A step of {h} is lost in the rounding of entry {i}, {entry}; take a larger step.")
        slopes.append(rise / way)
    gradient: Array = xp.reshape(xp.asarray(slopes, dtype=x.dtype, device=device_of(x)), x.shape)
    return gradient


def _namespace_of(x: object) -> Any:
    if not array_api_compat.is_array_api_obj(x):
        raise DTypeError(f"numerical_gradient takes an array of an Array API library, not {type(x).__name__} ({x!r}).")
    return array_api_compat.array_namespace(x)


def _number(value: Any) -> float:
    shape = tuple(getattr(value, "shape", ()))
    if shape != ():
        raise ShapeError(f"numerical_gradient: f returned an array of shape {shape}; it has to return a single number.")
    return float(value)


def check_backward(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[..., Any],
    args: Sequence[Any],
    wrt: Sequence[int],
    space: Space,
    rng: np.random.Generator,
    *,
    options: Mapping[str, Any] | None = None,
    rtol: float = 1e-6,
    float32_rtol: float = 1e-5,
) -> dict[str, float]:
    """Check one kernel in one space; the relative error of each gradient by name, or `GradientError`.

    forward         forward(*args, **options, xp=) -> (y, cache)
    backward        backward(dy, cache, **options, xp=) -> the gradients, in the order of `wrt`; alone, or a tuple
    args            host arrays in float64, labels, None: what is no floating array is handed on as it is
    wrt             positions of the arguments that have a gradient
    rtol            between <dy, J v> by central differences in float64 and <gradient, v>. Differences with a step of
                    eps^(1/3) are right to about eps^(2/3) = 4e-11 times the third derivative over the first; 1e-6
                    leaves room for steep functions, and is a thousand times sharper than an error of one in a thousand
    float32_rtol    between float32 values and NumPy's of float64, relative to the largest entry: some 80 roundings

    A space without float64 is compared with NumPy in float64, and there the differences are taken. Of y and of every
    gradient also dtype, shape, library and device are checked; that a second call of backward gives the same; and that
    no argument was changed. Arguments should keep away from kinks by more than 1e-4.
    """
    own = _Kernel(forward, backward, tuple(wrt), dict(options or {}), space)
    reference = replace(own, space=find_space("numpy"), note=f", the reference of space {space.name!r}")
    errors: dict[str, float] = {}
    if "float32" in space.dtypes:
        hosts, dy = own.draw(args, "float32", rng)
        found = own.run(hosts, dy, "float32")
        exact = reference.run(*reference.widened(hosts, dy), "float64")
        errors = own.against_reference(dy, found, exact, float32_rtol)
    differing = own if "float64" in space.dtypes else reference
    hosts, dy = differing.draw(args, "float64", rng)
    found = differing.run(hosts, dy, "float64")
    precise = differing.against_differences(hosts, dy, found[1:], rng, rtol)
    return precise if differing is own else errors


@dataclass(frozen=True)
class _Kernel:
    forward: Callable[..., tuple[Array, Any]]
    backward: Callable[..., Any]
    wrt: tuple[int, ...]
    options: dict[str, Any]
    space: Space
    note: str = ""

    def name(self, i: int) -> str:
        """The name that forward gives to its argument i."""
        try:
            names = list(inspect.signature(self.forward).parameters)
        except ValueError:  # some callables of other libraries have no signature
            names = []
        return names[i] if i < len(names) and names[i] not in ("args", "xp") else f"args[{i}]"

    def fail(self, dtype: str, what: str) -> GradientError:
        function = getattr(self.forward, "__module__", "") or "forward"
        return GradientError(f"{function} in space {self.space.name!r}{self.note}, {dtype}: {what}")

    def draw(self, args: Sequence[Any], dtype: str, rng: np.random.Generator) -> tuple[list[Any], np.ndarray]:
        """The arguments in `dtype`, and a random dy of the shape of y."""
        hosts = [a.astype(dtype) if _is_floating(a) else a for a in args]
        return hosts, np.asarray(rng.standard_normal(self.value(hosts).shape)).astype(dtype)

    def widened(self, hosts: Sequence[Any], dy: np.ndarray) -> tuple[list[Any], np.ndarray]:
        return [a.astype(np.float64) if _is_floating(a) else a for a in hosts], dy.astype(np.float64)

    def put(self, hosts: Sequence[Any]) -> list[Any]:
        return [self.space.put(a) if isinstance(a, np.ndarray) else a for a in hosts]

    def value(self, hosts: Sequence[Any]) -> np.ndarray:
        y, _ = self.forward(*self.put(hosts), **self.options, xp=self.space.xp)
        return self.space.get(y)

    def gradients(self, dy: Array, cache: Any, dtype: str) -> tuple[Any, ...]:
        given = self.backward(dy, cache, **self.options, xp=self.space.xp)
        grads = given if isinstance(given, tuple) else (given,)
        if len(grads) != len(self.wrt):
            names = ", ".join(self.name(i) for i in self.wrt)
            raise self.fail(dtype, f"backward returned {len(grads)} gradients for {len(self.wrt)} arguments ({names}).")
        return grads

    def run(self, hosts: Sequence[Any], dy: np.ndarray, dtype: str) -> list[np.ndarray]:
        """y and the gradients on the host, after everything but their values was checked."""
        get = self.space.get
        arrays, upstream = self.put(hosts), self.space.put(dy)
        y, cache = self.forward(*arrays, **self.options, xp=self.space.xp)
        self.check_array(RESULT, y, dy.shape, dtype)
        grads = self.gradients(upstream, cache, dtype)
        for i, g in zip(self.wrt, grads, strict=True):
            self.check_array(f"the gradient of {self.name(i)!r}", g, hosts[i].shape, dtype)
        first = [get(a) for a in (y, *grads)]
        for i, host in enumerate(hosts):
            if isinstance(host, np.ndarray) and not np.array_equal(
                get(arrays[i]), host, equal_nan=host.dtype.kind == "f"
            ):
                raise self.fail(dtype, f"argument {self.name(i)!r} was changed. A kernel writes into none.")
        if not np.array_equal(get(upstream), dy):
            raise self.fail(dtype, "backward changed dy. A kernel writes into no argument.")
        for i, a, g in zip(self.wrt, first[1:], self.gradients(upstream, cache, dtype), strict=True):
            if not np.array_equal(a, get(g), equal_nan=True):
                name = self.name(i)
                raise self.fail(dtype, f"a second backward gives another gradient of {name!r}: the cache was changed.")
        return first

    def check_array(self, what: str, array: Any, shape: tuple[int, ...], dtype: str) -> None:
        wrong = mismatch(array, shape, dtype, self.space)
        if wrong:
            raise self.fail(dtype, f"{what} {wrong}.")

    def against_differences(
        self,
        hosts: Sequence[Any],
        dy: np.ndarray,
        grads: Sequence[np.ndarray],
        rng: np.random.Generator,
        rtol: float,
    ) -> dict[str, float]:
        eps = float(np.finfo(np.float64).eps)
        errors: dict[str, float] = {}
        facts: dict[str, str] = {}
        for i, g in zip(self.wrt, grads, strict=True):
            x = hosts[i]
            move = eps ** (1 / 3) * np.maximum(1.0, np.abs(x)) * rng.standard_normal(x.shape)
            up, down = np.asarray(x + move), np.asarray(x - move)  # an array even where x is 0-d
            above, below = (self.value([*hosts[:i], moved, *hosts[i + 1 :]]) for moved in (up, down))
            numeric = float(np.sum(dy * (above - below)))
            exact = float(np.sum(g * (up - down)))
            # Relative to what a sum of so many random signs is expected to be, so that one that happens to be small
            # does not count double. Where a gradient vanishes, there is nothing but the rounding of x and y.
            expected = float(np.linalg.norm(g) * np.linalg.norm(up - down)) / math.sqrt(max(1, x.size))
            rounding = 100 * eps * float(np.sum(np.abs(dy))) * (_largest(above) + _largest(x))
            error, scale = abs(numeric - exact), max(abs(numeric), abs(exact), expected, rounding / rtol)
            errors[self.name(i)] = error / scale if scale else error
            facts[self.name(i)] = f"differences give {numeric:.9g} along a random direction, backward {exact:.9g}"
        self.judge("float64", errors, facts, rtol)
        return errors

    def against_reference(
        self, dy: np.ndarray, found: Sequence[np.ndarray], exact: Sequence[np.ndarray], rtol: float
    ) -> dict[str, float]:
        errors: dict[str, float] = {}
        facts: dict[str, str] = {}
        for name, a, b in zip([RESULT, *map(self.name, self.wrt)], found, exact, strict=True):
            # A gradient that vanishes by cancellation keeps the rounding of what cancelled, which is dy's size.
            scale = max(_largest(b), 0.01 * _largest(dy))
            off = np.abs(a - b)
            errors[name] = _largest(off) / scale if scale else _largest(off)
            if off.size:
                at = np.unravel_index(int(np.argmax(off)), off.shape)
                facts[name] = f"at {tuple(map(int, at))} it is {a[at]:.9g}, in NumPy's float64 {b[at]:.9g}"
        self.judge("float32", errors, facts, rtol)
        return {name: e for name, e in errors.items() if name != RESULT}

    def judge(self, dtype: str, errors: dict[str, float], facts: dict[str, str], rtol: float) -> None:
        """Raise unless every error is within `rtol`; NaN never is."""
        worst = max(errors, key=lambda name: math.inf if math.isnan(errors[name]) else errors[name], default="")
        if worst and not errors[worst] <= rtol:
            what = RESULT if worst == RESULT else f"the gradient of {worst!r}"
            every = ", ".join(f"{name} {e:.1e}" for name, e in errors.items())
            raise self.fail(
                dtype,
                f"{what} is wrong: {facts[worst]}; the relative error is {errors[worst]:.2e}, {rtol:.0e} is allowed. "
                f"Errors: {every}.",
            )


def _is_floating(a: Any) -> bool:
    return isinstance(a, np.ndarray) and a.dtype.kind == "f"


def _largest(a: np.ndarray) -> float:
    return float(np.max(np.abs(a))) if a.size else 0.0
