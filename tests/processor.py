"""A device without a device: the engine's own kernels and launches, run by this processor.

The text that CUDA would get is compiled by the C++ compiler of the machine behind a few definitions of threads
(`cuda_host/threads.h`), and products are computed by NumPy from the very description that cuBLASLt would get: matrices
by columns, leading dimensions, epilogues. Memory is full of NaN before it is written.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import threading
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from xbp_cupy.products import Product
from xbp_cupy.reference import reference

COMPILER = shutil.which("g++") or shutil.which("clang++")
THREADS = Path(__file__).parent / "cuda_host" / "threads.h"
KERNEL = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(([^{}]*)\) \{')
# Fibers leave by longjmp for stacks that the hardened one does not know.
FLAGS = ("-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w", "-U_FORTIFY_SOURCE")
BORDER = 256
ALIGNED = 16  # bytes, of arrays that kernels read
ONE_AT_A_TIME = threading.Lock()  # the threads of a block are this thread's fibers, and there is one set of them


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
    declined     epilogues that its products do not have ("" is none), or a function that says so of a product
    backwards    run blocks and threads in the opposite order
    launches     kernels that were run, graphs or not; `products` are counted by themselves
    graphs       how often something was captured; `replays` is how often such a graph was launched
    """

    def __init__(self, folder, declined=(), backwards=False):
        self.folder, self.backwards = Path(folder), backwards
        self.waiting = []  # what went aside
        self.declined = declined if callable(declined) else lambda product: product.epilogue in declined
        self.launches = self.products = self.graphs = self.replays = 0
        self.texts = []  # that were compiled
        self._captured = None  # what is to be launched, while that is only noted down

    # --- memory ---------------------------------------------------------------------------------------------------

    def memory(self, size, *, zeroed=False):
        assert self._captured is None, "memory is asked for during a capture"
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
        assert self._captured is None, "an array is asked for during a capture"
        array = np.empty(shape, dtype_of(dtype))
        array.reshape(-1).view(np.uint8)[...] = 0xFF
        return array

    def copy(self, source, target):
        assert self._captured is None, "arrays are copied during a capture"
        target[...] = source

    def contiguous(self, array, dtype):
        packed = np.ascontiguousarray(array, dtype_of(dtype)).reshape(np.shape(array))
        if packed.ctypes.data % ALIGNED:
            packed = packed.copy()
        assert packed.ctypes.data % ALIGNED == 0
        return packed

    def address(self, array):
        return array.ctypes.data

    def synchronize(self):
        assert self._captured is None, "the host waits during a capture"

    # --- kernels --------------------------------------------------------------------------------------------------

    def compiled(self, text):
        assert self._captured is None, "kernels are compiled during a capture"
        self.texts.append(text)
        return built(text, self.folder).__getitem__

    def launch(self, kernel, blocks, arguments):
        assert blocks >= 1
        # CUDA reads as many bytes as the kernel declares, whatever it is given: addresses have 8.
        assert [getattr(a, "itemsize", 8) for a in arguments] == kernel.sizes, f"arguments of {kernel.name}"
        # A struct is read now, whenever the kernel runs.
        given = [a.copy() if isinstance(a, np.ndarray) else int(a) for a in arguments]
        values = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in given]
        self._queue(partial(self._launch, kernel, blocks, (ctypes.c_longlong * len(values))(*values), given))

    def _launch(self, kernel, blocks, values, given):
        self.launches += 1
        with ONE_AT_A_TIME:
            kernel.run(blocks, int(self.backwards), values)

    def _queue(self, run):
        """Everything that the device does goes through here."""
        if self._captured is None:
            run()
        else:
            self._captured.append(run)

    def aside(self, call):
        """As late as may be, or at once: one of the two finds out whoever needs it earlier, or takes its place."""
        if self.backwards:
            call()
        else:
            self.waiting.append(call)

    def join(self):
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()

    def captured(self, run):
        assert self._captured is None
        self._captured = []
        try:
            run()
        finally:
            noted, self._captured = self._captured, None
        assert not self.waiting, "what went aside is not waited for, which no capture allows"
        self.graphs += 1

        def launch():
            self.replays += 1
            for step in noted:
                self._queue(step)

        return launch

    # --- products -------------------------------------------------------------------------------------------------

    def accepts(self, product):
        return not self.declined(product)

    def product(self, product):
        assert self.accepts(product)
        return lambda *addresses: self._queue(partial(self._multiply, product, addresses))

    def _multiply(self, product, addresses):
        self.products += 1
        with np.errstate(all="ignore"):  # of which a device says nothing either
            multiply(product, *addresses)


class Kernel(NamedTuple):
    """A kernel that was compiled, and the bytes of each of its parameters."""

    name: str
    run: Any
    sizes: list[int]


def built(text, folder):
    """The kernels of a text, by name."""
    assert "__global__" in text, "NVRTC takes no text without a kernel"
    kernels = [(name, re.split(r",\s*", parameters)) for name, parameters in KERNEL.findall(text)]
    assert len(kernels) == text.count("__global__ void"), "a kernel is declared in words that are not understood here"
    whole = f'#include "{THREADS}"\n{text}\n' + "\n".join(_entrance(*kernel) for kernel in kernels)
    name = hashlib.sha256((whole + _threads() + " ".join(FLAGS)).encode()).hexdigest()[:32]
    library = _loaded(Path(folder) / f"{name}.so", whole)
    return {
        name: Kernel(name, getattr(library, f"run_{name}"), [_size(parameter, text) for parameter in parameters])
        for name, parameters in kernels
    }


def _size(parameter, text):
    """Bytes of a parameter of a kernel. The members of a struct are addresses and 64-bit numbers."""
    t = parameter.removeprefix("const ").rpartition(" ")[0]
    if t == "Given":
        return 8 * re.search(r"struct Given \{([^}]*)\}", text)[1].count(";")
    wide = "typedef long long index_t;" in text
    return 8 if "*" in parameter else {"int": 4, "long long": 8, "index_t": 8 if wide else 4}[t]


@cache
def _threads():
    return THREADS.read_text()


@cache
def _loaded(target, whole):
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        made = target.with_suffix(f".{os.getpid()}-{threading.get_ident()}.so")
        path = made.with_suffix(".cpp")
        path.write_text(whole)
        done = subprocess.run(
            [COMPILER, *FLAGS, str(path), "-o", str(made)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[:5000]
        path.unlink()
        made.rename(target)
    return ctypes.CDLL(str(target))


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
    for k, parameter in enumerate(parameters):
        t = parameter.rpartition(" ")[0] + ("*" if "*" in parameter else "")
        t = t.replace("__restrict__", "").replace("**", "*")
        given.append(f"*(const Given *)values[{k}]" if t == "const Given" else f"({t})values[{k}]")
    return (
        f"static void work_{name}(const long long *values) {{ {name}({', '.join(given)}); }}\n"
        f'extern "C" void run_{name}(int blocks, int backwards, const long long *values) '
        f"{{ fibers::grid(blocks, THREADS, backwards, work_{name}, values); }}"
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
