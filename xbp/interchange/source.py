"""What can be exported: a model, the trainer of one, or a fitted estimator, which has one inside.

An estimator is known by its `network_`, so nothing here needs scikit-learn before somebody comes with an estimator.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..errors import ExchangeError
from ..libraries import need
from ..model import Model
from ..network import Network
from ..training import Trainer

__all__ = ["HasNetwork", "has_network", "model_of"]


class HasNetwork(Protocol):
    """An estimator of `xbp.estimators`; once it is fitted, it is exported as the Network in it."""

    @property
    def network_(self) -> Network:
        """The newest weights as a Network, which ends in scores."""


def has_network(given: Any) -> bool:
    """Whether it is an estimator of xbp, fitted or not."""
    return hasattr(type(given), "network_")


def model_of(given: Model | Trainer | HasNetwork, what: str) -> Model:
    """The model to export.

    what    the function that needs it, for the error

    Raises scikit-learn's `NotFittedError` for an estimator before `fit`, `ExchangeError` for what has no model.
    """
    if isinstance(given, Model):
        return given
    if isinstance(given, Trainer):
        return given.model
    if has_network(given):
        need("sklearn.utils.validation", what, "sklearn").check_is_fitted(given)
        return given.network_
    hint = ""
    if hasattr(given, "hidden_layer_sizes"):
        hint = f" Of an estimator of scikit-learn's, make a Network first: {what}(from_sklearn(estimator), ...)."
    elif hasattr(given, "fit") and hasattr(given, "steps"):
        hint = " Of a Pipeline, give its last step, and put what comes before it into the rows."
    raise ExchangeError(
        f"{what} takes a Network, a Graph, the Trainer of one, or a fitted MLPClassifier or MLPRegressor of "
        f"xbp.estimators; it got a {type(given).__module__}.{type(given).__name__}.{hint}"
    )
