"""From one random_state a training is scikit-learn's: the same weights, curves, scores and stops, up to rounding."""

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from sklearn import neural_network as theirs
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import scale

from xbp import estimators as ours

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def iris():
    return load_iris(return_X_y=True)


def words():
    X, y = load_iris(return_X_y=True)
    return X, np.array(["setosa", "versicolor", "virginica"])[y]


def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return scale(X)[::3], y[::3]


def several():
    X, y = make_multilabel_classification(150, n_features=12, random_state=0)
    return X / 5, y


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return X * 20, scale(y)


def pairs():
    X, y = diabetes()
    return X, np.stack([y, y**2], axis=1)


def counts():
    X, y = diabetes()
    return X, np.random.RandomState(0).poisson(np.exp(y)).astype(float)


OLD = sklearn.__version__.startswith(("1.7", "1.8"))
CLASSES, NUMBERS = (iris, words, cancer, several), (diabetes, pairs)
SETTINGS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.01},
    "no momentum": {"solver": "sgd", "momentum": 0.0},
    "momentum 1": {"solver": "sgd", "momentum": 1.0, "learning_rate_init": 1e-4},
    "plain momentum": {"solver": "sgd", "nesterovs_momentum": False, "activation": "tanh"},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "tol": 1e-2, "n_iter_no_change": 2},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "power_t": 0.2, "learning_rate_init": 0.1},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3},
    "adaptive, early stopping": {
        "solver": "sgd", "learning_rate": "adaptive", "early_stopping": True, "n_iter_no_change": 2, "tol": 1e-2,
    },
    "logistic, in order": {"activation": "logistic", "shuffle": False},
    "two layers, small batches": {"hidden_layer_sizes": (7, 4), "batch_size": 7, "activation": "identity"},
    "strong penalty": {"alpha": 3.0, "beta_1": 0.0, "epsilon": 1e-3},
    "until it stops": {"tol": 1e-2, "max_iter": 200},
    "lbfgs": {"solver": "lbfgs", "max_iter": 15},
}  # fmt: skip


def fitted(library, data, *, weighted=False, **settings):
    X, y = data()
    name = "MLPRegressor" if data in (*NUMBERS, counts) else "MLPClassifier"
    options = {"random_state": 3, "max_iter": 30, "hidden_layer_sizes": (15,)} | settings
    w = np.random.RandomState(1).uniform(0.1, 2.0, len(X)) if weighted else None
    return getattr(library, name)(**options).fit(X, y, sample_weight=w)


def agree(mine, other, rtol=1e-6):
    assert mine.n_iter_ == other.n_iter_
    assert mine.t_ == other.t_
    assert (mine.n_layers_, mine.n_outputs_, mine.out_activation_) == (
        other.n_layers_, other.n_outputs_, other.out_activation_,
    )  # fmt: skip
    for a, b in zip(mine.coefs_ + mine.intercepts_, other.coefs_ + other.intercepts_, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * np.abs(b).max())
    np.testing.assert_allclose(mine.loss_, other.loss_, rtol=rtol)
    for name in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_"):
        a, b = getattr(mine, name, "absent"), getattr(other, name, "absent")
        if b is None or isinstance(b, str):
            assert a == b, name
        else:
            np.testing.assert_allclose(a, b, rtol=rtol, err_msg=name)


