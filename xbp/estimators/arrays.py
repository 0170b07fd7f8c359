"""Arrays of an estimator: onto the backend that X has, through the network, and back to where X lives.

Everything is computed from the fitted arrays by pure functions, so several threads may predict with one estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data

from ..backend import Backend
from ..layers import Dropout
from ..network import Network
from ..traversal import Plan, backward, forward
from ..typing import Array
from .building import built
from .rows import backend_of, chunks, followed, on_host
from .weights import Fitted

__all__ = ["Placed", "placed"]


P = ParamSpec("P")
R = TypeVar("R")


def placed(method: Callable[P, R]) -> Callable[P, R]:
    """A method of a fitted estimator, run with its device as the thread's own. Raises `NotFittedError` before a fit."""

    @wraps(method)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        estimator: Any = args[0]
        check_is_fitted(estimator)
        with estimator.backend_.active():
            return method(*args, **kwargs)

    return run


class Placed(Fitted):
    """Mixin: where a fitted estimator's arrays live, and what its network says of rows."""

    _place: tuple[str, str | None]  # name and device of the backend
    _input_place: tuple[str, str | None]  # where X came from: the same, unless `backend` says otherwise
    _dtype: str
    _units: list[int]
    _seed: int  # of the masks of dropout
    _built: dict[str, Any]  # the settings that the network was built by, whatever they are changed to since

    @property
    def backend_(self) -> Backend:
        """The backend that the fitted arrays live on, with its count of transfers."""
        check_is_fitted(self, "_place")
        return backend_of(*self._place)

    @property
    def network_(self) -> Network:
        """The newest weights as a Network, which ends in scores: before the softmax, sigmoid or exponential of a
        prediction. Its `metadata["classes"]` are `classes_`.

        A new one each time, with arrays of its own: training either of the two on leaves the other as it is.
        """
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute 'network_'")
        layers = [node.layer for node in self._plan().nodes]
        network = Network(layers, backend=self.backend_, dtype=self._dtype, seed=self._seed)
        with self.backend_.active():
            network.load_params(self._params())
            network.buffers.update_checked(self._buffers())
        if hasattr(self, "classes_"):
            network.metadata["classes"] = np.asarray(self.classes_).tolist()
        return network

    def _building(self) -> dict[str, Any]:
        return {
            **self._built,
            "backend": self.backend_,
            "dtype": self._dtype,
        }

    def _moved(self, a: Any) -> Any:
        """An array of the fit's backend, from wherever it comes."""
        if self.backend_.owns(a):
            return a
        host = on_host(a)
        return self.backend_.asarray(host, self._dtype if host.dtype.kind == "f" else None)

    def _host(self, a: Any) -> np.ndarray:
        return a if isinstance(a, np.ndarray) else self.backend_.to_host(a)

    def _weights(self, sample_weight: Any, class_weight: Any) -> Any:
        """The product of the weights that there are, on the device. Raises `ValueError` for negative ones."""
        given = {"`sample_weight`": sample_weight, "`class_weight`": class_weight}
        for name, a in given.items():
            if a is not None:
                check_non_negative(a, name)
        arrays = [self._moved(a) for a in given.values() if a is not None]
        return arrays[0] * arrays[1] if len(arrays) == 2 else arrays[0] if arrays else None

    def _check_same_library(self, X: Any, method: str) -> None:
        """Refuse arrays of another library or device than in `fit`, as scikit-learn does."""
        if followed(X) != self._input_place:
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace and the same device as "
                f"those passed to fit(). Fitted with {_said(self._input_place)}, now {_said(followed(X))}."
            )

    def _scores(self, X: Any) -> Array:
        """The network's output (N, K) for input that has been checked."""
        backend, params, buffers = self.backend_, self._params(), self._buffers()
        plan = self._plan()
        parts = [
            forward(plan, params, buffers, rows, xp=backend.xp, keep=False).y
            for rows in chunks(X, backend, self._dtype)
        ]
        return parts[0] if len(parts) == 1 else backend.xp.concat(parts, axis=0)

    def _plan(self) -> Any:
        if self._model is None:  # after a pickle; a plan has no arrays, so its network need not be on the device
            host = self._building() | {"backend": backend_of("numpy", None)}
            self._model_plan = (
                getattr(self, "_model_plan", None) or built(self._units, random_state=None, **host)[0].plan
            )
            return self._model_plan
        return self._model.plan

    def _checked(self, X: Any, method: str) -> Any:
        X = validate_data(self, X, accept_sparse=["csr", "csc"], reset=False)
        self._check_same_library(X, method)
        return X

    def _returned(self, a: Array) -> Any:
        """A result where the caller's arrays live."""
        return self.backend_.to_host(a) if self._comes_back else a

    @property
    def _comes_back(self) -> bool:
        """Whether X lies on the host and the model does not, because `backend` says so."""
        return self._input_place == ("numpy", None) and not self.backend_.on_host

    # --- a look inside --------------------------------------------------------------------------------------------

    @placed
    def hidden_activations(self, X: Any) -> list[Any]:
        """What each hidden layer says of each row, after its activation: (N, H) for each."""
        X, plan = self._checked(X, "hidden_activations"), self._plan()
        before = [int(name) - 1 for name in self._names[1:]]  # a hidden layer ends where the next matrix begins
        ends = [i - isinstance(plan.nodes[i].layer, Dropout) for i in before]
        backend, params, buffers = self.backend_, self._params(), self._buffers()
        parts: list[list[Array]] = [[] for _ in ends]
        for rows in chunks(X, backend, self._dtype):
            start, value = 0, rows
            for part, end in zip(parts, ends, strict=True):
                nodes = plan.nodes[start : end + 1]
                piece = Plan(nodes, nodes[0].inputs, nodes[-1].name)
                value = forward(piece, params, buffers, value, xp=backend.xp, keep=False).y
                part.append(value)
                start = end + 1
        return [self._returned(backend.xp.concat(part, axis=0)) for part in parts]

    @placed
    def input_gradients(self, X: Any) -> Any:
        """The slope of each predicted number in each feature, (N, K, D), in the units of the two.

        Predicted numbers are `predict_proba`'s, in the order of `classes_`, or `predict`'s; of one, (N, D).
        """
        X, plan, backend = self._checked(X, "input_gradients"), self._plan(), self.backend_
        wanted, params, buffers = plan.wanted((), input_gradient=True), self._params(), self._buffers()
        parts = []
        for rows in chunks(X, backend, self._dtype):
            passed = forward(plan, params, buffers, rows, xp=backend.xp)
            slopes = [
                backward(plan, dict(passed.caches), dy, wanted=wanted, xp=backend.xp)[1][plan.inputs[0]]
                for dy in self._slopes(passed.y)
            ]
            parts.append(slopes[0] if len(slopes) == 1 else backend.xp.stack(slopes, axis=1))
        return self._returned(backend.xp.concat(parts, axis=0))

    def _slopes(self, scores: Array) -> list[Array]:
        """For each predicted number its slope (N, K) in the network's output."""
        raise NotImplementedError


def _said(place: tuple[str, str | None]) -> str:
    return place[0] if place[1] is None else f"{place[0]} on {place[1]}"
