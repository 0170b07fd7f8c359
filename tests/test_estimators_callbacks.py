"""Callbacks in scikit-learn's form reach the estimators through Pipeline and GridSearchCV as they reach its own."""

from collections import Counter

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")
pytest.importorskip("sklearn.callback", reason="this scikit-learn has no callbacks yet")

from sklearn.base import clone
from sklearn.callback import AutoPropagatedCallback, ProgressBar, ScoringMonitor
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from xbp.estimators import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
EPOCHS = 3
FAST = {"random_state": 0, "max_iter": EPOCHS, "hidden_layer_sizes": (4,)}
SOLVERS = ("adam", "lbfgs")


class Alone:
    """Notes what it is told; stays where it was set."""

    def __init__(self, stop_after=None):
        self.noted, self.stop_after, self.ended = [], stop_after, 0

    def note(self, hook, context, *more):
        self.noted.append((hook, context.estimator_name, context.task_name, *more))

    def setup(self, estimator, context):
        self.note("setup", context)

    def on_fit_task_begin(self, estimator, context, *, X, y, metadata):
        self.note("begin", context, X is not None, y is not None, sorted(metadata or ()))

    def on_fit_task_end(self, estimator, context, *, X, y, metadata, fitted_estimator):
        self.note("end", context, X is not None, y is not None, sorted(metadata or ()), fitted_estimator is not None)
        self.ended += context.task_name == "epoch"
        return self.ended == self.stop_after

    def teardown(self, estimator, context):
        self.note("teardown", context)


class Everywhere(Alone):
    """Goes down to the estimators inside of others."""

    max_propagation_depth = None


PLACES = {
    "alone": lambda e: e,
    "pipeline": lambda e: make_pipeline(StandardScaler(), e),
    "search": lambda e: GridSearchCV(e, {"tol": [1e-4, 1e-3]}, cv=2),
    "search of a pipeline": lambda e: GridSearchCV(
        make_pipeline(StandardScaler(), e), {"standardscaler__with_mean": [True, False]}, cv=2
    ),
}


def heard(callback, estimator, place, **fit):
    PLACES[place](clone(estimator)).set_callbacks(callback).fit(X, Y, **fit)
    return callback.noted


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", [Alone, Everywhere])
def test_callbacks_hear_of_each_fit_as_of_scikit_learns(kind, place, solver):
    mine = heard(kind(), MLPClassifier(solver=solver, **FAST), place)
    other = heard(kind(), LogisticRegression(max_iter=EPOCHS), place)

    def without_steps(noted):
        """What is told of fits, under one name for both."""
        told = [[str(part).replace("LogisticRegression", "MLPClassifier") for part in each] for each in noted]
        told = [[part.replace("logisticregression", "mlpclassifier") for part in each] for each in told]
        return [each for each in told if each[2] not in ("epoch", "lbfgs-iter")]

    assert without_steps(mine) == without_steps(other)
    fits = {"alone": 1, "pipeline": 1, "search": 5, "search of a pipeline": 5}[place]
    steps = Counter((hook, *map(str, more)) for hook, _, task, *more in mine if task == "epoch")
    given = "True", "True", "[]"
    if kind is Alone and place != "alone":
        assert not steps
    else:
        assert steps == {("begin", *given): EPOCHS * fits, ("end", *given, "True"): EPOCHS * fits}


@pytest.mark.parametrize("place", ["pipeline", "search of a pipeline"])
def test_a_callback_set_inside_is_told_of_the_inside_alone(place):
    callback = Alone()
    PLACES[place](MLPClassifier(**FAST).set_callbacks(callback)).fit(X, Y)
    assert {name for _, name, *_ in callback.noted} == {"MLPClassifier"}
    hooks = Counter(hook for hook, *_ in callback.noted)
    assert hooks["setup"] == hooks["teardown"] > 0
    assert hooks["begin"] == hooks["end"] == (EPOCHS + 1) * hooks["setup"]


@pytest.mark.parametrize("solver", SOLVERS)
def test_who_returns_true_ends_the_training(solver):
    callback = Everywhere(stop_after=2)
    assert isinstance(callback, AutoPropagatedCallback)
    piped = PLACES["pipeline"](MLPClassifier(solver=solver, **FAST)).set_callbacks(callback).fit(X, Y)
    assert piped[-1].n_iter_ == 2
    begun, ended = (sum(e[0] == hook for e in callback.noted) for hook in ("begin", "end"))
    assert begun == ended


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("weighted", [False, True])
def test_scores_of_each_epoch(solver, weighted):
    w = {"sample_weight": np.where(Y == 2, 5.0, 0.5)} if weighted else {}
    monitor = ScoringMonitor(scoring="accuracy")
    MLPClassifier(solver=solver, **FAST).set_callbacks(monitor).fit(X, Y, **w)
    scores = [row["accuracy"] for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    expected = [
        MLPClassifier(solver=solver, **(FAST | {"max_iter": n + 1})).fit(X, Y, **w).score(X, Y, **w)
        for n in range(EPOCHS)
    ]
    np.testing.assert_allclose(scores, expected)


def test_scores_of_numbers_inside_a_search():
    monitor = ScoringMonitor(scoring="r2")
    inside = MLPRegressor(**FAST).set_callbacks(monitor)
    GridSearchCV(inside, {"alpha": [1e-4, 1.0]}, cv=2).fit(X[:, :3], X[:, 3])
    rows = [row for row in monitor.get_logs().data if row["task_name"] == "epoch"]
    assert len(rows) == 5 * EPOCHS
    assert all(np.isfinite(row["r2"]) for row in rows)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_bar_of_scikit_learn(solver, capsys):
    pytest.importorskip("rich", reason="scikit-learn draws its bar with rich")
    PLACES["search"](MLPClassifier(solver=solver, **FAST)).set_callbacks(ProgressBar()).fit(X, Y)
    out = capsys.readouterr().out
    assert out.count("MLPClassifier - fit") >= 5
    assert "100%" in out


def test_callbacks_are_let_go_when_a_fit_fails():
    callback = Alone()
    with pytest.raises(ValueError, match="Unknown label type"):
        MLPClassifier(**FAST).set_callbacks(callback).fit(X, X[:, 0])
    broken = Alone()
    broken.on_fit_task_end = lambda estimator, context: 1 / 0
    with pytest.raises(ZeroDivisionError):
        MLPClassifier(**FAST).set_callbacks(broken).fit(X, Y)
    assert [e[0] for e in broken.noted] == ["setup", "begin", "begin", "teardown"]
    with pytest.raises(TypeError, match="callbacks must be instances following the FitCallback protocol"):
        MLPClassifier(**FAST).set_callbacks(object())
