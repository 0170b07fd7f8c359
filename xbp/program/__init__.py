"""The training step, recorded once: a program that engines lower to their fastest form.

Recorder       a namespace that computes nothing and notes every operation
Program        the operations in order; print it, or take its hash
Interpreter    runs a program on any namespace: what every engine is compared with
optimised      the program without repetitions and dead ends
in_precision   the program with products of narrow numbers
memory_of      what the program needs of memory, for any batch size
"""

from __future__ import annotations

from .interpreter import Interpreter
from .needs import MeasuredProgram, Memory, memory_of, readable
from .passes import optimised
from .precision import PRECISIONS, in_precision, mixed, tf32
from .program import Operation, Program
from .recorder import Recorder, RecordingNamespace
from .records import RecordedArray
from .shapes import Dim, bound
from .values import DTYPES, RecordedDType, Value

__all__ = [
    "DTYPES",
    "PRECISIONS",
    "Dim",
    "Interpreter",
    "MeasuredProgram",
    "Memory",
    "Operation",
    "Program",
    "RecordedArray",
    "RecordedDType",
    "Recorder",
    "RecordingNamespace",
    "Value",
    "bound",
    "in_precision",
    "memory_of",
    "mixed",
    "optimised",
    "readable",
    "tf32",
]
