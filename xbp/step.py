"""The training step as one pure function of arrays: the unit that is timed, recorded, compiled and captured.

    step(params, buffers, state, x, t, weight, scalars) -> (params, buffers, state, loss)

Forward, loss, backward, penalty, clipping and optimiser. Everything that changes from step to step is an argument:
`scalars` holds the learning rate and the key of each random layer. Scores, and the sums that evaluation needs, are two
more such functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

from . import penalty, scaling
from .losses import Loss
from .metrics import Metric
from .optimizers import Optimizer, clip_by_global_norm
from .traversal import Plan, backward, forward
from .typing import Array, Inputs, Namespace, Scalar, device_of

__all__ = ["Gradients", "Step", "rows_between"]

Arrays = Mapping[str, Array]
Scalars = Mapping[str, Scalar]


class Gradients(NamedTuple):
    """What one batch says: its loss (), the gradients of the trainable parameters, and the buffers after it."""

    loss: Array
    grads: dict[str, Array]
    buffers: dict[str, Array]


@dataclass(frozen=True)
class Step:
    """One model, loss and optimiser as pure functions.

    trainable     names of the parameters that change; the rest are frozen and their gradients are not computed
    clip_norm     the largest global norm of the gradients, or None
    accumulate    the number of pieces that a batch is cut into, one after the other
    penalty       alpha of the L2 penalty on trainable weight matrices, see `xbp.penalty`
    precision     one of `xbp.program.PRECISIONS`: what a record of this step is turned into. Called as it is, a step
                  computes in the dtype of its arrays; of "mixed-float16" it scales the loss
    """

    plan: Plan
    loss: Loss
    optimizer: Optimizer
    trainable: tuple[str, ...]
    clip_norm: float | None = None
    accumulate: int = 1
    metrics: tuple[Metric, ...] = ()
    precision: str = "float32"
    penalty: float = 0.0

    @property
    def scaled(self) -> bool:
        """Whether the loss is scaled, see `xbp.scaling`."""
        return self.precision == "mixed-float16"

    def init(self, params: Arrays, *, xp: Namespace) -> dict[str, Array]:
        """The state before the first step: the optimiser's, and the loss scale's where there is one."""
        trained = {name: params[name] for name in self.trainable}
        device = device_of(next(iter(trained.values())))
        return self.optimizer.init(trained) | (scaling.init(xp=xp, device=device) if self.scaled else {})

    @cached_property
    def wanted(self) -> frozenset[str]:
        """The values whose gradients the step computes."""
        return self.plan.wanted(self.trainable)

    def __call__(
        self,
        params: Arrays,
        buffers: Arrays,
        state: Arrays,
        x: Inputs,
        t: Array,
        weight: Array | None,
        scalars: Scalars,
        *,
        xp: Namespace,
    ) -> tuple[dict[str, Array], dict[str, Array], dict[str, Array], Array]:
        scale = state[scaling.FACTOR] if self.scaled else None
        loss, grads, new_buffers = self.gradients(params, buffers, x, t, weight, scalars, xp=xp, scale=scale)
        new_params, new_state = self.apply(params, state, grads, scalars, xp=xp)
        if self.scaled:
            taken = new_state[scaling.SKIPPED] == state[scaling.SKIPPED]
            new_buffers = scaling.kept(taken, new_buffers, buffers, xp=xp)
        return new_params, dict(new_buffers), new_state, loss

    def gradients(
        self,
        params: Arrays,
        buffers: Arrays,
        x: Inputs,
        t: Array,
        weight: Array | None,
        scalars: Scalars,
        *,
        xp: Namespace,
        scale: Array | None = None,
    ) -> Gradients:
        """Loss and gradients of a batch, in `accumulate` pieces whose weighted sum is the whole batch's."""
        n = t.shape[0]
        pieces = min(self.accumulate, n)
        if pieces <= 1:
            return self.piece(params, buffers, x, t, weight, scalars, 0, 1.0, xp=xp, scale=scale)
        bounds = [n * i // pieces for i in range(pieces + 1)]
        whole = None if weight is None else _at_least_one(xp.sum(weight), xp)
        total: Gradients | None = None
        for start, stop in pairwise(bounds):
            w = None if weight is None else weight[start:stop]
            share: Scalar = (stop - start) / n if w is None or whole is None else xp.sum(w) / whole
            rows = rows_between(x, start, stop)
            part = self.piece(params, buffers, rows, t[start:stop, ...], w, scalars, start, share, xp=xp, scale=scale)
            total = part if total is None else _added(total, part)
        assert total is not None  # pieces >= 2
        return total

    def piece(
        self,
        params: Arrays,
        buffers: Arrays,
        x: Inputs,
        t: Array,
        weight: Array | None,
        scalars: Scalars,
        first_row: Scalar,
        share: Scalar,
        *,
        xp: Namespace,
        scale: Array | None = None,
    ) -> Gradients:
        """Loss and gradients of a part of a batch, from `first_row` on, times its share of the whole.

        With a scale, a power of two, the backward pass works on numbers so many times as large.
        """
        keys = {name: scalars[f"key.{name}"] for name in self.plan.random_nodes()}
        passed = forward(self.plan, params, buffers, x, xp=xp, train=True, keys=keys, first_row=first_row)
        loss, cache = self.loss.forward(passed.y, t, weight, xp=xp)
        dy = self.loss.backward(share if scale is None else share * scale, cache, xp=xp)
        all_grads, _ = backward(self.plan, passed.caches, dy, wanted=self.wanted, xp=xp)
        grads = {name: all_grads[name] for name in self.trainable}
        if scale is not None:
            down = 1.0 / scale
            grads = {name: g * down for name, g in grads.items()}
        loss = loss * share
        if self.penalty:
            by = penalty.strength(self.penalty, passed.y, weight, share, xp=xp)
            loss, grads = penalty.penalised(loss, grads, params, self.trainable, by, xp=xp)
        return Gradients(loss, grads, passed.buffers)

    def apply(
        self, params: Arrays, state: Arrays, grads: dict[str, Array], scalars: Scalars, *, xp: Namespace
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """The optimiser's step on the trainable parameters; the others go through untouched.

        With a scaled loss, gradients that are not finite leave everything as it was, but for the scale.
        """
        taken = scaling.all_finite(grads.values(), xp=xp) if self.scaled else None
        if self.clip_norm is not None:
            grads = clip_by_global_norm(grads, self.clip_norm, xp=xp)
        trained = {name: params[name] for name in self.trainable}
        trained, new_state = self.optimizer.update(trained, grads, state, lr=scalars["lr"], xp=xp)
        if taken is not None:
            trained = scaling.kept(taken, trained, params, xp=xp)
            new_state = scaling.kept(taken, new_state, state, xp=xp) | scaling.updated(state, taken, xp=xp)
        return {**params, **trained}, new_state

    def scores(self, params: Arrays, buffers: Arrays, x: Inputs, *, xp: Namespace) -> Array:
        """The output (N, K) in prediction."""
        return forward(self.plan, params, buffers, x, xp=xp, keep=False).y

    def sums(
        self, params: Arrays, buffers: Arrays, x: Inputs, t: Array, weight: Array | None, *, xp: Namespace
    ) -> Array:
        """What evaluation adds up over chunks, (2 + S,): weighted loss, weight, and the sums of each metric."""
        y = self.scores(params, buffers, x, xp=xp)
        loss, _ = self.loss.forward(y, t, weight, xp=xp)
        w = xp.ones_like(y[:, 0]) if weight is None else weight
        total = xp.sum(w)
        sums = [xp.reshape(loss * total, (1,)), xp.reshape(total, (1,))]
        return xp.concat(sums + [metric.sums(y, t, w, xp=xp) for metric in self.metrics])


def _added(a: Gradients, b: Gradients) -> Gradients:
    return Gradients(a.loss + b.loss, {name: g + b.grads[name] for name, g in a.grads.items()}, b.buffers)


def _at_least_one(total: Array, xp: Namespace) -> Array:
    """The total weight, or 1 where it is 0: then every share is 0."""
    return xp.where(total > 0.0, total, 1.0)


def rows_between(x: Inputs, start: int, stop: int) -> Inputs:
    if isinstance(x, Mapping):
        return {name: a[start:stop, ...] for name, a in x.items()}
    return x[start:stop, ...]
