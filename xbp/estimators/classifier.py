"""MLPClassifier: scikit-learn's, one import line away."""

from __future__ import annotations

from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, type_of_target, unique_labels
from sklearn.utils.validation import validate_data

from ..backend import Backend
from ..functions import log_softmax, sigmoid, softmax
from ..kernels import sigmoid as sigmoid_kernel
from ..kernels import softmax as softmax_kernel
from ..kernels import softplus as softplus_kernel
from ..losses import Loss, SigmoidCrossEntropy, SoftmaxCrossEntropy
from ..typing import Array
from .arrays import placed
from .base import Perceptron
from .labels import Labels, weights_of_classes, weights_of_rows
from .rows import float_dtypes, on_host
from .rules import Rescaled
from .scores import accuracy

__all__ = ["MLPClassifier"]

ONE_EACH = "gives each row one class, and the rows of this y may have several labels. Take loss='log_loss'."
ONE_OUTPUT = (
    "needs a score for each class, and this network has one output for two classes, because it was fitted with "
    "another loss. Go on with that one, or begin anew: warm_start=False."
)
NOT_BALANCED = (
    "class_weight 'balanced' is not supported for partial_fit. In order to use 'balanced' weights, use "
    "compute_class_weight('balanced', classes=classes, y=y). In place of y you can use a large enough sample of the "
    "full training set target to properly estimate the class frequency distributions. Pass the resulting weights as "
    "the class_weight parameter."
)