@pytest.mark.parametrize("data", [*CLASSES, *NUMBERS])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_training_is_scikit_learns(data, setting):
    if OLD and data is words and "early_stopping" in SETTINGS[setting]:
        pytest.skip("scikit-learn's own cannot stop early with words before version 1.9")
    mine, other = (fitted(library, data, **SETTINGS[setting]) for library in (ours, theirs))
    agree(mine, other)
    X, y = data()
    if data in CLASSES:
        np.testing.assert_array_equal(mine.classes_, other.classes_)
        np.testing.assert_array_equal(mine.predict(X), other.predict(X))
        assert mine.predict(X).dtype == other.predict(X).dtype
        np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), rtol=1e-6, atol=1e-12)
        with np.errstate(divide="ignore"):  # theirs takes the logarithm of a probability that may be 0
            expected = other.predict_log_proba(X)
        known = expected > -20.0  # below, theirs is 1 - p with few digits left
        np.testing.assert_allclose(mine.predict_log_proba(X)[known], expected[known], rtol=1e-6, atol=1e-9)
    else:
        np.testing.assert_allclose(mine.predict(X), other.predict(X), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(mine.score(X, y), other.score(X, y), rtol=1e-9)


@pytest.mark.parametrize("setting", ["adam", "adaptive, early stopping", "lbfgs"])
@pytest.mark.parametrize("data", [iris, cancer, several, diabetes, pairs, counts])
def test_weighted_rows(data, setting):
    extra = {"loss": "poisson"} if data is counts else {}
    agree(*(fitted(lib, data, weighted=True, **SETTINGS[setting], **extra) for lib in (ours, theirs)))


@pytest.mark.parametrize("setting", ["adam", "sgd", "early stopping", "lbfgs"])
def test_counts(setting):
    agree(*(fitted(library, counts, loss="poisson", **SETTINGS[setting]) for library in (ours, theirs)))


@pytest.mark.parametrize("engine", ["numba", "planned", "eager"])
def test_digits_on_every_engine(engine):
    if engine == "numba":
        pytest.importorskip("llvmlite", reason="the engine numba needs llvmlite")
    X, y = load_digits(return_X_y=True)
    options = {"random_state": 0, "max_iter": 10, "hidden_layer_sizes": (40,)}
    mine = ours.MLPClassifier(engine=engine, **options).fit(X / 16, y)
    assert mine._trainer.engine == engine
    agree(mine, theirs.MLPClassifier(**options).fit(X / 16, y), rtol=1e-9)


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_float32_stays_float32(solver):
    X, y = iris()
    options = {"random_state": 0, "max_iter": 20, "solver": solver}
    mine, other = (lib.MLPClassifier(**options).fit(X.astype(np.float32), y) for lib in (ours, theirs))
    agree(mine, other, rtol=1e-3)
    assert mine.predict_proba(X.astype(np.float32)).dtype == np.float32


@pytest.mark.parametrize("setting", ["adam", "early stopping", "lbfgs"])
@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array"])
def test_sparse_rows(kind, setting):
    sparse = pytest.importorskip("scipy.sparse")
    X, y = iris()
    X = np.where(X < 3.0, 0.0, X)
    options = {"random_state": 0, "max_iter": 8, "batch_size": 32} | SETTINGS[setting]
    mine = ours.MLPClassifier(**options).fit(getattr(sparse, kind)(X), y)
    other = theirs.MLPClassifier(**options).fit(X, y)
    agree(mine, other)
    np.testing.assert_array_equal(mine.predict(getattr(sparse, kind)(X)), other.predict(X))
    if setting == "early stopping":
        dense = ours.MLPClassifier(**options).fit(X, y)
        np.testing.assert_allclose(mine.validation_loss_curve_, dense.validation_loss_curve_, rtol=1e-12)


def test_what_random_state_is_given_is_drawn_from_alike():
    X, y = iris()
    states = [np.random.RandomState(5), np.random.RandomState(5)]
    for state, library in zip(states, (ours, theirs), strict=True):
        library.MLPClassifier(random_state=state, max_iter=3, early_stopping=True).fit(X, y)
    assert states[0].uniform() == states[1].uniform()


@pytest.mark.parametrize("settings", [{"max_iter": 2}, {"max_iter": 2, "solver": "lbfgs"}])
@pytest.mark.filterwarnings("default::sklearn.exceptions.ConvergenceWarning")
def test_an_unfinished_training_warns_alike(settings):
    told = []
    for library in (ours, theirs):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            library.MLPClassifier(random_state=0, **settings).fit(*iris())
        told.append([(w.category, str(w.message)) for w in caught])
    assert told[0] == told[1]
    assert told[0][0][0] is ConvergenceWarning


@pytest.mark.parametrize("settings", [{}, SETTINGS["adaptive"], SETTINGS["early stopping"]])
def test_what_is_printed_is_scikit_learns(settings, capsys):
    printed = []
    for library in (ours, theirs):
        library.MLPClassifier(random_state=0, max_iter=12, verbose=True, **settings).fit(*iris())
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert printed[0].startswith("Iteration 1, loss = ")
