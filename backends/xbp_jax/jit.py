"""The engine `jit`: a program compiled by XLA as one function, and many steps of it as one loop on the device.

The Runner owns what it trains and donates it to every step, so that new values take the place of the old ones. All
that XLA is shown is the interpreter running on tracers: the program's own operations, and nothing beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import numpy as np

from xbp.program import Interpreter, Program
from xbp.recording import flat, nested
from xbp.typing import Array, Device, Inputs, Namespace, Scalar, Tree

__all__ = ["JitRunner", "function", "interpreter"]

SCALARS = "scalars."
HALF = ("float16", "bfloat16")
SHARED = 64  # compiled functions that are kept for whoever asks for the same ones
GROWTH = 8  # of the room in the loop's tables: at most this many times what a call needs


def function(program: Program, jax: Any, xp: Namespace) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The program as a compiled pure function of its inputs by name."""
    names = tuple(program.inputs)
    compiled = _shared(
        ("function", program.hash, _x64(jax), id(xp)),
        lambda: jax.jit(_traced(program, jax, xp), **_options(program, jax)),
    )

    def call(inputs: Mapping[str, Array]) -> dict[str, Array]:
        out: dict[str, Array] = compiled({name: inputs[name] for name in names})
        return out

    return call


def _x64(jax: Any) -> bool:
    return bool(jax.config.jax_enable_x64)


def interpreter(program: Program, jax: Any, xp: Namespace, device: Device = None) -> Interpreter:
    """The program on JAX's arrays: without x64 an int64 is JAX's int32; products may add up wider numbers than theirs.

    Without a device, new arrays lie where the inputs do, as they have to on tracers.
    """

    def product(a: Any, b: Any, dtype: Any) -> Any:
        return jax.numpy.matmul(a, b, preferred_element_type=dtype)

    return Interpreter(program, xp, device, jax.dtypes.canonicalize_dtype, product)


def _traced(program: Program, jax: Any, xp: Namespace) -> Callable[..., Any]:
    return interpreter(program, jax, xp).__call__


def _options(program: Program, jax: Any) -> dict[str, Any]:
    """For `jit`: that numbers which are rounded and widened again are not left as they were, as XLA is free to do."""
    rounds = any([op.result.dtype.name in HALF for op in program.operations])
    known = "compiler_options" in signature(jax.jit).parameters  # of newer versions
    return {"compiler_options": {"xla_allow_excess_precision": False}} if rounds and known else {}


_compiled: dict[Any, Any] = {}


def _shared(key: Any, make: Callable[[], Any]) -> Any:
    """Compiled functions by what they compute: who trains the same network again does not compile it again."""
    if key not in _compiled:
        while len(_compiled) >= SHARED:
            del _compiled[next(iter(_compiled))]
        _compiled[key] = make()
    return _compiled[key]


