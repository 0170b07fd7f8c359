"""Programs as graphs of PyTorch's functions (`torch.fx`), which its compilers take as they are.

The interpreter on `array_api_compat` would do the same work; but its namespace looks at dtypes in Python on every call,
which no compiler wants to follow.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from xbp.errors import NotCompiled
from xbp.program import Dim, Operation, Program, Value
from xbp.program.interpreter import OPERATORS
from xbp.program.shapes import reduced_axes

__all__ = ["graph"]

SAME = frozenset({"abs", "exp", "expm1", "isfinite", "log", "log1p", "sign", "sqrt", "tanh", "where"})
LIKE = frozenset({"ones_like", "zeros_like"})
REDUCTIONS = {"all": "all", "max": "amax", "mean": "mean", "min": "amin", "sum": "sum"}
BOUNDS = {"maximum": "clamp_min", "minimum": "clamp_max"}  # by a Python number
VIEWS = frozenset({"asarray", "astype", "broadcast_to", "getitem", "matrix_transpose", "reshape"})


def graph(
    program: Program, inputs: Sequence[str], written: Sequence[str], torch: Any, device: Any, rows: int | None
) -> Any:
    """The program as a `torch.fx.GraphModule`: (inputs in this order, and arrays to write into) -> other outputs.

    written    the outputs, in the order of their arrays, that are written and not returned
    rows       the batch size; None leaves it open
    """
    return _Lowering(program, torch, device, rows, inputs).module(written)


class _Lowering:
    def __init__(self, program: Program, torch: Any, device: Any, rows: int | None, inputs: Sequence[str]) -> None:
        self._program = program
        self._torch = torch
        self._device = device
        self._graph = torch.fx.Graph()
        self._nodes: dict[Value, Any] = {
            program.inputs[name]: self._graph.placeholder(f"input_{i}") for i, name in enumerate(inputs)
        }
        self._rows: Any = rows

    def module(self, written: Sequence[str]) -> Any:
        program, graph = self._program, self._graph
        places = [graph.placeholder(f"place_{i}") for i in range(len(written))]
        if self._rows is None and program.symbolic is not None:
            name, axis, times = program.symbolic
            length = graph.call_method("size", (self._nodes[program.inputs[name]], axis))
            self._rows = length if times == 1 else graph.call_function(operator.floordiv, (length, times))
        for op in program.operations:
            self._nodes[op.result] = self._lowered(op)
        for name, place in zip(written, places, strict=True):
            graph.call_method("copy_", (place, self._nodes[program.outputs[name]]))
        graph.output(tuple([self._new(value) for name, value in program.outputs.items() if name not in written]))
        graph.lint()
        return self._torch.fx.GraphModule(self._torch.nn.Module(), graph)

    def _new(self, value: Value) -> Any:
        """The value in memory of its own: a view of an input would change with it."""
        made = {op.result: op.function for op in self._program.operations}
        node = self._nodes[value]
        return self._graph.call_method("clone", (node,)) if made.get(value, "asarray") in VIEWS else node

    def _length(self, n: Any) -> Any:
        """A length, or a bound of a slice, for this batch size."""
        if not isinstance(n, Dim):
            return n
        if n.times == 1 or isinstance(self._rows, int):
            return self._rows if n.times == 1 else self._rows * n.times
        return self._graph.call_function(operator.mul, (self._rows, n.times))

    def _shape(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        return tuple([self._length(n) for n in shape])

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return self._graph.call_function(getattr(self._torch, name), args, options)

    def _cast(self, x: Any, dtype: Any) -> Any:
        return self._graph.call_method("to", (x, dtype))

    def _lowered(self, op: Operation) -> Any:
        name, options = op.function, op.options
        operands = [self._nodes[a] if isinstance(a, Value) else a for a in op.arguments]
        dtype = getattr(self._torch, op.result.dtype.name)
        if name in OPERATORS:
            return self._graph.call_function(OPERATORS[name], tuple(operands))
        if name == "matmul":
            # Of half the width: each product of two numbers is exact in the result's dtype, in which they add up.
            narrow = any([v.dtype.bits < op.result.dtype.bits for v in op.operands])
            return self._call(name, *([self._cast(a, dtype) for a in operands] if narrow else operands))
        if name in SAME:
            return self._call(name, *operands)
        if name in LIKE:
            return self._call(name, *operands)
        if name in BOUNDS:
            numbers = [a for a in op.arguments if not isinstance(a, Value)]
            return self._call(BOUNDS[name] if numbers else name, *operands)
        if name in REDUCTIONS:
            return self._reduced(op, operands[0], dtype)
        if name == "argmax":
            return self._call("argmax", operands[0], dim=options["axis"])
        if name == "getitem":
            return self._graph.call_function(operator.getitem, (operands[0], self._key(options["key"].parts)))
        if name in ("reshape", "broadcast_to"):
            return self._call(name, operands[0], self._shape(options["shape"]))
        if name == "matrix_transpose":
            return self._call("transpose", operands[0], -2, -1)
        if name in ("concat", "stack"):
            return self._call("cat" if name == "concat" else name, operands, dim=options["axis"])
        if name == "take":
            return self._call("index_select", operands[0], options["axis"], operands[1])
        if name == "astype":
            return self._cast(operands[0], dtype)
        if name == "asarray":
            made = {"dtype": dtype, "device": self._device}
            return operands[0] if operands else self._call("tensor", options["value"], **made)
        return self._created(op, dtype)

    def _created(self, op: Operation, dtype: Any) -> Any:
        options, made = op.options, {"dtype": dtype, "device": self._device}
        if op.function == "arange":
            return self._call("arange", self._length(options["n"]), **made)
        if op.function == "zeros":
            return self._call("zeros", self._shape(options["shape"]), **made)
        if op.function == "full":
            return self._call("full", self._shape(options["shape"]), self._length(options["value"]), **made)
        raise NotCompiled(f"Engine 'compile' of backend 'torch' does not know the operation {op.function!r}: {op}.")

    def _reduced(self, op: Operation, x: Any, dtype: Any) -> Any:
        axes = tuple(sorted(reduced_axes(op.operands[0].shape, op.options["axis"])))
        if not axes:
            return self._cast(x, dtype)  # to PyTorch, no axes are all
        options = {"dtype": dtype} if op.function == "sum" else {}
        return self._call(REDUCTIONS[op.function], x, axes, keepdim=op.options.get("keepdims", False), **options)

    def _key(self, parts: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(
            slice(*[self._length(end) for end in (k.start, k.stop, k.step)])
            if isinstance(k, slice)
            else self._length(k)
            for k in parts
        )
