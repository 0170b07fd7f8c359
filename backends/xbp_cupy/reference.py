"""What a product of cuBLASLt is, in NumPy: the meaning that this package gives to each epilogue.

On a device it is compared with what the library really computes, once for every kind of product, before an epilogue is
used. Where there is no device, the engine runs on it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .products import Matrix, Product

__all__ = ["Answer", "bits_of", "mask_of", "reference", "small_product"]


class Answer(NamedTuple):
    """D (m, n), and what the epilogue writes beside it: a gradient of a bias, or a mask (n, aux_ld / 32) of int32."""

    d: np.ndarray
    bias: np.ndarray | None = None
    aux: np.ndarray | None = None


def reference(
    p: Product, a: np.ndarray, b: np.ndarray, bias: np.ndarray | None = None, aux: np.ndarray | None = None
) -> Answer:
    """The product of op(A) (m, k) and op(B) (k, n), both as the product sees them, with its epilogue.

    Everything is computed in float32, or float64 for products of it; the caller rounds to D's dtype. Epilogues with
    GELU are not part of it.
    """
    wide = np.float64 if p.compute == "float64" else np.float32
    a, b = a.astype(wide), b.astype(wide)
    z = a @ b
    match p.epilogue:
        case "":
            return Answer(z)
        case "bias":
            return Answer(z + _column(bias, wide))
        case "relu" | "relu_bias" | "relu_aux" | "relu_aux_bias":
            z = z + _column(bias, wide) if "bias" in p.epilogue else z
            return Answer(np.maximum(z, 0), None, mask_of(z > 0, p.aux_ld) if "aux" in p.epilogue else None)
        case "drelu" | "drelu_bgrad":
            assert aux is not None  # its mask
            d = np.where(bits_of(aux, p.m), z, wide(0))
            return Answer(d, d.sum(axis=1) if p.epilogue == "drelu_bgrad" else None)
        case "bgrada":
            return Answer(z, a.sum(axis=1))
        case "bgradb":
            return Answer(z, b.sum(axis=0))
    raise NotImplementedError(f"The {p} has an epilogue that is not used, and has no meaning here.")


def _column(vector: np.ndarray | None, dtype: type) -> np.ndarray:
    assert vector is not None  # epilogues with a bias come with one
    return vector.astype(dtype)[:, None]


def mask_of(set_: np.ndarray, ld: int) -> np.ndarray:
    """A mask (m, n) as the library keeps it: a bit an entry, the columns `ld` bits apart, as int32 (n, ld / 32)."""
    m, n = set_.shape
    bits = np.zeros((n, ld), np.uint8)
    bits[:, :m] = set_.T
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def bits_of(mask: np.ndarray, m: int) -> np.ndarray:
    """A mask as the library keeps it, as booleans (m, n); nobody says what its other bits are."""
    bits = np.unpackbits(np.ascontiguousarray(mask).view(np.uint8), axis=1, bitorder="little")
    return bits[:, :m].T.astype(bool)


def small_product(m: int, n: int, k: int, like: Product) -> Product:
    """A small product of the same kind: dtypes, transposes, precision and epilogue."""
    sizes = {"a": (k if like.a.transposed else m), "b": (n if like.b.transposed else k), "d": m}
    a, b, d = (
        Matrix(o.dtype, -(-sizes[name] // 16) * 16, o.transposed)
        for name, o in (("a", like.a), ("b", like.b), ("d", like.d))
    )
    return Product(m, n, k, a, b, d, like.compute, like.epilogue, 128 if like.aux else 0)