class JitRunner:
    """`xbp.runner.Runner` on one compiled step, and on one compiled loop over it.

    any_count    compile a loop that runs as often as it is told, for a few sizes of its tables, instead of one for
                 each number of steps. On a CPU that costs nothing; a GPU would ask the host after every step.
    """

    engine = "jit"

    def __init__(self, program: Program, jax: Any, xp: Namespace, *, any_count: bool) -> None:
        self._xp = xp
        self._any_count = any_count
        self._updates = program.updates
        self._inputs = tuple(name.removeprefix("x.") for name in program.inputs if name.startswith("x."))
        self._scalars = tuple(name.removeprefix(SCALARS) for name in program.inputs if name.startswith(SCALARS))
        self._kept: dict[str, Array] = {}  # what no step changes
        # What steps change, and the last loss. Donated values are gone when a step returns, so its result lands in here
        # without a line of Python between, in which Ctrl-C could strike: there are always the values before the step
        # or the ones after it.
        self._newest: deque[tuple[tuple[Array, ...], Any]] = deque(maxlen=1)
        key = ("step", program.hash, _x64(jax), id(xp), any_count)
        self._step, self._run, self._with_room = _shared(key, lambda: self._jitted(program, jax))

    def _jitted(self, program: Program, jax: Any) -> tuple[Any, Any, Any]:
        """(step, run, tables with more room), compiled when they are called."""
        compute = _traced(program, jax, self._xp)
        updates, inputs = self._updates, [f"x.{name}" for name in self._inputs] or ["x"]
        scalars = [SCALARS + name for name in self._scalars]

        def step(owned: Any, kept: Any, x: Any, t: Any, w: Any, now: Any) -> Any:
            given = [*zip(updates, owned, strict=True), *zip(inputs, x, strict=True)]
            given += [*zip(scalars, now, strict=True), ("t", t), ("w", w)]
            out = compute({**kept, **dict(given)})
            return tuple([out[name] for name in updates]), out["loss"]

        fixed = () if self._any_count else ("steps",)
        options = _options(program, jax)
        dtype = jax.dtypes.canonicalize_dtype(program.outputs["loss"].dtype.name)
        return (
            jax.jit(step, donate_argnums=0, **options),
            jax.jit(_looped(step, dtype, jax), donate_argnums=0, static_argnames=fixed, **options),
            jax.jit(_with_room(jax), static_argnums=0),
        )

    def load(self, tree: Tree) -> None:
        arrays = {name: self._xp.asarray(a, copy=True) for name, a in flat(tree).items()}
        owned = tuple([arrays.pop(name) for name in self._updates])
        self._kept = arrays
        self._newest.append((owned, None))

    def read(self) -> Tree:
        owned, _ = self._newest[-1]
        return nested({**self._kept, **dict(zip(self._updates, owned, strict=True))})

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        newest = self._newest
        now = [scalars[name] for name in self._scalars]
        newest.extend(map(self._step, (newest[-1][0],), (self._kept,), (self._rows(x),), (t,), (w,), (now,)))
        loss: Array = newest[-1][1]
        return loss

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        newest, count = self._newest, index.shape[0]
        tables, steps, room = [index, *(scalars[name] for name in self._scalars)], count, count
        if self._any_count:
            room = GROWTH
            while room < count:
                room *= GROWTH
            tables = self._with_room(room, tables)
            steps = np.asarray(count, dtype=np.int32)  # type: ignore[assignment]  # an input, and not a constant
        call = (newest[-1][0], self._kept, self._rows(x), t, w, tables, steps)
        newest.extend(map(self._run, *((argument,) for argument in call)))
        losses: Array = newest[-1][1]
        return losses if room == count else losses[:count]

    def _rows(self, x: Inputs) -> list[Array]:
        return [x[name] for name in self._inputs] if isinstance(x, Mapping) else [x]


def _with_room(jax: Any) -> Callable[..., Any]:
    """Tables with `room` rows: zeros at the end."""

    def with_room(room: int, tables: Any) -> Any:
        return [jax.numpy.pad(a, [(0, room - a.shape[0])] + [(0, 0)] * (a.ndim - 1)) for a in tables]

    return with_room


def _looped(step: Callable[..., Any], dtype: Any, jax: Any) -> Callable[..., Any]:
    """`steps` steps on the rows that a table names, with the scalars that the others hold; losses as long as tables."""

    def run(owned: Any, kept: Any, x: Any, t: Any, w: Any, tables: Any, steps: Any) -> Any:
        def body(k: Any, carry: Any) -> Any:
            owned, losses = carry
            index, *now = [a[k] for a in tables]
            # Which rows there are has been checked; the default mode would check again, and hide mistakes as NaN.
            batch = jax.tree.map(lambda a: jax.numpy.take(a, index, axis=0, mode="clip"), (x, t, w))
            owned, loss = step(owned, kept, *batch, now)
            return owned, losses.at[k].set(loss)

        return jax.lax.fori_loop(0, steps, body, (owned, jax.numpy.zeros(tables[0].shape[:1], dtype)))

    return run
