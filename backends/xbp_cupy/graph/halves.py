"""What a step in mixed precision need not do anew: narrow its weights, and its batch.

A recorded step rounds every weight before the first product reads it. The optimiser has just written that weight, so
the Runner keeps the rounded copy beside it, and whoever makes the new weight makes the new copy in the same breath.
Rows of the batch are copied into their place in any case, and can arrive there rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from xbp.program import Operation, Program, Value

__all__ = ["COPIES", "narrow_of", "with_copies", "with_narrow_batch"]

COPIES = "copies."
HALF = frozenset({"float16", "bfloat16"})


def with_copies(program: Program) -> tuple[Program, dict[str, str]]:
    """(the program with an input "copies..." for each parameter that it narrows, whose new value is an output too;
    what each of these inputs is a copy of). A bias that a product adds in float32 is narrowed and widened again: two.
    """
    known = {v: name for name, v in program.inputs.items() if name.partition(".")[0] in ("params", "buffers")}
    sources: dict[str, str] = {}
    instead: dict[Value, Value] = {}
    inputs, outputs = dict(program.inputs), dict(program.outputs)
    more: list[Operation] = []
    for op in program.operations:
        source = known.get(op.operands[0]) if op.function == "astype" else None
        if source is None or not (op.result.dtype.name in HALF or (source in sources and op.result.ndim == 1)):
            continue
        name = f"{COPIES}{source.removeprefix(COPIES)}.{op.result.dtype}"
        sources[name] = source
        known[op.result] = name
        instead[op.result] = inputs[name] = Value(name, op.result.shape, op.result.dtype)
        if source in outputs:
            copy = Value(f"{name}.new", op.result.shape, op.result.dtype)
            more.append(Operation("astype", (outputs[source],), {}, copy, op.origin))
            outputs[name] = copy
    changed = _with(program, instead)
    return replace(changed, inputs=inputs, operations=(*changed.operations, *more), outputs=outputs), sources


def narrow_of(program: Program) -> dict[Value, Value]:
    """The copies in half the width, by the copies that are widened again."""
    copies = {name: v for name, v in program.inputs.items() if name.startswith(COPIES)}
    return {v: copies[source] for name, v in copies.items() if (source := name.rpartition(".")[0]) in copies}


def with_narrow_batch(program: Program) -> tuple[Program, dict[str, str]]:
    """(the program whose inputs are narrow where it reads nothing else of them, the dtypes that they come in)."""
    instead: dict[Value, Value] = {}
    inputs, came = dict(program.inputs), {}
    for name, value in program.inputs.items():
        readers = [op for op in program.operations if value in op.operands]
        if name.partition(".")[0] != "x" or len(readers) != 1 or value in program.outputs.values():
            continue
        if readers[0].function == "astype" and readers[0].result.dtype.name in HALF:
            instead[readers[0].result] = inputs[name] = Value(name, value.shape, readers[0].result.dtype)
            came[name] = value.dtype.name
    return replace(_with(program, instead), inputs=inputs), came


def _with(program: Program, instead: Mapping[Value, Value]) -> Program:
    """The program that reads other values, and does not make those that they replace."""
    operations = tuple(
        op.on([instead.get(a, a) if isinstance(a, Value) else a for a in op.arguments])
        for op in program.operations
        if op.result not in instead
    )
    return replace(program, operations=operations)
