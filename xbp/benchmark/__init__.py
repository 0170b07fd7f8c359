"""How fast training runs here: networks of fixed sizes on every backend and engine that this machine has.

Whatever is timed has first to give the losses that NumPy gives in float64. It is then warmed up and timed in short
blocks, in which all contestants take turns, so that a busy moment of the machine falls on all of them alike. Ratios of
one run say something, times of two runs do not.
"""

from .cases import CASES, Case, case_named
from .clock import BLOCKS, Accept, Clock, Load, Timing, interleaved, time_all
from .conditions import commit, conditions
from .contest import TOLERANCE, Contestant, Training, reference, verify
from .measuring import BUSY, contestants, measure, run
from .results import Result, document, table

__all__ = [
    "BLOCKS",
    "BUSY",
    "CASES",
    "TOLERANCE",
    "Accept",
    "Case",
    "Clock",
    "Contestant",
    "Load",
    "Result",
    "Timing",
    "Training",
    "case_named",
    "commit",
    "conditions",
    "contestants",
    "document",
    "interleaved",
    "measure",
    "reference",
    "run",
    "table",
    "time_all",
    "verify",
]
