"""Loss scaling: gradients kept within the range of float16, by a factor that finds its own size.

float16 has few digits left below 6e-5 and no numbers below 6e-8, where many gradients are. So the loss is scaled up
before the backward pass and the gradients are scaled down after it. Where the factor was too large, and something
overflowed, the step is not taken and the factor is halved; after many good steps it is doubled. Powers of two round
nothing.
Source: Micikevicius et al., "Mixed precision training", ICLR 2018.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .typing import Array, Device, Namespace

__all__ = ["FACTOR", "GOOD", "NAMES", "SKIPPED", "all_finite", "init", "kept", "updated"]

FACTOR, GOOD, SKIPPED = NAMES = ("loss_scale", "good_steps", "skipped_steps")
START = 2.0**16
INTERVAL = 2000  # good steps after which the factor is doubled
LEAST, MOST = 2.0**-32, 2.0**32  # it stays a number whatever happens


def init(*, xp: Namespace, device: Device) -> dict[str, Array]:
    """What the optimiser's state has beside its own: the factor, steps since it last changed, steps not taken.

    The optimiser's own count leaves out the latter; a trainer's, and so a schedule's, has both.
    """
    return {
        FACTOR: xp.full((), START, dtype=xp.float32, device=device),
        GOOD: xp.zeros((), dtype=xp.int32, device=device),
        SKIPPED: xp.zeros((), dtype=xp.int32, device=device),
    }


def all_finite(arrays: Iterable[Array], *, xp: Namespace) -> Array:
    """Whether every entry of every array is a number, a 0-d bool array."""
    first, *others = [xp.all(xp.isfinite(a)) for a in arrays]
    for other in others:
        first = first & other
    return first


def kept(taken: Array, new: Mapping[str, Array], old: Mapping[str, Array], *, xp: Namespace) -> dict[str, Array]:
    """The new values where the step is taken, else the old ones; no branch. What did not change is left as it is."""
    return {name: a if a is old[name] else xp.where(taken, a, old[name]) for name, a in new.items()}


def updated(state: Mapping[str, Array], taken: Array, *, xp: Namespace) -> dict[str, Array]:
    """The three values after a step that was taken, or not."""
    factor, skipped = state[FACTOR], state[SKIPPED]
    good = xp.where(taken, state[GOOD] + 1, 0)
    long = good >= INTERVAL
    factor = xp.where(taken, xp.where(long, factor * 2.0, factor), factor * 0.5)
    return {
        FACTOR: xp.minimum(xp.maximum(factor, LEAST), MOST),
        GOOD: xp.where(long, 0, good),
        SKIPPED: xp.where(taken, skipped, skipped + 1),
    }
