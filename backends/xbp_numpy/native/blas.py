"""NumPy's own BLAS, called without Python: the library that is loaded already, with the threads that it has.

Another copy of OpenBLAS would bring a second pool of threads, and two pools on the same cores cost each other
milliseconds. Whoever limits NumPy's threads (OMP_NUM_THREADS, threadpoolctl) limits these calls too.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Blas", "blas_threads", "numpy_blas"]

# How the builds of NumPy name cblas, and the bits of its integers.
NAMES = (("scipy_cblas_{}64_", 64), ("cblas_{}64_", 64), ("scipy_cblas_{}", 32), ("cblas_{}", 32))


class Blas(NamedTuple):
    """The addresses of cblas_sgemm and cblas_dgemm, and the type of their integers in LLVM's words."""

    sgemm: int
    dgemm: int
    integer: str


def _library() -> ctypes.CDLL:
    """The extension module that is linked to NumPy's BLAS: looked up in it, the BLAS' names are found."""
    return ctypes.CDLL(str(import_module("numpy._core._multiarray_umath").__file__))


@cache
def numpy_blas() -> Blas | None:
    """The products of the BLAS behind NumPy's matmul; None where it hides them, as some builds do."""
    library = _library()
    for pattern, bits in NAMES:
        try:
            found = [getattr(library, pattern.format(name)) for name in ("sgemm", "dgemm")]
        except AttributeError:
            continue
        addresses = [ctypes.cast(f, ctypes.c_void_p).value for f in found]
        if all(addresses) and _right(found[1], bits):
            return Blas(addresses[0] or 0, addresses[1] or 0, f"i{bits}")
    return None


@cache
def _thread_count() -> Callable[[], int] | None:
    """OpenBLAS' own answer to how many threads it uses; None for other libraries."""
    library = _library()
    for name in ("scipy_openblas_get_num_threads64_", "openblas_get_num_threads64_", "openblas_get_num_threads"):
        function: Callable[[], int] | None = getattr(library, name, None)
        if function is not None:
            return function
    return None


def blas_threads() -> int:
    """How many threads NumPy's products use at this moment; where the BLAS does not tell, what OMP_NUM_THREADS says."""
    count = _thread_count()
    if count is not None:
        return count()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else os.cpu_count() or 1


def _right(dgemm: Any, bits: int) -> bool:
    """Whether a product comes out right: the name alone does not prove how wide the integers are."""
    integer = ctypes.c_int64 if bits == 64 else ctypes.c_int32
    a, b, c = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4), np.zeros((2, 4))
    dgemm.restype = None
    pointers = [ctypes.c_void_p(m.ctypes.data) for m in (a, b, c)]
    sizes = [integer(k) for k in (2, 4, 3)]
    one, zero = ctypes.c_double(1.0), ctypes.c_double(0.0)
    dgemm(101, 111, 111, *sizes, one, pointers[0], integer(3), pointers[1], integer(4), zero, pointers[2], integer(4))
    return bool(np.array_equal(c, a @ b))
