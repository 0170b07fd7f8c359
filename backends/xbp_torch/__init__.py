"""PyTorch, as an array library: its autograd is neither needed nor used.

Devices are PyTorch's own names: "cpu", "cuda", "cuda:1", "mps", "xpu".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import numpy as np

from xbp.backend import Backend, load_library
from xbp.errors import BackendUnavailable, DTypeError
from xbp.program import Program
from xbp.runner import Runner
from xbp.typing import Array, DType, Namespace

from .compiled import CompiledRunner, function
from .precision import products_of

__all__ = ["CompiledRunner", "TorchBackend", "backend", "function", "products_of"]

INSTALL = "pip install 'xbp[torch]'"


class TorchBackend(Backend):
    """PyTorch tensors on one device."""

    engines: ClassVar[tuple[str, ...]] = ("eager", "compile")  # compiling takes seconds, and a C++ compiler

    def __init__(self, torch: Any, compat: Any, device: Any) -> None:
        super().__init__("torch", cast(Namespace, compat), device=device, version=torch.__version__)
        self._torch = torch

    @property
    def precisions(self) -> tuple[str, ...]:  # type: ignore[override]  # of this device
        """All; but only NVIDIA's GPUs have products in TF32."""
        mixed = ("mixed-bfloat16", "mixed-float16")
        return ("float32", "tf32", *mixed) if self.device.type == "cuda" else ("float32", *mixed)

    def dtype(self, name: str) -> DType:
        if name == "float64" and self.device.type == "mps":
            raise DTypeError('Apple\'s GPUs have no float64 (device "mps"). Use dtype="float32", or device="cpu".')
        return super().dtype(name)

    def bare(self, array: Array) -> Array:
        # A tensor that requires a gradient would keep every step alive in a graph that nobody asks for.
        return cast(Array, cast(Any, array).detach())

    def _upload(self, a: np.ndarray) -> Array:
        # Tensors have no negative strides.
        return super()._upload(np.ascontiguousarray(a).reshape(a.shape))

    def _download(self, array: Array) -> np.ndarray:
        tensor = cast(Any, array).detach().cpu()
        if tensor.dtype is self._torch.bfloat16:
            tensor = tensor.float()  # NumPy has no bfloat16
        return np.array(tensor.numpy())

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            self._torch.cuda.synchronize(self.device)
        elif self.device.type == "xpu":
            self._torch.xpu.synchronize(self.device)
        elif self.device.type == "mps":
            self._torch.mps.synchronize()

    def memory(self) -> dict[str, int]:
        """On CUDA: `used` by live tensors, `reserved` by PyTorch's pool, `free` and `total` of the whole device."""
        if self.device.type != "cuda":
            return {}
        cuda = self._torch.cuda
        free, total = cuda.mem_get_info(self.device)
        used, reserved = cuda.memory_allocated(self.device), cuda.memory_reserved(self.device)
        return {"used": used, "reserved": reserved, "free": free, "total": total}

    def compile(self, program: Program, engine: str) -> Runner:
        if engine != "compile":
            raise self._without(engine)
        return CompiledRunner(program, self._torch, self.device)

    def function(self, program: Program, engine: str) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        if engine != "compile":
            raise self._without(engine)
        return function(program, self._torch, self.device)

    def interpreted(self, program: Program) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        compute, products = super().interpreted(program), products_of(program, self._torch)

        def function(inputs: Mapping[str, Array]) -> dict[str, Array]:
            with products():
                return compute(inputs)

        return function


def backend(device: str | None = None) -> TorchBackend:
    """The PyTorch backend on `device`; None is PyTorch's default device."""
    torch = load_library("torch", "torch", INSTALL)
    compat = load_library("array_api_compat.torch", "torch", INSTALL)
    try:
        chosen = torch.get_default_device() if device is None else torch.device(device)
    except RuntimeError as error:
        raise BackendUnavailable(f"Backend 'torch' has no device {device!r}. {_first_line(error)}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            f"Backend 'torch' has no device {device!r}: this PyTorch ({torch.__version__}) finds no CUDA. Install the "
            "NVIDIA driver and PyTorch's build for its CUDA version, or leave device= out to compute on the CPU."
        )
    try:
        probe = torch.zeros(1, device=chosen)
        probe.to("cpu", copy=True)  # the device "meta", for one, creates tensors that have no values
    except Exception as error:  # each device refuses with an exception of its own
        raise BackendUnavailable(f"Backend 'torch' cannot compute on {device!r}: {_first_line(error)}") from error
    return TorchBackend(torch, compat, probe.device)  # "cuda" with its number, as tensors say it


def _first_line(error: Exception) -> str:
    """PyTorch's messages go on for pages."""
    return str(error).strip().partition("\n")[0][:300]
