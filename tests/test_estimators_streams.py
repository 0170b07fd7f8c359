"""partial_fit, warm_start and pickles: a training that goes on is the one that scikit-learn's would be."""

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris, make_multilabel_classification

from xbp import estimators as ours
from xbp.estimators.stream import went_on

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

IRIS = load_iris(return_X_y=True)
X, Y = IRIS
WORDS = np.array(["a", "bb", "ccc"])[Y]


def alike(mine, other, rtol=1e-9):
    for a, b in zip(mine.coefs_ + mine.intercepts_, other.coefs_ + other.intercepts_, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)
    np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=rtol)
    assert (mine.n_iter_, mine.t_) == (other.n_iter_, other.t_)
    assert mine._no_improvement_count == other._no_improvement_count


def batches(count=12, size=32, targets=Y):
    rng = np.random.RandomState(7)
    for _ in range(count):
        rows = rng.randint(0, len(X), size)
        yield X[rows], targets[rows]


def streamed(estimator, targets=Y, **first):
    for x, t in batches(targets=targets):
        estimator.partial_fit(x, t, **first)
        first = {}
    return estimator


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("targets", [Y, WORDS, Y == 1, Y.astype(float)], ids=["integers", "words", "two", "floats"])
def test_a_stream_of_batches(solver, targets):
    options = {"solver": solver, "random_state": 0, "hidden_layer_sizes": (8,), "learning_rate_init": 0.01}
    mine, other = (
        streamed(library.MLPClassifier(**options), targets, classes=np.unique(targets)) for library in (ours, theirs)
    )
    alike(mine, other)
    np.testing.assert_array_equal(mine.predict(X), other.predict(X))


@pytest.mark.parametrize("rate", ["constant", "adaptive", "invscaling"])
def test_a_stream_of_numbers(rate):
    options = {"solver": "sgd", "learning_rate": rate, "random_state": 0, "tol": 0.5, "n_iter_no_change": 2}
    mine, other = (streamed(library.MLPRegressor(**options), X[:, 0]) for library in (ours, theirs))
    alike(mine, other)
    np.testing.assert_allclose(mine._trainer.lr, other._optimizer.learning_rate, rtol=1e-12)


@pytest.mark.parametrize("state", [None, "RandomState"])
def test_a_stream_takes_from_a_random_state_what_scikit_learn_takes(state):
    after = []
    for library in (ours, theirs):
        np.random.seed(3)
        given = np.random.RandomState(4) if state else None
        streamed(library.MLPClassifier(random_state=given), classes=[0, 1, 2])
        after.append((given or np.random).uniform())
    assert after[0] == after[1]


def quick(estimator, x, t):
    return went_on(estimator, x, t, estimator._targets) is not None


def test_the_quick_way_is_taken_only_where_nothing_has_changed():
    fitted = ours.MLPClassifier(random_state=0).partial_fit(X, WORDS, classes=np.unique(WORDS))
    assert quick(fitted, X, WORDS)
    assert quick(fitted, X[:7], WORDS[:7])
    unknown, infinite = WORDS.copy(), X.copy()
    unknown[3], infinite[3, 2] = "d", np.inf
    assert not quick(fitted, X, unknown)
    assert not quick(fitted, infinite, WORDS)
    assert not quick(fitted, X[:, :3], WORDS)
    assert not quick(fitted, X.astype(np.float32), WORDS)
    assert not quick(fitted, X.tolist(), WORDS)
    assert not quick(fitted, X, list(WORDS))
    assert not quick(fitted, X, WORDS[:-1])
    assert not quick(fitted, X[:0], WORDS[:0])
    assert not quick(fitted, np.repeat(X, 2, axis=0), np.repeat(WORDS, 2))  # 300 rows make two batches
    fitted.set_params(alpha=0.5)
    assert not quick(fitted, X, WORDS)
    fitted.partial_fit(X, WORDS)
    assert quick(fitted, X, WORDS)
    assert len(fitted.coefs_) == 2  # handed out: they may be changed
    assert not quick(fitted, X, WORDS)
    fitted.partial_fit(X, WORDS)
    assert quick(fitted, X, WORDS)


def test_what_the_quick_way_cannot_take_is_refused_in_scikit_learns_words():
    mine, other = (library.MLPClassifier().partial_fit(X, Y, classes=[0, 1, 2]) for library in (ours, theirs))
    bad = X.copy()
    bad[0, 0] = np.nan
    for x, t in ((bad, Y), (X[:, :2], Y), (X, Y + 1), (X, Y[:-1]), (X[0], Y)):
        messages = []
        for each in (mine, other):
            with pytest.raises(ValueError) as caught:  # noqa: PT011  # the messages are compared
                each.partial_fit(x, t)
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_a_changed_penalty_counts_from_the_next_batch_on():
    fitted = []
    for library in (ours, theirs):
        each = streamed(library.MLPClassifier(random_state=0), classes=[0, 1, 2])
        each.set_params(alpha=20.0)
        fitted.append(streamed(each))
    alike(*fitted)


