"""Settings of an estimator that are wrong, or changed after a fit: none is taken silently for something else."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported, where this file runs on its own

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from sklearn import neural_network as theirs
from sklearn.datasets import load_iris
from sklearn.linear_model import SGDClassifier
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.class_weight import compute_sample_weight

import xbp
from xbp.estimators import MLPClassifier, MLPRegressor
from xbp.interchange import from_sklearn
from xbp.losses import SigmoidCrossEntropy, SoftmaxCrossEntropy

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
TWO = (Y == 1).astype(int)
SEVERAL = np.stack([Y == 0, Y > 0, X[:, 0] > 5.5], axis=1).astype(int)
FAST = {"random_state": 0, "max_iter": 4, "hidden_layer_sizes": (6, 5)}


# --- settings that are changed after a fit ------------------------------------------------------------------------

CHANGES = [
    {"dropout": 0.5},
    {"activation": "tanh"},
    {"normalization": "batch"},
    {"hidden_layer_sizes": (3,)},
    {"activation": ["relu"] * 5, "dropout": [0.1] * 3},
    {"solver": "sgd"},
    {"optimizer": "adamw"},
    {"clip_norm": 1e-9},
    {"loss": SoftmaxCrossEntropy(label_smoothing=0.9)},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
@pytest.mark.parametrize("way", [lambda e: pickle.loads(pickle.dumps(e)), copy.deepcopy], ids=["pickle", "deepcopy"])
def test_a_pickle_is_what_was_fitted_whatever_is_set_since(change, way):
    first = MLPClassifier(**FAST).fit(X, Y)
    before = first.predict_proba(X)
    first.set_params(**change)
    second = way(first)
    np.testing.assert_array_equal(second.predict_proba(X), before)
    assert [type(layer) for layer in second.network_.layers] == [type(layer) for layer in first.network_.layers]
    assert [h.shape for h in second.hidden_activations(X)] == [(150, 6), (150, 5)]
    first.partial_fit(X, Y), second.partial_fit(X, Y)
    np.testing.assert_array_equal(second.predict_proba(X), first.predict_proba(X))
    assert not np.array_equal(first.predict_proba(X), before)


def test_a_list_that_is_changed_changes_no_network():
    activation = ["relu", "relu"]
    fitted = MLPClassifier(activation=activation, **FAST).fit(X, Y)
    before = fitted.predict_proba(X)
    activation[0] = "tanh"
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), before)


# --- losses -------------------------------------------------------------------------------------------------------


class NoLoss:
    def forward(self, y, t, w, *, xp):
        raise AssertionError("nobody calls this")


@pytest.mark.parametrize("loss", [SoftmaxCrossEntropy, NoLoss(), NoLoss, "squared_error"])
def test_what_is_no_loss_is_refused(loss):
    with pytest.raises(
        InvalidParameterError, match=r"The 'loss' parameter of MLPClassifier must be .*'log_loss'.*Loss"
    ):
        MLPClassifier(loss=loss, **FAST).fit(X, Y)
    with (
        sklearn.config_context(skip_parameter_validation=True),
        pytest.raises(TypeError, match=r"'log_loss' or a Loss"),
    ):
        MLPClassifier(loss=loss, **FAST).fit(X, Y)


WORDS = np.array(["no", "yes"])[TWO]


def test_a_softmax_of_two_classes():
    # One score a class, of which only the difference counts: at the optimum the same probabilities as from one score.
    options = {"solver": "lbfgs", "max_iter": 2000, "tol": 1e-9, "hidden_layer_sizes": (), "random_state": 0}
    one = MLPClassifier(alpha=0.02, **options).fit(X, WORDS)
    two = MLPClassifier(loss=SoftmaxCrossEntropy(), alpha=0.04, **options).fit(X, WORDS)
    np.testing.assert_allclose(two.predict_proba(X), one.predict_proba(X), atol=1e-5)
    np.testing.assert_array_equal(two.predict(X), one.predict(X))
    np.testing.assert_allclose(two.input_gradients(X), one.input_gradients(X), atol=1e-4)
    assert (two.n_outputs_, two.out_activation_, two.coefs_[-1].shape, two.intercepts_[-1].shape) == (
        2, "softmax", (4, 2), (2,),
    )  # fmt: skip


def test_a_smoothed_softmax_of_two_classes_does_everything():
    loss = SoftmaxCrossEntropy(label_smoothing=0.1)
    fitted = MLPClassifier(loss=loss, early_stopping=True, class_weight="balanced", **FAST)
    fitted.fit(X, WORDS, X_val=X[::2], y_val=WORDS[::2])
    chances = fitted.predict_proba(X)
    assert chances.shape == (150, 2)
    np.testing.assert_allclose(chances.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(np.exp(fitted.predict_log_proba(X)), chances, rtol=1e-12)
    np.testing.assert_array_equal(fitted.predict(X), np.array(["no", "yes"])[np.argmax(chances, axis=1)])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), chances)
    np.testing.assert_allclose(from_sklearn(fitted).predict(X), chances, rtol=1e-12)
    assert fitted.network_.metadata["classes"] == ["no", "yes"]
    for each in (fitted.network_, fitted):
        assert each.predict(X).shape[0] == 150
    split = MLPClassifier(loss=loss, early_stopping=True, scoring="roc_auc", **FAST).fit(X, WORDS)
    assert len(split.validation_scores_) == 4
    streamed = MLPClassifier(loss=loss, **FAST).partial_fit(X[:50], WORDS[:50], classes=["no", "yes"])
    for start in (50, 100):
        streamed.partial_fit(X[start : start + 50], WORDS[start : start + 50])
    assert streamed.predict_proba(X).shape == (150, 2)
    with pytest.raises(ValueError, match="classes not in"):
        streamed.partial_fit(X, np.array(["perhaps"] * 150))
    only = MLPClassifier(loss=loss, **FAST).fit(X, WORDS[:1].repeat(150))
    assert set(only.predict(X)) == {WORDS[0]}


def test_a_softmax_where_it_cannot_be_is_refused():
    with pytest.raises(ValueError, match="each row one class, and the rows of this y may have several labels"):
        MLPClassifier(loss=SoftmaxCrossEntropy(), **FAST).fit(X, np.eye(3, dtype=int)[Y])
    fitted = MLPClassifier(warm_start=True, **FAST).fit(X, TWO).set_params(loss=SoftmaxCrossEntropy())
    with pytest.raises(ValueError, match=r"has one output for two classes.*warm_start=False"):
        fitted.fit(X, TWO)
    back = MLPClassifier(warm_start=True, loss=SoftmaxCrossEntropy(), **FAST).fit(X, TWO).set_params(loss="log_loss")
    assert back.fit(X, TWO).predict_proba(X).shape == (150, 2)
    assert MLPClassifier(loss=SigmoidCrossEntropy(), **FAST).fit(X, TWO).coefs_[-1].shape == (5, 1)


# --- weights of classes -------------------------------------------------------------------------------------------


def test_balanced_weights_need_a_fit():
    words = []
    for kind in (MLPClassifier, SGDClassifier):
        with pytest.raises(ValueError, match="class_weight 'balanced' is not supported for partial_fit") as caught:
            kind(class_weight="balanced").partial_fit(X, Y, classes=[0, 1, 2])
        words.append(str(caught.value))
    assert words[0] == words[1]
    later = MLPClassifier(**FAST).partial_fit(X, Y, classes=[0, 1, 2]).set_params(class_weight="balanced")
    with pytest.raises(ValueError, match="is not supported for partial_fit"):
        later.partial_fit(X, Y)


def rows(y, **counts):
    """Places of so many rows of each class."""
    return np.concatenate([np.flatnonzero(y == int(label[1:]))[:count] for label, count in counts.items()])


def test_balanced_weights_are_those_of_the_rows_of_the_fit():
    some = rows(Y, c0=40, c1=10, c2=25)
    by_class = {k: 75 / (3 * n) for k, n in enumerate((40, 10, 25))}
    held = rows(Y, c0=5, c1=20)
    more = {"X_val": X[held], "y_val": Y[held]}
    plain, balanced = (
        MLPClassifier(class_weight=w, **FAST).fit(X[some], Y[some], **more) for w in (by_class, "balanced")
    )
    np.testing.assert_allclose(balanced.validation_loss_curve_, plain.validation_loss_curve_, rtol=1e-12)
    np.testing.assert_allclose(balanced.validation_scores_, plain.validation_scores_, rtol=1e-12)
    by_row = np.vectorize(by_class.get)(Y[held])
    own = balanced.predict_log_proba(X[held])[np.arange(25), Y[held]]
    np.testing.assert_allclose(balanced.validation_loss_curve_[-1], -np.average(own, weights=by_row), rtol=1e-12)
    for each in (plain, balanced):
        pickle.loads(pickle.dumps(each.partial_fit(X[held], Y[held]))).partial_fit(X[held], Y[held])
    np.testing.assert_allclose(balanced.predict_proba(X), plain.predict_proba(X), rtol=1e-12)


def test_weights_by_label_are_for_batches_without_some_labels_too():
    held = rows(Y, c1=9, c2=9)
    fitted = MLPClassifier(class_weight={0: 2.0}, **FAST).fit(X, Y, X_val=X[held], y_val=Y[held])
    assert fitted.partial_fit(X[held], Y[held]).n_iter_ == 1
    streamed = MLPClassifier(class_weight={0: 2.0}, **FAST).partial_fit(X[held], Y[held], classes=[0, 1, 2])
    other = theirs.MLPClassifier(**FAST).partial_fit(X[held], Y[held], classes=[0, 1, 2])
    np.testing.assert_allclose(streamed.predict_proba(X), other.predict_proba(X), rtol=1e-9)


WEIGHTS = [[{0: 1.0, 1: 3.0}, {1: 2.0}, {0: 0.5}], "balanced"]


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_weights_of_several_labels(weights):
    one, other = (
        MLPClassifier(class_weight=weights, **FAST).fit(X, SEVERAL),
        MLPClassifier(**FAST).fit(X, SEVERAL, compute_sample_weight(weights, SEVERAL)),
    )
    np.testing.assert_allclose(one.loss_curve_, other.loss_curve_, rtol=1e-12)
    lacking = SEVERAL[:50]
    assert lacking[:, 0].all()
    one.partial_fit(X[:50], lacking)


def test_weights_of_classes_that_cannot_be():
    for bad, words in ((np.nan, "NaN"), (np.inf, "infinity")):
        with pytest.raises(ValueError, match=f"`class_weight` contains {words}"):
            MLPClassifier(class_weight={0: bad}, **FAST).fit(X, Y)
    with pytest.raises(ValueError, match="Negative values in data passed to `class_weight`"):
        MLPClassifier(class_weight={0: -1.0}, **FAST).fit(X, Y)
    with pytest.raises(ValueError, match="class_weight should be a list of dicts"):
        MLPClassifier(class_weight={0: 1.0}, **FAST).fit(X, SEVERAL)
    with pytest.raises(ValueError, match="number of elements in class_weight should match"):
        MLPClassifier(class_weight=[{0: 1.0}], **FAST).fit(X, SEVERAL)


# --- layers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(4.9,), 4.0, [3, 4.0], np.array([4.9])])
def test_sizes_are_whole_numbers(sizes):
    with pytest.raises((TypeError, ValueError)) as other:
        theirs.MLPClassifier(sizes).fit(X, Y)
    with pytest.raises(other.type) as mine:
        MLPClassifier(sizes).fit(X, Y)
    if other.type is TypeError:
        assert "cannot be interpreted as an integer" in str(mine.value)


def test_activations_and_dropout_may_be_arrays():
    named = MLPClassifier(activation=["tanh", "relu"], dropout=[0.0, 0.2], **FAST).fit(X, Y)
    for activation in (np.array(["tanh", "relu"]), np.array([xbp.Tanh(), xbp.ReLU()], dtype=object), ("tanh", "relu")):
        given = MLPClassifier(activation=activation, dropout=np.array([0.0, 0.2]), **FAST).fit(X, Y)
        np.testing.assert_array_equal(given.predict_proba(X), named.predict_proba(X))
    with pytest.raises(ValueError, match="activation has 1 entries for 2 hidden layers"):
        MLPClassifier(activation=np.array(["relu"]), **FAST).fit(X, Y)


@pytest.mark.parametrize("loss", ["poisson", "gaussian", "squared_error", xbp.Quantile((0.1, 0.5, 0.9))])
@pytest.mark.parametrize("later", ["poisson", "squared_error", "gaussian", xbp.Quantile((0.2, 0.8))])
def test_a_loss_that_is_set_after_the_fit_changes_no_prediction(loss, later):
    rng = np.random.default_rng(0)
    A, b = rng.normal(size=(60, 4)), rng.uniform(0.5, 2.0, 60)
    model = MLPRegressor(hidden_layer_sizes=(5,), loss=loss, max_iter=3, random_state=0).fit(A, b)
    before = model.predict(A), model.input_gradients(A)
    model.set_params(loss=later)
    for changed in (model, pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(changed.predict(A), before[0])
        np.testing.assert_array_equal(changed.input_gradients(A), before[1])
    direct = MLPRegressor(hidden_layer_sizes=(5,), loss=later, max_iter=3, random_state=0).fit(A, b)
    np.testing.assert_array_equal(model.fit(A, b).predict(A), direct.predict(A))
