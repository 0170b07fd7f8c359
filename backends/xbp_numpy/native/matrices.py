"""What a product of matrices is made of: where its operands lie, and how large they are."""

from __future__ import annotations

from dataclasses import dataclass

from xbp.errors import NotCompiled
from xbp.program import Operation
from xbp.program.fusion import Fused
from xbp.program.views import Linear, linear

from .scalars import REGISTER

__all__ = ["Matrix", "Product", "product"]


@dataclass(frozen=True)
class Matrix:
    """An operand: where it begins in its memory, and its strides along rows and columns."""

    offset: Linear
    row: Linear
    column: Linear


@dataclass(frozen=True)
class Product:
    """c (m, n) = a (m, k) b (k, n), c being contiguous."""

    a: Matrix
    b: Matrix
    m: Linear
    k: Linear
    n: Linear
    t: str  # "float" or "double"


def product(op: Operation, fused: Fused) -> Product:
    """The product of an operation. Raises `NotCompiled` for stacks of matrices, and for integers."""
    left, right = op.operands
    if left.dtype != op.result.dtype or right.dtype != op.result.dtype or op.result.dtype.kind != "real floating":
        raise NotCompiled(f"{op} is a product of integers or of two dtypes, which is not compiled.")
    if left.ndim > 2 or right.ndim > 2:
        raise NotCompiled(f"{op} is a product of stacks of matrices, which is not compiled.")
    zero = Linear(0)
    a, b = fused.layouts[left], fused.layouts[right]
    rows = (zero, *a.strides) if left.ndim == 1 else a.strides
    columns = (*b.strides, zero) if right.ndim == 1 else b.strides
    shape_a = (1, *left.shape) if left.ndim == 1 else left.shape
    shape_b = (*right.shape, 1) if right.ndim == 1 else right.shape
    return Product(
        Matrix(a.offset, *rows),
        Matrix(b.offset, *columns),
        linear(shape_a[0]),
        linear(shape_a[1]),
        linear(shape_b[1]),
        REGISTER[op.result.dtype.name],
    )
