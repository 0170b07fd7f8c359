"""Arrays without values, and the record of what was computed with them.

Such an array knows its shape, its dtype and its device. It refuses whatever would need its values, and says what to
write instead; operators go into the record like functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..errors import DTypeError, RecordingError, ShapeError
from . import shapes
from .program import Operation, Program
from .shapes import Dim, Shape
from .values import DTYPES, RecordedDType, Value

__all__ = [
    "DEVICE",
    "Record",
    "RecordedArray",
    "RecordingDevice",
    "as_scalar",
    "promoted",
]


PYTHON_KINDS = {bool: {"bool"}, int: {"integral", "real floating"}, float: {"real floating"}}


class RecordingDevice:
    """The one device there is; creation functions are to be given it, as `x.device`."""

    def __repr__(self) -> str:
        return "recorder"


DEVICE = RecordingDevice()


def promoted(dtypes: Sequence[RecordedDType]) -> RecordedDType:
    """The wider one of a kind; kinds do not mix, nor do two of one width."""
    first = dtypes[0]
    if all([d is first for d in dtypes]):
        return first
    if any([d.kind != first.kind for d in dtypes]):
        raise DTypeError(
            f"Arrays of {' and '.join(d.name for d in dtypes)} do not mix: the standard promotes within a kind only. "
            "Cast with xp.astype, or choose with xp.where."
        )
    wide = max(dtypes, key=lambda d: d.bits)
    if any([d.bits == wide.bits and d is not wide for d in dtypes]):
        raise DTypeError(f"Arrays of {' and '.join(d.name for d in dtypes)} do not mix: neither holds the other's.")
    return wide


def as_scalar(value: Any, dtype: RecordedDType) -> float:
    """A Python number that takes `dtype`; anything else is refused with the reason."""
    if isinstance(value, Dim):
        value = int(value)  # from here on a number, which the text shows
    if type(value) not in PYTHON_KINDS:
        raise DTypeError(
            f"Operand {value!r} is a {type(value).__module__}.{type(value).__name__}: neither an array of this "
            "recording nor a Python number. NumPy's numbers would change the dtype; constants come from Python or math."
        )
    if dtype.kind not in PYTHON_KINDS[type(value)]:
        raise DTypeError(f"The Python number {value!r} does not become {dtype}; give a number of its kind.")
    if dtype.kind == "integral" and not -(2 ** (dtype.bits - 1)) <= value < 2 ** (dtype.bits - 1):
        raise DTypeError(f"The Python number {value!r} does not fit into {dtype}.")
    number: float = value
    return number


def _refuse(what: str, way_out: str) -> Any:
    def method(self: object, *args: object, **options: object) -> NoReturn:
        raise RecordingError(f"{what} while a formula is being recorded: its arrays have no values yet. {way_out}")

    return method


def _operator(function: str, swapped: bool = False) -> Any:
    def method(self: RecordedArray, other: object) -> RecordedArray:
        return self.record.elementwise(function, *((other, self) if swapped else (self, other)))

    return method


@dataclass(frozen=True, eq=False)
class RecordedArray:
    """An array that is only a shape, a dtype and a device. It refuses whatever would need its values."""

    record: Record = field(repr=False)
    value: Value
    device: RecordingDevice = DEVICE

    __hash__ = None  # type: ignore[assignment]  # as the arrays of all libraries: == compares entries
    __array_ufunc__ = None  # NumPy's operators leave the operation to ours, which refuse

    @property
    def name(self) -> str:
        return self.value.name

    @property
    def shape(self) -> Shape:
        return self.value.shape

    @property
    def dtype(self) -> RecordedDType:
        return self.value.dtype

    @property
    def ndim(self) -> int:
        return len(self.value.shape)

    def __array_namespace__(self, *, api_version: str | None = None) -> Any:
        return self.record.xp

    __add__, __radd__ = _operator("add"), _operator("add", swapped=True)
    __sub__, __rsub__ = _operator("subtract"), _operator("subtract", swapped=True)
    __mul__, __rmul__ = _operator("multiply"), _operator("multiply", swapped=True)
    __truediv__, __rtruediv__ = _operator("divide"), _operator("divide", swapped=True)
    __pow__, __rshift__ = _operator("pow"), _operator("bitwise_right_shift")
    __and__, __or__, __xor__ = _operator("bitwise_and"), _operator("bitwise_or"), _operator("bitwise_xor")
    __lt__, __le__, __gt__, __ge__ = map(_operator, ("less", "less_equal", "greater", "greater_equal"))
    __eq__, __ne__ = _operator("equal"), _operator("not_equal")

    def __neg__(self) -> RecordedArray:
        return self.record.elementwise("negative", self)

    def __invert__(self) -> RecordedArray:
        return self.record.elementwise("bitwise_invert", self)

    def __getitem__(self, key: Any) -> RecordedArray:
        parts = key if isinstance(key, tuple) else (key,)
        if any(type(k) not in (int, Dim, slice, type(None), type(Ellipsis)) for k in parts):
            raise RecordingError(
                "x[...] takes integers, slices, None and '...' in a recording. Choose rows by an array of numbers with "
                "xp.take, entries by a mask with xp.where."
            )
        return self.record.note(
            "getitem", (self,), shapes.indexed(self.shape, parts), self.dtype, key=shapes.Key(parts)
        )

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Arrays have no {name!r} in a recording; use functions, xp.sum(x), not methods, x.sum().")

    __bool__ = _refuse("bool(x), 'if x' or 'x in ...' is impossible", "Choose between two values with xp.where.")
    __float__ = _refuse("float(x) is impossible", "Keep the 0-d array and compute with it.")
    __int__ = _refuse("int(x) is impossible", "Keep the 0-d array and compute with it.")
    __complex__ = _refuse("complex(x) is impossible", "Keep the 0-d array and compute with it.")
    __index__ = _refuse("Indexing by an array's value is impossible", "Choose with xp.take or by comparison.")
    __len__ = _refuse("len(x) is not part of the standard, and impossible", "x.shape[0] is the length.")
    __iter__ = _refuse("Iterating over an array is impossible", "Compute with all of its rows at once.")
    __array__ = _refuse("Turning an array into NumPy's is impossible", "Use functions of xp, and Python's constants.")
    __matmul__ = __rmatmul__ = _refuse("'@' is not recorded", "Backends may replace products: write xp.matmul(a, b).")
    __setitem__ = _refuse("Writing into an array is impossible", "Build a new one, for example with xp.where.")
    __iadd__ = __isub__ = __imul__ = __itruediv__ = __ipow__ = __iand__ = __ior__ = __ixor__ = __irshift__ = _refuse(
        "'x += ...' writes into an array on some libraries, which is impossible", "Write x = x + ..."
    )


# What each operator and elementwise function takes, and whether it answers with bool instead of the operands' dtype.
NUMERIC, FLOATING = frozenset({"integral", "real floating"}), frozenset({"real floating"})
DISCRETE, ALL = frozenset({"bool", "integral"}), NUMERIC | {"bool"}
KINDS = {
    **dict.fromkeys(("add", "subtract", "multiply", "pow", "negative", "abs", "sign", "maximum", "minimum"), NUMERIC),
    **dict.fromkeys(("less", "less_equal", "greater", "greater_equal", "isfinite"), NUMERIC),
    **dict.fromkeys(("divide", "exp", "expm1", "log", "log1p", "sqrt", "tanh"), FLOATING),
    **dict.fromkeys(("bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert"), DISCRETE),
    **dict.fromkeys(("equal", "not_equal"), ALL),
    "bitwise_right_shift": frozenset({"integral"}),
}
ANSWERS_BOOL = {"less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "isfinite"}


class Record:
    """The inputs, and the operations in the order in which they were called. `batch` is what N stands for meanwhile."""

    xp: Any

    def __init__(self, batch: int) -> None:
        if batch < 1:
            raise ShapeError(f"A batch holds one row or more; batch={batch}.")
        self.batch = Dim(batch)
        self.inputs: list[RecordedArray] = []
        self.operations: list[Operation] = []
        self.origin = ""

    def input(self, name: str, shape: Sequence[int | str], dtype: str = "float32") -> RecordedArray:
        """An array that the formula is given. A length "N" is the batch's."""
        if dtype not in DTYPES:
            raise DTypeError(f"The recorder has no dtype {dtype!r}. It has: {', '.join(DTYPES)}.")
        lengths = shapes.as_shape(tuple(self.batch if n == "N" else n for n in shape))
        array = RecordedArray(self, Value(name, lengths, DTYPES[dtype]))
        self.inputs.append(array)
        return array

    @contextmanager
    def within(self, origin: str) -> Iterator[None]:
        """Operations noted meanwhile come from this rule, such as "0 Affine.backward"."""
        outer, self.origin = self.origin, origin
        try:
            yield
        finally:
            self.origin = outer

    def note(
        self, function: str, arguments: Sequence[Any], shape: Shape, dtype: RecordedDType, /, **options: Any
    ) -> RecordedArray:
        """Add a line to the record; returns its result."""
        result = Value(f"%{len(self.operations)}", shape, dtype)
        operands = tuple([a.value if isinstance(a, RecordedArray) else a for a in arguments])
        self.operations.append(Operation(function, operands, options, result, self.origin))
        return RecordedArray(self, result)

    def elementwise(self, function: str, *operands: Any) -> RecordedArray:
        """An operator or elementwise function of arrays and Python numbers, by the rules of `KINDS`."""
        arrays = [x for x in operands if isinstance(x, RecordedArray)]
        self.check(function, *(arrays or operands))
        dtype = promoted([x.dtype for x in arrays])
        if dtype.kind not in KINDS[function]:
            raise DTypeError(f"{function} takes {' or '.join(sorted(KINDS[function]))} arrays, not {dtype}.")
        arguments = [x if isinstance(x, RecordedArray) else as_scalar(x, dtype) for x in operands]
        answer = DTYPES["bool"] if function in ANSWERS_BOOL else dtype
        return self.note(function, arguments, shapes.broadcast(*[x.shape for x in arrays]), answer)

    def check(self, function: str, *arrays: object) -> None:
        """That there is an array, and that all are arrays of this recording."""
        if not arrays:
            raise DTypeError(f"{function} takes at least one array.")
        for x in arrays:
            if not isinstance(x, RecordedArray):
                raise DTypeError(
                    f"{function} got a {type(x).__module__}.{type(x).__name__}, not an array of the recording. What a "
                    "formula needs is one of its arguments or made with xp."
                )
            if x.record is not self:
                raise RecordingError(f"{function} got {x.name!r} of another recording. One formula, one recorder.")

    def text(self, *outputs: Any) -> str:
        """The record to read and to compare: inputs, operations in order, and the outputs, if they are given."""
        lines = [f"input {a.value}" for a in self.inputs]
        lines += [str(operation) for operation in self.operations]
        if outputs:
            lines.append(f"return {', '.join(a.name for a in _arrays(outputs))}")
        return "\n".join(lines)

    def program(self, name: str, outputs: Mapping[str, RecordedArray]) -> Program:
        """The record as a Program with these outputs. An output named like an input is its new value."""
        self.check("program", *outputs.values())
        return Program(
            name,
            {a.name: a.value for a in self.inputs},
            tuple(self.operations),
            {name: a.value for name, a in outputs.items()},
        )


def _arrays(value: Any) -> list[RecordedArray]:
    """The arrays in nested tuples, lists and mappings, in order."""
    if isinstance(value, RecordedArray):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    return [a for v in value for a in _arrays(v)] if isinstance(value, tuple | list) else []
