"""Who runs the launches: the Runner of a training step, and pure programs as functions.

The Runner owns parameters, buffers and optimiser state in one memory of the device, and everything else that a captured
graph touches: arena, header, kernels, products. For each batch size it knows two graphs, of one step and of many. The
same launches without a graph are the warm-up before a capture, and the way to look for a mistake.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from xbp.interrupt import Interrupt
from xbp.program import Program, Value, bound
from xbp.program.places import BYTES
from xbp.recording import inputs_of, nested
from xbp.typing import Array, Inputs, Scalar, Tree

from . import batches
from .device import Device, Memory
from .lowering import ALIGNMENT, Launch, Lowered, kernel, source

__all__ = ["GraphFunction", "GraphRunner"]

KEPT = 8  # batch sizes whose graphs are kept
TOGETHER = 16  # steps in the graph of many
WIDE = 2**31 - 2**24  # bytes from which on indices have 64 bits
OWNED = ("params", "buffers", "state")
BATCH = ("x", "t", "w")


Around = Callable[[Lowered], tuple[list[Launch], str]]


class _Laid(NamedTuple):
    """Values one after the other in a memory."""

    offsets: dict[str, int]
    size: int

    @classmethod
    def out(cls, values: Mapping[str, Value], n: int = 1) -> _Laid:
        offsets, at = {}, 0
        for name, value in values.items():
            offsets[name] = at
            at += _aligned(_bytes(value, n))
        return cls(offsets, max(at, ALIGNMENT))

    def after(self, address: int) -> dict[str, int]:
        return {name: address + offset for name, offset in self.offsets.items()}


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _bytes(value: Value, n: int = 1) -> int:
    return int(np.prod(bound(value.shape, n), dtype=np.int64)) * BYTES[value.dtype.name]


class _Plan:
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
        self._declined |= declined
        self._accepted.clear()
        self._lower()
        return False

    def text(self, *, wide: bool = False) -> str:
        """All of it, to compile."""
        return source(self.launches, self._more, wide=wide)

    def kernels(self, *, wide: bool) -> Callable[[str], Any]:
        """The compiled kernels by name, with indices of 64 or of 32 bits."""
        if wide not in self._compiled:
            self._compiled[wide] = self._device.compiled(self.text(wide=wide))
        return self._compiled[wide]


class _Launches:
    """The launches of a program for one batch size. Only the addresses are left open."""

    def __init__(self, device: Device, plan: _Plan, n: int, longest: int) -> None:
        self._device, self._n = device, n
        wide = longest > WIDE
        number = np.int64 if wide else np.int32
        kernels = plan.kernels(wide=wide)
        self._calls: list[Callable[[Mapping[str, int]], Callable[[], None]]] = []
        for launch in plan.launches:
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
        calls = [call(places) for call in self._calls]

        def run() -> None:
            for call in calls:
                call()

        return run


class _Prepared:
    """A training step for one batch size: as launches, as a graph of one step, and as a graph of many."""

    def __init__(self, device: Device, step: Callable[[], None]) -> None:
        self._device, self._step = device, step
        self._warm = False
        self._one: Callable[[], None] | None = None
        self._many: Callable[[], None] | None = None

    def _steps(self) -> None:
        for _ in range(TOGETHER):
            self._step()

    def run(self, steps: int) -> None:
        """So many steps. Each is taken whole: Ctrl-C between the launches of the first one waits for its last."""
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


class GraphRunner:
    """`xbp.runner.Runner` of a training step."""

    engine = "graph"

    def __init__(self, program: Program, device: Device) -> None:
        self.program, self._device = program, device
        inputs = program.inputs
        self._batch = {n: v for n, v in inputs.items() if n.split(".")[0] in BATCH}
        self._scalars = {n: v for n, v in inputs.items() if n.startswith("scalars.")}
        self._owned = {n: v for n, v in inputs.items() if n.split(".")[0] in OWNED}
        self._entries = batches.FIXED + len(self._batch) + len(self._scalars)
        self.plan = _Plan(program, device, in_place=True, around=self._around)
        laid = _Laid.out(self._owned)
        self._values = device.memory(laid.size)
        self._places = laid.after(self._values.address)
        self.tree: Tree = nested({n: self._view(self._values, laid.offsets[n], v) for n, v in self._owned.items()})
        self._small: list[Memory] = []
        self._arena: Memory | None = None
        self._arena_size = 0
        self._prepared: dict[int, _Prepared] = {}

    def _around(self, low: Lowered) -> tuple[list[Launch], str]:
        """The launches with those before and after them: rows and scalars come in, the loss goes out."""
        launches = [kernel("begin", batches.begin(self._batch, self._scalars)), *low.launches]
        loss = self.program.outputs["loss"]
        end = batches.end(low.places.where("loss"), loss.dtype.name)
        late = batches.late(low.places.late, self.program.inputs)
        if low.ready("loss"):
            launches[-1] = kernel("last", [end], launches[-1])
        else:
            late.append(end)
        if late:
            launches.append(kernel("finish", late))
        return launches, batches.point(self._entries)

    def _fixed(self) -> None:
        """Give memory to the header, the scalars of the step, and what has to be zero at first."""
        sizes = {batches.HEADER: 8 * self._entries, **dict.fromkeys(self._scalars, 8), **self.plan.lowered.zeroed}
        sizes = {name: size for name, size in sizes.items() if name not in self._places}
        if sizes:
            offsets, at = {}, 0
            for name, size in sizes.items():
                offsets[name] = at
                at += -(-size // 16) * 16
            memory = self._device.memory(at, zeroed=True)
            self._small.append(memory)
            self._places |= {name: memory.address + offset for name, offset in offsets.items()}

    def _view(self, memory: Memory, offset: int, value: Value) -> Array:
        strides, step = [], 1
        for length in reversed(value.shape):
            strides.append(step)
            step *= length
        return self._device.view(memory, offset, tuple(value.shape), value.dtype.name, tuple(reversed(strides)))

    # --- the values -----------------------------------------------------------------------------------------------

    def load(self, tree: Tree) -> None:
        for section, arrays in tree.items():
            for name, a in arrays.items():
                self._device.copy(a, self.tree[section][name])

    def read(self) -> Tree:
        return self.tree

    # --- steps ----------------------------------------------------------------------------------------------------

    def _at(self, n: int) -> _Prepared:
        prepared = self._prepared.get(n)
        if prepared is None:
            while not self.plan.fits(n):
                self._forget()
            while len(self._prepared) >= KEPT:
                self._device.synchronize()
                del self._prepared[next(iter(self._prepared))]
            prepared = self._prepared[n] = self._prepare(n)
        return prepared

    def _forget(self) -> None:
        """Drop all graphs, which know addresses and kernels that are no longer right; none of them may be running."""
        self._device.synchronize()
        self._prepared.clear()

    def _prepare(self, n: int) -> _Prepared:
        self._fixed()
        low = self.plan.lowered
        offsets, size = low.plan(n)
        rows = _Laid.out(self._batch, n)
        longest = max(low.longest(n), *(_bytes(v, n) for v in (*self._batch.values(), *self._owned.values())))
        launches = _Launches(self._device, self.plan, n, longest)
        start = _aligned(size)
        if self._arena is None or start + rows.size > self._arena_size:
            self._forget()
            self._arena = None  # free before the larger one is taken
            self._arena = self._device.memory(start + rows.size)
            self._arena_size = start + rows.size
        base = self._arena.address
        blocks = {name: base + offset for name, offset in offsets.items()}
        return _Prepared(self._device, launches.at({**self._places, **blocks, **rows.after(base + start)}))

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar]) -> Array:
        loss = self._device.empty((), self.program.outputs["loss"].dtype.name)
        self._go(1, t.shape[0], 0, loss, inputs_of(x, t, w), scalars)
        return loss

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        steps, n = index.shape
        losses = self._device.empty((steps,), self.program.outputs["loss"].dtype.name)
        chosen = self._device.contiguous(index, "int32")
        self._go(steps, n, self._device.address(chosen), losses, inputs_of(x, t, w), scalars)
        return losses

    def _go(
        self, steps: int, n: int, chosen: int, losses: Array, batch: Mapping[str, Array], scalars: Mapping[str, Any]
    ) -> None:
        """Write the header, and launch. Arrays are kept alive until everything is launched; then the stream's order
        keeps their memory, should somebody else be given it.
        """
        device = self._device
        given = [device.contiguous(batch[name], v.dtype.name) for name, v in self._batch.items()]
        given += [
            device.contiguous(scalars[name.removeprefix("scalars.")], v.dtype.name) for name, v in self._scalars.items()
        ]
        prepared = self._at(n)
        header = [self._places[batches.HEADER], 0, chosen, device.address(losses), *map(device.address, given)]
        device.launch(self.plan.kernels(wide=False)("point"), 1, header)
        prepared.run(steps)


class GraphFunction:
    """A pure program as a function of named arrays. Each call has memory of its own, so threads do not meet in it."""

    def __init__(self, program: Program, device: Device) -> None:
        self.program, self._device = program, device
        self.plan = _Plan(program, device, in_place=False)
        self._launches: dict[int, _Launches] = {}
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        program, device = self.program, self._device
        n = program.batch_size(inputs)
        arrays = {name: device.contiguous(inputs[name], v.dtype.name) for name, v in program.inputs.items()}
        places = {name: device.address(a) for name, a in arrays.items()}
        with self._lock:  # a product belongs to one thread at a time
            launches = self._at(n)
            low = self.plan.lowered
            offsets, size = low.plan(n)
            arena = device.memory(max(size, ALIGNMENT))
            zeros = {name: device.memory(size, zeroed=True) for name, size in low.zeroed.items()}
            places |= {name: arena.address + offset for name, offset in offsets.items()}
            places |= {name: memory.address for name, memory in zeros.items()}
            launches.at(places)()
        outputs = {}
        for name, value in program.outputs.items():
            layout, place = low.fused.layouts[value], low.places.where(name)
            strides = tuple(s.at(n) for s in layout.strides)
            offset = layout.offset.at(n) * BYTES[value.dtype.name]
            out = outputs[name] = device.empty(bound(value.shape, n), value.dtype.name)
            if place in offsets:
                view = device.view(arena, offsets[place] + offset, out.shape, value.dtype.name, strides)
            else:
                view = device.part(arrays[place], offset, out.shape, strides)
            device.copy(view, out)
        return outputs

    def _at(self, n: int) -> _Launches:
        while not self.plan.fits(n):
            self._launches.clear()
        if n not in self._launches:
            while len(self._launches) >= KEPT:
                del self._launches[next(iter(self._launches))]
            longest = max(self.plan.lowered.longest(n), *(_bytes(v, n) for v in self.program.inputs.values()))
            self._launches[n] = _Launches(self._device, self.plan, n, longest)
        return self._launches[n]
