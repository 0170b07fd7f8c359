"""Checks of settings: everything about a training that can be known to be wrong before its first step."""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection
from numbers import Real
from typing import Any

from .backend import Backend, available_backends
from .data import output_width, prepare_batch
from .errors import BackendUnavailable, DTypeError, NonFiniteLoss, ShapeError, unknown_name
from .layers import BatchNorm, ReLU, Sigmoid, Softmax, Tanh
from .losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from .model import Model
from .optimizers import Names, Optimizer, selects
from .program import PRECISIONS

__all__ = [
    "Gate",
    "check_fit",
    "check_trainer",
    "chosen_engine",
    "chosen_precision",
    "non_finite",
    "trainable_names",
    "uncut",
    "whole_number",
]


def check_trainer(
    model: object,
    loss: object,
    optimizer: object,
    clip_norm: float | None,
    accumulate: int,
    memory_limit: int | None,
    penalty: float = 0.0,
) -> None:
    """Raise for parts that are of the wrong kind or do not fit together; warn of a squashed output before a softmax."""
    for name, value, kind in (("model", model, Model), ("loss", loss, Loss), ("optimizer", optimizer, Optimizer)):
        if not isinstance(value, kind):
            made = f" Write {value.__name__}(...)." if isinstance(value, type) else ""
            raise TypeError(f"{name} must be a {kind.__name__}; it is {value!r:.80}.{made}")
    assert isinstance(model, Model)  # the loop above has made sure
    assert isinstance(loss, Loss)
    if clip_norm is not None and not 0 < clip_norm < math.inf:
        raise ValueError(f"clip_norm must be a finite number above 0, or None for no clipping; it is {clip_norm!r}.")
    if isinstance(penalty, bool) or not isinstance(penalty, Real) or not 0 <= penalty < math.inf:
        raise ValueError(f"penalty must be a finite number of at least 0; it is {penalty!r}.")
    decay = getattr(optimizer, "decay", None)
    for name in [] if decay is None or callable(decay) else [decay] if isinstance(decay, str) else decay:
        if name not in model.params:
            raise unknown_name("parameter in decay=", name, model.params)
    whole_number("accumulate", accumulate, 1)
    if memory_limit is not None:
        whole_number("memory_limit", memory_limit, 1)
    if accumulate > 1 and _batch_norms(model):
        raise ValueError(
            f"accumulate={accumulate} cuts batches into pieces, but BatchNorm's statistics are the whole batch's. "
            "Use accumulate=1, or LayerNorm."
        )
    width = output_width(model)
    if width is not None:
        loss.target_width(width)
    last = next(node.layer for node in model.plan.nodes if node.name == model.plan.output) if model.plan.nodes else None
    if isinstance(loss, SoftmaxCrossEntropy | SigmoidCrossEntropy) and isinstance(
        last, Sigmoid | Tanh | Softmax | ReLU
    ):
        warnings.warn(
            f"The network ends in {last}, and {type(loss).__name__} squashes its input itself. Scores squeezed twice "
            "cannot express sure answers; end the network in Affine.",
            UserWarning,
            stacklevel=3,
        )


def uncut(model: Model) -> str:
    """Why batches cannot be cut into pieces; "" where they can."""
    names = _batch_norms(model)
    cannot = "batches cannot be cut into pieces: BatchNorm's statistics are the whole batch's."
    return f"With BatchNorm ({', '.join(names)}) {cannot}" if names else ""


def _batch_norms(model: Model) -> list[str]:
    return [node.name for node in model.plan.nodes if isinstance(node.layer, BatchNorm)]


