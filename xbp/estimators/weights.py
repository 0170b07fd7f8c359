"""The fitted arrays of an estimator: who has the newest ones, and how they are handed out and taken back.

While a trainer lives it has them. From the moment in which somebody looks at `coefs_` or `intercepts_`, the lists that
were handed out are the truth, changed as they may have been, until the next training takes them over. So nothing is
copied in a stream of `partial_fit` that nobody watches, and what is written into `coefs_` counts, as in scikit-learn.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..network import Network
from ..training import Trainer
from ..typing import Array
from ..weights import copied

__all__ = ["Fitted", "Resume"]


class Resume(NamedTuple):
    """What a training goes on from, in a pickle."""

    state: dict[str, Array]
    buffers: dict[str, Array]
    rate: Any
    steps: int


class Fitted:
    """Mixin: `coefs_`, `intercepts_`, and the model and trainer behind them."""

    _names: list[str]  # of the affine layers in the network
    _model: Network | None
    _trainer: Trainer | None
    _resume: Resume | None
    _lists: tuple[list[Array], list[Array]] | None  # what was handed out
    _others: dict[str, Array]  # parameters of other layers, and buffers, beside `_lists`

    def __sklearn_is_fitted__(self) -> bool:
        return "_lists" in vars(self)

    @property
    def coefs_(self) -> list[Array]:
        """The weight matrices, layer by layer."""
        return self._handed_out("coefs_")[0]

    @coefs_.setter
    def coefs_(self, value: list[Array]) -> None:
        self._lists = (value, self._handed_out("coefs_")[1])

    @property
    def intercepts_(self) -> list[Array]:
        """The bias vectors, layer by layer."""
        return self._handed_out("intercepts_")[1]

    @intercepts_.setter
    def intercepts_(self, value: list[Array]) -> None:
        self._lists = (self._handed_out("intercepts_")[0], value)

    def _handed_out(self, name: str) -> tuple[list[Array], list[Array]]:
        if not self.__sklearn_is_fitted__():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if self._lists is None:
            assert self._model is not None  # one of the two has the weights
            params = copied(self._model.params, self._model.backend)
            self._others = {n: a for n, a in params.items() if n.rpartition(".")[0] not in self._names}
            self._lists = [params[f"{n}.W"] for n in self._names], [params[f"{n}.b"] for n in self._names]
        return self._lists

    def _params(self) -> dict[str, Array]:
        """The newest parameters by their names in the network; valid until the next training."""
        if self._lists is None:
            assert self._model is not None  # as above
            return dict(self._model.params)
        affine = {}
        for name, W, b in zip(self._names, *self._lists, strict=True):
            affine.update({f"{name}.W": W, f"{name}.b": b})
        return affine | self._others

    def _buffers(self) -> dict[str, Array]:
        if self._model is not None:
            return dict(self._model.buffers)
        return self._resume.buffers if self._resume is not None else {}

    def _take_back(self) -> None:
        """Give the model what may have been changed outside, before it trains on."""
        if self._lists is not None and self._model is not None:
            self._model.load_params(self._params())
            self._lists = None

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]  # BaseEstimator's gives a dict
        if not self.__sklearn_is_fitted__():
            return state
        self._handed_out("coefs_")
        state = dict(state)
        for name in ("_lists", "_others"):
            state[name] = vars(self)[name]
        trainer = self._trainer
        if trainer is not None:
            tree = trainer._snapshot()  # an estimator is a trainer with another face
            state["_resume"] = Resume(tree["state"], tree["buffers"], trainer._scalars.lr, trainer.steps)
        for name in ("_model", "_trainer", "_known", "_curve", "_held_out"):
            state[name] = None
        return state
