"""Products of matrices, made for their sizes.

The widths of a network are known when its code is made, so a product is a loop over tiles of just the right width: a
few rows of c stay in vector registers while k runs. Nothing is packed unless a stride would make cache lines collide.
Each thread takes whole tiles, and every entry is summed in one order, so the number of threads changes no bit.
NumPy's BLAS is left for products whose width is the batch's.
"""

from __future__ import annotations

from xbp.errors import NotCompiled
from xbp.program.views import Linear, constant, scaled

from .matrices import Matrix, Product
from .tiles import Registers, tile, turn
from .writer import Counted, Writer

__all__ = ["Emitter"]

LONGEST = 64  # entries of a row that a small product keeps in registers
SMALL = 20_000  # multiplications up to which a product is done row by row
BLOCK = 64  # rows of a that are copied side by side
STRETCH = 256  # entries along k that are summed in one go
COLLIDING = 4096  # bytes: rows that far apart, or a multiple of it, fall into the same sets of the caches

ROW_MAJOR, PLAIN, TRANSPOSED = 101, 111, 112


class Emitter:
    """Writes the function of a product: pointers to a, b, c and a transposed copy of b, the BLAS, and the batch size.

    parallel    whether the function takes its share of the work by `tid` and `nt`, or does all of it
    """

    def __init__(
        self, p: Product, integer: str, tile: Registers, declarations: set[str], tiles: dict[str, str], parallel: bool
    ) -> None:
        self._p, self._integer, self._tile, self._tiles, self._parallel = p, integer, tile, tiles, parallel
        self._w = Writer(declarations)
        self._declarations = declarations
        self._size = 4 if p.t == "float" else 8
        self.tiled = not p.n.per_row and (constant(p.b.column, 1) or constant(p.b.row, 1))
        self._turned = self.tiled and not constant(p.b.column, 1) and not constant(p.n, 1)
        wide = (p.b.row.constant * self._size) % COLLIDING == 0 or p.b.row.per_row
        self._packed = self.tiled and not self._turned and bool(wide) and p.n.constant > 1
        far = constant(p.a.row, 1) and (p.a.column.constant * self._size) % COLLIDING == 0
        self._gathered = self.tiled and far and not p.m.per_row and p.n.constant > 2 * BLOCK

    @property
    def _by_columns(self) -> bool:
        """Whether threads share the panels of columns, rather than the rows: where that is fair."""
        lanes = self._tile.bytes // self._size
        vectors = -(-self._p.n.constant // lanes)
        halves = vectors % (2 * self._tile.vectors) == 0  # as many whole panels for each of two
        return self._parallel and (halves or vectors >= 8 * self._tile.vectors)

    @property
    def scratch(self) -> Linear:
        """Bytes of a copy of b that threads share, each filling the panels that it reads; 0 where there is none."""
        copied = (self._turned or self._packed) and self._by_columns
        return scaled(self._p.k, self._p.n.constant * self._size) if copied else Linear(0)

    @property
    def own_scratch(self) -> Linear:
        """Bytes of the copies of which every thread has its own: of b where all read all of it, and of a."""
        columns = self._p.n.constant if (self._turned or self._packed) and not self._by_columns else 0
        rows = self._blocks * BLOCK if self._gathered else 0
        return scaled(self._p.k, (columns + rows) * self._size)

    @property
    def _blocks(self) -> int:
        return -(-self._p.m.constant // BLOCK)

    def text(self, name: str) -> str:
        w, p = self._w, self._p
        w.start("entry")
        a, b = (self._begin(f"%{x}", m.offset) for x, m in (("a", p.a), ("b", p.b)))
        m, k, n = (self._w.linear(x) for x in (p.m, p.k, p.n))
        small = self._small()
        if small:
            work = w.new(f"mul i64 {w.new(f'mul i64 {m}, {k}')}, {n}")
            few = w.new(f"icmp sle i64 {work}, {SMALL}")
            here, there = w.fresh_label(), w.fresh_label()
            w.do(f"br i1 {few}, label %{here}, label %{there}")
            w.start(here)
            self._first_thread_only()
            (self._by_rows if small == "rows" else self._by_dots)(a, b, m, k)
            w.do("ret void")
            w.start(there)
        if self.tiled:
            self._by_tiles(a, b, m, k)
        elif self._integer:
            self._first_thread_only()
            self._by_blas(a, b, m, k, n)
        else:
            raise NotCompiled("A product as wide as the batch needs NumPy's BLAS, which this build of NumPy hides.")
        w.do("ret void")
        head = f"define internal void @{name}(ptr noalias readonly %a, ptr noalias readonly %b, ptr noalias %c"
        tail = ", ptr noalias %copy, ptr noalias %own, ptr %gemm, i64 %n, i64 %tid, i64 %nt) noinline nounwind {\n"
        return head + tail + "\n".join(w.lines) + "\n}\n"

    def _begin(self, pointer: str, offset: Linear) -> str:
        if offset == Linear(0):
            return pointer
        return self._w.new(f"getelementptr {self._p.t}, ptr {pointer}, i64 {self._w.linear(offset)}")

    def _first_thread_only(self) -> None:
        if self._parallel:
            self._w.leave_unless(self._w.new("icmp eq i64 %tid, 0"))

    # --- tiles ----------------------------------------------------------------------------------------------------

    def _by_tiles(self, a: str, b: str, m: str, k: str) -> None:
        """Panels of columns, as wide as the registers hold; within each, tiles of a few rows."""
        w, p = self._w, self._p
        width = self._tile.bytes // self._size * self._tile.vectors
        panels, rest = divmod(p.n.constant, width)
        count, by_columns = panels + (rest > 0), self._by_columns
        first, last = ("0", m)
        if self._parallel and not by_columns:
            first, last = w.share(m, self._tile.rows)
            w.leave_unless(w.new(f"icmp slt i64 {first}, {last}"))
        start, stop = w.share(str(count), 1) if by_columns else ("0", str(count))
        full_stop = stop
        if rest and by_columns:
            fewer = w.new(f"icmp slt i64 {stop}, {panels}")
            full_stop = w.new(f"select i1 {fewer}, i64 {stop}, i64 {panels}")
        elif rest:
            full_stop = str(panels)
        if self._gathered:
            a = self._gather(a, k)
        if panels:
            self._panels(a, b, k, (start, full_stop), width, width, (first, last))
        if rest:
            after = None
            if by_columns:
                mine = w.new(f"icmp eq i64 {stop}, {count}")
                here, after = w.fresh_label(), w.fresh_label()
                w.do(f"br i1 {mine}, label %{here}, label %{after}")
                w.start(here)
            self._panels(a, b, k, (str(panels), str(count)), width, rest, (first, last))
            if after:
                w.do(f"br label %{after}")
                w.start(after)

    def _gather(self, a: str, k: str) -> str:
        """A copy of a for this thread, in blocks of columns: as it lies, its cache lines would push each other out."""
        w, p, t = self._w, self._p, self._p.t
        columns = p.n.constant if (self._turned or self._packed) and not self._by_columns else 0
        copy = w.new(f"getelementptr {t}, ptr {self._own(k)}, i64 {w.new(f'mul i64 {k}, {columns}')}")
        whole, rest = divmod(p.m.constant, BLOCK)
        for low, high, width in ((0, whole, BLOCK), (whole, self._blocks, rest)):
            if low == high:
                continue
            with Counted(w, str(high), str(low)) as block, Counted(w, k) as row:
                at = w.new(f"mul i64 {block.index}, {BLOCK}")
                source = self._entry(w.new(f"getelementptr {t}, ptr {a}, i64 {at}"), row.index, p.a.column)
                target = w.new(f"add i64 {w.new(f'mul i64 {at}, {k}')}, {w.new(f'mul i64 {row.index}, {BLOCK}')}")
                entries = w.new(f"load <{width} x {t}>, ptr {source}, align {self._size}")
                place = w.new(f"getelementptr {t}, ptr {copy}, i64 {target}")
                w.do(f"store <{width} x {t}> {entries}, ptr {place}, align {self._size}")
        return copy

    def _panels(
        self, a: str, b: str, k: str, panels: tuple[str, str], step: int, width: int, rows: tuple[str, str]
    ) -> None:
        w, p, t = self._w, self._p, self._p.t
        with Counted(w, panels[1], panels[0], may_be_empty=self._parallel) as panel:
            column = w.new(f"mul i64 {panel.index}, {step}")
            target = w.new(f"getelementptr {t}, ptr %c, i64 {column}")
            if self._turned or self._packed:
                source = w.new(
                    f"getelementptr {t}, ptr {b}, i64 {w.new(f'mul i64 {column}, {self._w.linear(p.b.column)}')}"
                )
                at = w.new(f"mul i64 {column}, {k}")
                copies = "%copy" if self._by_columns else self._own(k)
                panel_of = w.new(f"getelementptr {t}, ptr {copies}, i64 {at}")
                self._copy(source, panel_of, k, width)
                source, stride = panel_of, str(width)
            else:
                source, stride = w.new(f"getelementptr {t}, ptr {b}, i64 {column}"), self._w.linear(p.b.row)
            # A stretch of k has a sum of its own: short sums round less, and what the tiles read stays in the cache.
            with Counted(w, k, step=STRETCH) as part:
                left = w.new(f"sub i64 {k}, {part.index}")
                short = w.new(f"icmp slt i64 {left}, {STRETCH}")
                length = w.new(f"select i1 {short}, i64 {left}, i64 {STRETCH}")
                fresh = w.new(f"icmp eq i64 {part.index}, 0")
                across = Linear(BLOCK) if self._gathered else p.a.column
                there = self._entry(a, part.index, across)
                along = w.new(f"getelementptr {t}, ptr {source}, i64 {w.new(f'mul i64 {part.index}, {stride}')}")
                self._tiles_of(there, along, stride, target, (length, fresh), width, rows, k)

    def _tiles_of(
        self,
        a: str,
        b: str,
        stride: str,
        c: str,
        stretch: tuple[str, str],
        width: int,
        rows: tuple[str, str],
        k: str,
    ) -> None:
        """All rows of a panel, for a stretch of k; fresh says whether it is the first."""
        w, p, (first, last) = self._w, self._p, rows
        whole = w.new(f"sdiv i64 {w.new(f'sub i64 {last}, {first}')}, {self._tile.rows}")
        many = w.new(f"add i64 {first}, {w.new(f'mul i64 {whole}, {self._tile.rows}')}")
        across = str(BLOCK) if self._gathered else self._w.linear(p.a.column)
        strides = f"i64 {self._w.linear(p.a.row)}, i64 {across}"
        for count, (low, high) in ((self._tile.rows, (first, many)), (1, (many, last))):
            name = self._tile_function(count, width)
            with Counted(w, high, low, step=count, may_be_empty=True) as i:
                x, y = self._row_of(a, i.index, k), self._entry(c, i.index, p.n)
                end = f"ptr {b}, i64 {stride}, ptr {y}, i64 {stretch[0]}, i1 {stretch[1]}"
                w.do(f"call void @{name}(ptr {x}, {strides}, {end})")

    def _own(self, k: str) -> str:
        """This thread's part of the scratch memory of which each has its own."""
        w = self._w
        if not self._parallel:
            return "%own"
        entries = self._w.linear(self.own_scratch)
        return w.new(f"getelementptr i8, ptr %own, i64 {w.new(f'mul i64 %tid, {entries}')}")

    def _row_of(self, a: str, i: str, k: str) -> str:
        """Where row i of a begins; in the copy, a block of rows lies after the other."""
        w = self._w
        if not self._gathered:
            return self._entry(a, i, self._p.a.row)
        within = w.new(f"and i64 {i}, {BLOCK - 1}")
        before = w.new(f"mul i64 {w.new(f'sub i64 {i}, {within}')}, {k}")
        return w.new(f"getelementptr {self._p.t}, ptr {a}, i64 {w.new(f'add i64 {before}, {within}')}")

    def _copy(self, source: str, target: str, k: str, width: int) -> None:
        """A panel of b, row after row without gaps; turned if b lies the other way round."""
        w, p, t = self._w, self._p, self._p.t
        if self._turned:
            name = f"turn_{width}_{t}"
            self._tiles.setdefault(name, turn(name, width, self._tile.bytes // self._size, t, self._declarations))
            w.do(f"call void @{name}(ptr {source}, i64 {self._w.linear(p.b.column)}, ptr {target}, i64 {k})")
            return
        with Counted(w, k) as row:
            v = f"<{width} x {t}>"
            entries = w.new(f"load {v}, ptr {self._entry(source, row.index, p.b.row)}, align {self._size}")
            place = w.new(f"getelementptr {t}, ptr {target}, i64 {w.new(f'mul i64 {row.index}, {width}')}")
            w.do(f"store {v} {entries}, ptr {place}, align {self._size}")

    def _tile_function(self, rows: int, width: int) -> str:
        name = f"tile_{rows}_{width}_{self._p.n.constant}_{self._p.t}"
        if name not in self._tiles:
            lanes = self._tile.bytes // self._size
            self._tiles[name] = tile(name, rows, width, lanes, self._p.n.constant, self._p.t, self._declarations)
        return name

    # --- BLAS -----------------------------------------------------------------------------------------------------

    def _by_blas(self, a: str, b: str, m: str, k: str, n: str) -> None:
        w, p, i = self._w, self._p, self._integer
        one, zero = "1.0", "0.0"
        operands = []
        for matrix, pointer, (rows, columns) in ((p.a, a, (p.m, p.k)), (p.b, b, (p.k, p.n))):
            flag, leading = self._orientation(matrix, rows, columns)
            operands.append((flag, pointer, self._int(self._w.linear(leading))))
        (fa, pa, la), (fb, pb, lb) = operands
        types = f"i32, i32, i32, {i}, {i}, {i}, {p.t}, ptr, {i}, ptr, {i}, {p.t}, ptr, {i}"
        sizes = ", ".join(f"{i} {self._int(x)}" for x in (m, n, k))
        w.do(
            f"call void ({types}) %gemm(i32 {ROW_MAJOR}, i32 {fa}, i32 {fb}, {sizes}, {p.t} {one}, ptr {pa}, {i} {la}, "
            f"ptr {pb}, {i} {lb}, {p.t} {zero}, ptr %c, {i} {self._int(n)})"
        )

    def _int(self, register: str) -> str:
        return (
            register
            if self._integer == "i64" or not register.startswith("%")
            else self._w.new(f"trunc i64 {register} to i32")
        )

    def _orientation(self, matrix: Matrix, rows: Linear, columns: Linear) -> tuple[int, Linear]:
        """(flag, leading dimension) of an operand for BLAS."""
        if constant(matrix.column, 1) or constant(columns, 1):
            return PLAIN, matrix.row if not constant(rows, 1) and matrix.row != Linear(0) else columns
        if constant(matrix.row, 1) or constant(rows, 1):
            return TRANSPOSED, matrix.column if not constant(columns, 1) and matrix.column != Linear(0) else rows
        raise NotCompiled("A product of a matrix with gaps between its entries is not compiled.")

    # --- in registers ---------------------------------------------------------------------------------------------

    def _small(self) -> str:
        """How a small product would be done: "rows" of c at a time, "dots" of rows, or "" for not at all."""
        p = self._p
        if constant(p.b.column, 1) and _short(p.n):
            return "rows"
        if constant(p.b.row, 1) and constant(p.a.column, 1) and _short(p.k):
            return "dots"
        return ""

    def _entry(self, base: str, index: str, stride: Linear) -> str:
        w = self._w
        at = w.new(f"mul i64 {index}, {w.linear(stride)}")
        return w.new(f"getelementptr {self._p.t}, ptr {base}, i64 {at}")

    def _splat(self, register: str, v: str, length: int) -> str:
        w, t = self._w, self._p.t
        first = w.new(f"insertelement {v} poison, {t} {register}, i64 0")
        return w.new(f"shufflevector {v} {first}, {v} poison, <{length} x i32> zeroinitializer")

    def _by_rows(self, a: str, b: str, m: str, k: str) -> None:
        """Row i of c is the sum over l of a[i, l] times row l of b."""
        w, p = self._w, self._p
        length = p.n.constant
        v, size = f"<{length} x {p.t}>", 4 if p.t == "float" else 8
        with Counted(w, m) as i:
            row = self._entry(a, i.index, p.a.row)
            with Counted(w, k) as inner:
                total = inner.carried(v, "zeroinitializer")
                x = w.new(f"load {p.t}, ptr {self._entry(row, inner.index, p.a.column)}")
                y = w.new(f"load {v}, ptr {self._entry(b, inner.index, p.b.row)}, align {size}")
                fused = w.call("llvm.fma", v, self._splat(x, v, length), y, total)
                inner.carry(fused)
            w.do(f"store {v} {fused}, ptr {self._entry('%c', i.index, p.n)}, align {size}")

    def _by_dots(self, a: str, b: str, m: str, k: str) -> None:
        """Entry (i, j) of c is the dot product of row i of a and row j of b's transpose."""
        w, p = self._w, self._p
        length = p.k.constant
        v, size = f"<{length} x {p.t}>", 4 if p.t == "float" else 8
        short = "f32" if p.t == "float" else "f64"
        reduce = f"@llvm.vector.reduce.fadd.v{length}{short}"
        w.declare(f"declare {p.t} {reduce}({p.t}, {v})")
        with Counted(w, m) as i:
            x = w.new(f"load {v}, ptr {self._entry(a, i.index, p.a.row)}, align {size}")
            with Counted(w, w.linear(p.n)) as j:
                y = w.new(f"load {v}, ptr {self._entry(b, j.index, p.b.column)}, align {size}")
                dot = w.new(f"call reassoc {p.t} {reduce}({p.t} 0.0, {v} {w.new(f'fmul {v} {x}, {y}')})")
                at = w.new(f"add i64 {w.new(f'mul i64 {i.index}, {self._w.linear(p.n)}')}, {j.index}")
                w.do(f"store {p.t} {dot}, ptr {w.new(f'getelementptr {p.t}, ptr %c, i64 {at}')}")


def _short(length: Linear) -> bool:
    return not length.per_row and 1 < length.constant <= LONGEST
