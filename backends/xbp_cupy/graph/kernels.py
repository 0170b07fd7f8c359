"""Ways of walking over a group: entry by entry, or line by line where reductions along the lines are wanted.

A line, a row or a column, belongs to a team of threads. The team walks along it as often as its reductions demand: a
softmax walks three times, for its maximum, for the sum, and for what uses both. What an earlier walk computed is
computed again, from memory that is near by then; so nothing has to wait in registers, however long the line.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from xbp.errors import NotCompiled
from xbp.program import Dim, Operation, Value
from xbp.program.fusion import REDUCTIONS, Fused, Group, leaves, space
from xbp.program.places import BYTES
from xbp.program.shapes import same
from xbp.program.views import Linear, linear, times

from .bodies import MOST_BLOCKS, ONE, THREADS, ZERO, Body, index, joined, term
from .expressions import MEMORY, REGISTER
from .grouping import across, direction

__all__ = ["EntryBody", "LineBody", "body"]

RULES = {"sum": "Sum", "mean": "Sum", "max": "Max", "min": "Min", "all": "All", "argmax": "First"}
WIDEST = 16  # bytes that a thread reads at once, of the widest array
REGISTERS = 384  # bytes that all packs of a thread may take
LONG = 1024  # entries from which on a whole block walks along one row


def body(fused: Fused, group: Group, places: dict[Value, str], name: str) -> Body:
    """The body for a group of loops."""
    for op in group.operations:
        if op.function == "argmax" and (across(op) or direction(op) == "column"):
            raise NotCompiled(f"{op} does not go along rows, which is all that is compiled of argmax.")
    lines = {direction(op) for op in group.operations if op.function in REDUCTIONS and _walked(op)} - {""}
    if lines:
        return LineBody(fused, group, places, name, lines.pop())
    return EntryBody(fused, group, places, name)


def _walked(op: Operation) -> bool:
    """Whether a reduction along a line has more than one entry to look at."""
    rows, columns = space(op.operands[0].shape)
    return not same(rows if direction(op) == "column" else columns, 1)


def _count(value: Value) -> Linear:
    rows, columns = map(linear, space(value.shape))
    product = times(rows, columns)
    assert product is not None  # the fusion has made sure
    return product


class _Reducing(Body):
    """A body with reductions over everything: each thread has a running value, the last block the result."""

    def _totals(self) -> list[Operation]:
        return [op for op in self.group.operations if op.function in REDUCTIONS and across(op)]

    def _running(self, op: Operation) -> str:
        return f"total{self.group.operations.index(op)}"

    def _type(self, op: Operation) -> str:
        dtype = op.operands[0].dtype if op.function in ("argmax", "all") else op.result.dtype
        return REGISTER[dtype.name]

    def _rule(self, op: Operation) -> str:
        return f"{RULES[op.function]}<{self._type(op)}>"

    def _entry(self, op: Operation) -> str:
        """What one entry gives to a reduction."""
        if op.function == "argmax":
            value = self._read(self.fused.access(op.operands[0], op.operands[0].shape))
            return f"Best<{self._type(op)}>{{{value}, {self._j if direction(op) == 'row' else self._i}}}"
        return self._operand(op, 0, op.operands[0].dtype if op.function == "all" else op.result.dtype)

    def _finish(self, op: Operation) -> None:
        """Combine the running values of all threads and blocks, and store the result."""
        t, running = self._type(op), self._running(op)
        number = self.group.operations.index(op)
        partial = self._private(f"partial results {number}", 8 * MOST_BLOCKS, MEMORY[op.result.dtype.name])
        arrived = self._private(f"arrivals {number}", 4, "unsigned", zeroed=True)
        complete = f"over_all<{self._rule(op)}>({running}, block, blocks, ({t} *){partial}, {arrived})"
        self._do(f"if ({complete} && threadIdx.x == 0) {{")
        result = f"{running} / ({t}){term(_count(op.operands[0]))}" if op.function == "mean" else running
        pointer = self._pointer(self.places[op.result], MEMORY[op.result.dtype.name], written=True)
        self._do(f"store({pointer}, ({REGISTER[op.result.dtype.name]})({result}));")
        self._do("}")


class EntryBody(_Reducing):
    """Entries one by one, by all threads; several at a time where they lie side by side in every operand."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._plain = self._is_plain()
        self._width = self._widest()

    def blocks(self, n: int) -> int:
        entries = linear(self.group.rows).at(n) * linear(self.group.columns).at(n)
        return max(1, min(MOST_BLOCKS, -(-entries // (THREADS * self._width))))

    def text(self) -> str:
        totals = self._totals()
        loads, entry, stores = self._walk()
        self._lines = []
        for op in totals:
            self._finish(op)
        finish = self._lines
        # The text for a pack and for a single entry is the same.
        inner = [*loads, "#pragma unroll", "for (int u = 0; u < V; ++u) {", *("    " + x for x in entry), "}", *stores]
        at = "const index_t e" if self._plain else "const index_t i, const index_t j0"
        references = [f"{self._type(op)} &{self._running(op)}" for op in totals]
        head = ", ".join([at, "const index_t n", *self.parameters(), *references])
        one = f"template <int V> DEVICE void {self.name}_at({head}) {{\n{joined(inner, 1)}\n}}\n"
        lines = [f"{self._type(op)} {self._running(op)} = {self._rule(op)}::empty();" for op in totals]
        return one + self._function([*lines, *self._every_entry(), *finish])

    def _every_entry(self) -> list[str]:
        """The loops of a thread over its entries."""
        rows, columns = term(linear(self.group.rows)), term(linear(self.group.columns))
        width, call = self._width, ", ".join(["n", *self.arguments.values(), *map(self._running, self._totals())])
        lines = [
            f"const index_t entries = (index_t){rows} * {columns};",
            "const index_t first = (index_t)block * THREADS + threadIdx.x, step = (index_t)blocks * THREADS;",
        ]
        walk = f"for (index_t e = first * {width}; e + {width} <= entries; e += step * {width})"
        if not self._plain:
            return [*lines, f"{walk} {self.name}_at<{width}>(e / {columns}, e % {columns}, {call});"]
        lines.append(f"{walk} {self.name}_at<{width}>(e, {call});")
        if width > 1:
            rest = f"for (index_t e = entries / {width} * {width} + first; e < entries; e += step)"
            lines.append(f"{rest} {self.name}_at<1>(e, {call});")
        return lines

    # --- how wide ---------------------------------------------------------------------------------------------------

    def _accesses(self) -> Iterator[tuple[Value, Linear, Linear, Linear]]:
        for op in self.group.operations:
            for a in leaves(self.fused, op):
                if a.root not in self._made:
                    yield a.root, a.offset, a.row, a.column
        for value in self._stored():
            if not (self._made[value].function in REDUCTIONS and across(self._made[value])):
                yield value, ZERO, *self._steps(value)

    def _whole(self, value: Value) -> bool:
        rows, columns = self._space(value)
        return same(rows, self.group.rows) and same(columns, self.group.columns)

    def _is_plain(self) -> bool:
        """Whether every array is read from end to end, or is a number: then rows and columns are one long row."""
        if any(not self._whole(v) for v in self._made if not self._total(v)) or self._counts():
            return False
        columns = linear(self.group.columns)
        single = same(self.group.columns, 1)
        for _, offset, row, column in self._accesses():
            ends = offset == ZERO and (row == columns or same(self.group.rows, 1)) and (column == ONE or single)
            if not ends and (row, column) != (ZERO, ZERO):
                return False
        return True

    def _total(self, value: Value) -> bool:
        op = self._made[value]
        return op.function in REDUCTIONS and across(op)

    def _counts(self) -> bool:
        """Whether something inlined depends on the row or column, or is smaller than the loop."""
        seen: set[Value] = set()

        def visit(value: Value) -> bool:
            root = self.fused.layouts[value].root
            if root not in self.fused.inlined or root in seen:
                return False
            seen.add(root)
            op = self.fused.makers[root]
            if op.function == "arange":
                return True
            return op.function != "full" and (not self._whole(root) or any(visit(v) for v in op.operands))

        return any(visit(v) for op in self.group.operations for v in op.operands)

    def _widest(self) -> int:
        """How many entries a thread takes at once."""
        found = list(self._accesses())
        if not found or (same(self.group.rows, 1) and same(self.group.columns, 1)):
            return 1
        sizes = {v: BYTES[v.dtype.name] for v, *_ in found if v.dtype.name != "bool"}
        width = WIDEST // max(sizes.values(), default=4)
        while width > 1 and width * sum(max(4, size) for size in sizes.values()) > REGISTERS:
            width //= 2
        if self._plain:
            return width
        columns = self.group.columns
        while width > 1 and not (not isinstance(columns, Dim) and columns % width == 0):
            width //= 2
        for _, offset, row, column in found:
            if column == ZERO:
                continue
            aligned = column == ONE and not (offset.constant % width or offset.per_row % width)
            if not aligned or row.constant % width or row.per_row % width:
                return 1
        return width

    # --- the walk ---------------------------------------------------------------------------------------------------

    def _walk(self) -> tuple[list[str], list[str], list[str]]:
        """(loads of packs, what is done for each entry, stores of packs)."""
        self._loads: list[str] = [] if self._plain else ["(void)i; (void)j0;"]
        entry: list[str] = [] if self._plain else ["const index_t j = j0 + u; (void)j;"]
        stores: list[str] = []
        self._lines = entry
        for op in self._totals():
            update = f"{self._running(op)} = {self._rule(op)}::both({self._running(op)}, {self._entry(op)});"
            narrow = same(space(op.operands[0].shape)[1], 1) and not same(self.group.columns, 1)
            self._do(f"if (j == 0) {update}" if narrow else update)
        for value in self._stored():
            if self._total(value):
                continue
            if not self._whole(value):
                self._keep(value)
                continue
            pointer = self._pointer(self.places[value], MEMORY[value.dtype.name], written=True)
            name = f"out{len(stores)}"
            self._loads.append(f"Pack<{MEMORY[value.dtype.name]}, V> {name};")
            self._do(f"store(&{name}.at[u], {self.value(value)});")
            at = "e" if self._plain else index(ZERO, ("i", self._steps(value)[0]), ("j0", ONE))
            stores.append(f"store_pack<V>(&{pointer}[{at}], {name});")
        return self._loads, entry, stores

    def _load(self, root: Value, offset: Linear, row: Linear, column: Linear) -> str:
        """Packs are read before the entries are looked at, and so is what is the same for all of a pack."""
        t, pointer = MEMORY[root.dtype.name], self._pointer(self.places[root], MEMORY[root.dtype.name])
        name = f"in{len(self._loads)}"
        if (row, column) == (ZERO, ZERO) or (column == ZERO and not self._plain):
            at = index(offset, ("i", row))
            self._loads.append(f"const {REGISTER[root.dtype.name]} {name} = loaded({pointer}[{at}]);")
            return name
        at = "e" if self._plain else index(offset, ("i", row), ("j0", column))
        if column != ONE and not self._plain:  # entries that do not lie side by side: width is 1
            at = index(offset, ("i", row), ("j0", column))
        self._loads.append(f"const Pack<{t}, V> {name} = load_pack<V>(&{pointer}[{at}]);")
        return self._new(REGISTER[root.dtype.name], f"loaded({name}.at[u])")


class LineBody(_Reducing):
    """Lines, each by a team: rows by neighbouring threads, columns by those that stand one below the other."""

    def __init__(self, fused: Fused, group: Group, places: dict[Value, str], name: str, along: str) -> None:
        super().__init__(fused, group, places, name)
        self._rowwise = along == "row"
        self._line, self._at = ("i", "j") if self._rowwise else ("j", "i")
        lines, entries = (group.rows, group.columns) if self._rowwise else (group.columns, group.rows)
        self._lines_of, self._entries = linear(lines), linear(entries)
        if self._rowwise:
            length = self._entries.constant if not self._entries.per_row else LONG + 1
            whole_block = length > LONG or (length > 32 and same(lines, 1))
            self._size = THREADS if whole_block else min(32, _power_of_two(length))
        else:
            self._size = THREADS // min(32, _power_of_two(self._lines_of.constant or 32))
        self._levels = self._found_levels()

    @property
    def walks(self) -> str:
        return "rows" if self._rowwise else "columns"

    def blocks(self, n: int) -> int:
        return max(1, min(MOST_BLOCKS, -(-self._lines_of.at(n) // (THREADS // self._size))))

    # --- levels: the walk in which a value of every entry can be made, or after which a value of the line is there ----

    def _wide(self, value: Value) -> bool:
        """Whether there is a value for every entry of a line, and not one for the whole line."""
        rows, columns = self._space(value)
        return not same(columns if self._rowwise else rows, 1)

    def _found_levels(self) -> dict[Value, int]:
        levels: dict[Value, int] = {}
        for op in self.group.operations:
            wide = self._wide(op.operands[0] if op.function in REDUCTIONS else op.result)
            level = 0 if wide else -1
            for a in leaves(self.fused, op):
                if a.root in levels:
                    level = max(level, levels[a.root] + (wide and not self._wide(a.root)))
            levels[op.result] = level
        return levels

    # --- the function ---------------------------------------------------------------------------------------------

    def text(self) -> str:
        self._lines = []
        totals = self._totals()
        teams = THREADS // self._size
        for op in totals:
            self._do(f"{self._type(op)} {self._running(op)} = {self._rule(op)}::empty();")
        who = ("/ {0}", "% {0}") if self._rowwise else ("% {1}", "/ {1}")
        line, lane = (w.format(self._size, teams) for w in who)
        self._do(f"const int team = threadIdx.x {line}, lane = threadIdx.x {lane};")
        lines = term(self._lines_of)
        step = f"first += (index_t)blocks * {teams}"
        self._do(f"for (index_t first = (index_t)block * {teams}; first < {lines}; {step}) {{")
        self._do(f"const bool live = first + team < {lines};")
        self._do(f"const index_t {self._line} = live ? first + team : 0; (void){self._line};")
        # Teams without a line go along with the first one, so that everybody meets at the barriers.
        self._known = [{}]
        self._line_values(-1)
        for level in range(1 + max(self._levels.values())):
            self._walk(level)
            self._line_values(level)
        self._do("}")
        for op in totals:
            self._finish(op)
        lines_of_text, self._lines = self._lines, []
        return self._function(lines_of_text)

    @contextmanager
    def _walking(self) -> Iterator[None]:
        self._do(f"for (index_t {self._at} = lane; {self._at} < {term(self._entries)}; {self._at} += {self._size}) {{")
        self._known.append({})
        yield
        self._known.pop()
        self._do("}")

    def _walk(self, level: int) -> None:
        """Along the line once: everything of that level that is reduced or stored."""
        reductions: list[Operation] = []
        totals: list[Operation] = []
        stores: list[Value] = []
        for op in self.group.operations:
            if self._levels[op.result] != level:
                continue
            if op.function not in REDUCTIONS:
                if self._wide(op.result) and op.result in self.places:
                    stores.append(op.result)
            elif self._wide(op.operands[0]):
                (totals if across(op) else reductions).append(op)
        if not (reductions or totals or stores):
            return
        for op in reductions:
            best = op.function == "argmax"
            t = f"Best<{self._type(op)}>" if best else self._type(op)
            self._do(f"{t} {self._running(op)} = {self._rule(op)}::empty();")
        with self._walking():
            for op in reductions + totals:
                update = f"{self._running(op)} = {self._rule(op)}::both({self._running(op)}, {self._entry(op)});"
                self._do(update if op in reductions else f"if (live) {update}")
            for value in stores:
                self._keep(value, "live")
        for op in reductions:
            self._complete(op)

    def _complete(self, op: Operation) -> None:
        """The reduction of the line, which every thread of the team gets."""
        running, rule = self._running(op), self._rule(op)
        teams = THREADS // self._size
        over = f"along_row<{rule}, {self._size}>" if self._rowwise else f"down_column<{rule}, {teams}>"
        self._do(f"{running} = {over}({running});")
        t = REGISTER[op.result.dtype.name]
        result = f"{running}.index" if op.function == "argmax" else running
        if op.function == "mean":
            result = f"{running} / ({t}){term(self._entries)}"
        self._names += 1
        self._do(f"const {t} v{self._names} = ({t})({result});")
        self._known[0][op.result] = f"v{self._names}"

    def _line_values(self, level: int) -> None:
        """What there is one of for the line, as soon as it can be computed."""
        for op in self.group.operations:
            if self._levels[op.result] != level:
                continue
            reduced = op.function in REDUCTIONS
            if reduced and across(op):
                if not self._wide(op.operands[0]):
                    update = f"{self._rule(op)}::both({self._running(op)}, {self._entry(op)})"
                    self._do(f"if (live && lane == 0) {self._running(op)} = {update};")
                continue
            if self._wide(op.result):
                continue
            self.value(op.result)  # here, and not once more for each entry
            if op.result in self.places:
                self._keep(op.result, "live && lane == 0")

    def _keep(self, value: Value, guard: str = "") -> None:
        if self._wide(value) or not self._rowwise:
            super()._keep(value, guard)
            return
        pointer = self._pointer(self.places[value], MEMORY[value.dtype.name], written=True)
        at = "i" if not same(self._space(value)[0], 1) else "0"
        self._do(f"if ({guard}) store(&{pointer}[{at}], {self.value(value)});")


def _power_of_two(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
