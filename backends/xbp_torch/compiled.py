"""The engine `compile`: a program as a graph of PyTorch's own functions, compiled by TorchInductor.

There is nothing for autograd to do, and nothing for TorchDynamo to find out: a program is a straight line already, and
the shapes and dtypes that it is given are known. Without the two, a call costs about half of one by `torch.compile`.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

from xbp.errors import BackendUnavailable, NotCompiled
from xbp.program import Dim, Program
from xbp.recording import SECTIONS, flat, nested
from xbp.typing import Array, Inputs, Scalar, Tree

from .graphs import graph
from .precision import products_of

__all__ = ["Compiled", "CompiledRunner", "compiled", "find_compiler", "function"]

SCALARS = "scalars."
HALF = ("float16", "bfloat16")
EXACT = "emulate_precision_casts"
SHARED = 64  # compiled programs that are kept for whoever asks for the same ones
SIZES = 4  # batch sizes that get code of their own: in an epoch the usual one and the rest, and as many in validation


def find_compiler(device: Any) -> None:
    """Raises `BackendUnavailable` where the C++ compiler is missing that TorchInductor needs for a CPU."""
    name = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if device.type == "cpu" and shutil.which(name) is None:
        raise BackendUnavailable(
            f"Engine 'compile' of backend 'torch' needs a C++ compiler, and there is no {name!r} here. Install one "
            "(apt install g++, dnf install gcc-c++, xcode-select --install), or name yours in the environment variable "
            "CXX. engine='eager' needs none."
        )


class Compiled:
    """A program as a function of tensors, compiled when a batch size is met for the first time.

    A few sizes get code of their own, which is the fastest; all others share code in which the size is left open.

    inputs     the order in which the tensors for the program's inputs are given
    written    outputs that are written into tensors, given after the inputs; the others are returned, in order
    """

    def __init__(
        self, program: Program, torch: Any, device: Any, inputs: Sequence[str], written: Sequence[str] = ()
    ) -> None:
        find_compiler(device)
        self._torch = torch
        self._program, self._inputs, self._written, self._device = program, inputs, written, device
        self._products = products_of(program, torch)
        self._rounds = any([op.result.dtype.name in HALF for op in program.operations])
        self._graph(None)  # an operation that is not known is found now
        self._axes = [
            (i, axis, n.times)
            for i, name in enumerate(inputs)
            for axis, n in enumerate(program.inputs[name].shape)
            if isinstance(n, Dim)
        ]
        self._own: dict[int, Callable[..., Any]] = {}
        self._shared: Callable[..., Any] | None = None

    def _graph(self, rows: int | None) -> Any:
        return graph(self._program, self._inputs, self._written, self._torch, self._device, rows)

    def __call__(self, arrays: list[Any]) -> Any:
        """The outputs that are not written. Tensors with rows have to be contiguous."""
        i, axis, times = self._axes[0] if self._axes else (0, 0, 0)
        rows = arrays[i].shape[axis] // times if times else 0
        code = self._own.get(rows)
        if code is None:
            with self._products():
                code = self._compiled(rows, arrays)
        with self._products():
            return code(*arrays)

    def _compiled(self, rows: int, arrays: list[Any]) -> Callable[..., Any]:
        with self._torch.no_grad():
            try:
                with warnings.catch_warnings():
                    # What PyTorch's own modules do while they are loaded is not our users' business.
                    warnings.filterwarnings("ignore", ".*torch.jit.script_method", DeprecationWarning)
                    inductor = import_module("torch._inductor")
                    import_module("torch._inductor.compile_fx")
                # Of newer versions: without it, numbers that are rounded and widened again may stay what they were.
                exact = self._rounds and hasattr(inductor.config, EXACT)
                options = {EXACT: True} if exact else None
                if len(self._own) < SIZES:
                    self._own[rows] = inductor.compile(self._graph(rows), arrays, options=options)
                    return self._own[rows]
                if self._shared is None:
                    self._shared = self._torch.compile(self._graph(None).forward, fullgraph=True, options=options)
                for i, axis, _ in self._axes:
                    self._torch._dynamo.maybe_mark_dynamic(arrays[i], axis)
            except Exception as error:  # of many kinds, from compilers and from what calls them
                raise NotCompiled(
                    f"TorchInductor could not compile this program; use engine='eager'. {type(error).__name__}: "
                    f"{str(error).strip()[:500]}"
                ) from error
        return self._shared


_compiled: dict[Any, Compiled] = {}


def compiled(program: Program, torch: Any, device: Any, inputs: Sequence[str], written: Sequence[str] = ()) -> Compiled:
    """As `Compiled`; who trains the same network again does not compile it again."""
    key = (program.hash, str(device), tuple(inputs), tuple(written))
    if key not in _compiled:
        made = Compiled(program, torch, device, inputs, written)
        while len(_compiled) >= SHARED:
            del _compiled[next(iter(_compiled))]
        _compiled[key] = made
    return _compiled[key]


def function(program: Program, torch: Any, device: Any) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """The program as a compiled pure function of its inputs by name."""
    inputs, outputs = tuple(program.inputs), tuple(program.outputs)
    code = compiled(program, torch, device, inputs)

    def call(given: Mapping[str, Any]) -> dict[str, Array]:
        return dict(zip(outputs, code([given[name].contiguous() for name in inputs]), strict=True))

    return call


class CompiledRunner:
    """`xbp.runner.Runner` on a compiled step, which reads one set of parameters, buffers and state and writes another.

    Two sets, so that nothing is allocated, and so that an interrupted step leaves the one before it untouched.
    """

    engine = "compile"

    def __init__(self, program: Program, torch: Any, device: Any) -> None:
        self._torch = torch
        self._updates = program.updates
        self._kept = tuple(n for n in program.inputs if n.partition(".")[0] in SECTIONS and n not in program.updates)
        self._inputs = tuple(name.removeprefix("x.") for name in program.inputs if name.startswith("x."))
        self._scalars = tuple(name.removeprefix(SCALARS) for name in program.inputs if name.startswith(SCALARS))
        rows = [f"x.{name}" for name in self._inputs] or ["x"]
        rows += [name for name in ("t", "w") if name in program.inputs]
        scalars = [SCALARS + name for name in self._scalars]
        self._code = compiled(
            program, torch, device, [*self._updates, *self._kept, *rows, *scalars], written=self._updates
        )
        self._constants: list[Any] = []
        self._sets: tuple[list[Any], list[Any]] = ([], [])  # the values after the last step, and room for the next

    def load(self, tree: Tree) -> None:
        arrays: dict[str, Any] = flat(tree)
        copies = {name: a.detach().clone(memory_format=self._torch.contiguous_format) for name, a in arrays.items()}
        self._constants = [copies[name] for name in self._kept]
        values = [copies[name] for name in self._updates]
        self._sets = (values, [self._torch.empty_like(a) for a in values])

    def read(self) -> Tree:
        names = (*self._updates, *self._kept)
        return nested(dict(zip(names, (*self._sets[0], *self._constants), strict=True)))

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        batch = [a.contiguous() for a in self._rows(x, t, w)]
        return self._stepped(batch, [scalars[name] for name in self._scalars])

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        torch, data = self._torch, self._rows(x, t, w)
        places = [a.new_empty((index.shape[1], *a.shape[1:])) for a in data]
        rows: Any = index
        now = zip(*[torch.unbind(scalars[name]) for name in self._scalars], strict=True)
        losses = []
        for chosen, values in zip(torch.unbind(rows), now, strict=True):
            for a, place in zip(data, places, strict=True):
                torch.index_select(a, 0, chosen, out=place)
            losses.append(self._stepped(places, values))
        stacked: Array = torch.stack(losses)
        return stacked

    def _stepped(self, batch: Sequence[Any], scalars: Sequence[Any]) -> Array:
        old, new = self._sets
        loss: Array
        (loss,) = self._code([*old, *self._constants, *batch, *scalars, *new])
        self._sets = (new, old)
        return loss

    def _rows(self, x: Inputs, t: Array, w: Array | None) -> list[Any]:
        rows = [x[name] for name in self._inputs] if isinstance(x, Mapping) else [x]
        return [*rows, t] if w is None else [*rows, t, w]
