"""A device without a device: the engine's own kernels and launches, run by this processor.

The text that CUDA would get is compiled by the C++ compiler of the machine behind a few definitions of threads
(`cuda_host/threads.h`), and products are computed by NumPy from the very description that cuBLASLt would get: matrices
by columns, leading dimensions, epilogues. Memory is full of NaN before it is written.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import ml_dtypes
import numpy as np
from xbp_cupy.products import Product
from xbp_cupy.reference import reference

COMPILER = shutil.which("g++") or shutil.which("clang++")
THREADS = Path(__file__).parent / "cuda_host" / "threads.h"
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\(THREADS, 4\) )?(\w+)\((.*)\) \{')
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w")
BORDER = 256


def dtype_of(name):
    return np.dtype(getattr(ml_dtypes, name) if name == "bfloat16" else name)


class HostMemory:
    """Bytes, all of them 0xff, which is NaN in every float; or zeros."""

    def __init__(self, size, zeroed):
        self._bytes = np.full(size + BORDER, 0 if zeroed else 0xFF, np.uint8)
        start = -self._bytes.ctypes.data % BORDER
        self.bytes = self._bytes[start : start + size]
        self.address = self.bytes.ctypes.data


def strided(address, dtype, shape, strides):
    """An array at an address; strides in entries."""
    size = dtype.itemsize
    span = (sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1) * size
    memory = (ctypes.c_char * span).from_address(address)
    return np.ndarray(shape, dtype, memory, strides=tuple(s * size for s in strides))


class Processor:
    """`xbp_cupy.graph.device.Device` on this machine.

    folder       where compiled kernels are kept
    declined     epilogues that its products do not have
    backwards    run blocks and threads in the opposite order
    """

    def __init__(self, folder, declined=(), backwards=False):
        self.folder, self.declined, self.backwards = Path(folder), set(declined), backwards
        self.launches = 0
        self.graphs = 0

    def memory(self, size, *, zeroed=False):
        return HostMemory(size, zeroed)

    def view(self, memory, offset, shape, dtype, strides):
        view = strided(memory.address + offset, dtype_of(dtype), shape, strides) if 0 not in shape else None
        view = np.empty(shape, dtype_of(dtype)) if view is None else view
        assert offset + view.nbytes <= memory.bytes.size
        return _Keeping(view, memory)

    def part(self, array, offset, shape, strides):
        assert array.flags.c_contiguous
        return strided(array.ctypes.data + offset, array.dtype, shape, strides)

    def empty(self, shape, dtype):
        return (
            np.full(shape, 0xFF, np.uint8).astype(dtype_of(dtype))
            if dtype == "bool"
            else np.empty(shape, dtype_of(dtype))
        )

    def copy(self, source, target):
        target[...] = source

    def contiguous(self, array, dtype):
        return np.require(np.ascontiguousarray(array, dtype_of(dtype)).reshape(np.shape(array)), requirements=["A"])

    def address(self, array):
        return array.ctypes.data

    def compiled(self, text):
        kernels = KERNEL.findall(text)
        whole = f'#include "{THREADS}"\n{text}\n' + "\n".join(map(_entrance, *zip(*kernels, strict=True)))
        target = self.folder / f"{hashlib.sha256((whole + THREADS.read_text()).encode()).hexdigest()[:32]}.so"
        if not target.exists():
            made = target.with_suffix(f".{id(self)}.so")
            path = made.with_suffix(".cpp")
            path.write_text(whole)
            done = subprocess.run(
                [COMPILER, *FLAGS, str(path), "-o", str(made)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr[:5000]
            made.rename(target)
        library = ctypes.CDLL(str(target))
        return lambda name: getattr(library, f"run_{name}")

    def launch(self, kernel, blocks, arguments):
        self.launches += 1
        values = (ctypes.c_longlong * len(arguments))(*map(int, arguments))
        kernel(blocks, int(self.backwards), values)

    def synchronize(self):
        pass

    def accepts(self, product):
        return product.epilogue not in self.declined

    def product(self, product):
        assert product.epilogue not in self.declined
        return lambda *addresses: multiply(product, *addresses)

    def captured(self, run):
        self.graphs += 1
        return run


class _Keeping(np.ndarray):
    """A view that keeps its memory alive."""

    def __new__(cls, array, memory):
        view = array.view(cls)
        view.memory = memory
        return view

    def __array_finalize__(self, source):
        self.memory = getattr(source, "memory", None)


def _entrance(name, parameters):
    """A function that any argument list can be given to as 64-bit numbers."""
    given = []
    for k, parameter in enumerate(parameters.split(", ")):
        t = parameter.rpartition(" ")[0] + ("*" if "*" in parameter else "")
        t = t.replace("__restrict__", "").replace("**", "*")
        given.append(f"({t})values[{k}]")
    call = f"{name}({', '.join(given)})"
    return (
        f'extern "C" void run_{name}(int blocks, int backwards, const long long *values) '
        f"{{ fibers::grid(blocks, THREADS, backwards, [=] {{ {call}; }}); }}"
    )


def multiply(p: Product, a, b, d, *beside):
    """The product on memory, as cuBLASLt documents it."""
    (rows_a, columns_a), (rows_b, columns_b), _ = p.stored
    left, right = _matrix(a, p.a, rows_a, columns_a), _matrix(b, p.b, rows_b, columns_b)
    left, right = (left.T if p.a.transposed else left), (right.T if p.b.transposed else right)
    given = dict(zip([n for n, used in (("bias", p.bias_length), ("aux", p.aux)) if used], beside, strict=True))
    vector = strided(given["bias"], dtype_of(p.d.dtype), (p.bias_length,), (1,)) if "bias" in given else None
    words = p.aux_ld // 32
    mask = strided(given["aux"], np.dtype(np.int32), (p.n, words), (words, 1)) if "aux" in given else None
    answer = reference(p, left, right, vector, mask)
    _matrix(d, p.d, p.m, p.n)[...] = answer.d
    if answer.bias is not None:
        vector[...] = answer.bias
    if answer.aux is not None:
        mask[...] = answer.aux


def _matrix(address, matrix, rows, columns):
    assert matrix.ld >= rows
    return strided(address, dtype_of(matrix.dtype), (rows, columns), (1, matrix.ld))
