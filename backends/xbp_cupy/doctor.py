"""What `xbp doctor` asks of CUDA: CuPy's wheels, the driver, its devices, libraries, and whether all work together.

Facts are gathered in one place and judged in another, so that each judgement can be tried without the broken machine
that it is about.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module, metadata
from typing import Literal

from xbp.doctor import Finding
from xbp.errors import BackendUnavailable

from . import nvrtc
from .driver import Driver, driver
from .libraries import INSTALL, load
from .lt import Library

__all__ = ["findings", "of_cards", "of_driver", "of_wheels", "wheels"]

WHEEL = re.compile(r"cupy(-cuda(?P<major>\d\d)\w*|-rocm\S*)?$")
OLDEST = {12: (5, 0), 13: (7, 5)}  # compute capability that each CUDA still makes code for
NO_DEVICE, STUB = 100, 34  # CUresult: CUDA_ERROR_NO_DEVICE, CUDA_ERROR_STUB_LIBRARY
TRIAL = 'extern "C" __global__ void trial(float* a) { a[threadIdx.x] += 1.0f; }'


def findings() -> Iterator[Finding]:
    installed, seen = wheels(), driver()
    yield from of_wheels(installed, seen)
    yield from of_driver(seen, installed)
    yield from of_cards(seen, installed)
    if installed:
        yield from _of_cupy(installed, seen)
        yield from _of_libraries(seen)
        yield _of_compiler(seen)
        if seen.cards:
            yield _of_computing()


# --- facts ------------------------------------------------------------------------------------------------------------


def wheels() -> dict[str, str]:
    """The packages that bring a CuPy, with their versions."""
    found = {}
    for package in metadata.distributions():
        name = re.sub(r"[-_.]+", "-", package.metadata["Name"] or "").lower()
        if WHEEL.match(name):
            found[name] = package.version
    return found


def _cudart() -> str:
    number = ctypes.c_int()
    if load("cudart").cudaRuntimeGetVersion(ctypes.byref(number)):
        return "?"
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def _cublas() -> str:
    library, number = load("cublas"), ctypes.c_int()
    parts = []
    for which in (0, 1):  # libraryPropertyType: MAJOR_VERSION, MINOR_VERSION
        library.cublasGetProperty(which, ctypes.byref(number))
        parts.append(str(number.value))
    return ".".join(parts)


def _cublaslt() -> str:
    version = Library().version
    return f"{version // 10_000}.{version % 10_000 // 100}"


VERSIONS: dict[str, Callable[[], str]] = {
    "cudart": _cudart,
    "nvrtc": lambda: "{}.{}".format(*nvrtc.version()),
    "cublas": _cublas,
    "cublasLt": _cublaslt,
}


# --- judgements -------------------------------------------------------------------------------------------------------


def of_wheels(installed: Mapping[str, str], seen: Driver) -> Iterator[Finding]:
    """Exactly one package may bring CuPy; which, is for the driver to say."""
    names = [f"{name} {version}" for name, version in sorted(installed.items())]
    if len(names) > 1:
        text = f"{' and '.join(names)} are installed together; they write the same files, so neither is whole"
        remedy = f"pip uninstall -y {' '.join(sorted(installed))}, all of them, and then {_install(seen)}"
        yield Finding("cupy", "wrong", text, remedy)
    elif names:
        yield Finding("cupy", "ok", f"{names[0]} is installed")
    else:
        remedy = _install(seen) if seen.cards else f"For a machine with an NVIDIA GPU: {_install(seen)}"
        yield Finding("cupy", "missing", "CuPy is not installed", remedy)


def of_driver(seen: Driver, installed: Mapping[str, str]) -> Iterator[Finding]:
    """Whether it is there, starts, and is new enough for the CUDA that CuPy was built for."""
    needs = _cuda(installed)
    if not seen.loaded:
        remedy = "For a machine with an NVIDIA GPU: install NVIDIA's driver; give a container its GPUs (--gpus all)."
        yield Finding("driver", "missing", f"there is no NVIDIA driver: {seen.text}", remedy)
    elif seen.status == NO_DEVICE:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        text = "the driver shows no device" + (f"; CUDA_VISIBLE_DEVICES is {hidden!r}" if hidden is not None else "")
        remedy = "Unset it." if hidden is not None else "nvidia-smi lists the devices; give a container its GPUs."
        yield Finding("driver", "missing", text, remedy)
    elif seen.status == STUB:
        remedy = "Take the folder stubs of the CUDA toolkit out of LD_LIBRARY_PATH."
        yield Finding("driver", "wrong", f"what loads as the driver is a stub to link with: {seen.text}", remedy)
    elif seen.status:
        remedy = "Restart the machine, as after an update of the driver; else reinstall it. nvidia-smi should answer."
        yield Finding("driver", "wrong", f"the driver does not start: {seen.text}", remedy)
    elif needs and seen.version[0] < needs:
        text = f"the driver runs CUDA {_dotted(seen.version)} and older; this CuPy was built for CUDA {needs}"
        remedy = f"Update the driver, or pip uninstall -y {' '.join(sorted(installed))} and {_install(seen)}"
        yield Finding("driver", "wrong", text, remedy)
    else:
        yield Finding("driver", "ok", f"runs CUDA {_dotted(seen.version)} and older")


def of_cards(seen: Driver, installed: Mapping[str, str]) -> Iterator[Finding]:
    """Each device, and whether CuPy's CUDA makes code for it."""
    needs = _cuda(installed)
    oldest = OLDEST.get(needs, (0, 0))
    for i, card in enumerate(seen.cards):
        text = f"{card.name}, {card.memory / 2**30:.0f} GiB, compute capability {_dotted(card.capability)}"
        if card.capability >= oldest:
            yield Finding(f"device {i}", "ok", text)
        else:
            text += f"; CUDA {needs} makes code for {_dotted(oldest)} and newer"
            fits = [f"pip install 'xbp[cuda{n}]'" for n, least in OLDEST.items() if card.capability >= least]
            remedy = f"An older CUDA has it: {fits[0]}" if fits else "xbp's CUDA code cannot run on it; NumPy can."
            yield Finding(f"device {i}", "wrong", text, remedy)


