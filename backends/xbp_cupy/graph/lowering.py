"""A program as launches: which kernels and products run, in which order, on which places in memory.

Nothing here needs a device. What comes out is one text of CUDA C++ with a kernel for each launch, the products between
them, and the plan of the memory; all of it for any batch size, which is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from xbp.program import Program
from xbp.program.fusion import REDUCTIONS, Group, fused, leaves
from xbp.program.places import Places
from xbp.program.views import linear

from .batches import HEADER, Written
from .bodies import Body, Scratch, joined
from .copies import CopyBody
from .dots import ProductBody
from .epilogues import with_epilogues
from .grouping import KernelGrouping, across, launches
from .kernels import body
from .products import Multiplication, multiplication, per_row, request_of

__all__ = ["ALIGNMENT", "MOST_POINTERS", "ONE_BLOCK", "Launch", "Lowered", "in_one_block", "kernel", "source"]

ALIGNMENT = 256  # bytes: what CUDA's own allocations have, and more than the widest load needs
ONE_BLOCK = "steps_in_one_block"
LARGE = 2**21  # multiplications a row from which on a product fills the device
MOST_POINTERS = 480  # of one kernel: its parameters may take 4 KB
MAKERS: dict[str, Callable[..., Body]] = {"loop": body, "product": ProductBody, "other": CopyBody}
PRELUDE = Path(__file__).with_name("prelude.cuh")


@dataclass(frozen=True)
class Launch:
    """One kernel, of bodies side by side; or one product.

    name         of the kernel; "" for a product
    places       what the kernel's pointers point to, in order
    functions    the texts of the bodies
    text         that of the kernel which calls them
    aside        whether others go on beside it, until one that
    joins        waits for all that went aside
    """

    name: str = ""
    bodies: tuple[Body | Written, ...] = ()
    places: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    text: str = ""
    product: Multiplication | None = None
    aside: bool = False
    joins: bool = False


@dataclass
class Lowered:
    """A program, ready to be compiled.

    in_place    whether new values take the places of old ones
    declined    products and epilogues that the library does not have
    by_library  whether products are the library's; else they are kernels like everything else
    launches    in order
    places      where in memory each value lies
    zeroed      scratch memory, in bytes by place, that is zero before the first launch
    """

    program: Program
    in_place: bool = True
    declined: frozenset[str] = frozenset()
    by_library: bool = True
    launches: list[Launch] = field(default_factory=list, init=False)
    places: Places = field(init=False)
    zeroed: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        program = with_epilogues(self.program, self.declined) if self.by_library else self.program
        self.fused = fused(program, KernelGrouping)
        order = [part for launch in launches(self.fused) for part in self._parted(launch)]
        moments = {number: moment for moment, launch in enumerate(order) for number in launch}
        numbers = range(len(self.fused.groups))
        self._aside = self._going_aside(order, moments)
        until = [self._aside.get(k, moments[k] + 1) - 1 for k in numbers]
        self.places = Places(self.fused, self.in_place, [moments[k] for k in numbers], until)
        self._moments = moments
        self.launches = [self._launch(numbers, moment) for moment, numbers in enumerate(order)]

    def __str__(self) -> str:
        return "\n".join(text for moment in range(len(self.launches)) for text in self._lines(moment))

    def _lines(self, moment: int) -> list[str]:
        """A launch to read: the product, or each body with what it makes and stores."""
        groups = [self.fused.groups[number] for number, when in self._moments.items() if when == moment]
        if self.launches[moment].product is not None:
            return [f"product  {op}" for op in groups[0].operations]
        lines = []
        for group, b in zip(groups, self.launches[moment].bodies, strict=True):
            made = [op.result for op in group.operations if op.result in self.fused.stored]
            space = f"{group.rows} x {group.columns}"
            lines.append(f"{b.walks:8} {space}: {', '.join(map(str, made))} in {len(group.operations)} operations")
        return [f"kernel   {self.launches[moment].name}", *(f"  {line}" for line in lines)]

    def plan(self, n: int) -> tuple[dict[str, int], int]:
        """(offset of each block, size of the arena) in bytes for batches of n rows."""
        return self.places.plan(n, alignment=ALIGNMENT)

    def longest(self, n: int) -> int:
        """The largest number that an index may have to count to."""
        sizes = [b.size.at(n) for b in self.places.blocks.values()]
        return max([*sizes, *(_walked(group, n) for group in self.fused.groups)], default=0)

    def entries(self, n: int) -> int:
        """How many entries all loops walk over."""
        return sum(_walked(group, n) for group in self.fused.groups)

    def ready(self, output: str) -> bool:
        """Whether an output has been made when the last launch begins, which is one of kernels."""
        last = len(self.launches) - 1
        home = self.fused.home.get(self.fused.layouts[self.program.outputs[output]].root)
        return last >= 0 and self.launches[last].product is None and (home is None or self._moments[home] < last)

    def _going_aside(self, order: list[list[int]], moments: dict[int, int]) -> dict[int, int]:
        """The products whose result is wanted only later, and when: the gradients of weights, on which no other
        product waits. Not in a program with products that fill the device by themselves: it would take memory for
        nothing.
        """
        f = self.fused
        products = [group.operations[0] for group in f.groups if group.kind == "product"]
        if not self.by_library or any(per_row(op) > LARGE for op in products):
            return {}
        wanted: dict[int, int] = {}  # by group, the first moment that somebody reads of it
        for moment, numbers in enumerate(order):
            for number in numbers:
                for op in f.groups[number].operations:
                    for root in {f.layouts[v].root for v in op.operands}:
                        home = f.home.get(root, number)
                        if home != number:
                            wanted.setdefault(home, moment)
        aside = {}
        for number, join in wanted.items():
            product = f.groups[number].kind == "product" and self._in_library(number)
            if product and join > moments[number] + 1:
                aside[number] = join
        return aside

    def _in_library(self, number: int) -> bool:
        return request_of(self.fused.groups[number].operations[0]) not in self.declined

    def _parted(self, numbers: list[int]) -> list[list[int]]:
        """A launch as several, where its kernels have more operands than one may have parameters."""
        parts: list[list[int]] = [[]]
        count = 0
        for number in numbers:
            size = self._pointers(self.fused.groups[number])
            if parts[-1] and count + size > MOST_POINTERS:
                parts.append([])
                count = 0
            parts[-1].append(number)
            count += size
        return parts

    def _pointers(self, group: Group) -> int:
        """How many places in memory a group knows, counting two for each reduction over everything."""
        if group.kind != "loop":
            return sum(1 + len(op.operands) for op in group.operations)
        made = {op.result for op in group.operations}
        read = {a.root for op in group.operations for a in leaves(self.fused, op)} - made
        totals = sum(op.function in REDUCTIONS and across(op) for op in group.operations)
        return len(read) + len(made & self.fused.stored.keys()) + 2 * totals

    def _launch(self, numbers: list[int], moment: int) -> Launch:
        groups = [self.fused.groups[number] for number in numbers]
        joins = moment in self._aside.values()
        request = request_of(groups[0].operations[0]) if groups[0].kind == "product" else ""
        if request and self.by_library and self._in_library(numbers[0]):
            product = multiplication(groups[0], self.fused, self.places.of)
            return Launch(product=product, aside=numbers[0] in self._aside, joins=joins)
        bodies: list[Body] = []
        for number, group in zip(numbers, groups, strict=True):
            make = MAKERS[group.kind]
            bodies.append(make(self.fused, group, self.places.of, f"g{number}"))
        launch = replace(kernel(f"launch{moment}", bodies), joins=joins)
        for scratch in [s for b in bodies for s in b.scratch]:
            self._reserve(scratch, moment)
        return launch

    def _reserve(self, scratch: Scratch, moment: int) -> None:
        if scratch.zeroed:
            self.zeroed[scratch.place] = scratch.bytes
        else:
            self.places.reserve(scratch.place, scratch.bytes, moment)


def _walked(group: Group, n: int) -> int:
    return linear(group.rows).at(n) * linear(group.columns).at(n)


def in_one_block(launches: Sequence[Launch], entries: int) -> Launch:
    """All launches, one after the other, as one kernel of a single block, which takes many steps.

    No launch is waited for, only barriers; what one thread writes the others see after the next. The entries of the
    header and all addresses come in one struct, in that order: passing arguments one by one takes the host longer than
    the device needs for a step.
    """
    names = {HEADER: "a0"}
    types = {HEADER: "long long"}
    lines = ["if (threadIdx.x == 0) {", *(f"given.a0[{k}] = given.v{k};" for k in range(entries)), "}"]
    lines += ["__syncthreads();", "for (int k = 0; k < steps; ++k) {"]
    for launch in launches:
        for b in launch.bodies:
            for place, declared in zip(b.arguments, b.parameters(), strict=True):
                names.setdefault(place, f"a{len(names)}")
                types[place] = declared.removeprefix("const ").rpartition(" *")[0]
            pointers = [f"given.{names[place]}" for place in b.arguments]
            lines.append(f"{b.name}({', '.join(['0', '1', 'n', *pointers])});")
        lines.append("__syncthreads();")
    lines.append("}")
    # Neither const nor restrict: what is read here has been written here.
    members = [f"long long v{k};" for k in range(entries)]
    members += [f"{types[place]} *{name};" for place, name in names.items()]
    head = "const index_t n, const int steps, const Given given"
    whole = f'extern "C" __global__ void __launch_bounds__(THREADS, 1) {ONE_BLOCK}({head}) {{\n{joined(lines, 1)}\n}}\n'
    functions = [text for launch in launches for text in launch.functions]
    bodies = tuple(b for launch in launches for b in launch.bodies)
    struct = f"struct Given {{\n{joined(members, 1)}\n}};\n"
    return Launch(ONE_BLOCK, bodies, tuple(names), (*functions, struct), whole)


def kernel(name: str, bodies: Sequence[Body | Written], before: Launch | None = None) -> Launch:
    """The launch of bodies side by side, each on its own range of blocks; beside those of another launch."""
    functions = [*(before.functions if before else ()), *(b.text() for b in bodies)]
    bodies = [*(before.bodies if before else ()), *bodies]
    parameters: dict[str, tuple[str, str]] = {}
    for b in bodies:
        for (place, _), declared in zip(b.arguments.items(), b.parameters(), strict=True):
            t = declared.removeprefix("const ").rpartition(" *")[0]
            written = not declared.startswith("const ") or parameters.get(place, ("", "const "))[1] == ""
            parameters[place] = (t, "" if written else "const ")
    names = {place: f"a{k}" for k, place in enumerate(parameters)}
    head = ["const index_t n", *(f"const int blocks{k}" for k in range(len(bodies)))]
    head += [f"{const}{t} *__restrict__ {names[place]}" for place, (t, const) in parameters.items()]
    lines = ["int block = blockIdx.x;"]
    for k, b in enumerate(bodies):
        call = ", ".join(["block", f"blocks{k}", "n", *(names[place] for place in b.arguments)])
        lines.append(f"if (block < blocks{k}) {{ {b.name}({call}); return; }}")
        lines.append(f"block -= blocks{k};")
    text = "\n".join("    " + line for line in lines[:-1])
    whole = f'extern "C" __global__ void __launch_bounds__(THREADS, 2) {name}({", ".join(head)}) {{\n{text}\n}}\n'
    return Launch(name, tuple(bodies), tuple(parameters), tuple(functions), whole)


def source(launches: Sequence[Launch], more: str = "", *, wide: bool = False) -> str:
    """The whole text of some launches. `wide`: indices have 64 bits, for arrays of more than 2^31 bytes."""
    texts = [text for launch in launches for text in (*launch.functions, launch.text)]
    head = f"typedef {'long long' if wide else 'int'} index_t;\n{PRELUDE.read_text()}"
    return "\n".join([head, *texts, more])
