"""Weights to and from scikit-learn's estimators: they predict the same, are really fitted, and go on training."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import xbp

pytest.importorskip("sklearn", reason="the estimators are scikit-learn's: pip install 'xbp[sklearn]'")
from sklearn.base import clone, is_classifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor

from xbp.errors import ExchangeError, ShapeError
from xbp.interchange import from_sklearn, to_sklearn

RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, 4))
TARGETS = {
    "binary": np.where(X[:, 0] > 0, "yes", "no"),
    "classes": np.digitize(X[:, 0], [-0.5, 0.5]) + 5,
    "multilabel": (X[:, :3] > 0).astype(int),
    "number": X[:, 0] * 2 + 1,
    "numbers": X[:, :2] * 2 + 1,
}
ACTIVATIONS = {"relu": xbp.ReLU, "tanh": xbp.Tanh, "logistic": xbp.Sigmoid, "identity": xbp.Identity}
TOLERANCE = {"float32": 1e-5, "float64": 1e-12}


def fitted(kind, activation="relu", dtype="float64", hidden=(7, 5)):
    make = MLPRegressor if kind.startswith("number") else MLPClassifier
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few epochs suffice for weights that are not the first
        made = make(hidden_layer_sizes=hidden, activation=activation, max_iter=5, random_state=0)
        return made.fit(X.astype(dtype), TARGETS[kind])


def said(estimator, x):
    if not hasattr(estimator, "predict_proba"):
        return estimator.predict(x).reshape(len(x), -1)
    p = estimator.predict_proba(x)
    return p[:, 1:] if len(estimator.classes_) == 2 else p


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_a_fitted_estimator_becomes_a_network_that_predicts_the_same_and_comes_back(kind, activation, dtype):
    estimator, x = fitted(kind, activation, dtype), X.astype(dtype)
    net = from_sklearn(estimator, backend="numpy")
    assert net.dtype == dtype
    assert net.metadata.get("classes") == (list(estimator.classes_) if hasattr(estimator, "classes_") else None)
    np.testing.assert_allclose(net.predict(x), said(estimator, x), rtol=0, atol=TOLERANCE[dtype])
    back = to_sklearn(net, loss=xbp.MeanSquaredError())
    assert type(back) is type(estimator)
    assert back.out_activation_ == estimator.out_activation_
    assert back.get_params()["activation"] == activation
    assert back.get_params()["hidden_layer_sizes"] == (7, 5)
    for a, b in zip([*back.coefs_, *back.intercepts_], [*estimator.coefs_, *estimator.intercepts_], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(back.predict(x), estimator.predict(x))


@pytest.mark.parametrize("backend", ["numpy", "strict", "torch", "jax"])
def test_scores_go_on_training_on_any_backend(backend):
    try:
        net = from_sklearn(fitted("classes", dtype="float32"), backend=backend, probabilities=False)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))
    assert isinstance(net.layers[-1], xbp.Affine)
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(1e-2))
    x, t = X.astype("float32"), np.asarray(TARGETS["classes"] - 5)
    history = trainer.fit(x, t, epochs=8)
    assert history["loss"][-1] < history["loss"][0]
    estimator = to_sklearn(trainer, classes=[5, 6, 7])
    probabilities = net.backend.to_host(xbp.softmax(net.predict(x)))
    np.testing.assert_allclose(estimator.predict_proba(x), probabilities, atol=1e-6)
    assert estimator.loss_curve_ == history["loss"]
    assert (estimator.n_iter_, estimator.loss_) == (8, history["loss"][-1])
    assert estimator.score(x, TARGETS["classes"]) == np.mean(probabilities.argmax(1) == t)


@pytest.mark.parametrize(
    ("loss", "targets", "width"),
    [
        (xbp.SoftmaxCrossEntropy(), np.asarray([0, 1, 1]), 2),
        (xbp.SigmoidCrossEntropy(), np.asarray([[0.0], [1.0], [1.0]]), 1),
        (xbp.MeanSquaredError(), np.asarray([[0.0], [1.0], [1.0]]), 1),
        (xbp.Huber(), np.zeros((3, 2)), 2),
    ],
    ids=["softmax-of-two", "sigmoid", "squares", "huber"],
)
def test_what_the_scores_mean_is_what_the_loss_says(loss, targets, width):
    net = xbp.Network(
        [xbp.Affine(4, 6, bias=False), xbp.Tanh(), xbp.Dropout(0.5), xbp.Affine(6, width)],
        backend="numpy",
        dtype="float64",
    )
    estimator = to_sklearn(xbp.Trainer(net, loss=loss, optimizer=xbp.Adam(1e-3)))
    y = net.predict(X)
    if isinstance(loss, xbp.SoftmaxCrossEntropy):
        np.testing.assert_allclose(estimator.predict_proba(X), xbp.softmax(y), atol=1e-12)
    elif isinstance(loss, xbp.SigmoidCrossEntropy):
        np.testing.assert_allclose(estimator.predict_proba(X)[:, 1:], xbp.sigmoid(y), atol=1e-12)
    else:
        np.testing.assert_allclose(estimator.predict(X).reshape(y.shape), y, atol=1e-12)
    targets = targets[:, 0] if targets.shape[1:] == (1,) else targets
    before = estimator.coefs_[0].copy()
    estimator.partial_fit(X[:3], targets)  # with an optimiser of its own
    assert len(estimator.loss_curve_) == 1
    assert np.abs(estimator.coefs_[0] - before).max() > 1e-5
    clone(estimator).partial_fit(X[:3], targets, **({"classes": [0, 1]} if is_classifier(estimator) else {}))


def test_no_hidden_layer_and_rates():
    net = xbp.Network([xbp.Affine(4, 1)], backend="numpy", dtype="float64")
    estimator = to_sklearn(net, loss=xbp.PoissonNLL())
    np.testing.assert_allclose(estimator.predict(X), np.exp(net.predict(X)[:, 0]), rtol=1e-12)
    with pytest.raises(ExchangeError, match=r"'exp'.*probabilities=False"):
        from_sklearn(estimator, backend="numpy")
    again = from_sklearn(estimator, backend="numpy", probabilities=False)
    np.testing.assert_array_equal(again.predict(X), net.predict(X))


def network(*layers, **options):
    return xbp.Network(list(layers), backend="numpy", **options)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        (network(xbp.Affine(4, 3)), r"loss=SoftmaxCrossEntropy\(\)"),
        (network(xbp.Affine(4, 3), xbp.GELU(), xbp.Affine(3, 2)), "'1' is GELU"),
        (network(xbp.Affine(4, 3), xbp.BatchNorm(3), xbp.Affine(3, 2)), "'1' is BatchNorm"),
        (network(xbp.ReLU(), xbp.Affine(4, 3)), "'0' is ReLU"),
        (network(xbp.Affine(4, 3), xbp.ReLU(), xbp.Tanh(), xbp.Affine(3, 2)), "'2' is Tanh"),
        (network(xbp.Affine(4, 3), xbp.ReLU()), "ends in relu"),
        (network(xbp.Affine(4, 3), xbp.Softmax(), xbp.Affine(3, 2)), "one activation for all.*softmax"),
        (
            network(xbp.Affine(4, 3), xbp.ReLU(), xbp.Affine(3, 3), xbp.Tanh(), xbp.Affine(3, 2)),
            "one activation for all hidden layers; these are relu, tanh",
        ),
        (network(xbp.Identity()), "at least one Affine"),
        (xbp.Graph({"y": (xbp.Affine(2, 2), "x")}, inputs=["x"], output="y", backend="numpy"), "a Graph is none"),
    ],
)
def test_what_scikit_learn_does_not_have_is_refused(net, words):
    with pytest.raises(ExchangeError, match=words):
        to_sklearn(net)


def test_classes_have_to_fit():
    net = network(xbp.Affine(4, 3), xbp.Softmax())
    with pytest.raises(ShapeError, match="3 classes apart"):
        to_sklearn(net, classes=["a", "b"])
    with pytest.raises(ShapeError, match="sorted"):
        to_sklearn(net, classes=["b", "a", "c"])
    with pytest.raises(ShapeError, match="one class only"):
        to_sklearn(network(xbp.Affine(4, 1)), loss=xbp.SoftmaxCrossEntropy())
    assert list(to_sklearn(net, classes=["a", "b", "c"]).classes_) == ["a", "b", "c"]


def test_the_estimators_of_xbp_are_read_as_well():
    from xbp.estimators import MLPClassifier as Own

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = Own((7,), max_iter=3, random_state=0).fit(X, TARGETS["classes"])
    net = from_sklearn(estimator, backend="numpy")
    np.testing.assert_allclose(net.predict(X), estimator.predict_proba(X), atol=1e-12)
    assert net.metadata["classes"] == [5, 6, 7]


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_an_estimator_of_xbp_becomes_scikit_learns(kind):
    from xbp import estimators

    own = estimators.MLPRegressor if kind.startswith("number") else estimators.MLPClassifier
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        estimator = own(hidden_layer_sizes=(7,), activation="tanh", max_iter=3, random_state=0).fit(X, TARGETS[kind])
    theirs = to_sklearn(estimator)
    assert type(theirs) is (MLPRegressor if kind.startswith("number") else MLPClassifier)
    np.testing.assert_allclose(said(theirs, X), said(estimator, X), rtol=1e-10, atol=1e-12)
    assert theirs.loss_curve_ == estimator.loss_curve_
    assert theirs.n_iter_ == 3
    before = estimator.coefs_[0].copy()
    theirs.partial_fit(X, TARGETS[kind])
    np.testing.assert_array_equal(estimator.coefs_[0], before)


def test_an_estimator_of_xbp_that_scikit_learn_cannot_hold_is_refused():
    from sklearn.exceptions import NotFittedError

    from xbp.estimators import MLPClassifier as Own
    from xbp.estimators import MLPRegressor as OwnRegressor

    y, options = TARGETS["number"], {"hidden_layer_sizes": (3,), "max_iter": 2, "random_state": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        counts = OwnRegressor("poisson", **options).fit(X, np.abs(y))
        gaussian = OwnRegressor("gaussian", **options).fit(X, y)
        smooth = Own(activation="gelu", **options).fit(X, TARGETS["classes"])
    np.testing.assert_allclose(to_sklearn(counts).predict(X), counts.predict(X), rtol=1e-12)
    with pytest.raises(ExchangeError, match=r"loss='gaussian' has 2 outputs for 1 predicted numbers"):
        to_sklearn(gaussian)
    with pytest.raises(ExchangeError, match="'1' is GELU"):
        to_sklearn(smooth)
    with pytest.raises(NotFittedError):
        to_sklearn(Own())
    with pytest.raises(ExchangeError, match="This MLPClassifier is one of scikit-learn's already"):
        to_sklearn(fitted("classes"))
    with pytest.raises(ExchangeError, match=r"to_sklearn takes a Network.*builtins\.str"):
        to_sklearn("net.safetensors")


def test_an_estimator_without_weights_is_refused():
    with pytest.raises(ExchangeError, match="Fit it first"):
        from_sklearn(MLPClassifier(), backend="numpy")
