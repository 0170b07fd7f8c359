"""A program as one module of machine code: its groups one after the other, on memory that is planned beforehand.

    step(table, n, steps, tid, nt)    every group once; `table` holds the address of each place in memory
    run(table, n, steps, tid, nt)     steps in a row: rows gathered by index, scalars of the step, the losses kept

The batch size is an argument, so a partial last batch runs the same code; only the places move with it. Where the work
is worth it, nt threads call the same function, each with its number, and wait for one another after every group.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from xbp.program import Dim, Program, Value
from xbp.program.fusion import Fused, Group, fused
from xbp.program.places import BYTES, Block, Places
from xbp.program.views import size_of

from .copies import Copy
from .loops import Loop
from .matrices import product
from .products import Emitter
from .threads import barrier
from .tiles import Registers
from .writer import Counted, Writer

__all__ = ["Module"]

SHARED = 30_000  # multiplications a row from which on threads share the work
SIGNATURE = "ptr %table, i64 %n, i64 %steps, i64 %tid, i64 %nt"
GEMM = {"float": "sgemm", "double": "dgemm"}


@dataclass
class Module:
    """The text of a program's functions, and which place in memory is which entry of the table.

    integer    the type of the BLAS' integers, "" where there is none to be called
    tile       the shape of a tile on this processor
    in_place   whether new values take the places of old ones; a pure function leaves its inputs alone
    places     where in memory each value lies
    """

    program: Program
    integer: str
    tile: Registers
    in_place: bool = True
    text: str = ""
    table: dict[str, int] = field(default_factory=dict)
    layouts: Fused = field(init=False)
    places: Places = field(init=False)

    def __post_init__(self) -> None:
        self.layouts = fused(self.program)
        self._declarations: set[str] = set()
        self._tiles: dict[str, str] = {}
        self.parallel = self._work() >= SHARED
        self.places = Places(self.layouts, self.in_place)
        calls, functions = [], []
        for number, group in enumerate(self.layouts.groups):
            name = f"g{number}"
            text, arguments = self._emit(group, name, number)
            functions.append(text)
            calls.append((name, arguments))
        functions += [self._step(calls), self._run()]
        functions += [*self._tiles.values(), *([barrier(self._declarations)] if self.parallel else [])]
        self.text = "\n".join([*functions, *sorted(self._declarations)]) + "\n"

    def _work(self) -> int:
        """Multiplications a row of the batch: of each product the rows, columns and length, but for the batch's."""
        products = [group.operations[0] for group in self.layouts.groups if group.kind == "product"]
        sizes = [(*op.operands[0].shape, op.operands[1].shape[-1]) for op in products]
        return sum(math.prod(n for n in size if not isinstance(n, Dim)) for size in sizes)

    def place(self, name: str) -> int:
        """The entry of the table for a place in memory."""
        return self.table.setdefault(name, len(self.table))

    # --- functions ------------------------------------------------------------------------------------------------

    def _emit(self, group: Group, name: str, number: int) -> tuple[str, list[str]]:
        """The text of a group's function, and the places that it is given."""
        f, slots = self.layouts, self.places.of
        if group.kind == "loop":
            loop = Loop(f, group, slots, self._declarations, self.parallel)
            for value, place in loop.extra.items():
                self.places.add(place, value, number)
            for place, size in loop.parts.items():
                self.places.blocks[place] = Block(size, number, number)
            return loop.text(name), loop.arguments
        (op,) = group.operations
        if group.kind == "product":
            p = product(op, f)
            roots = [f.layouts[v].root for v in op.operands]
            places = [slots[root] for root in (*roots, op.result)]
            emitter = Emitter(p, self.integer, self.tile, self._declarations, self._tiles, self.parallel)
            self.places.blocks[f"copy {name}"] = Block(emitter.scratch, number, number)
            self.places.blocks[f"own {name}"] = Block(emitter.own_scratch, number, number, each=True)
            return emitter.text(name), [*places, f"copy {name}", f"own {name}", GEMM[p.t]]
        copy = Copy(op, f, self._declarations, self.parallel)
        return copy.text(name), [slots[root] for root in (*copy.roots, op.result)]

    def _step(self, calls: list[tuple[str, list[str]]]) -> str:
        w = Writer(self._declarations)
        w.start("entry")
        for name, places in calls:
            pointers = ", ".join(f"ptr {self._place(w, p)}" for p in places)
            w.do(f"call void @{name}({pointers}{', ' if pointers else ''}i64 %n, i64 %tid, i64 %nt)")
            self._wait(w)
        if self.places.late:
            with self._first_thread(w):
                for name, block in self.places.late.items():
                    size = self.places.blocks[block].size
                    self._copy(w, self._place(w, name), self._place(w, block), w.linear(size))
            self._wait(w)
        w.do("ret void")
        return f"define void @step({SIGNATURE}) nounwind {{\n" + "\n".join(w.lines) + "\n}\n"

    def _wait(self, w: Writer) -> None:
        """Until all threads have come here."""
        if self.parallel:
            w.do(f"call void @barrier(ptr {self._place(w, 'sync')}, ptr {self._place(w, 'yield')}, i64 %tid, i64 %nt)")

    @contextmanager
    def _first_thread(self, w: Writer) -> Iterator[None]:
        """What follows is done by one thread."""
        if not self.parallel:
            yield
            return
        here, after = w.fresh_label(), w.fresh_label()
        w.do(f"br i1 {w.new('icmp eq i64 %tid, 0')}, label %{here}, label %{after}")
        w.start(here)
        yield
        w.do(f"br label %{after}")
        w.start(after)

    def _place(self, w: Writer, name: str) -> str:
        """The address in the table's entry for a place."""
        return w.new(f"load ptr, ptr {w.new(f'getelementptr ptr, ptr %table, i64 {self.place(name)}')}")

    def _copy(self, w: Writer, target: str, source: str, size: str) -> None:
        w.declare("declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)")
        w.do(f"call void @llvm.memcpy.p0.p0.i64(ptr {target}, ptr {source}, i64 {size}, i1 false)")

    def _run(self) -> str:
        """Steps in a row. The table has, for a place p of the batch or a scalar, the source of all steps as "all p"."""
        w = Writer(self._declarations)
        w.start("entry")
        index = self._place(w, "index")
        with Counted(w, "%steps") as k:
            first = w.new(f"mul i64 {k.index}, %n")
            start, stop = w.share("%n", 1) if self.parallel else ("0", "%n")
            for name, value in self.program.inputs.items():
                if name.split(".")[0] in ("x", "t", "w"):
                    self._gather(w, name, value, index, first, (start, stop))
            with self._first_thread(w):
                for name, value in self.program.inputs.items():
                    if name.startswith("scalars."):
                        width = BYTES[value.dtype.name]
                        source = self._byte(w, self._place(w, f"all {name}"), k.index, width)
                        self._copy(w, self._place(w, name), source, str(width))
            self._wait(w)
            w.do("call void @step(ptr %table, i64 %n, i64 1, i64 %tid, i64 %nt)")
            loss = self.program.outputs.get("loss")
            if loss is not None:
                with self._first_thread(w):
                    width = BYTES[loss.dtype.name]
                    target = self._byte(w, self._place(w, "losses"), k.index, width)
                    self._copy(w, target, self._place(w, self.places.where("loss")), str(width))
        w.do("ret void")
        return f"define void @run({SIGNATURE}) nounwind {{\n" + "\n".join(w.lines) + "\n}\n"

    def _gather(self, w: Writer, name: str, value: Value, index: str, first: str, rows: tuple[str, str]) -> None:
        """The rows of a batch, chosen by the index from the rows of all."""
        size = size_of(value.shape[1:])
        assert size is not None  # a row has no N
        width = size.constant * BYTES[value.dtype.name]
        source, target = self._place(w, f"all {name}"), self._place(w, name)
        with Counted(w, rows[1], rows[0], may_be_empty=self.parallel) as i:
            at = w.new(f"getelementptr i32, ptr {index}, i64 {w.new(f'add i64 {first}, {i.index}')}")
            row = w.new(f"sext i32 {w.new(f'load i32, ptr {at}')} to i64")
            self._copy(w, self._byte(w, target, i.index, width), self._byte(w, source, row, width), str(width))

    def _byte(self, w: Writer, pointer: str, index: str, width: int) -> str:
        return w.new(f"getelementptr i8, ptr {pointer}, i64 {w.new(f'mul i64 {index}, {width}')}")
