"""Products of matrices as cuBLASLt takes them: column-major, so that every row-major matrix is its own transpose.

The maths has y = x W with rows of the batch one below the other. Read by columns, the memory of y is the transpose
y^T = W^T x^T: the operands change places and nothing has to be copied.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xbp.errors import NotCompiled
from xbp.program import Dim, Operation, Value
from xbp.program.fusion import Fused, Group
from xbp.program.shapes import Shape
from xbp.program.views import Linear, linear

from ..products import Matrix, Product
from .epilogues import BIAS_GRADIENT, MASK

__all__ = ["Multiplication", "Operand", "checked", "factors", "multiplication", "per_row", "request_of"]


@dataclass(frozen=True)
class Operand:
    """A matrix in memory, seen by columns.

    place     where its memory is
    offset    of its first entry
    ld        the leading dimension
    """

    place: str
    offset: Linear
    dtype: str
    ld: Linear
    transposed: bool


@dataclass(frozen=True)
class Multiplication:
    """One product of a program, for any batch size: D (m, n) = op(A) op(B), column-major.

    beside     the places of what the epilogue reads or writes beside the matrices: a bias, then a mask
    request    what `epilogues` calls it, for it to be declined by
    """

    m: Linear
    n: Linear
    k: Linear
    a: Operand
    b: Operand
    d: Operand
    compute: str
    epilogue: str = ""
    aux_ld: int = 0
    beside: tuple[str, ...] = ()
    request: str = ""

    def at(self, rows: int) -> Product:
        """The product for batches of so many rows."""

        def matrix(o: Operand) -> Matrix:
            return Matrix(o.dtype, o.ld.at(rows), o.transposed)

        sizes = (self.m.at(rows), self.n.at(rows), self.k.at(rows))
        return Product(*sizes, matrix(self.a), matrix(self.b), matrix(self.d), self.compute, self.epilogue, self.aux_ld)


def checked(op: Operation) -> None:
    """Raise `NotCompiled` for products that are not compiled: of stacks of matrices, of integers, of two dtypes."""
    left, right = op.operands[:2]
    if op.result.dtype.kind != "real floating" or left.dtype != right.dtype:
        raise NotCompiled(f"{op} is a product of integers or of two dtypes, which is not compiled.")
    if left.ndim > 2 or right.ndim > 2:
        raise NotCompiled(f"{op} is a product of stacks of matrices, which is not compiled.")


def factors(op: Operation) -> tuple[Shape, Shape]:
    """The shapes (n, k) and (k, m) of the two factors; a vector is a row on the left and a column on the right."""
    left, right = op.operands[:2]
    return (1, *left.shape) if left.ndim == 1 else left.shape, (*right.shape, 1) if right.ndim == 1 else right.shape


def per_row(op: Operation) -> int:
    """The multiplications of a product for each row of the batch."""
    checked(op)
    (n, k), (_, m) = factors(op)
    return math.prod(length for length in (n, k, m) if not isinstance(length, Dim))


def request_of(op: Operation) -> str:
    """What a product is declined by."""
    request: str = op.options.get("request", f"plain {op.result.name}")
    return request


def multiplication(group: Group, f: Fused, places: dict[Value, str]) -> Multiplication:
    """The product of a group, as the library is given it. Raises `NotCompiled` as `checked` does."""
    op, beside = group.operations[0], group.operations[1:]
    checked(op)
    left, right, *extra = op.operands
    rows, columns = factors(op)
    n, k, m = linear(rows[0]), linear(rows[1]), linear(columns[1])
    ld = f.layouts[op.result].strides[0] if op.result.ndim == 2 else m
    d = Operand(places[op.result], Linear(0), op.result.dtype.name, ld, False)
    compute = "float64" if left.dtype.name == "float64" else "float32"
    if left.dtype.name == "float32":
        compute = op.options.get("precision", "float32")
    vectors = [v for v in extra if v.dtype.kind == "real floating"]
    masks = [v for v in extra if v.dtype.kind == "integral"]
    vectors += [o.result for o in beside if o.function == BIAS_GRADIENT]
    masks += [o.result for o in beside if o.function == MASK]
    # Lt's A holds the right factor and its B the left one.
    return Multiplication(
        m,
        n,
        k,
        _operand(right, f, places, vector="column"),
        _operand(left, f, places, vector="row"),
        d,
        compute,
        op.options.get("epilogue", ""),
        32 * int(masks[0].shape[1]) if masks else 0,
        tuple(places[v] for v in (*vectors, *masks)),
        request_of(op),
    )


def _operand(value: Value, f: Fused, places: dict[Value, str], vector: str) -> Operand:
    layout = f.layouts[value]
    shape, strides = value.shape, layout.strides
    if value.ndim == 1:
        shape = (1, *shape) if vector == "row" else (*shape, 1)
        strides = (linear(shape[1]), *strides) if vector == "row" else (*strides, Linear(1))
    for length, stride in zip(shape, strides, strict=True):
        if stride == Linear(0) and linear(length) != Linear(1):
            raise NotCompiled(f"{value.name} repeats its entries, which no product takes.")
    place, dtype = places[layout.root], value.dtype.name
    one = Linear(1)
    if strides[1] == one or linear(shape[1]) == one:  # rows lie one after the other: by columns, the transpose
        ld = strides[0] if linear(shape[0]) != one else linear(shape[1])
        return Operand(place, layout.offset, dtype, ld, False)
    if strides[0] == one or linear(shape[0]) == one:
        ld = strides[1] if linear(shape[1]) != one else linear(shape[0])
        return Operand(place, layout.offset, dtype, ld, True)
    raise NotCompiled(f"{value.name} has gaps between its entries both ways, which no product takes.")
