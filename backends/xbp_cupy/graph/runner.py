"""Who runs the launches: the Runner of a training step, and pure programs as functions.

The Runner owns parameters, buffers and optimiser state in one memory of the device, and everything else that a captured
graph touches: arena, header, kernels, products. The same launches without a graph are the warm-up before a capture, and
the way to look for a mistake.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from xbp.errors import NotCompiled
from xbp.program import Program, Value, bound
from xbp.program.places import BYTES
from xbp.recording import flat, inputs_of, nested
from xbp.typing import Array, Inputs, Scalar, Tree

from . import batches
from .device import Device, Memory
from .halves import COPIES, with_copies, with_narrow_batch
from .lowering import ALIGNMENT, Launch, Lowered, kernel
from .plans import Laid, Launches, OneBlock, Plan, Run, Steps, bytes_of, on_border

__all__ = ["GraphFunction", "GraphRunner", "arena_of"]

KEPT = 8  # batch sizes whose graphs are kept
OWNED = ("params", "buffers", "state", "copies")
BATCH = ("x", "t", "w")


def arena_of(program: Program) -> Callable[[int], int] | None:
    """The bytes of the arena for n rows, with narrow copies of weights; None for a program that is not compiled."""
    step = program.name == "step"
    if step:
        program = with_narrow_batch(with_copies(program)[0])[0]
    try:
        low = Lowered(program, in_place=step)
    except NotCompiled:
        return None
    copies = sum(bytes_of(v) for name, v in program.inputs.items() if name.startswith(COPIES))
    return lambda n: copies + low.plan(n)[1]


class GraphRunner:
    """`xbp.runner.Runner` of a training step.

    launches    what the last step took: how many kernels and products; 1 where many steps are one kernel
    """

    engine = "graph"

    def __init__(self, program: Program, device: Device) -> None:
        self.program, self._device = program, device
        program, self._copied = with_copies(program)
        program, self._came = with_narrow_batch(program)
        inputs = program.inputs
        self._batch = {n: v for n, v in inputs.items() if n.split(".")[0] in BATCH}
        self._scalars = {n: v for n, v in inputs.items() if n.startswith("scalars.")}
        self._owned = {n: v for n, v in inputs.items() if n.split(".")[0] in OWNED}
        self._entries = batches.FIXED + len(self._batch) + len(self._scalars)
        self.plan = Plan(program, device, in_place=True, around=self._around)
        self.one_block = OneBlock(program, device, self._around, self._entries)
        laid = Laid.out(self._owned)
        self._values = device.memory(laid.size)
        self._places = laid.after(self._values.address)
        self._views = {n: self._view(self._values, laid.offsets[n], v) for n, v in self._owned.items()}
        self.tree: Tree = nested(self._views)
        self._small: list[Memory] = []
        self.launches = 0
        self._arena: Memory | None = None
        self._arena_size = 0
        self._prepared: dict[int, Run] = {}

    def _around(self, low: Lowered) -> tuple[list[Launch], str]:
        """The launches with those before and after them: rows and scalars come in, the loss goes out."""
        launches = [kernel("begin", batches.begin(self._batch, self._came, self._scalars)), *low.launches]
        loss = self.program.outputs["loss"]
        end = batches.end(low.places.where("loss"), loss.dtype.name)
        late = batches.late(low.places.late, low.program.inputs)
        if low.ready("loss"):
            launches[-1] = replace(kernel("last", [end], launches[-1]), joins=launches[-1].joins)
        else:
            late.append(end)
        if late:
            launches.append(kernel("finish", late))
        return launches, batches.point(self._entries)

    def _fixed(self, low: Lowered) -> None:
        """Give memory to the header, the scalars of the step, and what has to be zero at first."""
        sizes = {batches.HEADER: 8 * self._entries, **dict.fromkeys(self._scalars, 8), **low.zeroed}
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

    def prepare(self, rows: int) -> None:
        """Compile, ask the library for its products, and take memory."""
        self._at(rows)

    def load(self, tree: Tree) -> None:
        for name, a in flat(tree).items():
            self._device.copy(a, self._views[name])
        for name, source in self._copied.items():
            self._device.copy(self._views[source], self._views[name])

    def read(self) -> Tree:
        return self.tree

    # --- steps ----------------------------------------------------------------------------------------------------

    def _at(self, n: int) -> Run:
        prepared = self._prepared.get(n)
        if prepared is None:
            small = self.one_block.fits(n)
            while not small and not self.plan.fits(n):
                self._forget()
            while len(self._prepared) >= KEPT:
                self._device.synchronize()
                del self._prepared[next(iter(self._prepared))]
            places = self._located((self.one_block if small else self.plan).lowered, n)
            prepared = self._prepared[n] = self.one_block.at(n, places) if small else self._in_graphs(n, places)
        return prepared

    def _in_graphs(self, n: int, places: Mapping[str, int]) -> Run:
        sizes = (bytes_of(v, n) for v in (*self._batch.values(), *self._owned.values()))
        longest = max(self.plan.lowered.longest(n), *sizes)
        launches, point = Launches(self._device, self.plan, n, longest), self.plan.kernels(wide=False)("point")
        header = self._places[batches.HEADER]
        return Steps(
            self._device, lambda entries: self._device.launch(point, 1, [header, *entries]), launches.at(places)
        )

    def _forget(self) -> None:
        """Drop all graphs, which know addresses and kernels that are no longer right; none of them may be running."""
        self._device.synchronize()
        self._prepared.clear()

    def _located(self, low: Lowered, n: int) -> dict[str, int]:
        """The address of every place, for batches of n rows."""
        self._fixed(low)
        offsets, size = low.plan(n)
        rows = Laid.out(self._batch, n)
        start = on_border(size)
        if self._arena is None or start + rows.size > self._arena_size:
            self._forget()
            self._arena = None  # free before the larger one is taken
            self._arena = self._device.memory(start + rows.size)
            self._arena_size = start + rows.size
        base = self._arena.address
        return {**self._places, **{name: base + at for name, at in offsets.items()}, **rows.after(base + start)}

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
        given = [device.contiguous(batch[n], self._came.get(n, v.dtype.name)) for n, v in self._batch.items()]
        given += [
            device.contiguous(scalars[name.removeprefix("scalars.")], v.dtype.name) for name, v in self._scalars.items()
        ]
        prepared = self._at(n)
        self.launches = 1 if self.one_block.fits(n) else len(self.plan.launches)
        prepared([0, chosen, device.address(losses), *map(device.address, given)], steps)


class GraphFunction:
    """A pure program as a function of named arrays. Each call has memory of its own, so threads do not meet in it."""

    def __init__(self, program: Program, device: Device) -> None:
        self.program, self._device = program, device
        self.plan = Plan(program, device, in_place=False)
        if self.plan.has_kernels:
            self.plan.kernels(wide=False)  # what does not compile is known before anybody counts on it
        self._launches: dict[int, Launches] = {}
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

    def _at(self, n: int) -> Launches:
        while not self.plan.fits(n):
            self._launches.clear()
        if n not in self._launches:
            while len(self._launches) >= KEPT:
                del self._launches[next(iter(self._launches))]
            longest = max(self.plan.lowered.longest(n), *(bytes_of(v, n) for v in self.program.inputs.values()))
            self._launches[n] = Launches(self._device, self.plan, n, longest)
        return self._launches[n]
