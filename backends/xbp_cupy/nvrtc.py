"""CUDA C++ to machine code with NVRTC, where there need be no device.

CuPy asks the device for its kind before it compiles, so it cannot do this on a machine without one. Here the kind is
given: every kernel can be compiled, and its registers and spills read, wherever the compiler is installed.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from xbp.errors import NotCompiled
from xbp.folders import keep, kept

from .libraries import LibraryError, load

__all__ = ["Cubin", "Resources", "compiled", "cubin", "include_options", "version"]

NAME = "kernels.cu"  # what messages call the source
_INVALID_OPTION, _COMPILATION = 5, 6  # nvrtcResult: failures that are the source's, or the options'
_AROUND = 2  # lines shown before and after one with an error
_ERRORS = 3  # of which the lines are shown

_P, _I, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_TEXTS = ctypes.POINTER(ctypes.c_char_p)
_FUNCTIONS: dict[str, list[Any]] = {
    "Version": [ctypes.POINTER(_I), ctypes.POINTER(_I)],
    "CreateProgram": [ctypes.POINTER(_P), ctypes.c_char_p, ctypes.c_char_p, _I, _TEXTS, _TEXTS],
    "CompileProgram": [_P, _I, _TEXTS],
    "DestroyProgram": [ctypes.POINTER(_P)],
    "GetProgramLogSize": [_P, ctypes.POINTER(_SIZE)],
    "GetProgramLog": [_P, ctypes.c_char_p],
    "GetCUBINSize": [_P, ctypes.POINTER(_SIZE)],
    "GetCUBIN": [_P, ctypes.c_char_p],
}


@dataclass(frozen=True)
class Resources:
    """What a kernel takes: registers a thread; bytes of stack, and of stores and loads that registers were too few
    for; bytes of shared memory whose size the source fixes, and barriers, a block."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int
    shared: int
    barriers: int


@dataclass(frozen=True)
class Cubin:
    """Machine code for one kind of device.

    code       the file that `cupy.cuda.function.Module` loads
    log        what the compiler and the assembler said
    kernels    by the name that the code has them under
    spilled    bytes of spill stores and loads in the whole code, also in functions that were not inlined
    """

    code: bytes
    log: str
    kernels: Mapping[str, Resources]
    spilled: int


@cache
def _nvrtc() -> ctypes.CDLL:
    library = load("nvrtc")
    for name, types in _FUNCTIONS.items():
        function = getattr(library, f"nvrtc{name}")
        function.argtypes, function.restype = types, _I
    library.nvrtcGetErrorString.argtypes, library.nvrtcGetErrorString.restype = [_I], ctypes.c_char_p
    return library


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_nvrtc(), f"nvrtc{name}")(*arguments)
    if status:
        raise LibraryError(f"nvrtc{name} failed: {_in_words(status)}.")


def _in_words(status: int) -> str:
    return f"{(_nvrtc().nvrtcGetErrorString(status) or b'unknown status').decode()} ({status})"


def version() -> tuple[int, int]:
    """Major and minor number of the CUDA that the compiler belongs to."""
    major, minor = _I(), _I()
    _call("Version", major, minor)
    return major.value, minor.value


def include_options() -> tuple[str, ...]:
    """The option that finds CUDA's headers, `cuda_fp16.h` and `cuda_bf16.h`; empty where they are not installed."""
    try:
        folder = import_module("cuda.pathfinder").find_nvidia_header_directory("cudart")
    except (ImportError, OSError, RuntimeError):
        return ()
    return (f"--include-path={Path(folder)}",) if folder else ()


def compiled(source: str, arch: str = "sm_90", options: Iterable[str] = ()) -> Cubin:
    """The machine code of all kernels in `source`, for devices of the kind `arch`.

    options    more of NVRTC's, such as those of `include_options`

    Raises `NotCompiled` with the compiler's words, and the lines of the source that they are about.
    """
    words = [f"--gpu-architecture={arch}", "--ptxas-options=-v", *options]
    program = _P()
    _call("CreateProgram", program, source.encode(), NAME.encode(), 0, None, None)
    try:
        texts = (ctypes.c_char_p * len(words))(*(w.encode() for w in words))
        status = _nvrtc().nvrtcCompileProgram(program, len(words), texts)
        log = _text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()
        if status in (_INVALID_OPTION, _COMPILATION):
            raise NotCompiled(_failure(log, source, words))
        if status:
            raise LibraryError(f"nvrtcCompileProgram failed: {_in_words(status)}. {log}".rstrip())
        code = _text(program, "CUBIN")
    finally:
        _nvrtc().nvrtcDestroyProgram(program)
    if not code:
        raise NotCompiled(f"arch={arch!r} is no kind of device; it takes one such as 'sm_90', for which code is made.")
    kernels = _resources(log)
    if not kernels:
        raise NotCompiled('The source holds no kernel: nothing in it is extern "C" __global__.')
    return Cubin(code, log, kernels, sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)))


def cubin(source: str, arch: str) -> bytes:
    """The machine code of `compiled`, from the user's cache where it is there."""
    about = "\n".join(["nvrtc", *map(str, version()), arch, source])
    code = kept(about, ".cubin")
    if code is None:
        code = compiled(source, arch).code
        keep(about, ".cubin", code)
    return code


def _text(program: Any, what: str) -> bytes:
    """What NVRTC hands out in two calls, one for the size and one for the content."""
    size = _SIZE()
    _call(f"Get{what}Size", program, size)
    content = ctypes.create_string_buffer(max(size.value, 1))
    if size.value:
        _call(f"Get{what}", program, content)
    return content.raw[: size.value]


def _failure(log: str, source: str, options: list[str]) -> str:
    """The compiler's words, and the lines of the source that have the first errors."""
    lines = source.splitlines()
    found = re.findall(rf"^{re.escape(NAME)}\((\d+)\): (?:catastrophic )?error", log, re.MULTILINE)
    wrong = sorted({int(n) for n in found})[:_ERRORS]
    near = sorted({n for w in wrong for n in range(w - _AROUND, w + _AROUND + 1) if 0 < n <= len(lines)})
    shown, before = [], None
    for n in near:
        if before is not None and n > before + 1:
            shown.append("      ...")
        shown.append(f"{'>' if n in wrong else ' '}{n:5} {lines[n - 1]}")
        before = n
    parts = [f"NVRTC does not compile this code ({' '.join(options)}):", log or "it does not say why", *shown]
    return "\n".join(parts)


def _resources(log: str) -> dict[str, Resources]:
    """What `ptxas -v` says of each kernel: a paragraph for each, beginning with its name."""
    _, *paragraphs = re.split(r"Compiling entry function '", log)
    found = {}
    for paragraph in paragraphs:
        name, _, text = paragraph.partition("'")
        # Functions that were not inlined follow the kernel; they have properties of their own, and no registers.
        own, used = text.find("bytes stack frame"), text.find("Used ")
        if own < 0 or used < 0:
            raise LibraryError(f"NVRTC {version()} tells of kernel {name!r} in words that xbp cannot read:\n{text}")
        stack, stores, loads = (
            _number(rf"(\d+) bytes {words}", text) for words in ("stack frame", "spill stores", "spill loads")
        )
        registers, barriers = _number(r"Used (\d+) registers", text), _number(r"used (\d+) barriers", text)
        found[name] = Resources(registers, stack, stores, loads, _number(r"(\d+) bytes smem", text), barriers)
    return found


def _number(pattern: str, text: str) -> int:
    """The first number in such words; 0 where the assembler leaves them out."""
    match = re.search(pattern, text)
    return int(match[1]) if match else 0
