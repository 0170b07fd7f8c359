"""What a program computes: values that are a name, a shape and a dtype."""

from __future__ import annotations

from dataclasses import dataclass

from .shapes import Shape, text

__all__ = ["DTYPES", "RecordedDType", "Value"]


@dataclass(frozen=True)
class RecordedDType:
    name: str
    kind: str  # "bool", "integral" or "real floating"
    bits: int

    def __str__(self) -> str:
        return self.name


DTYPES = {
    d.name: d
    for d in (
        RecordedDType("bool", "bool", 1),
        RecordedDType("int32", "integral", 32),
        RecordedDType("int64", "integral", 64),
        RecordedDType("float16", "real floating", 16),  # these two come from the pass for mixed precision
        RecordedDType("bfloat16", "real floating", 16),
        RecordedDType("float32", "real floating", 32),
        RecordedDType("float64", "real floating", 64),
    )
}


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """An array that some operation makes, or that the program is given. Two values are never the same by chance."""

    name: str
    shape: Shape
    dtype: RecordedDType

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{text(self.shape)}]"
