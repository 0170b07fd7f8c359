"""Networks as scikit-learn's MLPClassifier and MLPRegressor, and back.

Both compute y = x W + b with W (in, out), so weights pass as they are; what differs is where the last activation
stands. An estimator contains it; a network of xbp leaves it to the loss, as a rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backend import Backend
from ..errors import ExchangeError, ShapeError
from ..layers import Affine, Dropout, Identity, Layer, ReLU, Sigmoid, Softmax, Tanh
from ..libraries import need
from ..losses import Loss, MeanSquaredError, PoissonNLL, SigmoidCrossEntropy, SoftmaxCrossEntropy
from ..model import Model
from ..network import Network
from ..training import Trainer
from .source import HasNetwork, has_network, model_of

__all__ = ["from_sklearn", "to_sklearn"]

ACTIVATIONS: dict[str, type[Layer]] = {"identity": Identity, "logistic": Sigmoid, "relu": ReLU, "tanh": Tanh}
OUTPUTS: dict[str, type[Layer] | None] = {"identity": None, "logistic": Sigmoid, "softmax": Softmax}
MEANINGS: dict[str, type[Loss]] = {
    "identity": MeanSquaredError, "exp": PoissonNLL, "logistic": SigmoidCrossEntropy, "softmax": SoftmaxCrossEntropy
}  # fmt: skip


class _Chain(NamedTuple):
    """Matrices and offsets in order, the activation between them, and the one at the end, by scikit-learn's names."""

    coefs: list[np.ndarray]
    intercepts: list[np.ndarray]
    activation: str
    end: str


def to_sklearn(
    model: Network | Trainer | HasNetwork,
    *,
    loss: Loss | None = None,
    classes: Sequence[Any] | np.ndarray | None = None,
) -> Any:
    """A fitted MLPClassifier or MLPRegressor of scikit-learn's with the weights of a network, copied to the host.

    model      a Network, the Trainer of one, or a fitted estimator of `xbp.estimators`
    loss       what the scores mean: the softmax of `SoftmaxCrossEntropy`, the sigmoid of `SigmoidCrossEntropy`, numbers
               for the rest. A Trainer and an estimator know; a network that ends in Softmax or Sigmoid says it by that
    classes    the names of the classes; None takes `metadata["classes"]`, or 0, 1, ...

    Two scores with a softmax become the one column that scikit-learn has for two classes. Dropout is left out, as in
    prediction. The optimiser is not passed on: `partial_fit` begins with a new one.
    Raises `ExchangeError` for layers that these estimators do not have, `ShapeError` for classes that do not fit.
    """
    network, meant, losses, epochs = _opened(model)
    loss = meant if loss is None else loss
    chain = _read(network)
    output = _output(chain.end, loss)
    if output == "softmax" and chain.intercepts[-1].shape[0] < 3:
        chain, output = _one_column(chain), "logistic"
    neural = need("sklearn.neural_network", "to_sklearn", "sklearn")
    options = {"hidden_layer_sizes": tuple(len(b) for b in chain.intercepts[:-1]), "activation": chain.activation}
    x = np.zeros((1, chain.coefs[0].shape[0]), dtype=chain.coefs[0].dtype)
    width = chain.intercepts[-1].shape[0]
    if output == "identity":
        if isinstance(loss, PoissonNLL):
            options["loss"] = "poisson"
        estimator = neural.MLPRegressor(**options)
        estimator.partial_fit(x, np.zeros((1, width) if width > 1 else 1))
    else:
        names = _classes(network, classes, 2 if width == 1 else width)
        estimator = neural.MLPClassifier(**options)
        labels = np.zeros((1, width), dtype=int) if output == "logistic" and width > 1 else names[:1]
        estimator.partial_fit(x, labels, classes=np.arange(width) if labels.ndim == 2 else names)
    # The one step on a row of zeros was there to make everything that a fitted estimator has; none of it stays.
    del estimator._optimizer
    estimator.coefs_, estimator.intercepts_ = chain.coefs, chain.intercepts
    estimator.loss_curve_, estimator.loss_ = losses, losses[-1] if losses else float("nan")
    estimator.best_loss_ = min(losses, default=float("inf"))
    estimator.n_iter_, estimator.t_ = epochs, 0
    return estimator


