"""The first and the last kernel of a step: rows and numbers of the step come in, its loss goes out.

A captured graph is fixed, addresses and all. So what changes from call to call stands in a small header in the device's
memory: the number of the step, where its rows are chosen from and by which index, and where losses go. The first kernel
of every step reads it and copies the step's rows into their place; the last one counts the step. No host takes part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from xbp.program import Value
from xbp.program.places import BYTES
from xbp.program.views import Linear, size_of

from .bodies import MOST_BLOCKS, THREADS, term
from .expressions import MEMORY, REGISTER

__all__ = ["FIXED", "HEADER", "Written", "begin", "end", "late", "point"]

HEADER = "header"  # the place of it
FIXED = 3  # its first entries: the number of the step, the index of rows (or 0: all in order), and the losses
WORDS = {1: "unsigned char", 2: "unsigned short", 4: "int", 8: "long long"}


@dataclass
class Written:
    """A device function that comes from no group: what a launch needs to know of one."""

    name: str
    arguments: dict[str, str]
    declared: list[str]
    work: Linear  # entries, one a thread
    code: str
    scratch: Sequence[object] = field(default_factory=list)

    @property
    def walks(self) -> str:
        return "entries"

    def blocks(self, n: int) -> int:
        return max(1, min(MOST_BLOCKS, -(-self.work.at(n) // THREADS)))

    def parameters(self) -> list[str]:
        return self.declared

    def text(self) -> str:
        head = ", ".join(["const int block, const int blocks, const index_t n", *self.declared])
        return f"static __device__ void {self.name}({head}) {{\n{self.code}\n}}\n"


def begin(batch: Mapping[str, Value], came: Mapping[str, str], scalars: Mapping[str, Value]) -> list[Written]:
    """One body for each input of the batch, and one for all scalars. Their sources follow in the header, in order.

    came    the dtypes of inputs that come in another one, and are narrowed on the way
    """
    bodies = [
        _narrowed_rows(name, v, FIXED + k, came[name]) if name in came else _rows(name, v, FIXED + k)
        for k, (name, v) in enumerate(batch.items())
    ]
    if not scalars:
        return bodies
    lines = ["    (void)blocks; (void)n;", "    if (block != 0 || threadIdx.x != 0) return;"]
    declared = [f"const long long *__restrict__ {HEADER}"]
    arguments = {HEADER: HEADER}
    for k, (name, v) in enumerate(scalars.items()):
        t, p = MEMORY[v.dtype.name], f"p{k}"
        arguments[name] = p
        declared.append(f"{t} *__restrict__ {p}")
        lines.append(f"    *{p} = (({t} const *){HEADER}[{FIXED + len(batch) + k}])[{HEADER}[0]];")
    return [*bodies, Written("scalars", arguments, declared, Linear(1), "\n".join(lines))]


def _rows(name: str, value: Value, slot: int) -> Written:
    """The rows of the step, by 16 bytes where they are a multiple of that."""
    width = size_of(value.shape[1:])
    assert width is not None  # a row has no N
    size = width.constant * BYTES[value.dtype.name]
    word = "Pack<int, 4>" if size % 16 == 0 else WORDS[BYTES[value.dtype.name]]
    words = size // 16 if size % 16 == 0 else width.constant
    code = f"""    const int *const chosen = (const int *){HEADER}[1];
    const {word} *const from = (const {word} *){HEADER}[{slot}];
    {word} *const to = ({word} *)p0;
    const index_t first = (index_t)block * THREADS + threadIdx.x, step = (index_t)blocks * THREADS;
    for (index_t e = first; e < n * {words}; e += step) {{
        const index_t i = e / {words}, j = e % {words};
        const long long row = chosen ? (long long)chosen[{HEADER}[0] * n + i] : (long long)i;
        to[e] = from[row * {words} + j];
    }}"""
    return _into_place(name, value, slot, words, code)


def _narrowed_rows(name: str, value: Value, slot: int, came: str) -> Written:
    """The rows of the step, each entry in the dtype that the step has it in; four at a time where that fits."""
    width = size_of(value.shape[1:])
    assert width is not None  # as above
    pack = 4 if width.constant % 4 == 0 else 1
    words, source, target = width.constant // pack, MEMORY[came], MEMORY[value.dtype.name]
    code = f"""    const int *const chosen = (const int *){HEADER}[1];
    const {source} *const from = (const {source} *){HEADER}[{slot}];
    const index_t first = (index_t)block * THREADS + threadIdx.x, step = (index_t)blocks * THREADS;
    for (index_t e = first; e < n * {words}; e += step) {{
        const index_t i = e / {words}, j = e % {words};
        const long long row = chosen ? (long long)chosen[{HEADER}[0] * n + i] : (long long)i;
        const Pack<{source}, {pack}> in = load_pack<{pack}>(&from[(row * {words} + j) * {pack}]);
        Pack<{target}, {pack}> out;
        for (int u = 0; u < {pack}; ++u) store(&out.at[u], ({REGISTER[value.dtype.name]})loaded(in.at[u]));
        store_pack<{pack}>(&p0[e * {pack}], out);
    }}"""
    return _into_place(name, value, slot, words, code)


def _into_place(name: str, value: Value, slot: int, words: int, code: str) -> Written:
    declared = [f"const long long *__restrict__ {HEADER}", f"{MEMORY[value.dtype.name]} *__restrict__ p0"]
    function = "rows_" + "".join(c if c.isalnum() else "_" for c in name) + f"_{slot}"
    return Written(function, {HEADER: HEADER, name: "p0"}, declared, Linear(0, words), code)


def late(moves: Mapping[str, str], values: Mapping[str, Value]) -> list[Written]:
    """New values that waited in a block go where the old ones were."""
    bodies = []
    for k, (name, block) in enumerate(moves.items()):
        t, size = MEMORY[values[name].dtype.name], size_of(values[name].shape)
        assert size is not None  # parameters have no N
        code = f"""    const index_t step = (index_t)blocks * THREADS; (void)n;
    for (index_t e = (index_t)block * THREADS + threadIdx.x; e < {term(size)}; e += step) p1[e] = p0[e];"""
        declared = [f"const {t} *__restrict__ p0", f"{t} *__restrict__ p1"]
        bodies.append(Written(f"late{k}", {block: "p0", name: "p1"}, declared, size, code))
    return bodies


def end(loss: str, dtype: str) -> Written:
    """The loss goes to its place among the losses, and the step is counted."""
    t = MEMORY[dtype]
    code = f"""    (void)blocks; (void)n;
    if (block != 0 || threadIdx.x != 0) return;
    (({t} *){HEADER}[2])[{HEADER}[0]] = *p0;
    {HEADER}[0] += 1;"""
    declared = [f"long long *__restrict__ {HEADER}", f"const {t} *__restrict__ p0"]
    return Written("count", {HEADER: HEADER, loss: "p0"}, declared, Linear(1), code)


def point(entries: int) -> str:
    """The kernel that writes the header, from its arguments: no copy from the host is needed."""
    names = [f"v{k}" for k in range(entries)]
    head = ", ".join([f"long long *{HEADER}", *(f"const long long {v}" for v in names)])
    lines = "\n".join(f"    {HEADER}[{k}] = {v};" for k, v in enumerate(names))
    return f'extern "C" __global__ void point({head}) {{\n    if (threadIdx.x != 0) return;\n{lines}\n}}\n'
