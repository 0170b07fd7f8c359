"""MLPRegressor: scikit-learn's, one import line away."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from scipy.special import ndtri
from sklearn.base import RegressorMixin, _fit_context
from sklearn.utils import check_array, column_or_1d
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import validate_data

from ..backend import Backend
from ..kernels.poisson_nll import bounded_exp
from ..losses import GaussianNLL, Loss, PoissonNLL, Quantile
from ..typing import Array
from .arrays import placed
from .base import Perceptron
from .building import REGRESSION, regression_loss
from .rows import float_dtypes
from .scores import r2

__all__ = ["MLPRegressor"]


class MLPRegressor(RegressorMixin, Perceptron):
    """A multi-layer perceptron for numbers, with the contract of `sklearn.neural_network.MLPRegressor`.

    Scikit-learn's settings, names and defaults, mean what they mean there. Beyond them, by keyword:

    loss            also "absolute_error", "huber", "quantile" (the median), "gaussian", or a Loss of xbp, such as
                    Quantile((0.1, 0.5, 0.9)), whose levels `predict_quantiles` gives
    activation      also any activation of xbp by name, a layer such as LeakyReLU(0.1), or a sequence of them
    dropout         the probability of dropping, for all hidden layers or one each
    normalization   "batch" or "layer", before each activation
    optimizer       in place of `solver`: a name ("adamw", ...) at `learning_rate_init`, or an optimiser of xbp
    schedule        f(step) -> rate, such as those of xbp.schedules; it takes the place of a number in `optimizer`
    clip_norm       the largest global norm of the gradients
    scoring         what `early_stopping` looks at: a scorer of scikit-learn's or its name; None is R2
    time_limit      seconds after which training stops, between two steps
    callbacks       of xbp.callbacks; to them an iteration of lbfgs is an epoch
    engine          how steps are run, see xbp.Trainer
    backend         where to compute; None is where X lives
    dtype           "float32" or "float64"; None is that of X

    Fitted attributes are scikit-learn's: `coefs_`, `intercepts_`, `loss_curve_`, `n_iter_`, ...; besides,
    `validation_loss_curve_` where rows are held out, and `network_`, which is the trained Network.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Perceptron._parameter_constraints,
        "loss": [StrOptions(set(REGRESSION)), HasMethods("forward")],
    }

    def __init__(
        self,
        loss: str | Loss = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: int | str = "auto",
        learning_rate: str = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: bool = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        dropout: Any = 0.0,
        normalization: str | None = None,
        optimizer: Any = None,
        schedule: Any = None,
        clip_norm: float | None = None,
        scoring: Any = None,
        time_limit: float | None = None,
        callbacks: Any = (),
        engine: str = "auto",
        backend: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.solver = solver
        self.alpha = alpha
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.learning_rate_init = learning_rate_init
        self.power_t = power_t
        self.max_iter = max_iter
        self.shuffle = shuffle
        self.random_state = random_state
        self.tol = tol
        self.verbose = verbose
        self.warm_start = warm_start
        self.momentum = momentum
        self.nesterovs_momentum = nesterovs_momentum
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.n_iter_no_change = n_iter_no_change
        self.max_fun = max_fun
        self.dropout = dropout
        self.normalization = normalization
        self.optimizer = optimizer
        self.schedule = schedule
        self.clip_norm = clip_norm
        self.scoring = scoring
        self.time_limit = time_limit
        self.callbacks = callbacks
        self.engine = engine
        self.backend = backend
        self.dtype = dtype

    def _validate_input(self, X: Any, y: Any, incremental: bool, reset: bool) -> tuple[Any, Any, Any]:
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            y_numeric=True,
            dtype=float_dtypes(X),
            reset=reset,
        )
        if Backend.library_of(y) in ("", "numpy"):  # so also what is sparse, or was None among objects
            y = check_array(y, ensure_2d=False, input_name="y")
            y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        return X, y if y.ndim == 2 else y[:, None], None

    def _loss(self) -> Loss:
        return regression_loss(self.loss, self.n_outputs_)

    def _outputs(self, t: Any) -> int:
        k = int(t.shape[1])
        loss = regression_loss(self.loss, k)
        if isinstance(loss, GaussianNLL):
            return 2 * k
        return len(loss.q) if isinstance(loss, Quantile) and isinstance(loss.q, tuple) else k

    def _predicted(self, t: Any) -> int:
        return int(t.shape[1])

    def _out_activation(self) -> str:
        return "exp" if self._counts() else "identity"

    def _counts(self) -> bool:
        return self._fitted_loss == "poisson" or isinstance(self._fitted_loss, PoissonNLL)

    def _held_out_score(self, scores: Array, t: Array, w: Array | None, backend: Backend) -> float:
        return r2(self._estimates(scores), t, w, backend)

    def _estimates(self, scores: Array) -> Array:
        """What is predicted, (N, K), from the network's output."""
        xp: Any = self.backend_.xp
        if self._counts():
            return bounded_exp(scores, xp=xp)
        if scores.shape[1] == self.n_outputs_:
            return scores
        if self._levels():
            rank = self._ranks()[self._middle()]
            ordered: Array = xp.sort(scores, axis=1)
            return ordered[:, rank : rank + 1]
        return scores[:, : self.n_outputs_]

    @available_if(lambda estimator: estimator._check_solver())
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One epoch over the rows given, going on from where the last call stopped."""
        if sample_weight is None and self._one_step(X, y):
            return self
        done: Self = self._partial_fit(X, y, sample_weight)
        return done

    @_fit_context(prefer_skip_nested_validation=True)
    def _partial_fit(self, X: Any, y: Any, sample_weight: Any) -> Self:
        return self._long_way(X, y, sample_weight)

    def _targets(self, y: np.ndarray) -> np.ndarray | None:
        if y.dtype.kind != "f" or not np.isfinite(y).all() or (self._counts() and (y < 0.0).any()):
            return None
        return y.astype(self._dtype)[:, None]

    @placed
    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The predicted values, (N,) or (N, K); of several quantiles `predict_quantiles`' column next to the median.

        return_std    also the standard deviations, of the same shape; for loss="gaussian"
        """
        X = self._checked(X, "predict")
        scores = self._scores(X)
        values = self._shaped(self._estimates(scores))
        if not return_std:
            return values
        return values, self._shaped(self._deviations(scores, "predict(return_std=True)"))

    @placed
    def predict_quantiles(self, X: Any, q: Any = None) -> Any:
        """Quantiles (N, Q), rising from level to level; for loss="gaussian" of K targets (N, K, Q).

        q    levels between 0 and 1, for loss="gaussian"; a Quantile loss has its own

        A Quantile loss gives quantiles of one target, one output for each of its levels.

        Quantiles that were learned apart may cross. They are put in order, which brings them no farther from the truth
        (Chernozhukov, Fernandez-Val, Galichon, "Quantile and probability curves without crossing", Econometrica 2010).
        """
        X = self._checked(X, "predict_quantiles")
        xp: Any = self.backend_.xp
        if self._levels():
            if q is not None:
                raise ValueError(
                    f"The levels of the quantiles are those of the loss, {self._fitted_loss}; q= is given besides."
                )
            ordered = xp.sort(self._scores(X), axis=1)
            return self._returned(xp.stack([ordered[:, rank] for rank in self._ranks()], axis=1))
        scores = self._scores(X)
        std = self._deviations(scores, "predict_quantiles")
        levels = np.atleast_1d(np.asarray([0.1, 0.5, 0.9] if q is None else q, dtype=np.float64))
        if levels.ndim != 1 or levels.size == 0 or not ((levels > 0.0) & (levels < 1.0)).all():
            raise ValueError(
                f"q must hold one or more levels between 0 and 1, such as [0.1, 0.5, 0.9]; it is {q!r:.200}."
            )
        means = self._estimates(scores)
        quantiles = xp.stack([means + float(step) * std for step in ndtri(levels)], axis=2)
        return self._returned(quantiles[:, 0, :] if self.n_outputs_ == 1 else quantiles)

    def _levels(self) -> tuple[float, ...]:
        """The levels of a loss with several quantiles of one target; () for any other."""
        loss = self._fitted_loss
        if self.n_outputs_ > 1 or not isinstance(loss, Quantile):  # of several targets, each has a level of its own
            return ()
        return loss.q if isinstance(loss.q, tuple) else ()

    def _ranks(self) -> list[int]:
        """The place of each level among all of them."""
        ranks: list[int] = np.argsort(np.argsort(np.asarray(self._levels()))).tolist()
        return ranks

    def _middle(self) -> int:
        """The level next to the median."""
        return int(np.argmin(np.abs(np.asarray(self._levels()) - 0.5)))

    def _deviations(self, scores: Array, what: str) -> Array:
        if not self._is_gaussian() or scores.shape[1] != 2 * self.n_outputs_:
            raise ValueError(f"{what} needs {self._cure(what)} loss is {self._fitted_loss!r}.")
        return self.backend_.xp.exp(0.5 * scores[:, self.n_outputs_ :])

    def _is_gaussian(self) -> bool:
        return self._fitted_loss == "gaussian" or isinstance(self._fitted_loss, GaussianNLL)

    def _cure(self, what: str) -> str:
        """Which losses can answer, and where that is why, that there are several targets."""
        if what != "predict_quantiles":
            return "loss='gaussian', whose network says how sure it is;"
        if self.n_outputs_ > 1:
            return (
                f"loss='gaussian' here, for there are {self.n_outputs_} targets: a Quantile loss then has one level "
                "for each of them, which predict gives. For several quantiles of each, fit one estimator for each "
                "target, as sklearn.multioutput.MultiOutputRegressor does;"
            )
        return "a Quantile loss with a tuple of levels, such as Quantile((0.1, 0.5, 0.9)), or loss='gaussian';"

    def _shaped(self, values: Array) -> Any:
        return self._returned(values[:, 0] if values.shape[1] == 1 else values)

    def _decoded(self, t: Array) -> Any:
        return t[:, 0] if t.shape[1] == 1 else t

    def _slopes(self, scores: Array) -> list[Array]:
        xp: Any = self.backend_.xp
        width = int(scores.shape[1])
        rise = self._estimates(scores) if self._counts() else xp.ones_like(scores)
        columns = xp.eye(width, dtype=scores.dtype, device=self.backend_.device)
        if self._levels():  # the slope is that of the output which is the middle one in its row
            return [xp.take(columns, xp.argsort(scores, axis=1)[:, self._ranks()[self._middle()]], axis=0)]
        return [rise * columns[k, :] for k in range(self.n_outputs_)]
