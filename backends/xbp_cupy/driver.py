"""NVIDIA's driver, asked directly: it answers also where CuPy is not installed, or cannot be imported."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

__all__ = ["Card", "Driver", "driver"]

# cuda.h: CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Card:
    """A device: its name, its memory in bytes, its compute capability."""

    name: str
    memory: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Driver:
    """What the driver says.

    loaded     whether its library is there
    status     its answer to being started, a CUresult; 0 is success
    text       why it is not there, or its answer in words
    version    the newest CUDA that it runs, as (12, 4)
    cards      the devices that it shows to this process
    """

    loaded: bool
    status: int = 0
    text: str = ""
    version: tuple[int, int] = (0, 0)
    cards: tuple[Card, ...] = ()


def driver() -> Driver:
    """Start the driver in this process, and ask."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        cuda = ctypes.CDLL(name)
    except OSError as error:
        return Driver(False, text=f"{name} does not load ({error})")
    number = ctypes.c_int()
    known = cuda.cuDriverGetVersion(ctypes.byref(number)) == 0
    version = (number.value // 1000, number.value % 1000 // 10) if known else (0, 0)
    status = int(cuda.cuInit(0))
    if status:
        return Driver(True, status, _in_words(cuda, status), version)
    status = int(cuda.cuDeviceGetCount(ctypes.byref(number)))
    if status:
        return Driver(True, status, _in_words(cuda, status), version)
    return Driver(True, version=version, cards=tuple(_card(cuda, i) for i in range(number.value)))


def _card(cuda: ctypes.CDLL, index: int) -> Card:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Card(name.value.decode(errors="replace"), memory.value, (major.value, minor.value))


def _in_words(cuda: ctypes.CDLL, status: int) -> str:
    parts = []
    for function in (cuda.cuGetErrorName, cuda.cuGetErrorString):
        text = ctypes.c_char_p()
        if function(status, ctypes.byref(text)) == 0 and text.value:
            parts.append(text.value.decode(errors="replace"))
    return f"{': '.join(parts) or 'unknown error'} ({status})"
