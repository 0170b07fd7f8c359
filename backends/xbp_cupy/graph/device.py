"""What the runner asks of a device. CUDA's answers are in `cuda`; another one runs the same kernels on a processor.

Everything is an address: the runner plans the memory itself, and knows where everything lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from xbp.typing import Array

from ..products import Product

__all__ = ["Device", "Memory", "Multiply"]

Multiply = Callable[..., None]  # of the addresses of A, B and D, and what the epilogue has beside them


@dataclass(frozen=True)
class Memory:
    """Memory of the device that lives as long as this object does.

    address    of its first byte, on a border of 256
    owner      what the device's library knows it by
    """

    address: int
    owner: Any


class Device(Protocol):
    """One device, on which one thread at a time computes."""

    def memory(self, size: int, *, zeroed: bool = False) -> Memory:
        """So many bytes."""

    def view(self, memory: Memory, offset: int, shape: tuple[int, ...], dtype: str, strides: tuple[int, ...]) -> Array:
        """An array in a memory, from `offset` bytes on; strides in entries."""

    def part(self, array: Array, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Array:
        """As `view`, in the memory of an array in C order."""

    def empty(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array."""

    def copy(self, source: Array, target: Array) -> None:
        """Copy the entries of an array into a view."""

    def contiguous(self, array: Array, dtype: str) -> Array:
        """The array, or a copy, in C order, on a border of 16 bytes."""

    def synchronize(self) -> None:
        """Wait for everything that was launched."""

    def address(self, array: Array) -> int:
        """Where the first entry of an array lies."""

    def compiled(self, text: str) -> Callable[[str], Any]:
        """The kernels of a text of CUDA C++, by name."""

    def launch(self, kernel: Any, blocks: int, arguments: Sequence[Any]) -> None:
        """Run a kernel. Sizes are NumPy's numbers of 32 or 64 bits, as the kernel has them; addresses are integers; a
        struct is an array of one entry, which is read before this returns.
        """

    def accepts(self, product: Product) -> bool:
        """Whether there is such a product, and its epilogue does what `xbp_cupy.reference` says."""

    def product(self, product: Product) -> Multiply:
        """A product, ready to run."""

    def aside(self, call: Callable[[], None]) -> None:
        """Launch something beside what comes next, after what came before."""

    def join(self) -> None:
        """Let what comes next wait for everything that went aside."""

    def captured(self, run: Callable[[], None]) -> Callable[[], None]:
        """What `run` launches, as one graph; or `run` itself where there is no such thing."""