def test_partial_fit_goes_on_after_fit():
    alike(*(streamed(lib.MLPClassifier(random_state=0, max_iter=5).fit(X, Y)) for lib in (ours, theirs)))


@pytest.mark.parametrize("settings", [{}, {"solver": "sgd"}, {"solver": "lbfgs"}])
def test_warm_starts(settings):
    fitted = []
    for library in (ours, theirs):
        each = library.MLPClassifier(random_state=0, max_iter=4, warm_start=True, **settings)
        for _ in range(3):
            each.fit(X, Y)
        fitted.append(each)
    if "solver" in settings and settings["solver"] == "lbfgs":
        np.testing.assert_allclose(fitted[0].predict_proba(X), fitted[1].predict_proba(X), rtol=1e-6, atol=1e-9)
    else:
        alike(*fitted)
        assert len(fitted[0].loss_curve_) == 12
    with pytest.raises(ValueError, match="warm_start can only be used where `y` has the same classes"):
        fitted[0].fit(X, Y + 1)


def test_a_warm_start_that_finds_nothing_better_keeps_the_best_weights():
    # Scikit-learn's does not: its best weights are the arrays that it goes on training.
    each = ours.MLPClassifier(random_state=0, max_iter=3, warm_start=True, early_stopping=True).fit(X, Y)
    best, score = [W.copy() for W in each.coefs_], each.best_validation_score_
    each.set_params(learning_rate_init=1e-12).fit(X, Y)
    assert each.best_validation_score_ == score
    for a, b in zip(each.coefs_, best, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_is_written_into_coefs_counts():
    fitted = []
    for library in (ours, theirs):
        each = library.MLPClassifier(random_state=0, max_iter=5, warm_start=True).fit(X, Y)
        each.coefs_[0][:] *= 0.5
        each.intercepts_[1] = each.intercepts_[1] + 0.25
        probabilities = each.predict_proba(X)
        fitted.append((each.fit(X, Y), probabilities))
    np.testing.assert_allclose(fitted[0][1], fitted[1][1], rtol=1e-9)
    alike(fitted[0][0], fitted[1][0])


@pytest.mark.parametrize("solver", ["sgd", "adam"])
@pytest.mark.parametrize("way", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickle", "deepcopy"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_pickle_goes_on_as_if_nothing_had_happened(way, solver, dropout):
    options = {"learning_rate": "invscaling", "normalization": "batch", "dropout": dropout}
    first = streamed(ours.MLPClassifier(random_state=0, solver=solver, **options), classes=[0, 1, 2])
    second = way(first)
    np.testing.assert_array_equal(second.predict_proba(X), first.predict_proba(X))
    streamed(first), streamed(second)
    np.testing.assert_array_equal(second.predict_proba(X), first.predict_proba(X))
    assert second.loss_curve_ == first.loss_curve_
    assert not hasattr(clone(first), "coefs_")


def test_multilabel_streams():
    A, B = make_multilabel_classification(60, n_features=4, n_classes=3, random_state=0)
    fitted = []
    for library in (ours, theirs):
        each = library.MLPClassifier(random_state=0)
        for start in (0, 20, 40):
            each.partial_fit(A[start : start + 20], B[start : start + 20], classes=np.arange(3))
        fitted.append(each)
    alike(*fitted)


def test_lbfgs_has_no_partial_fit():
    assert not hasattr(ours.MLPClassifier(solver="lbfgs"), "partial_fit")
    assert not hasattr(ours.MLPRegressor(solver="lbfgs"), "partial_fit")
    with pytest.raises(ValueError, match="partial_fit does not support early_stopping=True"):
        ours.MLPClassifier(early_stopping=True).partial_fit(X, Y, classes=[0, 1, 2])


@pytest.mark.parametrize("solver", ["sgd", "adam"])
def test_weights_that_explode_are_refused_in_scikit_learns_words(solver):
    A, b = load_diabetes(return_X_y=True)
    for library in (ours, theirs):
        with (
            np.errstate(all="ignore"),
            pytest.raises(ValueError, match="Solver produced non-finite parameter weights"),
        ):
            library.MLPRegressor(solver=solver, learning_rate_init=1e150, random_state=0).fit(A * 1e150, b * 1e150)


def test_threads_may_predict_together():
    from concurrent.futures import ThreadPoolExecutor

    fitted = ours.MLPClassifier(random_state=0, max_iter=3).fit(X, Y)
    expected = fitted.predict_proba(X)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: fitted.predict_proba(X), range(40)):
            np.testing.assert_array_equal(got, expected)
