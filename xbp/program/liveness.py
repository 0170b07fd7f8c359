"""Liveness: from where to where each value of a program is needed."""

from __future__ import annotations

from .program import Program
from .values import Value

__all__ = ["deaths", "last_uses"]


def last_uses(program: Program) -> dict[Value, int]:
    """The number of the last operation that reads each value. Outputs are read by whoever comes after the program."""
    last = {operand: i for i, operation in enumerate(program.operations) for operand in operation.operands}
    return last | dict.fromkeys(program.outputs.values(), len(program.operations))


def deaths(program: Program) -> list[tuple[Value, ...]]:
    """For each operation, the values that nobody needs after it; its own result where nobody ever reads that."""
    last = last_uses(program)
    dead: list[list[Value]] = [[] for _ in program.operations]
    for i, operation in enumerate(program.operations):
        if operation.result not in last:
            dead[i].append(operation.result)
    for value, i in last.items():
        if i < len(program.operations):
            dead[i].append(value)
    return [tuple(values) for values in dead]
