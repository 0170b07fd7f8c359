"""Optimisers: pure rules from parameters, gradients and state to new parameters and new state.

Nothing is written in place and no rate is baked in: what changes from step to step comes in as `lr`, or is a 0-d array
of the state (the step count), so one recorded step serves the whole training. Each class is one formula, for one
parameter; the walk over the names, weight decay and the count are the base's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from array_api_compat import array_namespace

from .describe import plain_number
from .errors import DTypeError, ShapeError, unknown_name
from .schedules import Schedule, rate_at
from .typing import Array, Namespace, Scalar, device_of

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "Optimizer",
    "RMSProp",
    "clip_by_global_norm",
    "get_optimizer",
    "global_norm",
    "selects",
]

Arrays = Mapping[str, Array]
Names = Callable[[str], bool] | Collection[str]
"""Which parameters: a predicate on their names, or the names themselves."""


def selects(names: Names | None, name: str) -> bool:
    """Whether a choice of names contains `name`; None contains all, a string is one name."""
    if isinstance(names, str):
        return name == names
    return names is None or (bool(names(name)) if callable(names) else name in names)


@dataclass(frozen=True)
class Optimizer:
    """Base of the optimisers: `init` and `update`, pure functions over flat mappings of arrays by name.

    The state is a flat mapping too: "step", an int32 count, and one array a slot and parameter ("m.0.W").
    A rule of your own is a frozen dataclass with a field `lr`, with `slots` and with `rule`; fields `weight_decay` and
    `decay` make it decay.
    """

    slots: ClassVar[tuple[str, ...]] = ()

    def init(self, params: Arrays) -> dict[str, Array]:
        """The state before the first step: zeros, with the dtype and device of the parameters."""
        if not params:
            raise ShapeError(f"{type(self).__name__}: there is no parameter to optimise.")
        arrays = list(params.values())
        xp: Namespace = array_namespace(*arrays)
        step = xp.zeros((), dtype=xp.int32, device=device_of(arrays[0]))
        return {"step": step} | {f"{s}.{name}": xp.zeros_like(p) for s in self.slots for name, p in params.items()}

    def update(
        self,
        params: Arrays,
        grads: Arrays,
        state: Arrays,
        *,
        lr: Scalar | None = None,
        xp: Namespace | None = None,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """New parameters and new state after one step against the gradients.

        lr    the rate of this step, a number or a 0-d array in the parameters' dtype; None asks the optimiser's own,
              which for a schedule reads the step count, and so waits for the device
        xp    the namespace to compute with; None is the arrays' own

        Raises `ShapeError` where a gradient is missing or has another shape than its parameter, or the state is another
        optimiser's; `DTypeError` where a gradient has another dtype, which would become the parameter's.
        """
        xp = array_namespace(*params.values()) if xp is None else xp
        self._check(params, grads, state)
        if lr is None:
            own: float | Schedule = self.lr  # type: ignore[attr-defined]  # every rule has a rate
            lr = rate_at(own, int(state["step"])) if callable(own) else own  # type: ignore[call-overload]
        elif isinstance(lr, Real):
            lr = float(lr)  # NumPy's scalars have a dtype, which would widen float32
        step = state["step"] + 1
        new_params: dict[str, Array] = {}
        new_state: dict[str, Array] = {"step": step}
        for name, p in params.items():
            t = xp.astype(step, p.dtype)
            slots = tuple(state[f"{slot}.{name}"] for slot in self.slots)
            decay = self._decay(name)
            new_params[name], new = self.rule(p, grads[name], slots, t, lr, decay, xp)
            new_state.update({f"{slot}.{name}": value for slot, value in zip(self.slots, new, strict=True)})
        return new_params, {name: new_state[name] for name in state if name in new_state}  # in the order of `init`

    def rule(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, decay: float, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        """(new p, new slots) of one parameter; t is the number of this step, from 1, as a 0-d float array."""
        raise NotImplementedError(f"{type(self).__name__} has no rule.")

    def _decay(self, name: str) -> float:
        return getattr(self, "weight_decay", 0.0) if selects(getattr(self, "decay", None), name) else 0.0

    def _check(self, params: Arrays, grads: Arrays, state: Arrays) -> None:
        for entry in ("step", *(f"{slot}.{name}" for slot in self.slots for name in params)):
            if entry not in state:
                raise ShapeError(
                    f"The state has no {entry!r}, which {type(self).__name__} needs for these parameters. "
                    f"Begin with state = optimizer.init(params). State given: {', '.join(state) or 'none'}."
                )
        for name, p in params.items():
            if name not in grads:
                raise ShapeError(f"Parameter {name!r} has no gradient. Gradients given: {', '.join(grads) or 'none'}.")
            if tuple(grads[name].shape) != tuple(p.shape):
                raise ShapeError(
                    f"The gradient of {name!r} has shape {tuple(grads[name].shape)}, the parameter {tuple(p.shape)}."
                )
            if grads[name].dtype != p.dtype:
                raise DTypeError(
                    f"The gradient of {name!r} is {grads[name].dtype}, the parameter {p.dtype}. Convert it (astype)."
                )

    def __post_init__(self) -> None:
        for name, value in list(vars(self).items()):
            if name in ("momentum", "alpha", "beta1", "beta2"):
                plain_number(self, name, at_least=0, below=1)
            elif name in ("eps", "weight_decay"):
                plain_number(self, name, at_least=0)
            elif name == "lr" and not callable(value):
                plain_number(self, name, at_least=0, kind="a schedule, or a finite number")
            elif name == "decay" and not (value is None or callable(value) or isinstance(value, Collection)):
                raise TypeError(
                    f"{type(self).__name__}: decay is None, names of parameters, or a predicate; it is {value!r}."
                )


def _penalised(p: Array, g: Array, decay: float) -> Array:
    return g + decay * p if decay else g


@dataclass(frozen=True)
class SGD(Optimizer):
    """Gradient descent, with momentum m and Nesterov's variant.

        v <- m v + g        p <- p - lr v            with nesterov: p <- p - lr (g + m v)

    weight_decay    L2: adds weight_decay p to g, for the names that `decay` selects (None: all)

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum", ICML 2013, in the form
    that PyTorch uses (the rate multiplies the sum).
    """

    slots = ("v",)
    lr: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    decay: Names | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and not self.momentum:
            raise ValueError("SGD: nesterov=True needs a momentum above 0.")
        if not self.momentum:
            object.__setattr__(self, "slots", ())  # plain descent keeps no state

    def rule(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, decay: float, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        g = _penalised(p, g, decay)
        if not slots:
            return p - lr * g, ()
        v = self.momentum * slots[0] + g
        return p - lr * (g + self.momentum * v if self.nesterov else v), (v,)


@dataclass(frozen=True)
class AdaGrad(Optimizer):
    """h <- h + g^2        p <- p - lr g / (sqrt(h) + eps)

    weight_decay    L2, as in `SGD`

    Source: Duchi, Hazan, Singer, "Adaptive subgradient methods", JMLR 12 (2011).
    """

    slots = ("h",)
    lr: float | Schedule = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0
    decay: Names | None = None

    def rule(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, decay: float, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        g = _penalised(p, g, decay)
        h = slots[0] + g * g
        return p - lr * g / (xp.sqrt(h) + self.eps), (h,)


@dataclass(frozen=True)
class RMSProp(Optimizer):
    """v <- a v + (1 - a) g^2        p <- p - lr g / (sqrt(v) + eps)

    weight_decay    L2, as in `SGD`

    Source: Tieleman, Hinton, "Lecture 6.5: rmsprop", Coursera (2012); defaults as in PyTorch.
    """

    slots = ("v",)
    lr: float | Schedule = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: Names | None = None

    def rule(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, decay: float, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        g = _penalised(p, g, decay)
        v = self.alpha * slots[0] + (1.0 - self.alpha) * (g * g)
        return p - lr * g / (xp.sqrt(v) + self.eps), (v,)


@dataclass(frozen=True)
class Adam(Optimizer):
    """Averages of the gradient and of its square, both corrected for their start at zero.

        m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2
        p <- p - lr (m / c1) / (sqrt(v / c2) + eps),        c1 = 1 - b1^t, c2 = 1 - b2^t

    c is -expm1(t log b): in float32, 1 - b^t would be wrong in the fifth digit during the first steps.

    weight_decay    L2, as in `SGD`; `AdamW` has the decoupled one

    Source: Kingma, Ba, "Adam", ICLR 2015.
    """

    slots = ("m", "v")
    lr: float | Schedule = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    decay: Names | None = None

    def rule(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, decay: float, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        return self._step(p, _penalised(p, g, decay), slots, t, lr, xp)

    def _step(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        m = self.beta1 * slots[0] + (1.0 - self.beta1) * g
        v = self.beta2 * slots[1] + (1.0 - self.beta2) * (g * g)
        rate = lr / _correction(self.beta1, t, xp)
        root = 1.0 / xp.sqrt(_correction(self.beta2, t, xp))
        return p - rate * m / (xp.sqrt(v) * root + self.eps), (m, v)


def _correction(beta: float, t: Array, xp: Namespace) -> Array:
    return -xp.expm1(t * (math.log(beta) if beta else -math.inf))


@dataclass(frozen=True)
class AdamW(Adam):
    """`Adam` with decoupled weight decay: p <- p - lr weight_decay p, apart from the averages.

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    weight_decay: float = 1e-2

    def rule(
        self, p: Array, g: Array, slots: tuple[Array, ...], t: Array, lr: Scalar, decay: float, xp: Namespace
    ) -> tuple[Array, tuple[Array, ...]]:
        return self._step(p * (1.0 - lr * decay) if decay else p, g, slots, t, lr, xp)


def global_norm(grads: Arrays, *, xp: Namespace) -> Array:
    """sqrt of the sum of the squares of all entries of all gradients, a 0-d array."""
    total: Scalar = 0.0
    for g in grads.values():
        total = xp.sum(g * g) + total
    return xp.sqrt(total)  # type: ignore[arg-type]  # an array as soon as there is one gradient


def clip_by_global_norm(grads: Arrays, max_norm: float, *, xp: Namespace) -> dict[str, Array]:
    """The gradients, scaled together so that their global norm is at most `max_norm`; no branch on a value.

    Source: Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013.
    """
    factor = max_norm / xp.maximum(global_norm(grads, xp=xp), max_norm)
    return {name: g * factor for name, g in grads.items()}


OPTIMIZERS: dict[str, type[Optimizer]] = {
    "sgd": SGD,
    "adagrad": AdaGrad,
    "rmsprop": RMSProp,
    "adam": Adam,
    "adamw": AdamW,
}


def get_optimizer(name: str) -> type[Optimizer]:
    """The optimiser class of that name. Raises `NameUnknown` with the nearest right name."""
    if name not in OPTIMIZERS:
        raise unknown_name("optimiser", name, OPTIMIZERS)
    return OPTIMIZERS[name]