def from_sklearn(estimator: Any, *, backend: str | Backend = "auto", probabilities: bool = True) -> Network:
    """The network of a fitted MLPClassifier or MLPRegressor, of scikit-learn or of `xbp.estimators`.

    probabilities    end in Softmax or Sigmoid, so that `net.predict(x)` is what the estimator's `predict_proba` says
                     (for two classes its second column); False leaves it out: scores, to go on training on

    The classes go into `metadata["classes"]`, and the dtype is that of the weights. Estimators of xbp keep their norms,
    dropout and activations; without probabilities the network is `network_`, on `backend`.
    Raises `ExchangeError` for an estimator that is not fitted, or has what networks do not.
    """
    name = type(estimator).__name__
    if not hasattr(estimator, "coefs_") or not hasattr(estimator, "out_activation_"):
        raise ExchangeError(
            f"from_sklearn takes a fitted MLPClassifier or MLPRegressor; this {name} has no weights. Fit it first; "
            "of a Pipeline, give its last step."
        )
    if not has_network(estimator) and estimator.activation not in ACTIVATIONS:
        raise ExchangeError(f"{name} has the activation {estimator.activation!r}, which is none of scikit-learn's.")
    end = estimator.out_activation_
    if probabilities and end not in OUTPUTS:
        raise ExchangeError(
            f"{name} ends in {end!r}, for which there is no layer. With probabilities=False the network gives what "
            "comes before it; for 'exp' that is the logarithm of the rate, as PoissonNLL takes it."
        )
    network = estimator.network_ if has_network(estimator) else _chained(estimator)
    last = OUTPUTS.get(end) if probabilities else None
    layers = [*network.layers, *(() if last is None else (last(),))]
    made = Network(layers, backend=backend, dtype=network.dtype, seed=network.seed)
    for new, old in ((made.params, network.params), (made.buffers, network.buffers)):
        new.update_checked({name: network.backend.to_host(a) for name, a in old.items()})
    if hasattr(estimator, "classes_"):
        made.metadata["classes"] = np.asarray(estimator.classes_).tolist()
    return made


def _chained(estimator: Any) -> Network:
    """The network of scikit-learn's own perceptron, on the host; it ends in scores."""
    layers: list[Layer] = []
    for W in estimator.coefs_:
        layers += [Affine(int(W.shape[0]), int(W.shape[1])), ACTIVATIONS[estimator.activation]()]
    network = Network(layers[:-1], backend="numpy", dtype=str(estimator.coefs_[0].dtype))
    for i, (W, b) in enumerate(zip(estimator.coefs_, estimator.intercepts_, strict=True)):
        network.params.update_checked({f"{2 * i}.W": W, f"{2 * i}.b": b})
    return network


def _opened(given: Any) -> tuple[Model, Loss | None, list[float], int]:
    """The network, the loss as far as that is known, and the losses and number of the epochs behind it."""
    if isinstance(given, Trainer):
        return given.model, given.loss, list(given.history.get("loss", ())), given.epoch
    if isinstance(given, Model):
        return given, None, [], 0
    if hasattr(given, "hidden_layer_sizes") and not has_network(given):
        raise ExchangeError(
            f"This {type(given).__name__} is one of scikit-learn's already. to_sklearn takes a Network, a Trainer, or "
            "an estimator of xbp.estimators."
        )
    network = model_of(given, "to_sklearn")
    width = network.params[list(network.params)[-1]].shape[0]
    if width != given.n_outputs_:
        raise ExchangeError(
            f"The network of this {type(given).__name__} with loss={given.loss!r} has {width} outputs for "
            f"{given.n_outputs_} predicted numbers. scikit-learn's estimators have one for each."
        )
    return network, MEANINGS[given.out_activation_](), list(getattr(given, "loss_curve_", ())), given.n_iter_


