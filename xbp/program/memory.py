"""The memory plan: values that are never alive together share one place in a static arena.

An engine that writes into prepared memory allocates nothing while it runs, and touches fewer pages: what a step needs
is known before its first operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["ALIGNMENT", "Lifetime", "arena_plan"]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector register


class Lifetime(NamedTuple):
    """A block of memory, from the first to the last moment in which it holds something, both included."""

    size: int  # bytes
    first: int
    last: int


def arena_plan(blocks: Sequence[Lifetime], alignment: int = ALIGNMENT) -> tuple[list[int], int]:
    """(offset of each block, size of the arena) in bytes.

    Large blocks first, each at the lowest place that is free as long as it lives: within a few per cent of the least
    possible on the straight-line programs here.
    Source: Pisarchyk, Lee, "Efficient memory management for deep neural net inference", MLSys 2020 workshop (greedy by
    size).
    """
    offsets = [0] * len(blocks)
    placed: list[tuple[int, int, Lifetime]] = []  # (start, end, block), by start
    total = 0
    for i in sorted(range(len(blocks)), key=lambda i: (-blocks[i].size, i)):
        block = blocks[i]
        size = -(-block.size // alignment) * alignment
        at = 0
        for start, end, other in placed:
            if other.last < block.first or block.last < other.first:
                continue
            if start - at >= size:
                break
            at = max(at, end)
        offsets[i] = at
        placed.append((at, at + size, block))
        placed.sort(key=lambda p: p[0])
        total = max(total, at + size)
    return offsets, total
