"""What a matrix product of cuBLASLt is asked to be: sizes, layouts, precision, and what happens to the result.

A description only, checked when it is made, so that programs can be planned where there is neither library nor device.
cuBLASLt sees matrices column by column: a row-major array (N, M) is its (M, N), and Y = X W is its Y^T = W^T X^T.
"""

from __future__ import annotations

from dataclasses import dataclass

from xbp.errors import DTypeError, NameUnknown, ShapeError, unknown_name

__all__ = ["COMPUTES", "DTYPES", "EPILOGUES", "Matrix", "Product"]

DTYPES = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}  # bytes an entry
COMPUTES = ("float32", "tf32", "float64")

# What each epilogue needs beside the three matrices. Bias: a vector it adds, or one it writes (the gradient of a bias).
# Aux: a mask of one bit an entry of D, or the values before the activation, which GELU's gradient starts from.
# Those with GELU are there for whoever calls the library directly; the engine does not ask for them.
EPILOGUES: dict[str, tuple[str, str]] = {
    "": ("", ""),
    "bias": ("rows", ""),
    "relu": ("", ""),
    "relu_bias": ("rows", ""),
    "relu_aux": ("", "bits"),
    "relu_aux_bias": ("rows", "bits"),
    "drelu": ("", "bits"),
    "drelu_bgrad": ("rows", "bits"),
    "bgrada": ("rows", ""),
    "bgradb": ("columns", ""),
    "gelu_bias": ("rows", ""),
    "gelu_aux_bias": ("rows", "entries"),
    "dgelu": ("", "entries"),
    "dgelu_bgrad": ("rows", "entries"),
}
MULTIPLE = {"bits": 128, "entries": 8}  # of the leading dimension of aux, in cublasLt.h


@dataclass(frozen=True)
class Matrix:
    """One operand, column-major.

    dtype         of its entries: "float32", "float64", "float16", "bfloat16"
    ld            leading dimension in entries: from one column as it is stored to the next
    transposed    whether the product takes its transpose; never for D
    """

    dtype: str
    ld: int
    transposed: bool = False


@dataclass(frozen=True)
class Product:
    """D (m, n) = epilogue(op(A) (m, k) op(B) (k, n)), column-major.

    compute     what is multiplied and added up: "float32" is strict, "tf32" rounds float32 operands to 10 bits of
                mantissa, "float64"; half-precision operands are added up in "float32"
    epilogue    a key of `EPILOGUES`
    aux_ld      leading dimension of the mask (in bits, a multiple of 128) or of the values kept (in entries, of 8)
    """

    m: int
    n: int
    k: int
    a: Matrix
    b: Matrix
    d: Matrix
    compute: str = "float32"
    epilogue: str = ""
    aux_ld: int = 0

    def __post_init__(self) -> None:
        if self.epilogue not in EPILOGUES:
            raise unknown_name("epilogue", self.epilogue, EPILOGUES)
        if self.compute not in COMPUTES:
            raise unknown_name("precision of a product", self.compute, COMPUTES)
        if min(self.m, self.n, self.k) < 1:
            raise ShapeError(
                f"A product of ({self.m}, {self.k}) and ({self.k}, {self.n}) is empty: nothing to compute."
            )
        if self.d.transposed:
            raise ShapeError("The result of a product cannot be transposed: exchange A and B instead.")
        self._check_dtypes()
        for name, matrix, (rows, _) in zip("ABD", (self.a, self.b, self.d), self.stored, strict=True):
            if matrix.ld < rows:
                raise ShapeError(f"The leading dimension of {name} is {matrix.ld}, less than its {rows} rows.")
        self._check_aux()

    def _check_dtypes(self) -> None:
        a, b, d = self.a.dtype, self.b.dtype, self.d.dtype
        for dtype in (a, b, d):
            if dtype not in DTYPES:
                raise NameUnknown(f"cuBLASLt is not used with dtype {dtype!r}. Known: {', '.join(DTYPES)}.")
        if a != b:
            raise DTypeError(f"The operands of a product are {a} and {b}. Cast one of them: they have to be alike.")
        if d not in (a, "float32") or (a == "float64") != (d == "float64"):
            raise DTypeError(f"A product of {a} cannot be stored as {d}: only as {a}, or half precision as float32.")
        right = {"float64": ("float64",), "float32": ("float32", "tf32")}.get(a, ("float32",))
        if self.compute not in right:
            raise DTypeError(f"A product of {a} is not computed in {self.compute!r}, but in {' or '.join(right)}.")

    def _check_aux(self) -> None:
        if not self.aux:
            if self.aux_ld:
                raise ShapeError(f"Epilogue {self.epilogue!r} has no mask; aux_ld={self.aux_ld} has no meaning for it.")
        elif self.aux_ld < self.m or self.aux_ld % MULTIPLE[self.aux]:
            raise ShapeError(
                f"Epilogue {self.epilogue!r} needs aux_ld, in {self.aux}, to be a multiple of {MULTIPLE[self.aux]} and "
                f"at least m = {self.m}; it is {self.aux_ld}."
            )

    @property
    def stored(self) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """(rows, columns) of A, B and D as they lie in memory, before any transposing."""
        a, b = (self.m, self.k), (self.k, self.n)
        return a[::-1] if self.a.transposed else a, b[::-1] if self.b.transposed else b, (self.m, self.n)

    @property
    def aux(self) -> str:
        """What the epilogue keeps or reads beside D: "bits", "entries", or "" for nothing."""
        return EPILOGUES[self.epilogue][1]

    @property
    def bias_length(self) -> int:
        """Entries, of D's dtype, of the vector that the epilogue adds or writes; 0 where it has none."""
        return {"": 0, "rows": self.m, "columns": self.n}[EPILOGUES[self.epilogue][0]]

    @property
    def aux_bytes(self) -> int:
        """The size of the mask or of the values kept; these have D's dtype."""
        bits = {"": 0, "bits": 1, "entries": 8 * DTYPES[self.d.dtype]}[self.aux]
        return self.aux_ld * self.n * bits // 8

    def __str__(self) -> str:
        a, b, d = self.a, self.b, self.d
        kinds = a.dtype if a.dtype == d.dtype else f"{a.dtype} into {d.dtype}"
        aux = f", aux_ld {self.aux_ld}" if self.aux else ""
        return (
            f"{self.epilogue or 'plain'} product A{'^T' * a.transposed} ({self.m}, {self.k}) "
            f"B{'^T' * b.transposed} ({self.k}, {self.n}) of {kinds}, computed in {self.compute}, "
            f"ld {a.ld}, {b.ld}, {d.ld}{aux}"
        )
