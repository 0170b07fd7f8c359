"""What is wrong is refused as scikit-learn's perceptrons refuse it: the same exception, message and warnings."""

import re
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from scipy import sparse
from sklearn import neural_network as theirs
from sklearn.datasets import load_iris

from xbp import estimators as ours

X, Y = load_iris(return_X_y=True)
B = X[:, 0]
OLD = sklearn.__version__.startswith(("1.7", "1.8"))
FAST = {"random_state": 0, "max_iter": 2, "hidden_layer_sizes": (4,)}


def changed(a, value, at=(3,)):
    b = np.array(a, dtype=object if isinstance(value, str) or value is None else np.result_type(a, type(value)))
    b[at] = value
    return b


def outcome(call, library):
    """(exception, its message, the warnings) of a call on an estimator of that library."""
    error = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call(library)
        except Exception as raised:
            error = raised
    # Of overflows NumPy tells scikit-learn's users once for each operation, and ours not at all.
    told = [(w.category, str(w.message)) for w in caught if w.category is not RuntimeWarning]
    return type(error), plain(str(error)), told


def plain(text):
    """The message without addresses of objects."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


KINDS = ("MLPClassifier", "MLPRegressor")
SETTINGS = {
    "hidden_layer_sizes": ["nonsense", None, -1, 0, (3, -2), 2.5],
    "solver": ["newton", None, 1],
    "alpha": [-1.0, "x", None, np.nan],
    "batch_size": [0, -3, 1.5, "none", None],
    "learning_rate": ["fast", None],
    "learning_rate_init": [0, -1.0, "x", None],
    "power_t": [-1, "x"],
    "max_iter": [0, -1, 1.5, "x", None],
    "shuffle": ["yes", None, 2],
    "random_state": ["seed", -1, 1.5],
    "tol": [-1.0, "x"],
    "verbose": ["loud", -1],
    "warm_start": ["yes", None],
    "momentum": [-0.1, 1.5, "x"],
    "nesterovs_momentum": ["yes", None],
    "early_stopping": ["yes", None],
    "validation_fraction": [1.0, -0.1, "x"],
    "beta_1": [1.0, -0.1],
    "beta_2": [1.0, -0.1],
    "epsilon": [0.0, "x"],
    "n_iter_no_change": [0, 1.5, None],
    "max_fun": [0, "x"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in SETTINGS.items() for v in values])
def test_settings(kind, name, value):
    def call(library):
        getattr(library, kind)(**{"max_iter": 1, name: value}).fit(X[:20], Y[:20])

    mine, other = outcome(call, ours), outcome(call, theirs)
    assert mine == other
    assert other[0] is not type(None)


SHORT = Y[:-1]
SEVERAL = np.stack([Y == 0, Y == 1], axis=1).astype(int)
TWICE = np.concatenate([X] * 2)
DATA = {
    "X has one axis": ((X[:, 0], Y), {}),
    "X has three axes": ((X[:, :, None], Y), {}),
    "X is empty": ((X[:0], Y[:0]), {}),
    "X has no features": ((X[:, :0], Y), {}),
    "X is complex": ((X + 1j, Y), {}),
    "X holds words": ((changed(X, "word", (3, 2)), Y), {}),
    "X holds None": ((changed(X, None, (3, 2)), Y), {}),
    "X holds NaN": ((changed(X, np.nan, (3, 2)), Y), {}),
    "X holds infinity": ((changed(X, np.inf, (3, 2)), Y), {}),
    "X is None": ((None, Y), {}),
    "X is a number": ((3.0, Y), {}),
    "X is a word": (("word", Y), {}),
    "X is ragged": (([[1.0, 2.0], [3.0]], [0, 1]), {}),
    "X holds NaN and is sparse": ((sparse.csr_matrix(changed(X, np.nan, (3, 2))), Y), {}),
    "X is sparse and complex": ((sparse.csr_matrix(X + 1j), Y), {}),
    "X is sparse, of integers": ((sparse.csr_matrix(X.astype(int)), Y), {}),
    "X is sparse in another format": ((sparse.coo_matrix(X), Y), {}),
    "X is a dictionary": (({"a": 1}, Y), {}),
    "one row": ((X[:1], Y[:1]), {}),
    "y is None": ((X, None), {}),
    "y is short": ((X, SHORT), {}),
    "y is a number": ((X, 1), {}),
    "y is a column": ((X, Y[:, None]), {}),
    "y is sparse": ((X, sparse.csr_matrix(Y[:, None])), {}),
    "y is sparse, several": ((X, sparse.csr_matrix(SEVERAL)), {}),
    "y has three axes": ((X, SEVERAL[:, :, None]), {}),
    "y is continuous": ((X, B), {}),
    "y has several classes several times": ((X, np.stack([Y, Y], axis=1)), {}),
    "y is continuous, several": ((X, X[:, :2]), {}),
    "y holds NaN": ((X, changed(Y, np.nan)), {}),
    "y holds infinity": ((X, changed(Y, np.inf)), {}),
    "y holds None": ((X, changed(Y, None)), {}),
    "y holds words and numbers": ((X, changed(Y, "word")), {}),
    "y holds words": ((X, np.array(["a", "b", "c"])[Y]), {}),
    "y holds words, as objects": ((X, np.array(["a", "b", "c"], dtype=object)[Y]), {}),
    "y is complex": ((X, Y + 1j), {}),
    "y has one class": ((X, np.zeros(150, int)), {}),
    "y is ragged": ((X, [[1], [2, 3]] * 75), {}),
    "y holds one row each": ((X, [[i] for i in Y]), {}),
    "weights are short": ((X, Y), {"sample_weight": np.ones(3)}),
    "weights have two axes": ((X, Y), {"sample_weight": np.ones((150, 2))}),
    "weights hold NaN": ((X, Y), {"sample_weight": changed(np.ones(150), np.nan)}),
    "weights are negative": ((X, Y), {"sample_weight": changed(np.ones(150), -1.0)}),
    "weights are words": ((X, Y), {"sample_weight": np.array(["a"] * 150)}),
    "weights are a number": ((X, Y), {"sample_weight": 2.0}),
    "weights are 0": ((X, Y), {"sample_weight": np.zeros(150)}),
    "weights are a word": ((X, Y), {"sample_weight": "balanced"}),
}


# What scikit-learn's takes and makes nothing of, or stumbles over later: ours says what is wrong with it.
BETTER_DATA = {
    "y is sparse, several": (TypeError, "Sparse data was passed for y, but dense data is required"),
    "y holds None": (ValueError, r"Input y contains NaN\."),
    "y holds words": (ValueError, "dtype='numeric' is not compatible with arrays of bytes/strings"),
    "weights are negative": (ValueError, "Negative values in data passed to `sample_weight`"),
}
EVEN_CLASSES = ("weights are negative",)  # the others are well for labels


@pytest.mark.parametrize("settings", [{}, {"early_stopping": True}, {"solver": "lbfgs"}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", DATA)
def test_data(kind, name, settings):
    data, more = DATA[name]
    words = (
        kind == "MLPClassifier" and ("words" in name or name == "y is sparse, several") and "early_stopping" in settings
    )
    if OLD and (name == "weights are 0" or words):
        pytest.skip("scikit-learn's own stumbles over this before version 1.9")

    def call(library):
        getattr(library, kind)(**FAST, **settings).fit(*data, **more)

    if name in BETTER_DATA and (kind == "MLPRegressor" or name in EVEN_CLASSES):
        kind_of_error, message = BETTER_DATA[name]
        with pytest.raises(kind_of_error, match=message):
            call(ours)
        assert outcome(call, theirs)[:2] != outcome(call, ours)[:2]  # else the exception is needed no longer
    else:
        assert outcome(call, ours) == outcome(call, theirs)


def first(library, kind="MLPClassifier", **settings):
    return getattr(library, kind)(**FAST, **settings)


CALLS = {
    "predict before a fit": lambda lib: first(lib).predict(X),
    "predict_proba before a fit": lambda lib: first(lib).predict_proba(X),
    "predict_log_proba before a fit": lambda lib: first(lib).predict_log_proba(X),
    "score before a fit": lambda lib: first(lib).score(X, Y),
    "predict numbers before a fit": lambda lib: first(lib, "MLPRegressor").predict(X),
    "coefs_ before a fit": lambda lib: first(lib).coefs_,
    "loss_curve_ before a fit": lambda lib: first(lib).loss_curve_,
    "loss_curve_ of lbfgs": lambda lib: first(lib, solver="lbfgs").fit(X, Y).loss_curve_,
    "fewer features": lambda lib: first(lib).fit(X, Y).predict(X[:, :3]),
    "one row, no matrix": lambda lib: first(lib).fit(X, Y).predict(X[0]),
    "no rows": lambda lib: first(lib).fit(X, Y).predict(X[:0]),
    "NaN in a prediction": lambda lib: first(lib).fit(X, Y).predict_proba(X * np.nan),
    "sparse prediction in another format": lambda lib: first(lib).fit(X, Y).predict(sparse.coo_matrix(X)),
    "words in a prediction": lambda lib: first(lib).fit(X, Y).predict(np.array([["a"] * 4])),
    "a batch larger than the data": lambda lib: first(lib, batch_size=1000).fit(X, Y),
    "a batch larger than the rest": lambda lib: first(lib, batch_size=140, early_stopping=True).fit(X, Y),
    "validation of one row": lambda lib: first(lib, early_stopping=True, validation_fraction=0.005).fit(X, Y),
    "validation of no rows": lambda lib: first(lib, early_stopping=True, validation_fraction=0.0).fit(X, Y),
    "a class with one row": lambda lib: first(lib, early_stopping=True).fit(X[:52], Y[:52] == 1),
    "too few rows for validation": lambda lib: first(lib, early_stopping=True).fit(X[:2], Y[:2]),
    "large numbers": lambda lib: first(lib, "MLPRegressor", solver="sgd").fit(X * 1e200, B),
    "large numbers, lbfgs": lambda lib: first(lib, "MLPRegressor", solver="lbfgs").fit(X * 1e200, B),
    "negative counts": lambda lib: first(lib, "MLPRegressor", loss="poisson").fit(X, B - 10.0),
    "an unknown loss": lambda lib: first(lib, "MLPRegressor", loss="hinge").fit(X, B),
    "partial_fit of lbfgs": lambda lib: first(lib, solver="lbfgs").partial_fit(X, Y, classes=[0, 1, 2]),
    "partial_fit of lbfgs, numbers": lambda lib: first(lib, "MLPRegressor", solver="lbfgs").partial_fit(X, B),
    "partial_fit that stops early": lambda lib: first(lib, early_stopping=True).partial_fit(X, Y, classes=[0, 1, 2]),
    "partial_fit without classes": lambda lib: first(lib).partial_fit(X, Y),
    "partial_fit of classes that are not named": lambda lib: first(lib).partial_fit(X, Y, classes=[0, 1]),
    "partial_fit of no classes": lambda lib: first(lib).partial_fit(X, Y, classes=[]),
    "partial_fit of classes in a word": lambda lib: first(lib).partial_fit(X, Y, classes="abc"),
    "partial_fit of a number of classes": lambda lib: first(lib).partial_fit(X, Y, classes=3),
    "partial_fit of classes in a matrix": lambda lib: first(lib).partial_fit(X, Y, classes=[[0, 1, 2]]),
    "partial_fit of continuous classes": lambda lib: first(lib).partial_fit(X, Y, classes=[0.5, 1, 2]),
    "partial_fit of classes twice": lambda lib: first(lib).partial_fit(X, Y, classes=[2, 1, 0, 0]),
    "partial_fit of other classes": lambda lib: streamed(lib).partial_fit(X, Y, classes=[0, 1, 2, 3]),
    "partial_fit of words after numbers": lambda lib: streamed(lib).partial_fit(X, Y.astype(str)),
    "partial_fit of unknown classes": lambda lib: streamed(lib).partial_fit(X, Y + 1),
    "partial_fit of fewer features": lambda lib: streamed(lib).partial_fit(X[:, :3], Y),
    "partial_fit of a short y": lambda lib: streamed(lib).partial_fit(X, SHORT),
    "partial_fit of NaN": lambda lib: streamed(lib).partial_fit(X * np.nan, Y),
    "partial_fit of no rows": lambda lib: streamed(lib).partial_fit(X[:0], Y[:0]),
    "partial_fit of a column": lambda lib: streamed(lib).partial_fit(X, Y[:, None]),
    "partial_fit of several labels": lambda lib: streamed(lib).partial_fit(X, SEVERAL),
    "partial_fit of continuous numbers": lambda lib: streamed(lib).partial_fit(X, B),
    "partial_fit of NaN in y": lambda lib: streamed(lib).partial_fit(X, changed(Y, np.nan)),
    "partial_fit with a short weight": lambda lib: streamed(lib).partial_fit(X, Y, np.ones(3)),
    "partial_fit of a bad setting": lambda lib: streamed(lib).set_params(alpha=-1).partial_fit(X, Y),
    "partial_fit with a large batch": lambda lib: streamed(lib).set_params(batch_size=999).partial_fit(X, Y),
    "partial_fit of numbers of another width": lambda lib: (
        first(lib, "MLPRegressor").partial_fit(X, B).partial_fit(X, X[:, :2])
    ),
    "partial_fit of fewer numbers": lambda lib: first(lib, "MLPRegressor").partial_fit(X, X[:, :2]).partial_fit(X, B),
    "partial_fit of numbers, then words": lambda lib: (
        first(lib, "MLPRegressor").partial_fit(X, B).partial_fit(X, Y.astype(str))
    ),
    "partial_fit of numbers, then NaN": lambda lib: (
        first(lib, "MLPRegressor").partial_fit(X, B).partial_fit(X, B * np.nan)
    ),
    "warm start with other classes": lambda lib: first(lib, warm_start=True).fit(X, Y).fit(X, Y + 1),
    "warm start with fewer classes": lambda lib: first(lib, warm_start=True).fit(X, Y).fit(X[:100], Y[:100]),
    "warm start with fewer features": lambda lib: first(lib, warm_start=True).fit(X, Y).fit(X[:, :3], Y),
    "warm start with fewer numbers": lambda lib: first(lib, "MLPRegressor", warm_start=True).fit(X, X[:, :2]).fit(X, B),
    "warm start with several labels": lambda lib: first(lib, warm_start=True).fit(X, Y).fit(X, SEVERAL),
    "warm start with other layers": lambda lib: (
        first(lib, warm_start=True).fit(X, Y).set_params(hidden_layer_sizes=(9,)).fit(X, Y)
    ),
    "warm start, another solver": lambda lib: (
        first(lib, warm_start=True).fit(X, Y).set_params(solver="lbfgs").fit(X, Y)
    ),
    "an unknown setting": lambda lib: first(lib, nonsense=1),
    "an unknown parameter set": lambda lib: first(lib).set_params(nonsense=1),
    "two settings by position": lambda lib: lib.MLPClassifier((4,), "relu", "adam"),
    "a score of another length": lambda lib: first(lib).fit(X, Y).score(X, SHORT),
    "a score of words": lambda lib: first(lib).fit(X, Y).score(X, Y.astype(str)),
    "a score with a short weight": lambda lib: first(lib).fit(X, Y).score(X, Y, np.ones(3)),
}


BETTER_CALLS = {
    "negative counts": (ValueError, "needs counts of at least 0 as targets; row 0"),
    "partial_fit of lbfgs, numbers": (AttributeError, "This 'MLPRegressor' has no attribute 'partial_fit'"),
    "partial_fit of a bad setting": (ValueError, "The 'alpha' parameter of MLPClassifier must be a float in the range"),
    "partial_fit of numbers of another width": (ValueError, r"needs targets of shape \(N, 1\)"),
    "partial_fit of fewer numbers": (ValueError, r"needs targets of shape \(N, 2\)"),
    "partial_fit of numbers, then words": (ValueError, "dtype='numeric' is not compatible with arrays of bytes"),
    "warm start with fewer numbers": (ValueError, r"needs targets of shape \(N, 2\)"),
    # The names of what is there are others; the beginnings are scikit-learn's.
    "an unknown loss": (
        ValueError,
        r"The 'loss' parameter of MLPRegressor must be a str among.*Got 'hinge' instead",
    ),
    "an unknown parameter set": (ValueError, "Invalid parameter 'nonsense' for estimator MLPClassifier"),
}


def streamed(library):
    return first(library).partial_fit(X, Y, classes=[0, 1, 2])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", CALLS)
def test_calls(name):
    call = CALLS[name]
    if name in BETTER_CALLS:
        kind_of_error, message = BETTER_CALLS[name]
        with pytest.raises(kind_of_error, match=message):
            call(ours)
        assert outcome(call, theirs)[:2] != outcome(call, ours)[:2]  # as above
    elif name.startswith("large numbers"):  # scikit-learn's goes on to the end before it looks
        assert outcome(call, ours)[:2] == outcome(call, theirs)[:2]
    else:
        assert outcome(call, ours) == outcome(call, theirs)
