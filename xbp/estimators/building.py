"""From an estimator's settings to a network, a loss and an optimiser of xbp."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from operator import index
from typing import Any

import numpy as np

from ..backend import Backend, on_device
from ..errors import unknown_name
from ..initializers import Zeros
from ..interchange.scikit import ACTIVATIONS
from ..layers import Affine, BatchNorm, Dropout, Layer, LayerNorm
from ..layers.activations import get_activation
from ..losses import GaussianNLL, Huber, Loss, MeanAbsoluteError, MeanSquaredError, Quantile
from ..network import Network
from ..optimizers import OPTIMIZERS, Optimizer
from ..typing import Array
from .rules import AdamOfScikitLearn, Momentum, Rescaled, half_poisson_deviance

__all__ = [
    "REGRESSION",
    "DrawnNetwork",
    "activations_of",
    "built",
    "hidden_sizes",
    "kept",
    "optimizer_of",
    "regression_loss",
]

NORMALIZATIONS = {"batch": BatchNorm, "layer": LayerNorm}
REGRESSION = ("squared_error", "poisson", "absolute_error", "huber", "quantile", "gaussian")


class DrawnNetwork(Network):
    """A Network whose affine layers begin as scikit-learn's do: matrix and vector drawn from one uniform distribution.

    random_state    what is drawn from, layer by layer; None leaves them 0
    factor          the bound is the root of factor / (fan-in + fan-out)

    To a file, and to everything else, it is a Network.
    """

    def __init__(
        self,
        layers: Iterable[Layer],
        random_state: np.random.RandomState | None = None,
        factor: float = 6.0,
        *,
        backend: Backend,
        dtype: str,
        seed: int,
    ) -> None:
        self._random_state, self._factor = random_state, factor
        super().__init__(layers, backend=backend, dtype=dtype, seed=seed)
        self._random_state = None

    @on_device
    def _initial(self) -> tuple[dict[str, Array], dict[str, Array]]:
        params: dict[str, Array] = {}
        buffers: dict[str, Array] = {}
        rng = np.random.default_rng(0)  # for layers whose values begin as constants, which draw nothing
        for node in self.plan.nodes:
            for local, spec in node.layer.parameters().items():
                if isinstance(node.layer, Affine):
                    values = self._drawn(node.layer.in_features + node.layer.out_features, spec.shape)
                else:
                    values = (spec.init or Zeros())(rng, spec.shape)
                params[f"{node.name}.{local}"] = self.backend.asarray(values, self.dtype)
            for local, spec in node.layer.buffers().items():
                values = (spec.init or Zeros())(rng, spec.shape)
                buffers[f"{node.name}.{local}"] = self.backend.asarray(values, self.dtype)
        return params, buffers

    def _drawn(self, fans: int, shape: tuple[int, ...]) -> np.ndarray:
        if self._random_state is None:
            return np.zeros(shape)
        bound = float(np.sqrt(self._factor / fans))
        return self._random_state.uniform(-bound, bound, shape)


def hidden_sizes(given: Any) -> list[int]:
    """The widths of the hidden layers. Raises `ValueError`, `TypeError` as scikit-learn does."""
    sizes = list(given) if hasattr(given, "__iter__") else [given]
    if np.any(np.array(sizes) <= 0):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [index(size) for size in sizes]


def kept(setting: Any) -> Any:
    """A setting that is one for all hidden layers or one each, as no one can change it any more."""
    if isinstance(setting, np.ndarray):
        setting = setting.tolist()
    return tuple(setting) if isinstance(setting, Iterable) and not isinstance(setting, str) else setting


def activations_of(given: Any, count: int) -> list[Layer]:
    """An activation for each hidden layer, from one name or layer for all, or a sequence of them."""
    several = isinstance(given, Iterable) and not isinstance(given, str)
    each = list(given) if several else [given] * count
    if len(each) != count:
        raise ValueError(
            f"activation has {len(each)} entries for {count} hidden layers. Give one for each, or one for all."
        )
    return [a if isinstance(a, Layer) else ACTIVATIONS[a]() if a in ACTIVATIONS else get_activation(a) for a in each]


def built(
    units: Sequence[int],
    *,
    activation: Any,
    dropout: float | Sequence[float],
    normalization: str | None,
    backend: Backend,
    dtype: str,
    random_state: np.random.RandomState | None,
    seed: int = 0,
) -> tuple[Network, list[str]]:
    """The network with `units` wide layers, and the names of its affine layers.

    random_state    what the initial values are drawn from, in scikit-learn's order; None leaves them 0
    seed            of the masks of dropout, where nothing is drawn
    """
    hidden = activations_of(activation, len(units) - 2)
    rates = [float(p) for p in dropout] if isinstance(dropout, Iterable) else [float(dropout)] * len(hidden)
    if len(rates) != len(hidden):
        raise ValueError(f"dropout has {len(rates)} entries for {len(hidden)} hidden layers.")
    if random_state is not None and any(rates):  # otherwise nothing is drawn that scikit-learn would not draw
        seed = int(random_state.randint(2**31 - 1))
    layers: list[Layer] = []
    names: list[str] = []
    for i, (fan_in, fan_out) in enumerate(pairwise(units)):
        names.append(str(len(layers)))
        layers.append(Affine(fan_in, fan_out))
        if i == len(hidden):
            break
        if normalization is not None:
            layers.append(NORMALIZATIONS[normalization](fan_out))
        layers.append(hidden[i])
        if rates[i]:
            layers.append(Dropout(rates[i]))
    factor = 2.0 if activation == "logistic" else 6.0
    return DrawnNetwork(layers, random_state, factor, backend=backend, dtype=dtype, seed=seed), names


def regression_loss(given: str | Loss, outputs: int) -> Loss:
    """A loss by scikit-learn's names, scaled as scikit-learn scales it; a Loss of xbp as it is."""
    if isinstance(given, Loss):
        return given
    if given == "squared_error":
        return Rescaled(MeanSquaredError(), 0.5, 0.5 * outputs)
    if given == "poisson":
        return half_poisson_deviance(outputs)
    others: dict[str, type[Loss]] = {
        "absolute_error": MeanAbsoluteError,
        "huber": Huber,
        "quantile": Quantile,
        "gaussian": GaussianNLL,
    }
    if given not in others:
        raise unknown_name("loss", given, REGRESSION)
    return others[given]()


