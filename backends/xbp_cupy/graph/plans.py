"""A program with everything but addresses: what is launched for which batch size, with kernels compiled.

The plan is made anew where the device declines a product or an epilogue. Programs of very few multiplications have a
second one, a single kernel of one block for many steps: there, launches are all that a step costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xbp.interrupt import Interrupt
from xbp.program import Program, Value, bound
from xbp.program.places import BYTES

from .device import Device
from .dots import ProductBody
from .lowering import ALIGNMENT, MOST_POINTERS, Launch, Lowered, in_one_block, source

__all__ = ["Laid", "Launches", "OneBlock", "Plan", "Run", "Steps", "bytes_of", "on_border"]

WIDE = 2**31 - 2**24  # bytes from which on indices have 64 bits
TOGETHER = 16  # steps in the graph of many
SMALL = 2**18  # multiplications, and entries walked over, of a step that one block takes

Run = Callable[[list[int], int], None]  # of what the header says, and how many steps to take
Around = Callable[[Lowered], tuple[list[Launch], str]]


class Laid(NamedTuple):
    """Values one after the other in a memory."""

    offsets: dict[str, int]
    size: int

    @classmethod
    def out(cls, values: Mapping[str, Value], n: int = 1) -> Laid:
        offsets, at = {}, 0
        for name, value in values.items():
            offsets[name] = at
            at += on_border(bytes_of(value, n))
        return cls(offsets, max(at, ALIGNMENT))

    def after(self, address: int) -> dict[str, int]:
        return {name: address + offset for name, offset in self.offsets.items()}


def on_border(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def bytes_of(value: Value, n: int = 1) -> int:
    return int(np.prod(bound(value.shape, n), dtype=np.int64)) * BYTES[value.dtype.name]


class Plan:
    """A program as launches and text, with no more epilogues than the device has; compiled when that is wanted.

    around    makes the launches of a step of a program's own, and what text there is besides
    """

    def __init__(self, program: Program, device: Device, *, in_place: bool, around: Around | None = None) -> None:
        self._program, self._device, self._in_place, self._around = program, device, in_place, around
        self._declined: frozenset[str] = frozenset()
        self._accepted: set[int] = set()  # batch sizes
        self._lower()

    def _lower(self) -> None:
        self.lowered = low = Lowered(self._program, self._in_place, self._declined)
        self.launches, self._more = (low.launches, "") if self._around is None else self._around(low)
        self._compiled: dict[bool, Callable[[str], Any]] = {}

    def fits(self, n: int) -> bool:
        """Whether the device has every product for batches of n rows; the plan is another one where it had not."""
        if n in self._accepted:
            return True
        products = [launch.product for launch in self.launches if launch.product is not None]
        asked = [p for p in products if p.request]
        declined = frozenset(p.request for p in asked if not self._device.accepts(p.at(n)))
        if not declined:
            self._accepted.add(n)
            return True
        self.decline(declined)
        return False

    def decline(self, requests: Iterable[str]) -> None:
        """Do without these products and epilogues."""
        self._declined |= frozenset(requests)
        self._accepted.clear()
        self._lower()

    @property
    def has_kernels(self) -> bool:
        """Whether there is anything but products."""
        return any(launch.product is None for launch in self.launches)

    def text(self, *, wide: bool = False) -> str:
        """All of it, to compile."""
        return source(self.launches, self._more, wide=wide)

    def kernels(self, *, wide: bool) -> Callable[[str], Any]:
        """The compiled kernels by name, with indices of 64 or of 32 bits."""
        if wide not in self._compiled:
            self._compiled[wide] = self._device.compiled(self.text(wide=wide))
        return self._compiled[wide]


class Launches:
    """The launches of a program for one batch size. Only the addresses are left open."""

    def __init__(self, device: Device, plan: Plan, n: int, longest: int) -> None:
        self._device, self._n = device, n
        wide = longest > WIDE
        number = np.int64 if wide else np.int32
        kernels = plan.kernels(wide=wide) if plan.has_kernels else _none
        self._calls: list[Callable[[Mapping[str, int]], Callable[[], None]]] = []
        self._joins: list[bool] = []
        self._asides: list[bool] = []
        for launch in plan.launches:
            self._joins.append(launch.joins)
            self._asides.append(launch.aside)
            if launch.product is not None:
                self._calls.append(partial(self._product, launch.product, device.product(launch.product.at(n))))
                continue
            blocks = [b.blocks(n) for b in launch.bodies]
            sizes = [number(n), *map(np.int32, blocks)]
            self._calls.append(partial(self._kernel, kernels(launch.name), sum(blocks), sizes, launch.places))

    def _kernel(
        self, kernel: Any, blocks: int, sizes: list[Any], wanted: tuple[str, ...], places: Mapping[str, int]
    ) -> Callable[[], None]:
        return partial(self._device.launch, kernel, blocks, [*sizes, *(places[p] for p in wanted)])

    def _product(self, product: Any, multiply: Any, places: Mapping[str, int]) -> Callable[[], None]:
        operands = (product.a, product.b, product.d)
        addresses = [places[o.place] + o.offset.at(self._n) * BYTES[o.dtype] for o in operands]
        return partial(multiply, *addresses, *(places[place] for place in product.beside))

    def at(self, places: Mapping[str, int]) -> Callable[[], None]:
        """A function that launches everything in order, with these addresses."""
        calls: list[Callable[[], None]] = []
        for make, joins, aside in zip(self._calls, self._joins, self._asides, strict=True):
            call = make(places)
            calls += [self._device.join] if joins else []
            calls.append(partial(self._device.aside, call) if aside else call)

        def run() -> None:
            for call in calls:
                call()

        return run


def _none(name: str) -> Any:
    raise KeyError(name)  # a program of products has no kernels, and no text to compile


class OneBlock:
    """A training step as a kernel of one block, for batches of few multiplications.

    around     as that of `Plan`
    entries    of the header
    """

    def __init__(self, program: Program, device: Device, around: Around, entries: int) -> None:
        self._device, self._entries = device, entries
        self.lowered = Lowered(program, by_library=False)
        self._launch = in_one_block(around(self.lowered)[0], entries)
        self._count = len(self._launch.places)
        self._products = [b for b in self._launch.bodies if isinstance(b, ProductBody)]
        self._kernels: Callable[[str], Any] | None = None

    def fits(self, n: int) -> bool:
        """Whether a step on n rows is small enough."""
        few = self._count + self._entries <= MOST_POINTERS
        work = (sum(b.multiplications(n) for b in self._products), self.lowered.entries(n))
        return few and max(work) <= SMALL

    def text(self, *, wide: bool = False) -> str:
        return source([self._launch], wide=wide)

    def at(self, n: int, places: Mapping[str, int]) -> Run:
        """A function that takes steps, with these addresses."""
        if self._kernels is None:
            self._kernels = self._device.compiled(self.text())
        kernel = self._kernels(self._launch.name)
        rows, given = np.int32(n), np.zeros(1, [("header", np.int64, self._entries), ("places", np.int64, self._count)])
        given["places"] = [places[place] for place in self._launch.places]

        def run(header: list[int], steps: int) -> None:
            given["header"] = header
            self._device.launch(kernel, 1, [rows, np.int32(steps), given])

        return run


class Steps:
    """A training step for one batch size: as launches, as a graph of one step, and as a graph of many.

    point    writes the header
    """

    def __init__(self, device: Device, point: Callable[[list[int]], None], step: Callable[[], None]) -> None:
        self._device, self._point, self._step = device, point, step
        self._warm = False
        self._one: Callable[[], None] | None = None
        self._many: Callable[[], None] | None = None

    def _steps(self) -> None:
        for _ in range(TOGETHER):
            self._step()

    def __call__(self, header: list[int], steps: int) -> None:
        """So many steps. Each is taken whole: Ctrl-C between the launches of the first one waits for its last."""
        self._point(header)
        if not self._warm:
            with Interrupt() as interrupt:
                self._step()
                self._warm = True
            if interrupt.reason:
                raise KeyboardInterrupt
            steps -= 1
        many, rest = divmod(steps, TOGETHER)
        if many:
            self._many = self._many or self._device.captured(self._steps)
            for _ in range(many):
                self._many()
        if rest:
            self._one = self._one or self._device.captured(self._step)
            for _ in range(rest):
                self._one()
