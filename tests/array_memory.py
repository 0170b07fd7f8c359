"""What NumPy allocates for the data of arrays, counted by its own hook (NEP 49), which is reached through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

SET_HANDLER = 304  # the place of PyDataMem_SetHandler in NumPy's table of functions, which never changes
LIBC = ctypes.CDLL(None)
LIBC.malloc.restype = LIBC.calloc.restype = LIBC.realloc.restype = ctypes.c_void_p
LIBC.malloc.argtypes = (ctypes.c_size_t,)
LIBC.calloc.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
LIBC.realloc.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
LIBC.free.argtypes = (ctypes.c_void_p,)

MALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
CALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t)
REALLOC = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
FREE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)

_sizes: list[int] = []


class _Allocator(ctypes.Structure):
    _fields_ = (("ctx", ctypes.c_void_p), ("malloc", MALLOC), ("calloc", CALLOC), ("realloc", REALLOC), ("free", FREE))


class _Handler(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("allocator", _Allocator))


@MALLOC
def _malloc(ctx, size):
    _sizes.append(size)
    return LIBC.malloc(size)


@CALLOC
def _calloc(ctx, count, size):
    _sizes.append(count * size)
    return LIBC.calloc(count, size)


@REALLOC
def _realloc(ctx, pointer, size):
    _sizes.append(size)
    return LIBC.realloc(pointer, size)


@FREE
def _free(ctx, pointer, size):
    LIBC.free(pointer)


# Arrays that were made meanwhile are freed through it, however much later: it stays for ever.
_HANDLER = _Handler(b"counting", 1, _Allocator(None, _malloc, _calloc, _realloc, _free))


def _set_handler():
    pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
    pointer_of.restype, pointer_of.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    table = ctypes.cast(pointer_of(np._core._multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[SET_HANDLER])


@contextmanager
def counted() -> Iterator[list[int]]:
    """The sizes in bytes of all arrays that NumPy makes meanwhile, in this thread, those of one entry included."""
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    exchange = _set_handler()
    former = exchange(new(ctypes.addressof(_HANDLER), b"mem_handler", None))
    sizes: list[int] = []
    _sizes.clear()
    try:
        yield sizes
    finally:
        exchange(former)
        sizes += _sizes
