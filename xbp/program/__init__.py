"""The training step, recorded once: a program that engines lower to their fastest form.

Recorder       a namespace that computes nothing and notes every operation
Program        the operations in order; print it, or take its hash
Interpreter    runs a program on any namespace: what every engine is compared with
optimised      the program without repetitions and dead ends
"""

from __future__ import annotations

from .interpreter import Interpreter
from .passes import optimised
from .program import Operation, Program
from .recorder import Recorder, RecordingNamespace
from .records import RecordedArray
from .shapes import Dim, bound
from .values import DTYPES, RecordedDType, Value

__all__ = [
    "DTYPES",
    "Dim",
    "Interpreter",
    "Operation",
    "Program",
    "RecordedArray",
    "RecordedDType",
    "Recorder",
    "RecordingNamespace",
    "Value",
    "bound",
    "optimised",
]
