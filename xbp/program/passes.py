"""Passes that change nothing but the work: each takes a program and returns one with the same outputs, bit for bit.

simplified       operations that do nothing are skipped; several ways to write one thing become one
without_copies   what is computed twice from the same values is computed once
without_dead     what no output depends on is left out
renumbered       values named by their place, so that equal programs have equal texts
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from . import shapes
from .program import Operation, Program
from .shapes import Dim
from .values import RecordedDType, Value

__all__ = ["optimised", "renumbered", "simplified", "without_copies", "without_dead"]

Substitute = dict[Value, Value]


def optimised(program: Program) -> Program:
    """The program as engines take it."""
    return renumbered(without_dead(without_copies(simplified(program))))


def _rewritten(program: Program, visit: Callable[[Operation, dict[Value, Operation]], Operation | Value]) -> Program:
    """The program with each operation replaced by what `visit` makes of it: another one, or a value that is there.

    `visit` is given the operation with its operands already replaced, and the operation that made each value.
    """
    instead: Substitute = {}
    made: dict[Value, Operation] = {}
    kept: list[Operation] = []
    for operation in program.operations:
        if not instead.keys().isdisjoint(operation.operands):
            operation = operation.on([instead.get(a, a) if isinstance(a, Value) else a for a in operation.arguments])
        new = visit(operation, made)
        if isinstance(new, Value):
            instead[operation.result] = new
            continue
        made[new.result] = new
        kept.append(new)
    outputs = {name: instead.get(value, value) for name, value in program.outputs.items()}
    return replace(program, operations=tuple(kept), outputs=outputs)


# --- simplified -------------------------------------------------------------------------------------------------------

FILLS: dict[str, float] = {"zeros": 0, "zeros_like": 0, "ones_like": 1}
REDUCTIONS = frozenset({"all", "max", "mean", "min", "sum"})
NEUTRAL: dict[str, float] = {"multiply": 1, "divide": 1, "subtract": 0}  # x + 0.0 is not x, for x = -0.0


def simplified(program: Program) -> Program:
    """One form for each thing, and nothing that does nothing.

    After it, axes of reductions are sorted tuples from the front; `full` is the only filling; keys that only add axes
    are reshapes; the number of rows, counted by a sum of ones, is a `full` of N.
    """
    return _rewritten(program, _simplify)


def _simplify(op: Operation, made: Mapping[Value, Operation]) -> Operation | Value:
    name, shape = op.function, op.result.shape
    first = op.arguments[0] if op.arguments else None
    if name in FILLS:
        value: float = bool(FILLS[name]) if op.result.dtype.kind == "bool" else FILLS[name]
        value = float(value) if op.result.dtype.kind == "real floating" else value
        return _fill(op, value)
    if name == "full":
        return _fill(op, op.options["value"])
    if name in REDUCTIONS:
        return _counted(op, made) or _with_axes(op)
    if not isinstance(first, Value):
        second = op.arguments[1] if len(op.arguments) == 2 else None
        return second if name == "multiply" and first == 1 and isinstance(second, Value) else op
    if name == "getitem" and all(k in (None, Ellipsis, slice(None)) for k in op.options["key"].parts):
        name, op = "reshape", replace(op, function="reshape", options={"shape": shape})
    if name in ("reshape", "broadcast_to") and _same(first.shape, shape):
        return first
    if name == "asarray" or (name == "astype" and first.dtype == op.result.dtype):
        return first
    if name == "astype" and (inner := made.get(first)) and _widens(inner, op.result.dtype):
        return inner.operands[0]
    if name == "matrix_transpose" and (inner := made.get(first)) and inner.function == "matrix_transpose":
        return inner.operands[0]
    if name in NEUTRAL and op.arguments[1] == NEUTRAL[name] and not isinstance(op.arguments[1], Value):
        return first
    if name == "add" and op.arguments[1:] == (0,) and op.result.dtype.kind == "integral":
        return first
    return op


def _widens(op: Operation, back: RecordedDType) -> bool:
    """Whether the operation turns `back` into a wider dtype of its kind, which then casts back to the same numbers."""
    wide = op.result.dtype
    return op.function == "astype" and op.operands[0].dtype == back and wide.kind == back.kind and wide.bits > back.bits


def _same(a: shapes.Shape, b: shapes.Shape) -> bool:
    return len(a) == len(b) and all(map(shapes.same, a, b))


def _fill(op: Operation, value: float) -> Operation:
    return replace(op, function="full", arguments=(), options={"shape": op.result.shape, "value": value})


def _with_axes(op: Operation) -> Operation:
    axes = tuple(sorted(shapes.reduced_axes(op.operands[0].shape, op.options["axis"])))
    return replace(op, options={**op.options, "axis": axes})


def _counted(op: Operation, made: Mapping[Value, Operation]) -> Operation | None:
    """A sum of ones over the batch is N: kernels count rows so, because they may not read x.shape[0]."""
    ones = made.get(op.operands[0])
    if op.function != "sum" or ones is None or ones.function != "full" or ones.options["value"] != 1.0:
        return None
    lengths = [op.operands[0].shape[i] for i in shapes.reduced_axes(op.operands[0].shape, op.options["axis"])]
    symbols = [n for n in lengths if isinstance(n, Dim)]
    if len(symbols) != 1 or any(n != 1 for n in lengths if not isinstance(n, Dim)):
        return None
    return _fill(op, symbols[0])


# --- without_copies ---------------------------------------------------------------------------------------------------


def without_copies(program: Program) -> Program:
    """Common subexpressions: an operation like an earlier one on the same values is that earlier one."""
    known: dict[Any, Value] = {}

    def visit(op: Operation, made: Mapping[Value, Operation]) -> Operation | Value:
        # The shape of the result follows from these. Numbers count as they are written: 1 and 1.0 and -0.0 differ.
        arguments = tuple([a if isinstance(a, Value) else repr(a) for a in op.arguments])
        key = (op.function, arguments, repr(op.options) if op.options else "", op.result.dtype.name)
        if key in known:
            return known[key]
        known[key] = op.result
        return op

    return _rewritten(program, visit)


# --- without_dead -----------------------------------------------------------------------------------------------------


def without_dead(program: Program) -> Program:
    """Dead code: operations whose results reach no output are left out."""
    needed = set(program.outputs.values())
    kept = []
    for operation in reversed(program.operations):
        if operation.result in needed:
            needed.update(operation.operands)
            kept.append(operation)
    return replace(program, operations=tuple(reversed(kept)))


def renumbered(program: Program) -> Program:
    """The values of the operations as %0, %1, ... in order."""
    new: Substitute = {}
    for i, op in enumerate(program.operations):
        new[op.result] = Value(f"%{i}", op.result.shape, op.result.dtype)
    operations = tuple(
        [
            op.on([new.get(a, a) if isinstance(a, Value) else a for a in op.arguments], new[op.result])
            for op in program.operations
        ]
    )
    outputs = {name: new.get(value, value) for name, value in program.outputs.items()}
    return replace(program, operations=operations, outputs=outputs)
