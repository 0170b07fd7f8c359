"""Epilogues: what a product can do with its result before it goes to memory.

Adding a bias, ReLU with a mask of where it let pass, and, on the way back, that mask and the sum that is the gradient
of a bias: each spares a kernel that would read the whole result again. An epilogue is a request. Where the library
declines it, the same program without it is product and kernel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from xbp.program import DTYPES, Operation, Program, Value

from .halves import narrow_of

__all__ = ["BIAS_GRADIENT", "MASK", "PRODUCT", "with_epilogues"]

# Operations that this pass makes. What a product leaves beside its result is an operation on the result.
PRODUCT, MASK, BIAS_GRADIENT = "product", "product.mask", "product.bias_gradient"
BITS = 128  # of a mask's leading dimension, a multiple


def with_epilogues(program: Program, declined: Collection[str] = ()) -> Program:
    """The program whose products do what follows them, but for requests that were declined.

    A request is named by its epilogue and the product's result: option "request" of the operation.
    """
    return _Requests(program, declined).program()


class _Requests:
    def __init__(self, program: Program, declined: Collection[str]) -> None:
        self._given, self._declined = program, declined
        self._made = {op.result: op for op in program.operations}
        self._place = {op.result: i for i, op in enumerate(program.operations)}
        self._readers: dict[Value, list[Operation]] = {}
        for op in program.operations:
            for v in dict.fromkeys(op.operands):
                self._readers.setdefault(v, []).append(op)
        self._narrow = narrow_of(program)
        self._outputs = set(program.outputs.values())
        self._instead: dict[Value, list[Operation]] = {}  # by the result of the operation whose line they take
        self._gone: set[Value] = set()

    def program(self) -> Program:
        products = [op for op in self._given.operations if op.function == "matmul" and self._fits(op)]
        masks: dict[Value, Value] = {}  # of the results of ReLU
        for op in products:
            self._forward(op, masks)
        for op in products:
            self._backward(op, masks)
        for op in products:
            self._weights(op)
        lines = [new for op in self._given.operations for new in self._instead.get(op.result, [op])]
        kept = [op for op in lines if op.result not in self._gone]
        return replace(self._given, operations=tuple(self._without_idle(kept)))

    def _fits(self, op: Operation) -> bool:
        return op.result.dtype.kind == "real floating" and op.result.ndim == 2 and all(v.ndim == 2 for v in op.operands)

    # --- looking around -------------------------------------------------------------------------------------------

    def _only(self, value: Value, function: str) -> Operation | None:
        """The one operation that reads a value, if it is of that kind and nobody else needs the value."""
        readers = self._readers.get(value, [])
        if value in self._outputs or len(readers) != 1 or readers[0].function != function:
            return None
        return readers[0]

    def _narrowed(self, value: Value) -> Value:
        """The value in half the width, where that is all that anybody reads of it."""
        op = self._only(value, "astype")
        return op.result if op is not None and op.result.dtype.name in ("float16", "bfloat16") else value

    def _wanted(self, epilogue: str, product: Operation) -> bool:
        return f"{epilogue} {product.result.name}" not in self._declined

    def _made_of(self, op: Operation, epilogue: str, extra: Sequence[Value], result: Value) -> Operation:
        options = {**op.options, "epilogue": epilogue, "request": f"{epilogue} {op.result.name}"}
        return Operation(PRODUCT, (*op.operands, *extra), options, result, op.origin)

    def _replace(self, first: Value, last: Value, *lines: Operation) -> None:
        """The operations from `first` to `last` become these, in the last one's place."""
        value = first
        while value is not last:
            self._gone.add(value)
            value = self._readers[value][0].result
        self._instead[last] = list(lines)

    # --- forward: bias, ReLU and its mask ---------------------------------------------------------------------------

    def _forward(self, op: Operation, masks: dict[Value, Value]) -> None:
        add = self._only(op.result, "add")
        if add is None or len(add.operands) != 2:
            return
        bias = next(v for v in add.operands if v is not op.result)
        if bias.ndim != 1:
            return
        relu = self._only(add.result, "maximum")
        if relu is not None and relu.arguments[1] == 0.0:
            result = self._narrowed(relu.result)
            given = self._bias(bias, result)
            mask = self._mask(result)
            if given is not None and mask is not None and self._wanted("relu_aux_bias", op):
                masks[result] = mask.result
                self._replace(op.result, result, self._made_of(op, "relu_aux_bias", [given], result), mask)
                return
            if given is not None and self._wanted("relu_bias", op):
                self._replace(op.result, result, self._made_of(op, "relu_bias", [given], result))
                return
        result = self._narrowed(add.result)
        given = self._bias(bias, result)
        if given is not None and self._wanted("bias", op):
            self._replace(op.result, result, self._made_of(op, "bias", [given], result))

    def _bias(self, bias: Value, result: Value) -> Value | None:
        """The bias in the dtype of the result, as the library wants it; None where there is none."""
        if bias.dtype == result.dtype:
            return bias
        made = self._made.get(bias)
        narrow = self._narrow.get(bias)
        if made is not None and made.function == "astype":
            narrow = made.operands[0]
        return narrow if narrow is not None and narrow.dtype == result.dtype else None

    def _mask(self, h: Value) -> Operation | None:
        """The mask of a ReLU's result, if the way back asks for it."""
        if not any(self._gate(op, h) for op in self._comparisons(h)):
            return None
        words = -(-int(h.shape[1]) // BITS) * (BITS // 32)
        return Operation(MASK, (h,), {}, Value(f"{h.name}.mask", (h.shape[0], words), DTYPES["int32"]))

    def _comparisons(self, h: Value) -> list[Operation]:
        """Where it is asked whether entries of h are above 0."""
        found = []
        for op in self._readers.get(h, []):
            if op.function == "astype":
                found += self._comparisons(op.result)
            elif op.function == "greater" and op.arguments[0] is h and op.arguments[1] == 0.0:
                found.append(op)
        return found

    def _gate(self, comparison: Operation, h: Value) -> Operation | None:
        """where(h > 0, a product, 0): the gradient of ReLU, made of what nobody else reads."""
        where = self._only(comparison.result, "where")
        if where is None or where.arguments[0] is not comparison.result or where.arguments[2] != 0.0:
            return None
        dh = where.arguments[1]
        made = self._made.get(dh) if isinstance(dh, Value) else None
        if made is None or made.function != "matmul" or self._only(made.result, "where") is None:
            return None
        return where

    # --- back: the mask, and gradients of biases --------------------------------------------------------------------

    def _backward(self, op: Operation, masks: dict[Value, Value]) -> None:
        """A product that the gradient of a ReLU follows."""
        where = self._only(op.result, "where")
        if where is None or op.result in self._gone:
            return
        mask = next(
            (mask for h, mask in masks.items() for c in self._comparisons(h) if self._gate(c, h) is where), None
        )
        if mask is None:
            return
        result = self._narrowed(where.result)
        sums = [s for s in self._sums(result) if s.result.dtype == result.dtype]
        if len(sums) == 1 and self._wanted("drelu_bgrad", op):
            gradient = Operation(BIAS_GRADIENT, (result,), {}, sums[0].result, sums[0].origin)
            self._instead[sums[0].result] = []
            self._replace(op.result, result, self._made_of(op, "drelu_bgrad", [mask], result), gradient)
        elif self._wanted("drelu", op):
            self._replace(op.result, result, self._made_of(op, "drelu", [mask], result))

    def _sums(self, dy: Value) -> list[Operation]:
        """Sums of an array's rows: the gradient of a bias."""
        found = []
        for op in self._readers.get(dy, []):
            if op.function == "astype":
                found += self._sums(op.result)
            elif op.function == "sum" and op.options["axis"] == (0,) and not op.options.get("keepdims"):
                found.append(op)
        return found

    def _weights(self, op: Operation) -> None:
        """The gradient of a weight, x^T dy, reads all of dy: it can add up its rows on the way."""
        dy = op.operands[1]
        sums = [s for s in self._sums(dy) if s.result not in self._instead and s.result.dtype == op.result.dtype]
        if op.result in self._gone or op.result in self._instead or len(sums) != 1:
            return
        total = sums[0]
        readers = self._readers.get(total.result, [])
        late = all(self._place[reader.result] > self._place[op.result] for reader in readers)
        if not late or not self._wanted("bgrada", op):
            return
        gradient = Operation(BIAS_GRADIENT, (op.result,), {}, total.result, total.origin)
        self._instead[total.result] = []
        self._instead[op.result] = [self._made_of(op, "bgrada", [], op.result), gradient]

    def _without_idle(self, operations: list[Operation]) -> list[Operation]:
        """Without what nobody reads any more: the comparison that a mask replaces."""
        needed = set(self._outputs)
        kept = []
        for op in reversed(operations):
            beside = op.function in (MASK, BIAS_GRADIENT)
            if op.result in needed or beside:
                needed.update(op.operands)
                kept.append(op)
        return kept[::-1]