def _read(network: Model) -> _Chain:
    if not isinstance(network, Network):
        raise ExchangeError(f"scikit-learn's estimators are chains of layers; a {type(network).__name__} is none.")
    coefs: list[np.ndarray] = []
    intercepts: list[np.ndarray] = []
    between: list[str] = []  # the activation after each matrix
    names = {layer: name for name, layer in ACTIVATIONS.items()} | {Softmax: "softmax"}
    for node in network.plan.nodes:
        layer = node.layer
        if isinstance(layer, Affine):
            W = network.backend.to_host(network.params[f"{node.name}.W"])
            coefs.append(W)
            b = network.backend.to_host(network.params[f"{node.name}.b"]) if layer.bias else np.zeros_like(W[0])
            intercepts.append(b)
            between.append("identity")
        elif isinstance(layer, Dropout | Identity):
            continue
        elif type(layer) not in names or not coefs or between[-1] != "identity":
            raise ExchangeError(
                f"Layer {node.name!r} is {layer}. scikit-learn's estimators have Affine layers with one of ReLU, Tanh, "
                "Sigmoid or Identity between them, and Softmax or Sigmoid at the end."
            )
        else:
            between[-1] = names[type(layer)]
    if not coefs:
        raise ExchangeError("scikit-learn's estimators have at least one Affine layer; this network has none.")
    *hidden, end = between
    if len(set(hidden)) > 1 or "softmax" in hidden:
        raise ExchangeError(
            f"scikit-learn's estimators have one activation for all hidden layers; these are {', '.join(hidden)}."
        )
    if end not in OUTPUTS:
        raise ExchangeError(f"scikit-learn's estimators end in scores, Softmax or Sigmoid; this network ends in {end}.")
    return _Chain(coefs, intercepts, hidden[0] if hidden else "relu", end)


def _output(end: str, loss: Loss | None) -> str:
    """The name of the last activation, which the network says itself or leaves to its loss."""
    if end != "identity":
        return end
    if isinstance(loss, SoftmaxCrossEntropy):
        return "softmax"
    if isinstance(loss, SigmoidCrossEntropy):
        return "logistic"
    if loss is None:
        raise ExchangeError(
            "A network that ends in scores does not say whether they are of classes. Give the Trainer, or "
            "loss=SoftmaxCrossEntropy() for a classifier, loss=MeanSquaredError() for a regressor."
        )
    return "identity"


def _one_column(chain: _Chain) -> _Chain:
    """Two scores as their difference: the sigmoid of it is the softmax's second column."""
    if chain.intercepts[-1].shape[0] != 2:
        raise ShapeError("The softmax of a single score is always 1: there is one class only. Give it two outputs.")
    W, b = chain.coefs[-1], chain.intercepts[-1]
    return chain._replace(
        coefs=[*chain.coefs[:-1], W[:, 1:] - W[:, :1]], intercepts=[*chain.intercepts[:-1], b[1:] - b[:1]]
    )


def _classes(network: Model, classes: Sequence[Any] | np.ndarray | None, count: int) -> np.ndarray:
    given = network.metadata.get("classes") if classes is None else classes
    if given is None:
        return np.arange(count)
    names = np.asarray(given)
    if names.shape != (count,) or len(np.unique(names)) != count:
        raise ShapeError(f"The network tells {count} classes apart; classes= has {names.tolist()!r:.200}.")
    if not np.array_equal(np.unique(names), names):
        raise ShapeError(
            f"scikit-learn keeps classes in sorted order, and column k of the scores belongs to the k-th of them; "
            f"{names.tolist()!r:.200} is not sorted."
        )
    return names
