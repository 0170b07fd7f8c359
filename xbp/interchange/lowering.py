"""A recorded program as an ONNX graph, one operation after the other.

Every layer, also one of somebody else's, is recorded as operations of one small set, so a rule for each of them exports
every network, and no formula is written a second time. The batch size stays free: where an operation needs it as a
number, it is read off an input's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import NotCompiled
from ..program import Dim, Operation, Program, RecordedDType, Value
from ..program.shapes import as_axis, reduced_axes

__all__ = ["Lowering"]

# What is one operator of ONNX with the same operands. Each exists for float32 and float64 in ONNX Runtime.
SAME = {
    "abs": "Abs", "add": "Add", "divide": "Div", "equal": "Equal", "exp": "Exp", "greater": "Greater",
    "greater_equal": "GreaterOrEqual", "less": "Less", "less_equal": "LessOrEqual", "log": "Log", "matmul": "MatMul",
    "maximum": "Max", "minimum": "Min", "multiply": "Mul", "negative": "Neg", "pow": "Pow", "sign": "Sign",
    "sqrt": "Sqrt", "subtract": "Sub", "tanh": "Tanh",
}  # fmt: skip
BITS = {"bitwise_and": "And", "bitwise_or": "Or", "bitwise_xor": "Xor", "bitwise_invert": "Not"}
REDUCTIONS = {"max": "ReduceMax", "mean": "ReduceMean", "min": "ReduceMin", "sum": "ReduceSum"}
COMPARISONS = frozenset({"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"})
NEUTRAL = {"add": 0.0, "divide": 1.0, "multiply": 1.0, "subtract": 0.0}
SMALL = 64  # entries; larger constants of one number are expanded when the graph runs


class Lowering:
    """The nodes and constants of one program.

    onnx      the library
    held      the arrays that belong to the graph, by the names of the program's inputs
    called    the graph's names of the program's inputs
    """

    def __init__(self, onnx: Any, program: Program, held: Mapping[str, np.ndarray], called: Mapping[str, str]) -> None:
        self.onnx = onnx
        self.program = program
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {called[name]: a for name, a in held.items()}
        self._taken = set(called.values())
        self._called = called
        self._names = {value: called[name] for name, value in program.inputs.items()}
        self._known: dict[tuple[str, bytes, tuple[int, ...]], str] = {}
        self._rows: str | None = None
        self._origin = ""
        for operation in program.operations:
            self._origin = operation.origin.removesuffix(".forward")
            rule = self._rule(operation)
            self._names[operation.result] = rule(operation)

    def output(self, value: Value, name: str) -> None:
        """Call a value by the name of an output, the last thing to do: what no node reads is dropped."""
        self.nodes.append(self.onnx.helper.make_node("Identity", [self._names[value]], [name], name=f"output {name}"))
        read = {name for node in self.nodes for name in node.input}
        self.constants = {name: a for name, a in self.constants.items() if name in read}

    # --- pieces ---------------------------------------------------------------------------------------------------

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, which gets the next free name."""
        number = len(self.nodes)
        name = f"v{number}"
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        label = f"{self._origin}/{operator} {number}".strip()
        self.nodes.append(self.onnx.helper.make_node(operator, list(inputs), [name], name=label, **attributes))
        return name

    def _constant(self, values: Any, dtype: str) -> str:
        """A constant, the same one for equal numbers."""
        a = np.asarray(values, dtype=dtype)
        key = (a.dtype.name, a.tobytes(), a.shape)
        if key not in self._known:
            text = f"{a.item():g}" if a.ndim == 0 else "x".join(map(str, a.shape)) or "empty"
            name = f"constant {len(self._known)}: {text}"
            while name in self._taken:
                name += "_"
            self._taken.add(name)
            self._known[key] = name
            self.constants[name] = a
        return self._known[key]

    def _numbers(self, values: Sequence[int]) -> str:
        return self._constant(list(values), "int64")

    def _operand(self, argument: Value | float, dtype: RecordedDType) -> str:
        """An operand in `dtype`, as ONNX mixes none: an array is cast where it has another, a number becomes one."""
        if not isinstance(argument, Value):
            return self._constant(argument, dtype.name)
        name = self._names[argument]
        return name if argument.dtype == dtype else self._cast(name, dtype.name)

    def _cast(self, name: str, dtype: str) -> str:
        return self._add("Cast", name, to=self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def _operands(self, op: Operation, dtype: RecordedDType | None = None) -> list[str]:
        wide = dtype or max((v.dtype for v in op.operands), key=lambda d: d.bits)
        return [self._operand(a, wide) for a in op.arguments]

    def _refused(self, op: Operation, why: str) -> NotCompiled:
        where = f" of {op.origin}" if op.origin else ""
        return NotCompiled(f"ONNX cannot hold the operation {op.function!r}{where}: {why} The line is: {op}")

    def _batch(self) -> str:
        """The batch size as an array (1,), read off the shape of the first input that has it."""
        if self._rows is None:
            assert self.program.symbolic is not None  # a Dim occurs in a shape, so some input brought it in
            name, axis, times = self.program.symbolic
            n = self._add("Shape", self._called[name], start=axis, end=axis + 1)
            self._rows = n if times == 1 else self._add("Div", n, self._numbers([times]))
        return self._rows

    def _length(self, n: int) -> str:
        """A length of a shape as an array (1,)."""
        if not isinstance(n, Dim):
            return self._numbers([n])
        return self._batch() if n.times == 1 else self._add("Mul", self._batch(), self._numbers([n.times]))

    def _shape(self, shape: Sequence[int]) -> str:
        if not any(isinstance(n, Dim) for n in shape):
            return self._numbers(shape)
        parts = [self._length(n) for n in shape]
        return parts[0] if len(parts) == 1 else self._add("Concat", *parts, axis=0)

    # --- a rule for each operation --------------------------------------------------------------------------------

    def _rule(self, op: Operation) -> Callable[[Operation], str]:
        rule = getattr(self, f"_do_{op.function}", None)
        if rule is not None:
            return rule  # type: ignore[no-any-return]  # found by name
        for table, general in ((SAME, self._same), (BITS, self._bits), (REDUCTIONS, self._reduced)):
            if op.function in table:
                return general
        raise self._refused(op, "it has no operator that does the same.")

    def _same(self, op: Operation) -> str:
        without = self._neutral(op)
        if without is not None:
            return self._names[without]
        dtype = None if op.function in COMPARISONS else op.result.dtype
        return self._add(SAME[op.function], *self._operands(op, dtype))

    def _neutral(self, op: Operation) -> Value | None:
        """What is left of x - 0, x + 0, x 1 or x / 1 with a single number of the graph, as of a batch norm of width 1.

        ONNX Runtime takes such an operation out too, and some of its versions (1.31) then refuse the whole graph.
        """
        if op.function not in NEUTRAL or len(op.operands) != 2:
            return None
        x, held = op.operands
        a = self.constants.get(self._names[held])
        same = a is not None and a.size == 1 and a.item() == NEUTRAL[op.function]
        return x if same and x.shape == op.result.shape and x.dtype == op.result.dtype else None

    def _bits(self, op: Operation) -> str:
        if op.result.dtype.kind == "bool":
            return self._add(BITS[op.function], *self._operands(op))
        return self._add(f"Bitwise{BITS[op.function]}", *self._operands(op, op.result.dtype))

    def _reduced(self, op: Operation) -> str:
        x = self._operand(op.operands[0], op.result.dtype)
        return self._reduction(REDUCTIONS[op.function], x, op)

    def _reduction(self, operator: str, x: str, op: Operation) -> str:
        axes = sorted(reduced_axes(op.operands[0].shape, op.options["axis"]))
        if not axes:
            return x
        return self._add(operator, x, self._numbers(axes), keepdims=int(op.options.get("keepdims", False)))

    def _do_all(self, op: Operation) -> str:
        counted = self._cast(self._names[op.operands[0]], "int32")
        return self._cast(self._reduction("ReduceMin", counted, op), "bool")

    def _do_argmax(self, op: Operation) -> str:
        x, axis = self._names[op.operands[0]], op.options["axis"]
        if axis is None:
            x, axis = self._add("Reshape", x, self._numbers([-1])), 0
        return self._add("ArgMax", x, axis=int(axis), keepdims=0)

    def _do_not_equal(self, op: Operation) -> str:
        return self._add("Not", self._add("Equal", *self._operands(op)))

    def _do_isfinite(self, op: Operation) -> str:
        x = self._names[op.operands[0]]
        if op.operands[0].dtype.kind != "real floating":
            return self._add("Equal", x, x)
        return self._add("Not", self._add("Or", self._add("IsInf", x), self._add("IsNaN", x)))

    def _do_where(self, op: Operation) -> str:
        condition, *rest = op.arguments
        assert isinstance(condition, Value)  # `where` chooses by an array
        return self._add("Where", self._names[condition], *(self._operand(a, op.result.dtype) for a in rest))

    def _do_expm1(self, op: Operation) -> str:
        """exp(x) - 1 far from 0, where nothing cancels, and 2 t / (1 - t) with t = tanh(x / 2) near it."""
        x, dtype = self._names[op.operands[0]], op.result.dtype.name
        one, half = self._constant(1, dtype), self._constant(0.5, dtype)
        t = self._add("Tanh", self._add("Mul", x, half))
        near = self._add("Div", self._add("Add", t, t), self._add("Sub", one, t))
        far = self._add("Sub", self._add("Exp", x), one)
        return self._add("Where", self._add("Less", self._add("Abs", x), one), near, far)

    def _do_log1p(self, op: Operation) -> str:
        """log(w) with w = 1 + x far from 0; near it log(w) x / (w - 1), in which the rounding of w cancels; x at 0."""
        x, dtype = self._names[op.operands[0]], op.result.dtype.name
        one = self._constant(1, dtype)
        w = self._add("Add", x, one)
        rounded = self._add("Sub", w, one)
        log = self._add("Log", w)
        near = self._add("Mul", log, self._add("Div", x, rounded))
        near = self._add("Where", self._add("Equal", w, one), x, near)
        small = self._add("Less", self._add("Abs", x), self._constant(0.5, dtype))
        return self._add("Where", small, near, log)

    def _do_erfc(self, op: Operation) -> str:
        x, dtype = self._names[op.operands[0]], op.result.dtype.name
        return self._add("Sub", self._constant(1, dtype), self._add("Erf", x))

    # shape and selection

    def _do_matrix_transpose(self, op: Operation) -> str:
        order = list(range(op.operands[0].ndim))
        order[-2:] = order[-1], order[-2]
        return self._add("Transpose", self._names[op.operands[0]], perm=order)

    def _do_reshape(self, op: Operation) -> str:
        return self._reshape(self._names[op.operands[0]], op.result.shape)

    def _reshape(self, x: str, shape: Sequence[int]) -> str:
        symbols = [n for n in shape if isinstance(n, Dim)]
        if len(symbols) == 1 and 0 not in shape:
            return self._add("Reshape", x, self._numbers([-1 if isinstance(n, Dim) else n for n in shape]))
        return self._add("Reshape", x, self._shape(shape), allowzero=1)

    def _do_broadcast_to(self, op: Operation) -> str:
        old, new = op.operands[0].shape, op.result.shape
        lead = len(new) - len(old)
        # Expand broadcasts both ways, so a length that the operand has already may be called 1.
        kept = [i >= lead and isinstance(n, Dim) and isinstance(old[i - lead], Dim) for i, n in enumerate(new)]
        shape = [1 if k else n for k, n in zip(kept, new, strict=True)]
        return self._add("Expand", self._names[op.operands[0]], self._shape(shape))

    def _do_concat(self, op: Operation) -> str:
        return self._add("Concat", *self._operands(op, op.result.dtype), axis=int(op.options["axis"]))

    def _do_stack(self, op: Operation) -> str:
        axis = as_axis(op.options["axis"], op.result.ndim)
        parts = [self._add("Unsqueeze", x, self._numbers([axis])) for x in self._operands(op, op.result.dtype)]
        return self._add("Concat", *parts, axis=axis)

    def _do_take(self, op: Operation) -> str:
        x, indices = op.operands
        return self._add("Gather", self._names[x], self._names[indices], axis=int(op.options["axis"]))

    def _do_getitem(self, op: Operation) -> str:
        source = op.operands[0]
        parts = list(op.options["key"].parts)
        if Ellipsis in parts:
            at = parts.index(Ellipsis)
            named = sum(k is not None and k is not Ellipsis for k in parts)
            parts[at : at + 1] = [slice(None)] * (source.ndim - named)
        x, axis = self._names[source], 0
        dropped: list[int] = []
        added: list[int] = []
        bounds: list[tuple[int, int, int, int]] = []  # start, end, axis, step
        for place, k in enumerate(parts):
            if k is None:
                added.append(place - len(dropped))
                continue
            if isinstance(k, slice):
                if any(isinstance(end, Dim) for end in (k.start, k.stop)):
                    raise self._refused(op, "it is cut at a multiple of the batch size.")
                step = 1 if k.step is None else k.step
                far = np.iinfo(np.int64).max
                start = (0 if step > 0 else far) if k.start is None else k.start
                stop = (far if step > 0 else -far) if k.stop is None else k.stop
                if (start, stop, step) != (0, far, 1):
                    bounds.append((start, stop, axis, step))
            else:
                bounds.append((k, k + 1 if k != -1 else np.iinfo(np.int64).max, axis, 1))
                dropped.append(axis)
            axis += 1
        if bounds:
            starts, ends, axes, steps = zip(*bounds, strict=True)
            x = self._add("Slice", x, *map(self._numbers, (starts, ends, axes, steps)))
        x = self._add("Squeeze", x, self._numbers(dropped)) if dropped else x
        return self._add("Unsqueeze", x, self._numbers(added)) if added else x

    # creation and dtypes

    def _do_astype(self, op: Operation) -> str:
        return self._cast(self._names[op.operands[0]], op.result.dtype.name)

    def _do_asarray(self, op: Operation) -> str:
        if op.operands:
            return self._names[op.operands[0]]
        return self._constant(op.options["value"], op.result.dtype.name)

    def _do_arange(self, op: Operation) -> str:
        n, dtype = op.result.shape[0], op.result.dtype.name
        if not isinstance(n, Dim):
            return self._constant(np.arange(n), dtype)
        end = self._reshape(self._length(n), ())
        counted = self._add("Range", self._constant(0, "int64"), end, self._constant(1, "int64"))
        return self._cast(counted, dtype)

    def _do_full(self, op: Operation) -> str:
        shape, value, dtype = op.result.shape, op.options["value"], op.result.dtype.name
        if isinstance(value, Dim):
            scalar = self._cast(self._reshape(self._length(value), ()), dtype)
        elif not any(isinstance(n, Dim) for n in shape) and np.prod(shape, dtype=int) <= SMALL:
            return self._constant(np.full(shape, value), dtype)
        else:
            scalar = self._constant(value, dtype)
        return self._add("Expand", scalar, self._shape(shape)) if shape else scalar
