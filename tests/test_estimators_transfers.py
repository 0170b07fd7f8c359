"""Which arrays go between host and device in a fit, a stream and a prediction: this table, and no other.

A fit moves up the encoded labels and what is drawn on the host as scikit-learn draws it, the initial weights and the
orders of the rows, and down the losses of each epoch. The rest is what an option needs.
"""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported, where this file runs on its own

import pickle
from importlib.util import find_spec

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from sklearn.datasets import load_iris

import xbp
from xbp.estimators import MLPClassifier, MLPRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("dispatch"),
]

X, Y = load_iris(return_X_y=True)
WORDS, TWO = np.array(["a", "b", "c"])[Y], np.array(["a", "b"])[(Y == 1) * 1]
SEVERAL = np.stack([Y == 0, Y == 1], axis=1) * 1
W = np.linspace(1.0, 2.0, 150)
EPOCHS = 3
FAST = {"random_state": 0, "max_iter": EPOCHS, "hidden_layer_sizes": (6,)}
START = 4  # initial values of two matrices and two vectors
EPOCH = 2  # the order of the rows, and the rates


@pytest.fixture(params=["strict:device1", "torch"])
def up(request):
    if request.param == "torch" and find_spec("torch") is None:
        pytest.skip("torch is not installed")
    return xbp.get_backend(request.param).asarray


def moved(call, backend):
    """(arrays to the device, arrays to the host) that a call moves."""
    before = dict(vars(backend.transfers))
    call()
    after = vars(backend.transfers)
    return after["to_device"] - before["to_device"], after["to_host"] - before["to_host"]


def of_fit(estimator, *data, **more):
    estimator.fit(*data, **more)  # so that there is a backend to ask
    return moved(lambda: estimator.fit(*data, **more), estimator.backend_)


FITS = {  # settings; targets; whether they lie on the device; expected: labels, start, epochs and what is special
    "words": ({}, WORDS, False, (1 + START + EPOCH * EPOCHS, EPOCHS)),
    "two words": ({}, TWO, False, (1 + START + EPOCH * EPOCHS, EPOCHS)),
    # Labels on the device are looked at on the host; there they get their codes, and come back with their values.
    "labels": ({}, Y, True, (1 + START + EPOCH * EPOCHS + 1, 1 + EPOCHS)),
    "several labels": ({}, SEVERAL, True, (1 + START + EPOCH * EPOCHS + 1, 1 + EPOCHS)),
    # The weights of classes are found where the classes are; the weights of batches are added up on the host.
    "class weights": ({"class_weight": "balanced"}, WORDS, False, (2 + START + EPOCH * EPOCHS, 1 + EPOCHS)),
    "in order": ({"shuffle": False}, WORDS, False, (1 + START + EPOCH * EPOCHS, EPOCHS)),
    "small batches": ({"batch_size": 50}, WORDS, False, (1 + START + EPOCH * EPOCHS, EPOCHS)),
    "a batch of the rest": ({"batch_size": 40}, WORDS, False, (1 + START + (EPOCH + 1) * EPOCHS, EPOCHS)),
    "dropout": ({"dropout": 0.5}, WORDS, False, (1 + START + (EPOCH + 1) * EPOCHS, EPOCHS)),
    # Rows held out: their places for X and for y, twice; a score and a loss an epoch.
    "early stopping": ({"early_stopping": True}, WORDS, False, (1 + START + EPOCH * EPOCHS + 4, 3 * EPOCHS)),
    # To keep the shares of two classes, their codes come to the host once more.
    "early stopping, two": ({"early_stopping": True}, TWO, False, (1 + START + EPOCH * EPOCHS + 4, 1 + 3 * EPOCHS)),
}


@pytest.mark.parametrize("name", FITS)
def test_a_fit_of_classes(name, up):
    settings, y, there, expected = FITS[name]
    assert of_fit(MLPClassifier(**FAST, **settings), up(X), up(y) if there else y) == expected


def test_a_fit_of_numbers(up):
    assert of_fit(MLPRegressor(**FAST), up(X), up(X[:, 0])) == (START + EPOCH * EPOCHS, EPOCHS)
    stops = MLPRegressor(early_stopping=True, **FAST)
    assert of_fit(stops, up(X), up(X[:, 0])) == (START + EPOCH * EPOCHS + 4, 3 * EPOCHS)


