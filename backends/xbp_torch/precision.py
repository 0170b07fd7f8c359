"""TF32, which PyTorch knows as a switch of the whole process: on while a program runs that allows it, and only then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from xbp.program import Program

__all__ = ["products_of"]


def products_of(program: Program, torch: Any) -> Callable[[], AbstractContextManager[None]]:
    """The context to run the program in: products may be TF32 in it if the program's say so."""
    if all([op.options.get("precision") != "tf32" for op in program.operations]):
        return nullcontext

    @contextmanager
    def allowed() -> Iterator[None]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    return allowed