def _of_cupy(installed: Mapping[str, str], seen: Driver) -> Iterator[Finding]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of several wheels, which is told above
        try:
            import_module("cupy")
        except BaseException as error:  # a broken library may do anything, also exit
            remedy = f"pip uninstall -y {' '.join(sorted(installed))} and then {_install(seen)}"
            yield Finding("import cupy", "wrong", f"fails: {type(error).__name__}: {_short(error)}", remedy)


def _of_libraries(seen: Driver) -> Iterator[Finding]:
    """Those that products and kernels need: found, loaded, and not newer than the driver."""
    for name, version in VERSIONS.items():
        try:
            found, path = version(), load(name)._name
        except Exception as error:
            text = (
                _short(error) if isinstance(error, BackendUnavailable) else f"{type(error).__name__}: {_short(error)}"
            )
            yield Finding(name, _gravity(seen), text, INSTALL)
            continue
        if seen.cards and seen.version[0] < int(re.sub(r"\D.*", "", found) or 0):
            text = f"{found}, {path}, is newer than the driver, which runs CUDA {_dotted(seen.version)} and older"
            yield Finding(name, "wrong", text, f"Update the driver, or {_install(seen)}")
        else:
            yield Finding(name, "ok", f"{found}, {path}")
    if nvrtc.include_options():
        yield Finding("headers", "ok", nvrtc.include_options()[0].partition("=")[2])
    else:
        yield Finding("headers", _gravity(seen), "CUDA's headers, which CuPy compiles with, are not found", INSTALL)


def _of_compiler(seen: Driver) -> Finding:
    """A small kernel, for the device that is there, or for some other."""
    arch = "sm_{}{}".format(*(seen.cards[0].capability if seen.cards else (9, 0)))
    started = time.perf_counter()
    try:
        nvrtc.compiled(TRIAL, arch)
    except Exception as error:
        text = f"a small kernel does not compile for {arch}: {type(error).__name__}: {_short(error)}"
        return Finding("compiling", _gravity(seen), text, f"Reinstall CuPy with its libraries: {INSTALL}")
    return Finding("compiling", "ok", f"a small kernel for {arch} took {1e3 * (time.perf_counter() - started):.0f} ms")


def _of_computing() -> Finding:
    """All of it together: memory, a kernel of CuPy's, a product by cuBLAS."""
    try:
        cupy = import_module("cupy")
        a = cupy.full((16, 16), 2.0, dtype=cupy.float32)
        total = float((a @ a).sum())
    except Exception as error:
        text = f"a product fails: {type(error).__name__}: {_short(error)}"
        return Finding("computing", "wrong", text, "Mend what is wrong above; else free the device, or restart.")
    if total != 16 * 16 * 64.0:
        return Finding("computing", "wrong", f"a product is wrong: {total} in place of 16384", "Test the device.")
    return Finding("computing", "ok", "a product on the device is right")


# --- words ------------------------------------------------------------------------------------------------------------


def _cuda(installed: Mapping[str, str]) -> int:
    """The CUDA that the one CuPy was built for; 0 where its name does not say, or there are several."""
    match = WHEEL.match(next(iter(installed))) if len(installed) == 1 else None
    return int(match["major"]) if match and match["major"] else 0


def _install(seen: Driver) -> str:
    """What to install for this driver."""
    major = seen.version[0]
    if not major:
        return INSTALL
    if major < min(OLDEST):
        return f"update the driver, which is older than CUDA {min(OLDEST)}, and {INSTALL}"
    return f"pip install 'xbp[cuda{min(major, max(OLDEST))}]'"


def _gravity(seen: Driver) -> Literal["missing", "wrong"]:
    """What is not there stands in the way only where there is a device to be used."""
    return "wrong" if seen.cards else "missing"


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _short(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