def whole_number(name: str, value: object, least: int) -> int:
    """`value` as an int. Raises `ValueError` for anything but a whole number of at least `least`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value.__index__()) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}; it is {value!r}.")
    return int(value.__index__())


def check_fit(model: Model, n: int, batch_size: int | None) -> None:
    """Raise for a batch size that is no size, or leaves BatchNorm a batch of one row. None: one batch of n rows."""
    size = n if batch_size is None else batch_size
    if batch_size is not None:
        whole_number("batch_size", batch_size, 1)
    names = _batch_norms(model)
    last = n % int(size) or min(int(size), n)
    if names and (last == 1 or int(size) == 1):
        raise ShapeError(
            f"BatchNorm ({', '.join(names)}) cannot train on a batch of one row, which has no variance: {n} rows in "
            f"batches of {size} leave one of {min(last, int(size))}. Choose another batch_size."
        )


class Gate:
    """The way in for single batches: checked when they look new, passed when they look like the last one."""

    def __init__(self, model: Model, loss: Loss) -> None:
        self._model, self._loss = model, loss
        self._known: tuple[object, ...] = ()
        self.same = False  # whether the last batch looked like the one before it

    def passed(self, x: Any, t: Any, w: Any) -> tuple[Any, Any, Any]:
        """The batch on the device. Raises `ShapeError` and `DTypeError`; values are not looked at."""
        given = (x, t, w)
        look = (*_look(x), *_look(t), *_look(w))
        self.same = look == self._known
        if self.same:
            return given
        batch = prepare_batch(self._model, self._loss, x, t, w)
        check_fit(self._model, int(batch[1].shape[0]), None)
        untouched = all(a is b for a, b in zip(batch, given, strict=True))
        self._known = look if untouched else ()
        return batch


def _look(a: Any) -> tuple[object, object, object]:
    """Type, dtype and shape of an array: all that is checked of a batch."""
    return type(a), getattr(a, "dtype", None), getattr(a, "shape", None)


def non_finite(loss: float, step: int, done: int, epoch: int, rate: float) -> NonFiniteLoss:
    """The error for a loss that is NaN or infinite at step number `step`, of `done` that were made in the epoch."""
    where = f"at step {step + 1}" if step < done else f"after step {done}"
    return NonFiniteLoss(
        f"The loss became {loss} {where} of epoch {epoch}, with lr={rate:g}. "
        "The weights from before that epoch are back in the model. Try a smaller lr, clip_norm, or scaled inputs."
    )


def chosen_engine(backend: Backend, engine: str) -> str:
    """The engine to run on. Raises `NameUnknown` for one that the backend does not have, `BackendUnavailable` for one
    that needs what is not installed.
    """
    if engine == "auto":
        return backend.engines[0]
    if engine in backend.extras and engine not in backend.engines:
        raise BackendUnavailable(
            f"Engine {engine!r} of backend {backend.name!r} cannot run: it needs {backend.extras[engine]}. "
            f"Without it there are: {', '.join(backend.engines)}."
        )
    if engine not in backend.engines:
        raise unknown_name(f"engine of backend {backend.name!r}:", engine, (*backend.engines, "auto"))
    return engine


def chosen_precision(model: Model, precision: str) -> str:
    """The precision of the products. Raises `NameUnknown`, and `DTypeError` where model or backend cannot have it."""
    if precision not in PRECISIONS:
        raise unknown_name("precision", precision, PRECISIONS)
    if precision != "float32" and model.dtype != "float32":
        raise DTypeError(
            f"precision={precision!r} is for models of float32, and this one is of {model.dtype}, in which it computes "
            'everything. Leave precision= out, or make the model with dtype="float32".'
        )
    if precision not in model.backend.precisions:
        able = [info.name for info in available_backends() if precision in info.precisions]
        raise DTypeError(
            f"Backend {model.backend.name!r} has no precision {precision!r}. It has: "
            f"{', '.join(model.backend.precisions)}. Backends here that have it: {', '.join(able) or 'none'}."
        )
    return precision


def trainable_names(model: Model, trainable: Names | None) -> tuple[str, ...]:
    """The names of the parameters that learn. Raises for unknown names and for none at all."""
    if isinstance(trainable, str):
        trainable = (trainable,)
    if isinstance(trainable, Collection):
        for name in trainable:
            if name not in model.params:
                raise unknown_name("parameter in trainable=", name, model.params)
    names = tuple(name for name in model.params if selects(trainable, name))
    if not names:
        raise ValueError(
            "Nothing to train: trainable= selects none of the parameters "
            f"{', '.join(model.params) or '(the model has none)'}."
        )
    return names
