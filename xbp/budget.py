"""A budget of memory: how many pieces a batch is cut into so that its step fits, decided before the step runs.

What is compared with the budget is what will run: the whole step as one program, or the program of a piece, beside the
sum of the gradients so far, and the program of the optimiser's end.
"""

from __future__ import annotations

from collections.abc import Callable

from .errors import MemoryExceeded
from .program import Memory, readable

__all__ = ["needed", "pieces_that_fit"]

Known = Callable[[str], Memory]  # the memory of the program "step", "piece", "apply"


def needed(memory: Known, n: int, pieces: int) -> int:
    """The bytes of a step on n rows in so many pieces."""
    if pieces == 1:
        return memory("step").at(n)
    piece, apply, rows = memory("piece"), memory("apply"), -(-n // pieces)
    held = memory("step").batch(n) + apply.parameters + apply.state + piece.buffers
    grads = apply.gradients
    working = piece.batch(rows) + piece.between(rows) + grads  # beside the sum so far
    return held + max(working, 3 * grads, grads + apply.between(1))  # a piece, two sums being added up, the end


def pieces_that_fit(limit: int, memory: Known, n: int, least: int, refused: str = "") -> int:
    """The smallest number of pieces, of at least `least`, in which a step on n rows fits into `limit` bytes.

    refused    why batches cannot be cut; "" where they can

    Raises `MemoryExceeded` with the numbers where there is none.
    """
    least = min(least, n)
    if needed(memory, n, least) <= limit:
        return least
    if refused:
        raise MemoryExceeded(
            f"A step on {n} rows needs {readable(needed(memory, n, 1))}, and memory_limit is {readable(limit)}. "
            f"{refused} Choose a smaller batch_size, or a larger limit."
        )
    low, high = least, n  # `low` is too few
    if n == 1 or needed(memory, n, n) > limit:
        raise MemoryExceeded(_not_even_one(limit, memory, n))
    while high - low > 1:
        middle = (low + high) // 2
        if needed(memory, n, middle) <= limit:
            high = middle
        else:
            low = middle
    return high


def _not_even_one(limit: int, memory: Known, n: int) -> str:
    step = memory("step")
    pieces = "" if n == 1 else f" Cut into {n} pieces of one row, it needs {readable(needed(memory, n, n))}."
    return (
        f"A step on {n} row{'s' * (n > 1)} needs {readable(step.at(n))}: {readable(step.parameters)} of parameters, "
        f"{readable(step.buffers)} of buffers, {readable(step.state)} of optimiser state, {readable(step.batch(n))} of "
        f"rows, {readable(step.between(n))} of values in between.{pieces} But memory_limit is {readable(limit)}. "
        "Raise the limit, choose a smaller model or batch, or an optimiser with less state."
    )
