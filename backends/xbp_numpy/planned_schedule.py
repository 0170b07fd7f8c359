"""What a program has to do for batches of N rows, and in which order: its constants, its views, and units of work.

Elementwise operations on the same large shape that follow each other become one unit, which is run block by block, so
that what one operation has written is still in the cache when the next reads it. No operation is changed, so no bit is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from xbp.program import DTYPES, Dim, Interpreter, Operation, Program, Value, bound
from xbp.program.liveness import last_uses

from .planned_ops import ELEMENTWISE, takes_mask, view_of

__all__ = ["Layout", "Schedule", "Unit", "schedule"]

BLOCK = 2**17  # bytes of an operand that are worked on at a time: a chain's handful of them stays in a core's own cache
LARGE = 2**15  # entries from which on blocks are worth their calls


@dataclass(eq=False)
class Unit:
    """Operations that are run together; in blocks, where `blocked`: then each result has this shape."""

    operations: list[Operation]
    shape: tuple[int, ...] = ()
    blocked: bool = False
    needs: set[int] = field(default_factory=set)  # identities of the units that make the operands

    @property
    def block(self) -> int:
        """The entries of a block."""
        widest = max(a.dtype.bits for op in self.operations for a in (op.result, *op.operands))
        return BLOCK * 8 // max(widest, 8)  # a bool takes a byte


class Layout(NamedTuple):
    """How an array lies in memory."""

    shape: tuple[int, ...]
    dtype: np.dtype
    strides: tuple[int, ...]


class Schedule(NamedTuple):
    """A program for batches of n rows.

    constants    values that depend on n alone; filled ones as a single entry where that is enough
    views        values that are views of others: the operation, in an order in which they can be made
    roots        what each value is a view of, or itself
    layouts      of every root that some operation makes
    units        the work, in order
    last         the number of the last operation, counted through all units, that reads a root or one of its views
    """

    n: int
    constants: dict[Value, np.ndarray]
    views: list[Operation]
    roots: dict[Value, Value]
    layouts: dict[Value, Layout]
    units: list[Unit]
    last: Mapping[Value, int]


def schedule(program: Program, n: int) -> Schedule:
    """Everything that is known of the program before memory is given out."""
    fixed = _fixed(program)
    constants = _constants(program, fixed, n)
    # Arrays that nobody reads or writes: what a view is, and how a result lies in memory, NumPy says itself.
    models: dict[Value, np.ndarray] = {
        value: np.empty(bound(value.shape, n), value.dtype.name) for value in program.inputs.values()
    } | constants
    roots = {value: value for value in models}
    views: list[Operation] = []
    layouts: dict[Value, Layout] = {}
    work: list[Operation] = []
    for op in program.operations:
        if op.result in fixed:
            continue
        view = view_of(op, models[op.operands[0]], n) if op.operands else None
        if view is not None:
            views.append(op)
            models[op.result], roots[op.result] = view, roots[op.operands[0]]
            continue
        model = _model(op, models, n)
        models[op.result], roots[op.result] = model, op.result
        layouts[op.result] = Layout(model.shape, model.dtype, model.strides)
        work.append(op)
    units = _units(work, roots, layouts)
    rooted = [
        Operation(op.function, tuple([roots[a] for a in op.operands]), {}, op.result)
        for unit in units
        for op in unit.operations
    ]
    outputs = {name: roots[value] for name, value in program.outputs.items()}
    last = last_uses(Program(program.name, program.inputs, tuple(rooted), outputs))
    return Schedule(n, constants, views, roots, layouts, units, last)


# --- constants --------------------------------------------------------------------------------------------------------


def _fixed(program: Program) -> dict[Value, Operation]:
    """The values that depend on no input, with the operations that make them."""
    fixed: dict[Value, Operation] = {}
    for op in program.operations:
        if all(a in fixed for a in op.operands):
            fixed[op.result] = op
    return fixed


def _constants(program: Program, fixed: Mapping[Value, Operation], n: int) -> dict[Value, np.ndarray]:
    """Those of the fixed values that something needs which is not fixed."""
    needed: dict[Value, bool] = {}  # whether all entries have to be there
    for op in program.operations:
        for a in op.operands if op.result not in fixed else ():
            if a in fixed:
                needed[a] = needed.get(a, False) or op.function not in ELEMENTWISE
    needed |= {value: True for value in program.outputs.values() if value in fixed}
    rows = Value("rows", (Dim(n),), DTYPES["bool"])
    outputs = {value.name: value for value in needed}
    made = Interpreter(Program("constants", {"rows": rows}, tuple(fixed.values()), outputs), np)(  # type: ignore[arg-type]  # a namespace
        {"rows": np.empty(n, dtype=bool)}  # type: ignore[dict-item]  # an array
    )
    return {value: _as_constant(fixed[value], made[value.name], whole) for value, whole in needed.items()}


def _as_constant(op: Operation, made: Any, whole: bool) -> np.ndarray:
    array = np.ascontiguousarray(made).reshape(np.shape(made))
    if op.function == "full" and not whole:
        return np.asarray(op.options["value"] if not array.size else array.reshape(-1)[0], dtype=array.dtype)
    return array


# --- memory layout ----------------------------------------------------------------------------------------------------


def _model(op: Operation, models: Mapping[Value, np.ndarray], n: int) -> np.ndarray:
    """An array that lies in memory as the eager result does: in the order of rows, or in that of odd operands."""
    shape, dtype = bound(op.result.shape, n), op.result.dtype.name
    plain = np.empty(shape, dtype)
    if op.function not in ELEMENTWISE:
        return plain
    wide = [models[a] for a in op.operands if models[a].shape == shape]
    if not wide or any(a.flags.c_contiguous for a in wide):
        return plain
    allocated = np.nditer([*wide, None]).operands[-1]  # the rule by which ufuncs lay out their results
    order = sorted(range(len(shape)), key=lambda i: -allocated.strides[i])
    return np.empty([shape[i] for i in order], dtype).transpose(np.argsort(order))


# --- units ------------------------------------------------------------------------------------------------------------


def _units(work: list[Operation], roots: Mapping[Value, Value], layouts: Mapping[Value, Layout]) -> list[Unit]:
    """The operations as units. Small ones that stand between those of a chain, and do not need it, come before it."""
    units: list[Unit] = []
    maker: dict[Value, Unit] = {}
    chain: Unit | None = None
    for op in work:
        layout = layouts[op.result]
        size = math.prod(layout.shape)
        fits = op.function in ELEMENTWISE and size >= LARGE and _in_rows(layout)
        made_by = [maker[roots[a]] for a in op.operands if roots[a] in maker]
        if fits and chain is not None and chain.shape == layout.shape and _joins(op, chain, units, maker, roots):
            unit = chain
            unit.needs |= {id(u) for u in made_by if u is not unit}
        else:
            unit = Unit([], layout.shape, needs={id(u) for u in made_by})
            units.append(unit)
            if fits:
                chain = unit
            elif size >= LARGE or op.function == "matmul":
                chain = None
        unit.operations.append(op)
        maker[op.result] = unit
    for unit in units:
        # A choice alone gains too: its condition, as whole numbers, need not leave the cache.
        unit.blocked = len(unit.operations) > 1 or (math.prod(unit.shape) >= LARGE and takes_mask(unit.operations[0]))
    return units


def _in_rows(layout: Layout) -> bool:
    return layout.strides == np.empty(layout.shape, layout.dtype).strides


def _joins(
    op: Operation, chain: Unit, units: list[Unit], maker: Mapping[Value, Unit], roots: Mapping[Value, Value]
) -> bool:
    """Whether the operation can be run with the chain; what it needs beside is then moved before the chain."""
    if any(maker.get(roots[a]) is chain and roots[a] is not a for a in op.operands):
        return False  # a reshaped block is not there yet
    at = units.index(chain)
    after, follow = units[at + 1 :], {id(chain)}
    for unit in after:
        if unit.needs & follow:
            follow.add(id(unit))
    by_id = {id(unit): unit for unit in after}
    wanted: set[int] = set()
    queue = [id(maker[roots[a]]) for a in op.operands if roots[a] in maker and maker[roots[a]] is not chain]
    while queue:
        found = queue.pop()
        if found in by_id and found not in wanted:
            wanted.add(found)
            queue.extend(by_id[found].needs)
    if wanted & follow:
        return False
    units[at:] = [u for u in after if id(u) in wanted] + [chain] + [u for u in after if id(u) not in wanted]
    return True
