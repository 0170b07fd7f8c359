"""Precision: the passes that let products run on narrow numbers, and keep everything else in float32.

In mixed precision what goes into a product is rounded to half the width where it is made, so that it is stored, moved
and multiplied as such; products add up in float32, and parameters, optimiser, losses and reductions stay what they
were. A pass over the program does it, so that every engine gets it, and the interpreter says what is right.
Source: Micikevicius et al., "Mixed precision training", ICLR 2018.
"""

from __future__ import annotations

from dataclasses import replace

from .passes import optimised, renumbered, without_dead
from .program import Operation, Program
from .values import DTYPES, RecordedDType, Value

__all__ = ["PRECISIONS", "in_precision", "mixed", "tf32"]

PRECISIONS = ("float32", "tf32", "mixed-bfloat16", "mixed-float16")
VIEWS = frozenset({"asarray", "broadcast_to", "getitem", "matrix_transpose", "reshape"})
MASTERS = frozenset({"params", "buffers", "state"})  # inputs that others than products read unrounded


def in_precision(program: Program, precision: str) -> Program:
    """The program, optimised, in one of `PRECISIONS`."""
    if precision == "tf32":
        return tf32(optimised(program))
    if precision.startswith("mixed-"):
        return optimised(mixed(optimised(program), precision.removeprefix("mixed-")))
    return optimised(program)


def tf32(program: Program) -> Program:
    """The program whose products of float32 may be computed with 10 bits of each factor: option precision="tf32".

    It is a permission. Engines that know no such product leave the option unread.
    """
    operations = [
        replace(op, options={**op.options, "precision": "tf32"}) if _is_product(op) else op for op in program.operations
    ]
    return replace(program, operations=tuple(operations))


def mixed(program: Program, dtype: str) -> Program:
    """The program with products of `dtype` ("bfloat16" or "float16") that add up in float32.

    What a float32 product reads, and a bias added to its result, is rounded to `dtype` once, where it is made or first
    needed; views (a transpose, a reshape, a part) are views of the rounded array. Products take the rounded array
    itself, everybody else its value as float32: so each value has one truth, forward and backward. Parameters, buffers
    and the optimiser's state keep their float32 beside it, which all but products and additions of a bias read; an
    output of the program is never rounded.
    """
    return renumbered(without_dead(_Mixed(program, DTYPES[dtype]).program()))


def _is_product(op: Operation) -> bool:
    return op.function == "matmul" and all([v.dtype.name == "float32" for v in op.operands])


class _Mixed:
    def __init__(self, program: Program, half: RecordedDType) -> None:
        self._given = program
        self._half = half
        self._made = {op.result: op for op in program.operations}
        self._masters = {v for name, v in program.inputs.items() if name.partition(".")[0] in MASTERS}
        self._products = {op.result for op in program.operations if _is_product(op)}
        factors = [v for op in program.operations if _is_product(op) for v in op.operands]
        biases = [v for op in program.operations for v in self._biases(op)]
        self._rounded = {self._root(v) for v in [*factors, *biases]}
        self._narrow: dict[Value, Value] = {}  # values, and views of them, in half the width
        self._wide: dict[Value, Value] = {}  # the same numbers as float32 again
        self._operations: list[Operation] = []
        self._origin = ""

    def program(self) -> Program:
        for op in self._given.operations:
            self._origin = op.origin
            if self._is_view(op):
                self._operations.append(op)  # as it was, for outputs; dead in most cases
                continue
            biases = self._biases(op)
            arguments = [
                a
                if not isinstance(a, Value)
                else self._in_half(a)
                if op.result in self._products
                else self._widened(a, of_master=a in biases)
                for a in op.arguments
            ]
            self._operations.append(op.on(arguments))
            if op.result in self._rounded:
                self._in_half(op.result)  # at once: the float32 array is never needed as a whole
        return replace(self._given, operations=tuple(self._operations))

    def _is_view(self, op: Operation) -> bool:
        return op.function in VIEWS and bool(op.operands)

    def _root(self, value: Value) -> Value:
        """The value that this one is a view of."""
        op = self._made.get(value)
        while op is not None and self._is_view(op):
            value = op.operands[0]
            op = self._made.get(value)
        return value

    def _biases(self, op: Operation) -> list[Value]:
        """The operand that is a vector added to the rows of a product."""
        if op.function != "add" or op.result.ndim < 2 or self._products.isdisjoint(op.operands):
            return []
        return [v for v in op.operands if v.ndim == 1]

    def _in_half(self, value: Value) -> Value:
        """The rounded array, or the same view of one."""
        if value not in self._narrow:
            if value in self._rounded:
                new = self._note("astype", value, self._half)
            else:
                op = self._made[value]
                new = self._again(op, self._in_half(op.operands[0]))
            self._narrow[value] = new
        return self._narrow[value]

    def _widened(self, value: Value, *, of_master: bool = False) -> Value:
        """What others than products read: float32 of the rounded numbers, where the value is rounded at all."""
        root = self._root(value)
        if root not in self._rounded or (root in self._masters and not of_master):
            return value
        if value not in self._wide:
            if value is root:
                new = self._note("astype", self._in_half(value), DTYPES["float32"])
            else:
                op = self._made[value]
                new = self._again(op, self._widened(op.operands[0], of_master=of_master))
            self._wide[value] = new
        return self._wide[value]

    def _note(self, function: str, value: Value, dtype: RecordedDType) -> Value:
        new = Value(f"{value.name}.{dtype}", value.shape, dtype)
        self._operations.append(Operation(function, (value,), {"dtype": dtype}, new, self._origin))
        return new

    def _again(self, view: Operation, of: Value) -> Value:
        """The same view of another array."""
        new = Value(f"{view.result.name}.{of.dtype}", view.result.shape, of.dtype)
        self._operations.append(replace(view, arguments=(of,), result=new, origin=self._origin))
        return new