def optimizer_of(estimator: Any) -> Optimizer:
    """The rule that an estimator's settings describe: its `optimizer`, else its `solver` as scikit-learn writes it."""
    rate = estimator.learning_rate_init if estimator.schedule is None else estimator.schedule
    given = estimator.optimizer
    if isinstance(given, Optimizer):
        return given if estimator.schedule is None else _scheduled(given, estimator.schedule)
    if given is not None:
        if given not in OPTIMIZERS:
            raise unknown_name("optimizer", given, OPTIMIZERS)
        return OPTIMIZERS[given](lr=rate)  # type: ignore[call-arg]  # every rule has a rate
    if estimator.solver == "sgd":
        return Momentum(rate, float(estimator.momentum), bool(estimator.nesterovs_momentum))
    return AdamOfScikitLearn(rate, float(estimator.beta_1), float(estimator.beta_2), float(estimator.epsilon))


def _scheduled(optimizer: Optimizer, schedule: Any) -> Optimizer:
    """The same rule at the rates of `schedule`. Raises `ValueError` where the rule has another schedule, or no rate."""
    if callable(getattr(optimizer, "lr", None)):
        raise ValueError(
            f"Both optimizer={optimizer!r} and schedule={schedule!r} say the rate of each step. Leave schedule=None, "
            "or give the optimizer a number, whose place the schedule takes."
        )
    if not any(field.name == "lr" and field.init for field in fields(optimizer)):
        raise ValueError(
            f"schedule={schedule!r} takes the place of the optimizer's lr, and {type(optimizer).__name__} has no field "
            "of that name. Write it as a frozen dataclass with a field lr, or leave schedule=None."
        )
    return replace(optimizer, lr=schedule)  # type: ignore[call-arg]  # it has the field
