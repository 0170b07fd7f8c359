"""cuBLASLt by ctypes: matrix products with an epilogue, which a CUDA graph can capture.

CuPy refuses every cuBLAS call while a stream is captured, and knows no epilogues. These dozen functions are all that is
needed in their place. Describing a product needs the library, but no device; asking for algorithms needs a device, and
has to happen before a capture, during which some versions of the library refuse to answer.

The numbers are those of cublasLt.h, cublas_api.h and library_types.h (CUDA 13.0; unchanged since CUDA 11.4).
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from xbp.errors import BackendUnavailable, NotCompiled, ShapeError

from .libraries import LibraryError, load
from .products import Product

__all__ = ["Algorithm", "Declined", "Descriptor", "Handle", "Library", "alignment"]

_DTYPE = {"float32": 0, "float64": 1, "float16": 2, "bfloat16": 14}  # cudaDataType: CUDA_R_32F, 64F, 16F, 16BF
_COMPUTE = {"float32": 68, "float64": 70, "tf32": 77}  # CUBLAS_COMPUTE_32F, _64F, _32F_FAST_TF32
_TRANSPOSED = 1  # CUBLAS_OP_T; CUBLAS_OP_N is 0
_EPILOGUE = {  # cublasLtEpilogue_t
    "": 1, "relu": 2, "relu_aux": 2 | 128, "bias": 4, "relu_bias": 2 | 4, "relu_aux_bias": 2 | 128 | 4,
    "drelu": 8 | 128, "drelu_bgrad": 8 | 128 | 16, "gelu_bias": 32 | 4, "gelu_aux_bias": 32 | 128 | 4,
    "dgelu": 64 | 128, "dgelu_bgrad": 64 | 128 | 16, "bgrada": 256, "bgradb": 512,
}  # fmt: skip
# cublasLtMatmulDescAttributes_t and cublasLtMatrixLayoutAttribute_t: (number, type of the value)
_DESC: dict[str, tuple[int, Any]] = {
    "compute": (0, ctypes.c_int32),
    "scale": (1, ctypes.c_int32),
    "transa": (3, ctypes.c_int32),
    "transb": (4, ctypes.c_int32),
    "epilogue": (7, ctypes.c_uint32),
    "bias": (8, ctypes.c_uint64),  # a pointer
    "aux": (11, ctypes.c_uint64),  # a pointer
    "aux_ld": (12, ctypes.c_int64),
}
_LAYOUT: dict[str, tuple[int, Any]] = {
    "type": (0, ctypes.c_uint32),
    "order": (1, ctypes.c_int32),  # 0 is CUBLASLT_ORDER_COL, which epilogues want
    "rows": (2, ctypes.c_uint64),
    "cols": (3, ctypes.c_uint64),
    "ld": (4, ctypes.c_int64),
}
# cublasLtMatmulPreferenceAttributes_t
_WORKSPACE, _REDUCTIONS, _ALIGNMENT_A, _ALIGNMENT_B, _ALIGNMENT_C, _ALIGNMENT_D = 1, 3, 5, 6, 7, 8
_WIDE_SUMS = 2  # cublasLtReductionScheme_t: parts of a sum are added up in what is computed in, not in D's dtype
_LARGEST = 256  # alignment in bytes beyond which the library makes no difference: its default
# cublasStatus_t: the answers that say "not like this", after which a simpler product may do
_DECLINES = {7: "INVALID_VALUE", 8: "ARCH_MISMATCH", 15: "NOT_SUPPORTED"}
_NOT_INITIALIZED = 1


class _Opaque(ctypes.Structure):
    """cublasLtMatmulAlgo_t."""

    _fields_ = (("data", ctypes.c_uint64 * 8),)


class _Answer(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", _Opaque),
        ("workspace", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


_P, _I, _U64, _S64, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint64, ctypes.c_int64, ctypes.c_size_t
_AT, _FOUND = ctypes.POINTER(_P), ctypes.POINTER(_Answer)
_FUNCTIONS: dict[str, list[Any]] = {
    "Create": [_AT],
    "Destroy": [_P],
    "MatmulDescCreate": [_AT, _I, _I],
    "MatmulDescDestroy": [_P],
    "MatmulDescSetAttribute": [_P, _I, _P, _SIZE],
    "MatmulDescGetAttribute": [_P, _I, _P, _SIZE, ctypes.POINTER(_SIZE)],
    "MatrixLayoutCreate": [_AT, _I, _U64, _U64, _S64],
    "MatrixLayoutDestroy": [_P],
    "MatrixLayoutGetAttribute": [_P, _I, _P, _SIZE, ctypes.POINTER(_SIZE)],
    "MatmulPreferenceCreate": [_AT],
    "MatmulPreferenceDestroy": [_P],
    "MatmulPreferenceSetAttribute": [_P, _I, _P, _SIZE],
    "MatmulAlgoGetHeuristic": [_P, _P, _P, _P, _P, _P, _P, _I, _FOUND, ctypes.POINTER(_I)],
    "MatmulAlgoCheck": [_P, _P, _P, _P, _P, _P, ctypes.POINTER(_Opaque), _FOUND],
    "Matmul": [_P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, _P, ctypes.POINTER(_Opaque), _P, _SIZE, _P],
}


class Declined(NotCompiled):
    """A product that the library has no algorithm for, with that epilogue, those layouts, on that device."""


@dataclass(frozen=True)
class Algorithm:
    """A way to compute one product, as the library chose it. Valid for the same product, library and kind of device.

    data         the library's own 64 bytes
    workspace    bytes of device memory that it works in
    waves        how often it fills the device; 1.0 is once and full
    """

    data: bytes
    workspace: int = 0
    waves: float = 0.0

    def __post_init__(self) -> None:
        if len(self.data) != ctypes.sizeof(_Opaque):
            raise ShapeError(f"An algorithm of cuBLASLt has {ctypes.sizeof(_Opaque)} bytes, not {len(self.data)}.")

    def to_hex(self) -> str:
        return self.data.hex()

    @classmethod
    def from_hex(cls, text: str, workspace: int = 0, waves: float = 0.0) -> Algorithm:
        return cls(bytes.fromhex(text), workspace, waves)


def alignment(address: int) -> int:
    """The largest power of two, up to 256, that divides an address: what `candidates` may count on."""
    return min(address & -address, _LARGEST) if address else _LARGEST


class Library:
    """cuBLASLt, as far as it needs no device. Threads may share it.

    version    that of the library itself, such as 131000 for 13.10
    """

    def __init__(self) -> None:
        self._dll = load("cublasLt")
        try:
            for name, types in _FUNCTIONS.items():
                function = getattr(self._dll, f"cublasLt{name}")
                function.argtypes, function.restype = types, ctypes.c_int
            for name in ("GetStatusName", "GetStatusString"):
                function = getattr(self._dll, f"cublasLt{name}")
                function.argtypes, function.restype = [_I], ctypes.c_char_p
            self._dll.cublasLtGetVersion.argtypes, self._dll.cublasLtGetVersion.restype = [], _SIZE
        except AttributeError as error:
            raise BackendUnavailable(
                f"This cuBLASLt is too old, it lacks a function: {error}. xbp uses those of CUDA 12 and later."
            ) from error
        self.version = int(self._dll.cublasLtGetVersion())

    def descriptor(self, product: Product) -> Descriptor:
        return Descriptor(self, product)

    def status(self, function: str, *arguments: Any) -> int:
        """What cublasLt<function> answers to these arguments."""
        return int(getattr(self._dll, f"cublasLt{function}")(*arguments))

    def call(self, function: str, *arguments: Any) -> None:
        """Call cublasLt<function>; `LibraryError` unless it succeeds."""
        status = self.status(function, *arguments)
        if status:
            raise LibraryError(f"cublasLt{function} failed: {self.in_words(status)}.")

    def in_words(self, status: int) -> str:
        name, text = self._dll.cublasLtGetStatusName(status), self._dll.cublasLtGetStatusString(status)
        return f"{(name or b'unknown status').decode()} ({status}, {(text or b'').decode()})"


def _destroy(library: Library, owned: list[tuple[str, Any]]) -> None:
    """Give back what the library made, the last first; there is nobody left to tell of a failure."""
    while owned:
        function, pointer = owned.pop()
        library.status(function, pointer)


class Descriptor:
    """A product as the library keeps it: the operation, and the layouts of A, B and D.

    Read by any number of threads; while one calls `set_pointers`, no other may use it. The pointers are read when a
    product is launched, and a captured launch keeps those of that moment.
    """

    def __init__(self, library: Library, product: Product) -> None:
        self.product = product
        self.library = library
        self._pointers = {"bias": 0, "aux": 0}
        owned: list[tuple[str, Any]] = []
        self.close: Callable[[], None] = weakref.finalize(self, _destroy, library, owned)
        scale = "float64" if product.compute == "float64" else "float32"
        self.operation = _P()
        library.call("MatmulDescCreate", self.operation, _COMPUTE[product.compute], _DTYPE[scale])
        owned.append(("MatmulDescDestroy", self.operation))
        self._set("transa", _TRANSPOSED * product.a.transposed)
        self._set("transb", _TRANSPOSED * product.b.transposed)
        self._set("epilogue", _EPILOGUE[product.epilogue])
        if product.aux:
            self._set("aux_ld", product.aux_ld)
        self.layouts: list[Any] = []
        for matrix, (rows, columns) in zip((product.a, product.b, product.d), product.stored, strict=True):
            layout = _P()
            library.call("MatrixLayoutCreate", layout, _DTYPE[matrix.dtype], rows, columns, matrix.ld)
            owned.append(("MatrixLayoutDestroy", layout))
            self.layouts.append(layout)

    def set_pointers(self, bias: int | None = None, aux: int | None = None) -> None:
        """The device addresses of the epilogue's vector and mask; None leaves one as it is.

        Set them before asking for candidates: the library judges by their alignment which algorithms will do.
        """
        has = {"bias": bool(self.product.bias_length), "aux": bool(self.product.aux)}
        for name, address in (("bias", bias), ("aux", aux)):
            if address is None:
                continue
            if not has[name]:
                raise NotCompiled(f"Epilogue {self.product.epilogue!r} has no {name}: there is nothing to point at.")
            self._set(name, address)
            self._pointers[name] = address

    def missing(self) -> list[str]:
        """The pointers that the epilogue needs and that are not set."""
        needed = {"bias": self.product.bias_length, "aux": self.product.aux}
        return [name for name, needs in needed.items() if needs and not self._pointers[name]]

    def attributes(self) -> dict[str, Any]:
        """Everything as the library has it, in its own numbers, with a dict for each of the layouts a, b and d."""
        found: dict[str, Any] = {
            name: self._get("MatmulDescGetAttribute", self.operation, *entry) for name, entry in _DESC.items()
        }
        for name, layout in zip("abd", self.layouts, strict=True):
            found[name] = {n: self._get("MatrixLayoutGetAttribute", layout, *entry) for n, entry in _LAYOUT.items()}
        return found

    def _set(self, name: str, value: int) -> None:
        number, kind = _DESC[name]
        held = kind(value)
        self.library.call("MatmulDescSetAttribute", self.operation, number, ctypes.addressof(held), ctypes.sizeof(held))

    def _get(self, function: str, pointer: Any, number: int, kind: Any) -> int:
        held, written = kind(), _SIZE()
        self.library.call(function, pointer, number, ctypes.addressof(held), ctypes.sizeof(held), written)
        return int(held.value)


class Handle:
    """cuBLASLt on the CUDA device that is current in the thread that makes this.

    One thread at a time: make one for each, or lock around it. Each product that may run beside another on the device
    needs a workspace of its own.
    """

    def __init__(self, library: Library | None = None) -> None:
        self.library = Library() if library is None else library
        pointer = _P()
        status = self.library.status("Create", pointer)
        if status == _NOT_INITIALIZED:
            raise BackendUnavailable(
                "cuBLASLt is installed, but no CUDA device answers "
                f"(cublasLtCreate: {self.library.in_words(status)}). `xbp doctor` says what is missing."
            )
        if status:
            raise LibraryError(f"cublasLtCreate failed: {self.library.in_words(status)}.")
        self._pointer = pointer
        closing = weakref.finalize(self, _destroy, self.library, [("Destroy", pointer)])
        closing.atexit = False  # by then the CUDA context may be gone, and the process frees it all anyway
        self.close: Callable[[], None] = closing
        one, zero = ctypes.c_float(1.0), ctypes.c_float(0.0)
        wide = ctypes.c_double(1.0), ctypes.c_double(0.0)
        self._scales = {"float32": (one, zero), "tf32": (one, zero), "float64": wide}

    def candidates(
        self, descriptor: Descriptor, workspace: int, count: int, aligned: tuple[int, int, int] = (_LARGEST,) * 3
    ) -> list[Algorithm]:
        """Up to `count` algorithms within `workspace` bytes, the library's favourite first.

        aligned    what divides the addresses of A, B and D, in bytes (see `alignment`)

        Not while a stream is captured. Raises `Declined` where there is none.
        """
        if count < 1:
            raise ShapeError(f"{count} algorithms were asked for: ask for 1 or more.")
        answers, found = (_Answer * count)(), _I()
        preference = _P()
        self.library.call("MatmulPreferenceCreate", preference)
        try:
            self._prefer(preference, workspace, aligned)
            status = self.library.status(
                "MatmulAlgoGetHeuristic", self._pointer, *self._operands(descriptor), preference, count, answers, found
            )
        finally:
            self.library.status("MatmulPreferenceDestroy", preference)
        if status and status not in _DECLINES:
            raise LibraryError(f"cublasLtMatmulAlgoGetHeuristic failed: {self.library.in_words(status)}.")
        usable = [a for a in answers[: found.value] if a.state == 0 and a.workspace <= workspace]
        if status or not usable:
            reason = self.library.in_words(status) if status else f"no algorithm with {workspace} bytes of workspace"
            raise Declined(f"cuBLASLt {self.library.version} declines the {descriptor.product}: {reason}.")
        return [Algorithm(bytes(a.algorithm), int(a.workspace), float(a.waves)) for a in usable]

    def _prefer(self, preference: Any, workspace: int, aligned: tuple[int, int, int]) -> None:
        a, b, d = (ctypes.c_uint32(n) for n in aligned)
        sums = ctypes.c_uint32(_WIDE_SUMS)
        values: dict[int, Any] = {_WORKSPACE: ctypes.c_uint64(workspace), _REDUCTIONS: sums}
        values |= {_ALIGNMENT_A: a, _ALIGNMENT_B: b}
        for number, held in {**values, _ALIGNMENT_C: d, _ALIGNMENT_D: d}.items():
            where = ctypes.addressof(held)
            self.library.call("MatmulPreferenceSetAttribute", preference, number, where, ctypes.sizeof(held))

    def accepted(self, descriptor: Descriptor, algorithm: Algorithm) -> Algorithm | None:
        """A stored algorithm, with the workspace that the library says it needs here; None where it will not run."""
        opaque, answer = _Opaque.from_buffer_copy(algorithm.data), _Answer()
        status = self.library.status("MatmulAlgoCheck", self._pointer, *self._operands(descriptor), opaque, answer)
        if status or answer.state:
            return None
        return Algorithm(algorithm.data, int(answer.workspace), float(answer.waves))

    def run(
        self,
        descriptor: Descriptor,
        algorithm: Algorithm,
        a: int,
        b: int,
        d: int,
        workspace: int,
        workspace_size: int,
        stream: int,
    ) -> None:
        """Queue the product on a stream: D = op(A) op(B), at these device addresses; what was in D is not read."""
        product = descriptor.product
        if missing := descriptor.missing():
            raise NotCompiled(f"The {product} has no address for {' and '.join(missing)}: call set_pointers() first.")
        if algorithm.workspace > workspace_size:
            raise NotCompiled(
                f"The algorithm for the {product} works in {algorithm.workspace} bytes; {workspace_size} were given."
            )
        alpha, beta = (ctypes.addressof(number) for number in self._scales[product.compute])
        of_a, of_b, of_d = descriptor.layouts
        opaque = _Opaque.from_buffer_copy(algorithm.data)
        status = self.library.status(
            "Matmul", self._pointer, descriptor.operation, alpha, a, of_a, b, of_b, beta, d, of_d, d, of_d, opaque,
            workspace, workspace_size, stream,
        )  # fmt: skip
        if status:
            raise LibraryError(f"cublasLtMatmul failed: {self.library.in_words(status)}. It was the {product}.")

    @staticmethod
    def _operands(descriptor: Descriptor) -> list[Any]:
        """Operation and layouts as the functions take them; C has D's layout, because nothing is added to D."""
        a, b, d = descriptor.layouts
        return [descriptor.operation, a, b, d, d]
