"""The interpreter: a program run operation by operation on any namespace. What every engine is compared with.

It does what the recorded formula would have done, in the same order, so on NumPy its results are the eager step's to
the last bit. Values are dropped after their last use.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from ..typing import Array, Device, DType, Namespace
from .liveness import deaths
from .program import Operation, Program
from .shapes import bound
from .values import Value

__all__ = ["OPERATORS", "Interpreter"]

# Operations that the formulas write as Python operators; the others are functions of the namespace.
OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": operator.truediv,
    "pow": operator.pow,
    "negative": operator.neg,
    "bitwise_and": operator.and_,
    "bitwise_or": operator.or_,
    "bitwise_xor": operator.xor,
    "bitwise_invert": operator.invert,
    "bitwise_right_shift": operator.rshift,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
    "equal": operator.eq,
    "not_equal": operator.ne,
}
Dtypes = Callable[[str], DType]
Products = Callable[[Any, Any, DType], Any]
Function = Callable[[list[Any], int], Any]  # of the operands and the batch size


class Interpreter:
    """A program as a function of named arrays.

    xp          the namespace to compute with
    device      where new arrays are made
    dtype       the library's dtype of a name; None asks the namespace
    products    (a, b, dtype) -> the product of arrays of half the width, added up in `dtype`; None widens them first,
                which every library can: each product of two numbers is exact in float32
    """

    def __init__(
        self,
        program: Program,
        xp: Namespace,
        device: Device = None,
        dtype: Dtypes | None = None,
        products: Products | None = None,
    ) -> None:
        self.program = program
        self._products: Products = products or self._widened_product
        self._xp = xp
        self._device = device
        self._dtype: Dtypes = dtype or (lambda name: getattr(xp, name))
        dead = deaths(program)
        self._lines = [
            (self._function(op), op.arguments, op.result, dead[i]) for i, op in enumerate(program.operations)
        ]

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs by name. `inputs` holds an array for every input of the program."""
        n = self.program.batch_size(inputs)
        values: dict[Value, Any] = {value: inputs[name] for name, value in self.program.inputs.items()}
        for function, arguments, result, dead in self._lines:
            values[result] = function([values[a] if isinstance(a, Value) else a for a in arguments], n)
            for value in dead:
                del values[value]
        return {name: values[value] for name, value in self.program.outputs.items()}

    def _function(self, operation: Operation) -> Function:
        """The operation as a function of its operands and the batch size."""
        name, options = operation.function, dict(operation.options)
        dtype, device = self._dtype(operation.result.dtype.name), self._device
        if name in OPERATORS:
            return _spread(OPERATORS[name])
        if name == "getitem":
            return lambda operands, n: operands[0][options["key"].bound(n)]
        call = getattr(self._xp, name)
        if name in ("concat", "stack"):
            return lambda operands, n: call(operands, **options)
        if name in ("reshape", "broadcast_to"):
            return lambda operands, n: call(operands[0], bound(options["shape"], n))
        if name == "astype":
            return lambda operands, n: call(operands[0], dtype)
        if name == "asarray" and not operation.arguments:
            return lambda operands, n: call(options["value"], dtype=dtype, device=device)
        if name == "arange":
            return lambda operands, n: call(*bound((options["n"],), n), dtype=dtype, device=device)
        if name == "zeros":
            return lambda operands, n: call(bound(options["shape"], n), dtype=dtype, device=device)
        if name == "full":
            shape, value = options["shape"], options["value"]
            return lambda operands, n: call(bound(shape, n), bound((value,), n)[0], dtype=dtype, device=device)
        if name == "matmul":
            narrow = any([v.dtype.bits < operation.result.dtype.bits for v in operation.operands])
            product = self._products
            return (lambda operands, n: product(operands[0], operands[1], dtype)) if narrow else _spread(call)
        if "dtype" in options:
            options["dtype"] = dtype
        return _spread(call, options)

    def _widened_product(self, a: Any, b: Any, dtype: DType) -> Any:
        return self._xp.matmul(self._xp.astype(a, dtype), self._xp.astype(b, dtype))


def _spread(function: Callable[..., Any], options: Mapping[str, Any] | None = None) -> Function:
    kept = dict(options or {})
    return lambda operands, n: function(*operands, **kept)
