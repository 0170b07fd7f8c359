"""Between what people mean by a target and what a loss computes with, both ways.

Classes become labels, a yes or no, or rows of zeros with a one; numbers are brought to deviation 1, for no learning
rate suits prices and fractions alike. Scores go the way back: to classes with probabilities, or to numbers in their
own units.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..datasets import Scaling
from ..functions import sigmoid, softmax
from ..losses import GaussianNLL, Loss, PoissonNLL, Quantile, SigmoidCrossEntropy, SoftmaxCrossEntropy
from ..metrics import Accuracy, Metric
from ..training import Trainer
from .recipe import Recipe

__all__ = [
    "Answers",
    "answers",
    "classifies",
    "metrics_for",
    "network_targets",
    "outputs_for",
    "regression_scores",
    "scores",
    "target_scaling",
]


def classifies(loss: Loss) -> bool:
    """Whether the loss is made for classes. Others can learn classes too, as rows of zeros and a one."""
    return isinstance(loss, SoftmaxCrossEntropy | SigmoidCrossEntropy)


def outputs_for(loss: Loss, classes: int, targets: int) -> int:
    """How many outputs the network needs. Raises `ValueError` for a loss that classes cannot be learnt with."""
    if classes:
        if isinstance(loss, GaussianNLL) or len(_levels(loss)) > 1:
            raise ValueError(f"{loss} gives several numbers for each target, and the targets are classes.")
        return 1 if isinstance(loss, SigmoidCrossEntropy) and classes == 2 else classes
    if isinstance(loss, GaussianNLL):
        return 2 * targets
    return len(_levels(loss)) if targets == 1 else targets


def _levels(loss: Loss) -> tuple[float, ...]:
    q = loss.q if isinstance(loss, Quantile) else 0.5
    return q if isinstance(q, tuple) else (q,)


def metrics_for(loss: Loss, classes: int, targets: int) -> tuple[str | Metric, ...]:
    """What is reported after each epoch besides the loss's own metrics."""
    if classes:
        binary = isinstance(loss, SigmoidCrossEntropy) and classes == 2
        return () if binary else (Accuracy(),)
    several = targets == 1 and len(_levels(loss)) > 1
    return () if isinstance(loss, PoissonNLL) or several else ("r2",)


def network_targets(recipe: Recipe, loss: Loss, t: np.ndarray) -> np.ndarray:
    """Targets as the loss takes them: labels, yes or no, one-hot rows, or scaled numbers."""
    if not recipe.classes:
        return recipe.target_scaling.apply(t, recipe.dtype)
    if isinstance(loss, SoftmaxCrossEntropy):
        return t
    if isinstance(loss, SigmoidCrossEntropy) and len(recipe.classes) == 2:
        return t.astype(recipe.dtype)[:, None]
    return np.take(np.eye(len(recipe.classes), dtype=recipe.dtype), t, axis=0)


def target_scaling(loss: Loss, t: np.ndarray, wanted: bool) -> Scaling:
    """Mean 0 and deviation 1 for targets (N, K); counts stay counts, for their loss takes logarithms."""
    if not wanted or isinstance(loss, PoissonNLL):
        return Scaling()
    wide = t.astype(np.float64)
    deviation = wide.std(axis=0)
    return Scaling(tuple(wide.mean(axis=0)), tuple(1 / np.where(deviation > 0, deviation, 1.0)))


class Answers(NamedTuple):
    """Predictions as people read them.

    point      (N,) names of classes, or (N, K) numbers: the one best answer
    columns    what a table shows, by the name of the column
    """

    point: np.ndarray
    columns: dict[str, np.ndarray]


def answers(recipe: Recipe, loss: Loss, y: np.ndarray) -> Answers:
    """What the scores y (N, outputs) of a network say."""
    if recipe.classes:
        return _class_answers(recipe, loss, y)
    said = _number_answers(recipe, loss, y.astype(np.float64))
    return Answers(
        said.point, {name: c.astype(recipe.dtype) for name, c in said.columns.items()}
    )  # digits that are known


def _class_answers(recipe: Recipe, loss: Loss, y: np.ndarray) -> Answers:
    if isinstance(loss, SoftmaxCrossEntropy):
        kind, p = "p", _host(softmax, y)
    elif isinstance(loss, SigmoidCrossEntropy):
        kind, p = "p", _host(sigmoid, y)
        p = np.concatenate([1 - p, p], axis=1) if p.shape[1] == 1 else p
    else:
        kind, p = "score", y
    names = np.asarray(recipe.classes)
    point = names[np.argmax(p, axis=1)]
    return Answers(point, {"class": point} | {f"{kind}_{name}": p[:, k] for k, name in enumerate(recipe.classes)})


def _host(function: Any, y: np.ndarray) -> np.ndarray:
    return np.asarray(function(y))


def _number_answers(recipe: Recipe, loss: Loss, y: np.ndarray) -> Answers:
    n, scaling = recipe.target_width, recipe.target_scaling
    stem = "prediction" if recipe.target is None else recipe.target
    names = [stem] if n == 1 else [f"{stem}_{k}" for k in range(n)]
    levels = _levels(loss)
    if isinstance(loss, PoissonNLL):
        values = {name: np.exp(y[:, k]) for k, name in enumerate(names)}
    elif isinstance(loss, GaussianNLL):
        means, spreads = _unscaled(y[:, :n], scaling), np.exp(0.5 * y[:, n:]) / np.asarray(scaling.factor)
        named = {name: means[:, k] for k, name in enumerate(names)}
        return Answers(means, named | {f"{name}_deviation": spreads[:, k] for k, name in enumerate(names)})
    elif n == 1 and len(levels) > 1:
        wide = _unscaled(y, scaling)
        middle = min(range(len(levels)), key=lambda k: abs(levels[k] - 0.5))
        return Answers(wide[:, [middle]], {f"{stem}_q{q:g}": wide[:, k] for k, q in enumerate(levels)})
    else:
        wide = _unscaled(y, scaling)
        values = {name: wide[:, k] for k, name in enumerate(names)}
    return Answers(np.stack(list(values.values()), axis=1), values)


def _unscaled(y: np.ndarray, scaling: Scaling) -> np.ndarray:
    return np.asarray(y / np.asarray(scaling.factor) + np.asarray(scaling.offset))


def regression_scores(point: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """R2, the mean over the K targets, and the root of the mean squared error, in the units of the targets."""
    wide = t.astype(np.float64)
    squares = np.mean((point - wide) ** 2, axis=0)
    spread = wide.var(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        r2 = np.where(spread > 0, 1 - squares / spread, np.nan)  # no share of a variance that is not there
    return {"r2": float(np.mean(r2)), "rmse": float(np.sqrt(np.mean(squares)))}


def scores(trainer: Trainer, recipe: Recipe, x: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """How well a model does on rows and targets of the recipe's kind: the loss, and accuracy or R2 and rmse."""
    results = trainer.evaluate(x, network_targets(recipe, trainer.loss, t))
    if recipe.classes:
        return results
    y = trainer.model.backend.to_host(trainer.model.predict(x))
    return {"loss": results["loss"], **regression_scores(answers(recipe, trainer.loss, y).point, t)}