@pytest.mark.parametrize("there", [False, True])
def test_weights_of_rows(there, up):
    if not there and sklearn.__version__.startswith("1.7"):
        pytest.skip("scikit-learn takes X and weights of two libraries from version 1.8 on")
    w = up(W) if there else W  # scikit-learn's check takes them to X, beside our count
    assert of_fit(MLPClassifier(**FAST), up(X), WORDS, w) == (1 + START + EPOCH * EPOCHS, 1 + EPOCHS)


def test_rows_held_out(up):
    held_out = {"X_val": up(X[::3]), "y_val": WORDS[::3]}
    assert of_fit(MLPClassifier(**FAST), up(X), WORDS, **held_out) == (2 + START + EPOCH * EPOCHS, 3 * EPOCHS)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("settings", [{}, {"callbacks": [xbp.callbacks.TargetMetric(0.0)]}])
def test_lbfgs_moves_nothing_but_its_vectors(settings, weighted, up):
    evaluations = []
    watch = xbp.callbacks.Callback()
    watch.on_chunk_end = evaluations.append
    mine = MLPClassifier(solver="lbfgs", **FAST)
    mine.set_params(callbacks=[watch, *settings.get("callbacks", [])])
    count = of_fit(mine, up(X), WORDS, *([up(W)] if weighted else []))
    n = len(evaluations) // 2  # of two fits
    assert n >= EPOCHS
    assert count == (1 + START + n, 1 + n)  # and the vector to begin with


def test_a_stream(up):
    mine = MLPClassifier(**FAST).partial_fit(up(X), WORDS, classes=np.unique(WORDS))
    x = up(X)
    assert moved(lambda: mine.partial_fit(x, WORDS), mine.backend_) == (1 + EPOCH, 1)
    numbers, t = MLPRegressor(**FAST).partial_fit(x, up(X[:, 0])), up(X[:, 0])
    assert moved(lambda: numbers.partial_fit(x, t), numbers.backend_) == (EPOCH, 1)


@pytest.mark.parametrize("pickled", [False, True])
def test_predictions_move_nothing_but_words(pickled, up):
    x, y = up(X), up(Y)
    estimators = {
        "labels": MLPClassifier(**FAST).fit(x, y),
        "several labels": MLPClassifier(**FAST).fit(x, up(SEVERAL)),
        "numbers": MLPRegressor(**FAST).fit(x, up(X[:, 0])),
        "levels": MLPRegressor(xbp.Quantile((0.9, 0.1)), **FAST).fit(x, up(X[:, 0])),
        "normal": MLPRegressor("gaussian", **FAST).fit(x, up(X[:, 0])),
        "words": MLPClassifier(**FAST).fit(x, WORDS),
    }
    asked = ("predict", "predict_proba", "predict_log_proba", "predict_quantiles", "hidden_activations",
             "input_gradients")  # fmt: skip
    for name, fitted in estimators.items():
        each = pickle.loads(pickle.dumps(fitted)) if pickled else fitted
        for method in asked:
            if hasattr(each, method) and (method != "predict_quantiles" or name in ("levels", "normal")):
                count = moved(lambda each=each, method=method: getattr(each, method)(x), each.backend_)
                assert count == (0, int(name == "words" and method == "predict")), (name, method)
    score, t = estimators["labels"].score, up(X[:, 0])
    assert moved(lambda: score(x, y), estimators["labels"].backend_) == (0, 0)
    assert moved(lambda: estimators["numbers"].score(x, t), estimators["numbers"].backend_) == (0, 0)


@pytest.mark.parametrize("settings", [{}, {"solver": "lbfgs"}], ids=str)
def test_rows_for_a_backend_that_is_named_are_moved_once(settings):
    mine = MLPClassifier(backend="strict:device1", **FAST, **settings).fit(X, WORDS)
    before = vars(mine.backend_.transfers)["to_device_bytes"]
    mine.fit(X, WORDS)
    assert X.nbytes < vars(mine.backend_.transfers)["to_device_bytes"] - before < 2 * X.nbytes
    assert moved(lambda: mine.predict_proba(X), mine.backend_) == (1, 1)
    assert moved(lambda: mine.predict(X), mine.backend_) == (1, 1)
