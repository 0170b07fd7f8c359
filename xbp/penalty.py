"""An L2 penalty that counts once a batch: half of alpha times the sum of squares of all weight matrices, divided by
the batch's total weight.

    loss <- loss + alpha / (2 S) sum W^2        dW <- dW + alpha / S W,        S = sum_n w_n

So the penalty is that of a prior on the weights, and the more data, the less it counts; scikit-learn's `alpha` is this
one. It depends on the batch, which is why it is no weight decay of an optimiser's: that one knows no batches. A part of
a batch that has the share s of its weight, and so the weight s S, adds s^2 / (s S); over all parts these sum to 1 / S.
Biases, and the scales of normalisations, are vectors and are not penalised.
Source: MacKay, "A practical Bayesian framework for backpropagation networks", Neural Computation 4 (1992).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from .typing import Array, Namespace, Scalar

__all__ = ["penalised", "strength"]


def strength(alpha: float, y: Array, weight: Array | None, share: Scalar, *, xp: Namespace) -> Array:
    """alpha s^2 / (weight of the part), a 0-d array; 0 for a part of no weight. y (N, K) says how many rows it has."""
    if weight is None:
        return alpha * (share * share) / xp.sum(xp.ones_like(y[:, 0]))
    total = xp.sum(weight)
    some = total > 0.0
    return xp.where(some, alpha / xp.where(some, total, 1.0), 0.0) * (share * share)


def penalised(
    loss: Array,
    grads: Mapping[str, Array],
    params: Mapping[str, Array],
    names: Iterable[str],
    by: Array,
    *,
    xp: Namespace,
) -> tuple[Array, dict[str, Array]]:
    """Loss and gradients with the penalty of the matrices among the parameters of these names, `by` from `strength`."""
    added = dict(grads)
    for name in names:
        W = params[name]
        if W.ndim == 2:
            loss = loss + 0.5 * by * xp.sum(W * W)
            added[name] = grads[name] + by * W
    return loss, added
