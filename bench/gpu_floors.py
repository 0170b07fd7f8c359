"""What the device does at best: how fast it copies, and how fast it multiplies in each precision.

No step can take less than its bytes and its products at these rates. They are measured on random numbers, as products
of zeros are faster than any that a training has.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable
from typing import Any

__all__ = ["floors"]

REPEATS = 7


def floors(device: str, size: int = 8192, bytes_copied: int = 2**32) -> dict[str, Any]:
    """Copy bandwidth in GB/s, reads and writes counted, and rates of products in TFLOP/s; medians.

    size    of the square matrices
    """
    torch = importlib.import_module("torch")
    cuda = device != "cpu"

    def seconds(work: Callable[[], Any]) -> float:
        taken = []
        for _ in range(REPEATS + 2):
            if cuda:
                start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                work()
                stop.record()
                stop.synchronize()
                taken.append(start.elapsed_time(stop) / 1e3)
            else:
                began = time.perf_counter()
                work()
                taken.append(time.perf_counter() - began)
        return float(statistics.median(taken[2:]))  # two to warm up

    def copied() -> float:
        source = torch.randn(bytes_copied // 4, device=device)
        target = torch.empty_like(source)
        return seconds(lambda: target.copy_(source))

    found: dict[str, Any] = {"copy_gb_per_s": 2 * bytes_copied / 1e9 / copied()}
    kinds = [("float32", "highest", torch.float32), ("bfloat16", "highest", torch.bfloat16)]
    kinds += [("tf32", "high", torch.float32), ("float16", "highest", torch.float16)] if cuda else []
    for name, level, dtype in kinds:
        torch.set_float32_matmul_precision(level)
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        rate = 2 * size**3 / 1e12 / seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        found[f"{name}_tflop_per_s"] = rate
    torch.set_float32_matmul_precision("highest")
    return {**found, "size": size, "bytes_copied": bytes_copied}
