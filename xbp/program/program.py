"""Programs: a computation as a list of operations, without values, ready to be read, planned and run by an engine.

A program is what the recorder leaves of a step. It has no branches and no loops, and its shapes are known but for the
batch size N. Whatever an engine does with it, the answer must be the interpreter's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from .shapes import Dim
from .values import Value

__all__ = ["Operation", "Program"]


@dataclass(frozen=True, eq=False, slots=True)
class Operation:
    """One line: a function, its operands (values or Python numbers), its options by name, and what it makes.

    origin    the rule that it comes from, such as "2 Affine.backward"; "" where nobody said
    """

    function: str
    arguments: tuple[Value | float, ...]
    options: Mapping[str, Any]
    result: Value
    origin: str = ""
    operands: tuple[Value, ...] = field(init=False, repr=False)  # the arguments that are arrays

    def __post_init__(self) -> None:
        operands = tuple([a for a in self.arguments if isinstance(a, Value)])
        object.__setattr__(self, "operands", operands)

    def on(self, arguments: Sequence[Value | float], result: Value | None = None) -> Operation:
        """The same with other arguments, and perhaps another result."""
        return Operation(self.function, tuple(arguments), self.options, result or self.result, self.origin)

    def __str__(self) -> str:
        words = [a.name if isinstance(a, Value) else repr(a) for a in self.arguments]
        words += [f"{name}={value}" for name, value in self.options.items()]
        return f"{self.result} = {self.function}({', '.join(words)})"


@dataclass(frozen=True, eq=False)
class Program:
    """Operations in order, between named inputs and named outputs.

    name          what it is for: "step", "scores", "sums"
    outputs       an output that has the name of an input is that input's new value, and may take its place in memory
    """

    name: str
    inputs: Mapping[str, Value]
    operations: tuple[Operation, ...]
    outputs: Mapping[str, Value]

    @cached_property
    def updates(self) -> tuple[str, ...]:
        """The names of the inputs that have a new value at the end."""
        return tuple(name for name in self.outputs if name in self.inputs)

    @cached_property
    def hash(self) -> str:
        """A fingerprint of what is computed, the same in every process: 64 hexadecimal digits."""
        return hashlib.sha256(self._text(origins=False).encode()).hexdigest()

    @cached_property
    def symbolic(self) -> tuple[str, int, int] | None:
        """(input, axis, times): where the batch size can be read off, as shape[axis] // times. None: there is no N."""
        for name, value in self.inputs.items():
            for axis, n in enumerate(value.shape):
                if isinstance(n, Dim):
                    return name, axis, n.times
        return None

    def batch_size(self, inputs: Mapping[str, Any]) -> int:
        """The N of these arrays; 1 for a program in which none occurs."""
        if self.symbolic is None:
            return 1
        name, axis, times = self.symbolic
        return int(inputs[name].shape[axis]) // times

    def __str__(self) -> str:
        return self._text(origins=True)

    def _text(self, *, origins: bool) -> str:
        lines = [f"program {self.name}"] + [f"input {value}" for value in self.inputs.values()]
        origin = ""
        for operation in self.operations:
            if origins and operation.origin != origin:
                origin = operation.origin
                lines.append(f"# {origin}")
            lines.append(str(operation))
        lines += [f"output {name} = {value.name}" for name, value in self.outputs.items()]
        return "\n".join(lines)
