"""The estimators inside scikit-learn's own machinery, beside scikit-learn's perceptrons in the same places."""

import pickle
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import AdaBoostClassifier, BaggingClassifier, StackingClassifier, VotingRegressor
from sklearn.feature_selection import SelectFromModel
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, learning_curve
from sklearn.multiclass import OneVsRestClassifier
from sklearn.multioutput import ClassifierChain, MultiOutputRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, scale

import xbp
from xbp import estimators as ours
from xbp.estimators import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
A, B = load_diabetes(return_X_y=True)
A, B = scale(A)[:150], scale(B)[:150]
FAST = {"random_state": 0, "max_iter": 15, "hidden_layer_sizes": (6,), "learning_rate_init": 0.02}

CLASSIFIERS = {
    "pipeline": lambda mlp: make_pipeline(StandardScaler(), mlp),
    "grid search": lambda mlp: GridSearchCV(mlp, {"alpha": [1e-4, 1.0], "hidden_layer_sizes": [(3,), (6, 2)]}, cv=2),
    "bagging": lambda mlp: BaggingClassifier(mlp, n_estimators=3, random_state=0),
    "boosting": lambda mlp: AdaBoostClassifier(mlp, n_estimators=3, random_state=0),
    "calibration": lambda mlp: CalibratedClassifierCV(mlp, cv=2),
    "isotonic": lambda mlp: CalibratedClassifierCV(mlp, cv=2, method="isotonic"),
    "one against the rest": OneVsRestClassifier,
    "stacking": lambda mlp: StackingClassifier([("a", mlp), ("b", LogisticRegression())], cv=2),
}
REGRESSORS = {
    "transformed target": lambda mlp: TransformedTargetRegressor(mlp, func=np.cbrt, inverse_func=lambda t: t**3),
    "voting": lambda mlp: VotingRegressor([("a", mlp), ("b", LinearRegression())]),
    "grid search": lambda mlp: GridSearchCV(mlp, {"loss": ["squared_error", "poisson"]}, cv=2, error_score="raise"),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_classifiers_compose_as_scikit_learns(name):
    mine, other = (CLASSIFIERS[name](library.MLPClassifier(**FAST)).fit(X, Y) for library in (ours, theirs))
    np.testing.assert_allclose(mine.predict_proba(X), other.predict_proba(X), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(mine.predict(X), other.predict(X))


@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_compose_as_scikit_learns(name):
    targets = np.abs(B) if name == "grid search" else B
    mine, other = (REGRESSORS[name](library.MLPRegressor(**FAST)).fit(A, targets) for library in (ours, theirs))
    np.testing.assert_allclose(mine.predict(A), other.predict(A), rtol=1e-6, atol=1e-9)


def test_several_outputs():
    targets = np.stack([B, B**2], axis=1)
    mine, other = (MultiOutputRegressor(lib.MLPRegressor(**FAST)).fit(A, targets) for lib in (ours, theirs))
    np.testing.assert_allclose(mine.predict(A), other.predict(A), rtol=1e-6, atol=1e-9)
    labels = np.stack([Y == 0, Y == 1], axis=1).astype(int)
    mine, other = (ClassifierChain(lib.MLPClassifier(**FAST), random_state=0).fit(X, labels) for lib in (ours, theirs))
    np.testing.assert_array_equal(mine.predict(X), other.predict(X))


def test_cross_validation_and_inspection():
    results = [
        (
            cross_val_score(library.MLPClassifier(**FAST), X, Y, cv=3),
            learning_curve(library.MLPClassifier(**FAST), X, Y, cv=2, shuffle=True, random_state=0)[2],
            permutation_importance(library.MLPClassifier(**FAST).fit(X, Y), X, Y, random_state=0).importances,
        )
        for library in (ours, theirs)
    ]
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9)


def test_features_are_chosen_by_coefs():
    def importance(fitted):
        return np.abs(fitted.coefs_[0]).sum(axis=1)

    chosen = [
        SelectFromModel(lib.MLPClassifier(**FAST), importance_getter=importance).fit(X, Y) for lib in (ours, theirs)
    ]
    np.testing.assert_array_equal(chosen[0].get_support(), chosen[1].get_support())


@pytest.mark.parametrize("fitted", [
    lambda: MLPClassifier(early_stopping=True, dropout=0.2, **FAST).fit(X, np.array(["a", "b", "c"])[Y]),
    lambda: MLPClassifier(activation=[xbp.LeakyReLU(0.3)], normalization="batch", **FAST).fit(X, Y == 1),
    lambda: MLPClassifier(solver="lbfgs", **FAST).fit(X, Y),
])  # fmt: skip
def test_pickles_predict_alike(fitted):
    first = fitted()
    second = pickle.loads(pickle.dumps(first))
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    for a, b in zip(first.hidden_activations(X), second.hidden_activations(X), strict=True):
        np.testing.assert_array_equal(a, b)
    again = pickle.loads(pickle.dumps(second))
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))


def test_clones_carry_the_settings_alone():
    layers = [xbp.ELU(0.5)]
    first = MLPRegressor(xbp.Huber(0.3), activation=layers, optimizer=xbp.AdamW(0.01), **FAST).fit(A, B)
    second = clone(first)
    assert not hasattr(second, "coefs_")
    assert second.get_params()["loss"] == xbp.Huber(0.3)
    np.testing.assert_array_equal(second.fit(A, B).predict(A), first.predict(A))
    assert second.set_params(alpha=2.0).alpha == 2.0
    assert "alpha=2.0" in repr(second)
    assert "MLPRegressor" in second._repr_html_()


def test_names_of_features():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(X, columns=["a", "b", "c", "d"])
    for settings in ({}, {"early_stopping": True}, {"early_stopping": True, "scoring": "accuracy"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", sklearn.exceptions.ConvergenceWarning)
            fitted = MLPClassifier(**FAST, **settings).fit(frame, Y)
            fitted.predict(frame)
    np.testing.assert_array_equal(fitted.feature_names_in_, ["a", "b", "c", "d"])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        fitted.predict(X)
    with pytest.raises(ValueError, match="The feature names should match"):
        fitted.predict(frame[["b", "a", "c", "d"]])
    streamed = MLPClassifier(**FAST).partial_fit(frame, Y, classes=[0, 1, 2])
    with pytest.warns(UserWarning, match="X does not have valid feature names"):
        streamed.partial_fit(X, Y)


@pytest.mark.parametrize("option", [{}, {"normalization": "batch", "dropout": 0.2}])
def test_the_network_inside_is_one_of_xbp(tmp_path, option):
    fitted = MLPClassifier(**FAST, **option).fit(X, Y)
    fitted._model.save(tmp_path / "net.safetensors")
    net = xbp.Network.load(tmp_path / "net.safetensors", backend="numpy")
    np.testing.assert_allclose(xbp.softmax(net.predict(X)), fitted.predict_proba(X), rtol=1e-12)
