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

from xbp.errors import NotCompiled
from xbp.program import Dim, Program, Value
from xbp.program.fusion import REDUCTIONS, Fused, Group, fused, space
from xbp.program.memory import Lifetime, arena_plan
from xbp.program.views import Linear, contiguous, size_of

from .copies import Copy
from .loops import Loop
from .matrices import product
from .places import ZERO, leaves
from .products import Emitter
from .threads import barrier
from .tiles import Registers
from .writer import Counted, Writer

__all__ = ["BYTES", "Block", "Module"]

BYTES = {"bool": 1, "int32": 4, "int64": 8, "float32": 4, "float64": 8}
SHARED = 30_000  # multiplications a row from which on threads share the work
SIGNATURE = "ptr %table, i64 %n, i64 %steps, i64 %tid, i64 %nt"
GEMM = {"float": "sgemm", "double": "dgemm"}


@dataclass
class Block:
    """A place in the arena: how large, and from which group to which it is taken.

    each    whether every thread has one of its own
    """

    size: Linear  # bytes
    first: int
    last: int
    each: bool = False


@dataclass
class Module:
    """The text of a program's functions, and which place in memory is which entry of the table.

    integer    the type of the BLAS' integers, "" where there is none to be called
    tile       the shape of a tile on this processor
    in_place   whether new values take the places of old ones; a pure function leaves its inputs alone
    blocks     places in the arena, by name
    late       inputs whose new value waits in a block until the end, because the old one is still read
    """

    program: Program
    integer: str
    tile: Registers
    in_place: bool = True
    text: str = ""
    table: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    late: dict[str, str] = field(default_factory=dict)
    layouts: Fused = field(init=False)

    def __post_init__(self) -> None:
        self.layouts = fused(self.program)
        self._declarations: set[str] = set()
        self._tiles: dict[str, str] = {}
        self.parallel = self._work() >= SHARED
        self._slots = self._assign()
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

    def plan(self, n: int, threads: int) -> tuple[dict[str, int], int]:
        """(offset of each block, size of the arena) in bytes for batches of n rows."""
        names = list(self.blocks)
        lifetimes = [Lifetime(b.size.at(n) * (threads if b.each else 1), b.first, b.last) for b in self.blocks.values()]
        offsets, size = arena_plan(lifetimes)
        return dict(zip(names, offsets, strict=True)), size

    # --- memory ---------------------------------------------------------------------------------------------------

    def _assign(self) -> dict[Value, str]:
        """The place of every stored value."""
        f, program = self.layouts, self.program
        slots = {value: name for name, value in program.inputs.items()}
        last = self._last_reads()
        end = len(f.groups)
        for name, value in program.outputs.items():
            root = f.layouts[value].root
            if name not in program.inputs or not self.in_place:
                last[root] = end
            elif root is value and root not in slots and self._in_place(name, root, last):
                slots[root] = name
        for root in f.stored:
            if root not in slots:
                slots[root] = root.name
                self._block(root.name, root, f.home[root], max(last.get(root, 0), f.home[root]))
        for name in program.updates if self.in_place else ():
            root = f.layouts[program.outputs[name]].root
            if slots[root] != name:
                if root is not program.outputs[name] or root.name not in self.blocks:
                    raise NotCompiled(f"The new value of {name} is a view of another value, which is not compiled.")
                self.late[name] = root.name
                self.blocks[root.name].last = end
        return slots

    def _block(self, name: str, value: Value, first: int, last: int) -> None:
        size = size_of(value.shape)
        assert size is not None  # the fusion has made sure
        width = BYTES[value.dtype.name]
        self.blocks[name] = Block(Linear(size.constant * width, size.per_row * width), first, last)

    def _last_reads(self) -> dict[Value, int]:
        """The last group that reads each value from memory."""
        f, last = self.layouts, {}
        for number, group in enumerate(f.groups):
            for op in group.operations:
                for root in self._roots([f.layouts[v].root for v in op.operands]):
                    last[root] = number
        return last

    def _roots(self, roots: list[Value]) -> list[Value]:
        f, found = self.layouts, []
        for root in roots:
            if root in f.inlined:
                inner = [f.layouts[v].root for v in f.makers[root].operands]
                found += self._roots(inner)
            found.append(root)
        return found

    def _in_place(self, name: str, new: Value, last: dict[Value, int]) -> bool:
        """Whether a new value may be written where the old one lies: nobody reads the old one later.

        Within the group, every reader has to read the entry that it is about to make.
        """
        f, old = self.layouts, self.program.inputs[name]
        home = f.home[new]
        group = f.groups[home]
        if last.get(old, -1) > home or group.kind != "loop":
            return False
        plain = contiguous(space(new.shape))
        for op in group.operations:
            if op.function in REDUCTIONS:
                return False
            for a in leaves(f, op):
                if a.root is not old:
                    continue
                aligned = plain is not None and a.offset == ZERO
                aligned = aligned and a.row in (plain[0], ZERO) and a.column in (plain[1], ZERO)  # type: ignore[index]
                if not aligned or space(op.result.shape) != space(new.shape):
                    return False
        return True

    # --- functions ------------------------------------------------------------------------------------------------

    def _emit(self, group: Group, name: str, number: int) -> tuple[str, list[str]]:
        """The text of a group's function, and the places that it is given."""
        f, slots = self.layouts, self._slots
        if group.kind == "loop":
            loop = Loop(f, group, slots, self._declarations, self.parallel)
            for value, place in loop.extra.items():
                self._block(place, value, number, number)
            return loop.text(name), loop.arguments
        (op,) = group.operations
        if group.kind == "product":
            p = product(op, f)
            roots = [f.layouts[v].root for v in op.operands]
            places = [slots[root] for root in (*roots, op.result)]
            emitter = Emitter(p, self.integer, self.tile, self._declarations, self._tiles, self.parallel)
            self.blocks[f"copy {name}"] = Block(emitter.scratch, number, number)
            self.blocks[f"own {name}"] = Block(emitter.own_scratch, number, number, each=True)
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
        if self.late:
            with self._first_thread(w):
                for name, block in self.late.items():
                    size = self.blocks[block].size
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
                    self._copy(w, target, self._place(w, self.where("loss")), str(width))
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

    def where(self, name: str) -> str:
        """The place in memory of an output."""
        return self._slots[self.layouts.layouts[self.program.outputs[name]].root]
