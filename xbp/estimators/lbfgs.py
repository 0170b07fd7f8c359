"""The solver "lbfgs": SciPy's, on all parameters as one flat vector in scikit-learn's order.

The vector goes to the device once an evaluation and the gradient comes back once, with the loss as its last entry.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.optimize
from sklearn.utils.optimize import _check_optimize_result

from ..training import Trainer
from ..typing import Array
from .rows import CHUNK, chunks

__all__ = ["minimised"]


def minimised(estimator: Any, trainer: Trainer, X: Any, t: Array, w: Array | None) -> None:
    """Train to the end: leaves the best weights in the model and `n_iter_`, `loss_` in the estimator."""
    backend, model, step = trainer.backend, trainer.model, trainer._step  # as `Perceptron` is, a partner of Trainer
    xp = backend.xp
    names = [f"{n}.W" for n in estimator._names] + [f"{n}.b" for n in estimator._names]
    names += [n for n in model.params if n not in names]
    shapes = {n: tuple(model.params[n].shape) for n in names}
    if model.plan.random_nodes():
        raise ValueError("solver='lbfgs' needs a loss that is the same each time, which dropout makes random.")
    outputs = estimator._units[-1]
    targets = step.loss.prepare(backend.bare(t), (X.shape[0], outputs), backend.dtype(model.dtype), xp=xp)
    step.loss.check_values(targets, outputs, xp=xp)
    parts = _parts(X.shape[0], w, trainer)
    buffers = dict(model.buffers)

    def unpacked(vector: np.ndarray) -> dict[str, Array]:
        flat, at, params = backend.asarray(vector, model.dtype), 0, {}
        for name, shape in shapes.items():
            size = int(np.prod(shape))
            params[name] = xp.reshape(flat[at : at + size], shape)
            at += size
        return params

    def value_and_gradient(vector: np.ndarray) -> tuple[float, np.ndarray]:
        params, whole = unpacked(vector), None
        for rows, (first, stop, share) in zip(chunks(X, backend, model.dtype), parts, strict=True):
            weight = None if w is None else w[first:stop]
            part = step.piece(params, buffers, rows, targets[first:stop, ...], weight, {}, first, share, xp=xp)
            flat = xp.concat([*(xp.reshape(part.grads[n], (-1,)) for n in names), xp.reshape(part.loss, (1,))])
            whole = flat if whole is None else whole + flat
        assert whole is not None  # a fit has rows
        host = backend.to_host(whole).astype(np.float64)
        return float(host[-1]), host[:-1]

    start = np.concatenate([backend.to_host(xp.reshape(model.params[n], (-1,))) for n in names]).astype(np.float64)
    options: dict[str, Any] = {"maxfun": estimator.max_fun, "maxiter": estimator.max_iter, "gtol": estimator.tol}
    result = scipy.optimize.minimize(value_and_gradient, start, method="L-BFGS-B", jac=True, options=options)
    estimator.n_iter_ = _check_optimize_result("lbfgs", result, estimator.max_iter)
    estimator.loss_ = float(result.fun)
    model.load_params(unpacked(result.x))


def _parts(n: int, w: Array | None, trainer: Trainer) -> list[tuple[int, int, float]]:
    """(first row, last row, share of the weight) of each part that the rows are computed in."""
    bounds = [(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK)]
    if w is None or len(bounds) == 1:
        return [(first, stop, (stop - first) / n) for first, stop in bounds]
    weights = trainer.backend.to_host(w).astype(np.float64)
    total = weights.sum()
    return [(first, stop, float(weights[first:stop].sum() / total) if total else 0.0) for first, stop in bounds]