class MLPClassifier(ClassifierMixin, Perceptron):
    """A multi-layer perceptron for classes, with the contract of `sklearn.neural_network.MLPClassifier`.

    Scikit-learn's settings, names and defaults, mean what they mean there. Beyond them, by keyword:

    loss            "log_loss", or a Loss of xbp; SoftmaxCrossEntropy() has a score for each of two classes as well
    class_weight    "balanced", or weights by label, which multiply `sample_weight`; those of X_val too
    activation      also any activation of xbp by name, a layer such as LeakyReLU(0.1), or a sequence of them
    dropout         the probability of dropping, for all hidden layers or one each
    normalization   "batch" or "layer", before each activation
    optimizer       in place of `solver`: a name ("adamw", ...) at `learning_rate_init`, or an optimiser of xbp
    schedule        f(step) -> rate, such as those of xbp.schedules; it takes the place of a number in `optimizer`
    clip_norm       the largest global norm of the gradients
    scoring         what `early_stopping` looks at: a scorer of scikit-learn's or its name; None is the accuracy
    time_limit      seconds after which training stops, between two steps
    callbacks       of xbp.callbacks; to them an iteration of lbfgs is an epoch. Of rows held out their history has
                    "val_loss", and "val_score", where higher is better
    engine          how steps are run, see xbp.Trainer
    backend         where to compute; None is where X lives
    dtype           "float32" or "float64"; None is that of X

    Fitted attributes are scikit-learn's: `classes_`, `coefs_`, `intercepts_`, `loss_curve_`, `n_iter_`, ...; besides,
    `validation_loss_curve_` where rows are held out, and `network_`, which is the trained Network.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **Perceptron._parameter_constraints,
        "loss": [StrOptions({"log_loss"}), Loss],
        "class_weight": [StrOptions({"balanced"}), dict, list, None],
    }

    def __init__(
        self,
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
        loss: str | Loss = "log_loss",
        class_weight: Any = None,
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
        self.loss = loss
        self.class_weight = class_weight
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
            dtype=float_dtypes(X),
            reset=reset,
        )
        y = on_host(y) if Backend.library_of(y) else y
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "_labels") or (not self.warm_start and not incremental):
            self._labels = Labels(y, isinstance(self.loss, SoftmaxCrossEntropy))
            self.classes_ = self._labels.classes
        else:
            self._check_known(y, incremental)
        t = self._labels.encoded(y)
        return X, t, self._class_weights(t, incremental)

    def _class_weights(self, t: np.ndarray, incremental: bool) -> np.ndarray | None:
        """Weights (N,) of rows by their classes, "balanced" ones from the rows that `fit` was given; None for none."""
        balanced = isinstance(self.class_weight, str)
        if not incremental:
            self._balanced = weights_of_classes(self.class_weight, self._labels, t) if balanced else None
        if self.class_weight is None:
            return None
        weights = self._balanced if balanced else weights_of_classes(self.class_weight, self._labels, t)
        assert weights is not None  # `partial_fit` refuses what was never balanced
        return weights_of_rows(weights, t)

    def _check_known(self, y: Any, incremental: bool) -> None:
        classes = unique_labels(y)
        if self.warm_start and not incremental:  # a batch, and rows held out, need not have them all
            if set(classes) != set(self.classes_):
                raise ValueError(
                    "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                    f"Previously got {self.classes_}, `y` has {classes}"
                )
        elif len(np.setdiff1d(classes, self.classes_, assume_unique=True)):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {classes}."
            )

    def _initialize(self, X: Any, units: list[int], t: Any) -> None:
        super()._initialize(X, units, t)
        stay = self.backend_.on_host or self._comes_back or self.classes_.dtype.kind not in "biu"
        self._classes = None if stay else self.backend_.asarray(self.classes_)

    def _outputs(self, t: Any) -> int:
        return self._labels.outputs

    def _out_activation(self) -> str:
        return "softmax" if self._labels.kind == "multiclass" else "logistic"

    def _loss(self) -> Loss:
        if isinstance(self.loss, SoftmaxCrossEntropy) and self._labels.kind != "multiclass":
            several = self._labels.kind == "multilabel"
            raise ValueError(f"loss={self.loss!r} {ONE_EACH if several else ONE_OUTPUT}")
        if isinstance(self.loss, Loss):
            return self.loss
        if self.loss != "log_loss":  # where scikit-learn was told to check no settings
            raise TypeError(f"loss is 'log_loss' or a Loss of xbp, such as SoftmaxCrossEntropy(); it is {self.loss!r}.")
        if self._labels.kind == "multiclass":
            return SoftmaxCrossEntropy()
        k = float(self._labels.outputs)
        return SigmoidCrossEntropy() if k == 1.0 else Rescaled(SigmoidCrossEntropy(), k, k)

    def _stratified(self, t: Any) -> Any:
        return self._host(t)[:, 0] if self._labels.kind == "binary" else None

    def _held_out_score(self, scores: Array, t: Array, w: Array | None, backend: Backend) -> float:
        xp = backend.xp
        if self._labels.kind == "multiclass":
            return accuracy(xp.astype(xp.argmax(scores, axis=1), t.dtype) == t, w, backend)
        return accuracy((self._chances(scores) > 0.5) == (t > 0.5), w, backend)

    def _chances(self, scores: Array) -> Array:
        return softmax(scores) if self._labels.kind == "multiclass" else sigmoid(scores)

    def _decoded(self, t: Array) -> Any:
        places = self._host(t)
        if self._labels.kind == "multilabel":
            return places.astype(np.int64)
        return self.classes_[places if places.ndim == 1 else places[:, 0].astype(np.int64)]

    def _slopes(self, scores: Array) -> list[Array]:
        xp: Any = self.backend_.xp
        chances = self._chances(scores)
        if self._labels.kind == "binary":
            rise = sigmoid_kernel.backward(xp.ones_like(chances), chances, xp=xp)
            return [-rise, rise]
        columns = xp.eye(int(scores.shape[1]), dtype=scores.dtype, device=self.backend_.device)
        kernel = sigmoid_kernel if self._labels.kind == "multilabel" else softmax_kernel
        return [kernel.backward(columns[k, :], chances, xp=xp) for k in range(columns.shape[0])]

    @available_if(lambda estimator: estimator._check_solver())
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """One epoch over the rows given, going on from where the last call stopped.

        classes    (C,), all classes that there will be; needed in the first call, for labels of which a row has one
        """
        plain = sample_weight is None and (classes is None or np.array_equal(vars(self).get("classes_", ()), classes))
        if plain and self._one_step(X, y):
            return self
        done: Self = self._partial_fit(X, y, sample_weight, classes)
        return done

    @_fit_context(prefer_skip_nested_validation=True)
    def _partial_fit(self, X: Any, y: Any, sample_weight: Any, classes: Any) -> Self:
        if isinstance(self.class_weight, str) and vars(self).get("_balanced") is None:
            raise ValueError(NOT_BALANCED)
        if _check_partial_fit_first_call(self, classes):
            several = type_of_target(y).startswith("multilabel")
            self._labels = Labels(y if several else classes, isinstance(self.loss, SoftmaxCrossEntropy))
        return self._long_way(X, y, sample_weight)

    def _targets(self, y: np.ndarray) -> np.ndarray | None:
        t = self._labels.quickly(y)
        return t.astype(self._dtype) if t is not None and t.ndim == 2 else t

    @placed
    def predict(self, X: Any) -> Any:
        """The likeliest class of each row, (N,); of labels of which a row may have several, (N, C) zeros and ones."""
        X = self._checked(X, "predict")
        scores, xp = self._scores(X), self.backend_.xp
        if self._labels.kind == "multiclass":
            return self._named(xp.argmax(scores, axis=1))
        likely = self._chances(scores) > 0.5
        if self._labels.kind == "multilabel":
            return self._returned(xp.astype(likely, xp.int64))
        return self._named(xp.astype(likely[:, 0], xp.int64))

    def _named(self, places: Array) -> Any:
        """Labels by their places: on the device where they are numbers, on the host where they are not."""
        if len(self.classes_) == 1:
            places = places * 0
        if self._classes is None:
            return self._labels.classes[self.backend_.to_host(places)]
        return self.backend_.xp.take(self._classes, places, axis=0)

    @placed
    def predict_proba(self, X: Any) -> Any:
        """Probabilities (N, C), in the order of `classes_`."""
        X = self._checked(X, "predict_proba")
        chances, xp = self._chances(self._scores(X)), self.backend_.xp
        if self._labels.kind == "binary":
            chances = xp.concat([1.0 - chances, chances], axis=1)
        return self._returned(chances)

    @placed
    def predict_log_proba(self, X: Any) -> Any:
        """Logarithms of `predict_proba`, without the loss of small ones to rounding."""
        X = self._checked(X, "predict_log_proba")
        scores, xp = self._scores(X), self.backend_.xp
        if self._labels.kind == "multiclass":
            return self._returned(log_softmax(scores))
        if self._labels.kind == "binary":
            return self._returned(log_softmax(xp.concat([xp.zeros_like(scores), scores], axis=1)))
        return self._returned(-softplus_kernel.forward(-scores, beta=1.0, xp=xp)[0])

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
