"""Tiles: a few rows of a product in vector registers, and squares that are transposed in them."""

from __future__ import annotations

from typing import NamedTuple

from .writer import Counted, Writer

__all__ = ["Registers", "registers", "tile", "turn"]


class Registers(NamedTuple):
    """The shape of a tile: its rows, and the bytes and number of the vectors in each of them."""

    rows: int
    bytes: int
    vectors: int


def registers(features: str) -> Registers:
    """The tile that fills the vector registers of a processor with these features."""
    if "+avx512f" in features:
        return Registers(4, 64, 4)  # 16 of 32 registers hold sums
    if "+avx" in features:
        return Registers(4, 32, 3)  # 12 of 16
    return Registers(4, 16, 4)  # 16 of 32, as on ARM


def tile(name: str, rows: int, width: int, lanes: int, stride: int, t: str, declarations: set[str]) -> str:
    """c (rows, width) = a (rows, k) b (k, width), with all of c in registers; rows of c are `stride` apart.

    Where %fresh is false, the product is added to what is in c.
    """
    w = Writer(declarations)
    size = 4 if t == "float" else 8
    parts = [(at, min(lanes, width - at)) for at in range(0, width, lanes)]
    w.start("entry")
    with Counted(w, "%k") as k:
        sums = [[k.carried(f"<{n} x {t}>", "zeroinitializer") for _, n in parts] for _ in range(rows)]
        x = w.new(f"getelementptr {t}, ptr %a, i64 {w.new(f'mul i64 {k.index}, %column')}")
        y = w.new(f"getelementptr {t}, ptr %b, i64 {w.new(f'mul i64 {k.index}, %row_b')}")
        vectors = []
        for at, n in parts:
            place = w.new(f"getelementptr {t}, ptr {y}, i64 {at}")
            vectors.append(w.new(f"load <{n} x {t}>, ptr {place}, align {size}"))
        totals = []
        for r in range(rows):
            place = w.new(f"getelementptr {t}, ptr {x}, i64 {w.new(f'mul i64 %row, {r}')}")
            entry = w.new(f"load {t}, ptr {place}")
            for (_, n), vector, total in zip(parts, vectors, sums[r], strict=True):
                v = f"<{n} x {t}>"
                first = w.new(f"insertelement {v} poison, {t} {entry}, i64 0")
                splat = w.new(f"shufflevector {v} {first}, {v} poison, <{n} x i32> zeroinitializer")
                totals.append(w.call("llvm.fma", v, splat, vector, total))
        for total in totals:
            k.carry(total)
    for i, total in enumerate(totals):
        r, (at, n) = i // len(parts), parts[i % len(parts)]
        v, place = f"<{n} x {t}>", w.new(f"getelementptr {t}, ptr %c, i64 {r * stride + at}")
        old = w.new(f"load {v}, ptr {place}, align {size}")
        more = w.new(f"fadd {v} {old}, {total}")
        w.do(f"store {v} {w.new(f'select i1 %fresh, {v} {total}, {v} {more}')}, ptr {place}, align {size}")
    w.do("ret void")
    head = f"define internal void @{name}(ptr noalias readonly %a, i64 %row, i64 %column, ptr noalias readonly %b, "
    return head + "i64 %row_b, ptr noalias %c, i64 %k, i1 %fresh) noinline nounwind {\n" + "\n".join(w.lines) + "\n}\n"


def turn(name: str, width: int, lanes: int, t: str, declarations: set[str]) -> str:
    """The transpose (k, width) of a matrix (width, k) whose rows are `row` apart, in squares that fit the registers."""
    w = Writer(declarations)
    size = 4 if t == "float" else 8
    w.start("entry")
    whole = w.new(f"sdiv i64 %k, {lanes}")
    squares = width // lanes
    v = f"<{lanes} x {t}>"
    if squares:
        with Counted(w, whole, may_be_empty=True) as block:
            k = w.new(f"mul i64 {block.index}, {lanes}")
            for square in range(squares):
                rows = []
                for i in range(lanes):
                    at = w.new(f"add i64 {w.new(f'mul i64 %row, {square * lanes + i}')}, {k}")
                    rows.append(w.new(f"load {v}, ptr {w.new(f'getelementptr {t}, ptr %b, i64 {at}')}, align {size}"))
                rows = _exchanged(w, rows, v)
                for i, register in enumerate(rows):
                    plus = w.new(f"add i64 {k}, {i}")
                    at = w.new(f"add i64 {w.new(f'mul i64 {plus}, {width}')}, {square * lanes}")
                    w.do(f"store {v} {register}, ptr {w.new(f'getelementptr {t}, ptr %c, i64 {at}')}, align {size}")
    done = w.new(f"mul i64 {whole}, {lanes}") if squares else "0"
    for low, columns in (("0", (squares * lanes, width)), (done, (0, squares * lanes))):
        if columns[0] < columns[1]:
            with Counted(w, "%k", low, may_be_empty=True) as k_, Counted(w, str(columns[1]), str(columns[0])) as j:
                source = w.new(f"add i64 {w.new(f'mul i64 {j.index}, %row')}, {k_.index}")
                entry = w.new(f"load {t}, ptr {w.new(f'getelementptr {t}, ptr %b, i64 {source}')}")
                at = w.new(f"add i64 {w.new(f'mul i64 {k_.index}, {width}')}, {j.index}")
                w.do(f"store {t} {entry}, ptr {w.new(f'getelementptr {t}, ptr %c, i64 {at}')}")
    w.do("ret void")
    head = f"define internal void @{name}(ptr noalias readonly %b, i64 %row, ptr noalias %c, i64 %k) "
    return head + "noinline nounwind {\n" + "\n".join(w.lines) + "\n}\n"


def _exchanged(w: Writer, rows: list[str], v: str) -> list[str]:
    """The transpose of a square in registers: bit by bit, the number of the row and that of the lane change places."""
    lanes, bit = len(rows), 1
    while bit < lanes:
        new = list(rows)
        for i in range(lanes):
            if i & bit:
                continue
            a, b = rows[i], rows[i | bit]
            for place, low in ((i, True), (i | bit, False)):
                picked = []
                for lane in range(lanes):
                    high = bool(lane & bit)
                    if low:
                        picked.append(lane if not high else lanes + (lane ^ bit))
                    else:
                        picked.append(lanes + lane if high else lane ^ bit)
                mask = ", ".join(f"i32 {x}" for x in picked)
                new[place] = w.new(f"shufflevector {v} {a}, {v} {b}, <{lanes} x i32> <{mask}>")
        rows = new
        bit *= 2
    return rows
