"""Networks without a hidden layer are linear models, whose optimum other programs know."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

from sklearn.datasets import load_diabetes, load_iris
from sklearn.linear_model import LogisticRegression, PoissonRegressor, QuantileRegressor, Ridge
from sklearn.preprocessing import scale

from xbp.estimators import MLPClassifier, MLPRegressor
from xbp.losses import MeanSquaredError, Quantile
from xbp.schedules import Exponential

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

LINEAR = {"hidden_layer_sizes": (), "solver": "lbfgs", "max_iter": 2000, "tol": 1e-9, "random_state": 0}


def diabetes():
    X, y = load_diabetes(return_X_y=True)
    return scale(X), scale(y) + 3.0


def close(predicted, known, rtol=1e-3):
    assert predicted.shape == known.shape
    assert np.max(np.abs(predicted - known)) <= rtol * np.max(np.abs(known))


@pytest.mark.parametrize("alpha", [0.1, 100.0])
def test_squared_error_is_ridge(alpha):
    X, y = diabetes()
    close(MLPRegressor(alpha=alpha, **LINEAR).fit(X, y).predict(X), Ridge(alpha=alpha).fit(X, y).predict(X))


def test_squared_errors_of_two_targets_are_ridge():
    X, y = diabetes()
    Y = np.stack([y, y**2], axis=1)
    # By name, several targets have scikit-learn's loss: value and slope differ by a factor, which no line search likes.
    mine = MLPRegressor(MeanSquaredError(), alpha=5.0, **LINEAR).fit(X, Y)
    close(mine.predict(X), Ridge(alpha=5.0).fit(X, Y).predict(X))


def test_weighted_squared_error_is_ridge():
    X, y = diabetes()
    w = np.random.default_rng(0).uniform(0.0, 3.0, len(y))
    mine = MLPRegressor(alpha=5.0, **LINEAR).fit(X, y, sample_weight=w)
    close(mine.predict(X), Ridge(alpha=5.0).fit(X, y, sample_weight=w).predict(X))


@pytest.mark.parametrize("alpha", [0.1, 10.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_log_loss_is_logistic_regression(alpha, classes):
    X, y = load_iris(return_X_y=True)
    X, y = X[y < classes], y[y < classes]
    mine = MLPClassifier(alpha=alpha, **LINEAR).fit(X, y)
    close(mine.predict_proba(X), LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10_000).fit(X, y).predict_proba(X))


def test_balanced_classes_are_logistic_regressions():
    X, y = load_iris(return_X_y=True)
    X, y = X[20:], y[20:]
    known = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000, class_weight="balanced").fit(X, y)
    close(
        MLPClassifier(alpha=2.0, class_weight="balanced", **LINEAR).fit(X, y).predict_proba(X), known.predict_proba(X)
    )


@pytest.mark.parametrize("alpha", [0.5, 50.0])
def test_poisson_is_poisson_regression(alpha):
    X, y = diabetes()
    y = np.random.default_rng(1).poisson(np.exp(y / 3)).astype(float)
    known = PoissonRegressor(alpha=alpha / len(y), tol=1e-10, max_iter=10_000).fit(X, y)
    close(MLPRegressor("poisson", alpha=alpha, **LINEAR).fit(X, y).predict(X), known.predict(X))


@pytest.mark.parametrize("level", [0.25, 0.5, 0.9])
def test_pinball_loss_is_quantile_regression(level):
    X, y = diabetes()
    mine = MLPRegressor(
        Quantile(level),
        hidden_layer_sizes=(),
        alpha=0.0,
        batch_size=len(y),
        max_iter=12_000,
        tol=0.0,
        n_iter_no_change=np.inf,
        schedule=Exponential(0.02, every=2500, factor=0.1),
        random_state=0,
    ).fit(X, y)
    close(mine.predict(X), QuantileRegressor(quantile=level, alpha=0.0).fit(X, y).predict(X))
