"""LLVM: from text to machine code in memory, by way of a private cache on disk.

The code for a network is made once a machine. A file of the cache is named by what it was made of (the text, LLVM's
version, the processor) and holds a checksum of its own; one that is damaged, or that another user could have written,
is not loaded.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from importlib.metadata import version
from typing import Any

from xbp.backend import load_library
from xbp.errors import NotCompiled
from xbp.folders import keep, kept

__all__ = ["Code", "compiled", "features"]

SUFFIX = ".o"  # of files of the cache
_lock = threading.Lock()  # LLVM's context and the engine are not made for two threads at once


class Code:
    """Machine code that stays in memory as long as this object lives. `address(name)` is that of a function."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def address(self, name: str) -> int:
        return int(self._engine.get_function_address(name))


@cache
def _llvm() -> Any:
    """The bindings of LLVM, loaded when something is compiled."""
    return load_library("llvmlite.binding", "numpy", "pip install 'xbp[numba]'")


@cache
def _machine() -> Any:
    """LLVM for this processor, with everything that it can do."""
    llvm = _llvm()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(cpu=llvm.get_host_cpu_name(), features=features(), opt=3, jit=True)


@cache
def features() -> str:
    """What this processor can do, as LLVM lists it: "+avx2,-avx512f,..."."""
    return str(_llvm().get_host_cpu_features().flatten())


def compiled(text: str) -> Code:
    """The functions of a module in LLVM's text."""
    llvm = _llvm()
    with _lock:
        machine = _machine()
        about = (version("llvmlite"), str(llvm.llvm_version_info), machine.triple, llvm.get_host_cpu_name())
        key = "\n".join([*about, features(), text])
        code = kept(key, SUFFIX)
        if code is None:
            code = _made(text, machine)
            keep(key, SUFFIX, code)
        engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _linker())
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        return Code(engine)


def _linker() -> Any:
    """An engine takes its machine with it, so each gets one of its own."""
    return _llvm().Target.from_default_triple().create_target_machine(opt=0, jit=True)


def _made(text: str, machine: Any) -> bytes:
    llvm = _llvm()
    try:
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        module.verify()
    except RuntimeError as error:
        raise NotCompiled(f"LLVM does not take the code that was made for this program: {error}") from error
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = tuning.slp_vectorization = tuning.loop_unrolling = True
    passes = llvm.create_pass_builder(machine, tuning)
    passes.getModulePassManager().run(module, passes)
    return bytes(machine.emit_object(module))


def _forget() -> None:
    """After a fork the lock may be held by a thread that the child does not have."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
