"""Rows held out, scorers and callbacks: who sees what, whose weights come back, and how an early end is told."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported, where this file runs on its own

import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

from scipy import sparse
from sklearn.datasets import load_digits, load_iris
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import accuracy_score, make_scorer, max_error
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import xbp
from xbp.callbacks import Callback, EarlyStopping
from xbp.estimators import MLPClassifier, MLPRegressor
from xbp.estimators.rows import SparseBatches

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
SEVERAL = np.stack([Y == 0, Y > 0, X[:, 0] > 5.5], axis=1).astype(int)
FAST = {"random_state": 0, "max_iter": 4, "hidden_layer_sizes": (6, 5)}
HELD = {"X_val": X[::3], "y_val": Y[::3]}


# --- the best weights ---------------------------------------------------------------------------------------------


def test_callbacks_that_keep_weights_have_a_place_of_their_own():
    x, y = load_digits(return_X_y=True)
    x, y = x[:300] / 16, y[:300]
    restoring = EarlyStopping("loss", patience=1000)
    options = {"alpha": 0.0, "max_iter": 60, "n_iter_no_change": 100, "learning_rate_init": 0.1, "random_state": 1}
    fitted = MLPClassifier((30,), early_stopping=True, callbacks=[restoring], **options)
    fitted.fit(x[:200], y[:200], X_val=x[200:], y_val=y[200:])
    assert np.argmin(fitted.loss_curve_) != np.argmax(fitted.validation_scores_)  # otherwise nothing is shown
    assert fitted.score(x[200:], y[200:]) == fitted.best_validation_score_ == max(fitted.validation_scores_)
    alone = MLPClassifier((30,), callbacks=[restoring], **options).fit(x[:200], y[:200])
    kept = MLPClassifier((30,), **options | {"max_iter": int(np.argmin(alone.loss_curve_)) + 1}).fit(x[:200], y[:200])
    np.testing.assert_array_equal(alone.coefs_[0], kept.coefs_[0])


# --- scorers ------------------------------------------------------------------------------------------------------


def unweighted(estimator, x, y):
    return accuracy_score(y, estimator.predict(x))


@pytest.mark.parametrize("scoring", [unweighted, "neg_max_error", make_scorer(max_error)])
def test_weights_go_to_scorers_that_take_them(scoring):
    w = np.linspace(0.1, 2.0, 150)
    for more in ({}, {"X_val": X, "y_val": Y, "sample_weight_val": w}):
        fitted = MLPClassifier(early_stopping=True, scoring=scoring, **FAST).fit(X, Y, w, **more)
        assert len(fitted.validation_scores_) == 4
    if scoring is unweighted:
        np.testing.assert_allclose(fitted.best_validation_score_, fitted.score(X, Y))
    seen = []

    def weighted(estimator, x, y, sample_weight=None):
        seen.append(sample_weight)
        return 0.0

    MLPClassifier(scoring=weighted, **FAST).fit(X, Y, X_val=X, y_val=Y, sample_weight_val=w)
    np.testing.assert_array_equal(seen[0], w)


def test_a_score_that_is_no_number_is_refused_by_its_name():
    def nothing(estimator, x, y):
        return np.nan

    with pytest.raises(ValueError, match=r"scoring=<function .*nothing.* gave NaN for the 50 rows held out"):
        MLPClassifier(early_stopping=True, scoring=nothing, **FAST).fit(X, Y, **HELD)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_an_unknown_scorer_is_refused_also_where_nothing_is_scored(kind, solver):
    with pytest.raises(ValueError, match="'foo' is not a valid scoring value"):
        kind(scoring="foo", solver=solver, **FAST).fit(X, Y)


# --- what callbacks see -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize("way", [{}, HELD], ids=["split", "given"])
def test_callbacks_see_the_rows_held_out(kind, way):
    class Watching(Callback):
        lines = ()

        def on_epoch_end(self, trainer):
            self.lines = (*self.lines, {name: values[-1] for name, values in trainer.history.items()})

    watching = Watching()
    stopping = EarlyStopping("val_loss", patience=50)
    fitted = kind(callbacks=[watching, stopping], early_stopping=not way, **FAST).fit(X, Y, **way)
    assert [line["val_loss"] for line in watching.lines] == fitted.validation_loss_curve_
    assert [line["val_score"] for line in watching.lines] == fitted.validation_scores_
    assert len(watching.lines) == 4
    with pytest.raises(xbp.NameUnknown, match="val_loss"):
        kind(callbacks=[EarlyStopping("val_loss")], **FAST).fit(X, Y)


def test_early_stopping_on_the_loss_of_rows_held_out():
    options = FAST | {"max_iter": 300, "learning_rate_init": 0.3, "n_iter_no_change": 1000}
    fitted = MLPClassifier(callbacks=[EarlyStopping("val_loss", patience=3)], **options).fit(X[1::3], Y[1::3], **HELD)
    curve = fitted.validation_loss_curve_
    assert len(curve) == int(np.argmin(curve)) + 4 < 300
    own = -np.mean(fitted.predict_log_proba(X[::3])[np.arange(50), Y[::3]])
    np.testing.assert_allclose(own, min(curve), rtol=1e-9)


class AtOnce(Callback):
    """Stops after the first steps of an epoch."""

    def on_chunk_end(self, trainer):
        return "enough"


@pytest.mark.parametrize("kind", [np.asarray, sparse.csr_array], ids=["dense", "sparse"])
@pytest.mark.parametrize("early", [False, True])
def test_a_stop_in_the_first_epoch(early, kind):
    estimator = MLPClassifier(callbacks=[AtOnce()], batch_size=7, early_stopping=early, **FAST)
    with pytest.warns(
        ConvergenceWarning, match=r"stopped \(enough\) before the end of its first epoch\. Steps made: 1;"
    ) as got:
        estimator.fit(kind(X), Y)
    assert len(got) == 1
    start = MLPClassifier(shuffle=False, batch_size=150, learning_rate_init=1e-12, **FAST).fit(X, Y)
    assert 0.0 < estimator.loss_ < 3.0 * start.loss_
    assert (estimator.n_iter_, estimator.loss_curve_) == (0, [])
    assert estimator.best_loss_ == (None if early else estimator.loss_)
    assert not np.allclose(estimator.coefs_[0], start.coefs_[0], atol=1e-6)  # the step counts
    assert np.isfinite(estimator.predict_proba(X)).all()


# --- rows held out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [False, True])
def test_early_stopping_may_be_switched_between_fits(first):
    fitted = MLPClassifier(warm_start=True, early_stopping=first, **FAST).fit(X, Y)
    fitted.set_params(early_stopping=not first).fit(X, Y)
    assert len(fitted.loss_curve_) == 8
    if first:
        assert fitted.best_loss_ == min(fitted.loss_curve_[4:])
    else:
        assert fitted.best_validation_score_ == max(fitted.validation_scores_)


def test_rows_held_out_need_not_have_every_class():
    fitted = MLPClassifier(warm_start=True, **FAST).fit(X, Y, X_val=X[:60], y_val=Y[:60])
    assert len(fitted.validation_scores_) == 4
    fitted.partial_fit(X[:60], Y[:60])
    with pytest.raises(ValueError, match=r"classes not in `self.classes_`"):
        fitted.fit(X, Y, X_val=X, y_val=Y + 1)
    with pytest.raises(ValueError, match="warm_start can only be used where"):
        fitted.fit(X[:60], Y[:60])


def test_rows_held_out_that_do_not_fit():
    with pytest.raises(ValueError, match=r"y has shape \(50, 2\), and the estimator was fitted to rows of 3 labels"):
        MLPClassifier(**FAST).fit(X, SEVERAL, X_val=X[::3], y_val=SEVERAL[::3, :2])
    with pytest.raises(ValueError, match=r"y has shape \(150, 2\), and the estimator was fitted to rows of 3 labels"):
        MLPClassifier(**FAST).fit(X, SEVERAL).partial_fit(X, SEVERAL[:, :2])
    with pytest.raises(ValueError, match="y_val has 1 column and y has 3 columns"):
        MLPRegressor(**FAST).fit(X, SEVERAL, X_val=X[::3], y_val=SEVERAL[::3, 0])
    with pytest.raises(ValueError, match="sample_weight_val weighs the rows of X_val and y_val"):
        MLPClassifier(**FAST).fit(X, Y, sample_weight_val=np.ones(150))


# --- the rest -----------------------------------------------------------------------------------------------------


def test_batches_of_sparse_rows_count_epochs():
    asked = []

    def order(epoch):
        asked.append(epoch)
        return np.arange(4)

    batches = SparseBatches(np.eye(4), np.arange(4), None, order, 2)
    assert [len(list(batches)) for _ in range(3)] == [2, 2, 2]
    assert asked == [0, 1, 2]


class Interrupting(Callback):
    def on_epoch_end(self, trainer):
        return "interrupted"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_iter": 2},
        {"batch_size": 1000},
        {"callbacks": [Interrupting()]},
        {"callbacks": [AtOnce()], "batch_size": 9},
        {"callbacks": [Interrupting()], "solver": "lbfgs"},
    ],
    ids=["epochs", "batch", "interrupt", "first epoch", "lbfgs"],
)
def test_warnings_point_at_who_called(settings):
    estimator = MLPClassifier(**FAST | settings)
    piped = make_pipeline(StandardScaler(), estimator)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        estimator.fit(X, Y)
        piped.fit(X, Y)
    assert len(caught) >= 2
    assert {w.filename for w in caught} == {__file__}


def test_a_score_is_better_where_it_is_higher():
    X, y = load_digits(return_X_y=True)
    stop = xbp.callbacks.EarlyStopping("val_score", patience=3)
    model = MLPClassifier((16,), max_iter=8, random_state=0, callbacks=[stop])
    model.fit(X[:600] / 16, y[:600], X_val=X[600:900] / 16, y_val=y[600:900])
    assert model.validation_scores_ == sorted(model.validation_scores_), "it rises, so nothing is to be stopped"
    assert model.n_iter_ == 8
