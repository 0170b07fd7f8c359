"""Arrays of any library in, arrays of that library out, and nothing moved on the way but what has to be."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported, where this file runs on its own

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from array_api_compat import array_namespace, device
from sklearn.datasets import load_diabetes, load_iris

import xbp
from xbp.estimators import MLPClassifier, MLPRegressor

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.usefixtures("dispatch"),
]

X, Y = load_iris(return_X_y=True)
WORDS = np.array(["setosa", "versicolor", "virginica"])[Y]
A, B = load_diabetes(return_X_y=True)
A, B = A * 20, B / 100
EPOCHS = 4
FAST = {"random_state": 0, "max_iter": EPOCHS, "hidden_layer_sizes": (6,)}


class Space:
    """A library and a device, with the way there and back."""

    def __init__(self, name, where=None):
        self.backend = xbp.get_backend(name, where)

    def __call__(self, host):
        return self.backend.asarray(host)

    def back(self, array):
        assert self.backend.owns(array)
        return self.backend.to_host(array)


@pytest.fixture(params=["strict", "strict:device1", "torch", "cupy"])
def space(request):
    name, _, where = request.param.partition(":")
    info = {b.name: b for b in xbp.available_backends()}[name]
    if not info.available:
        pytest.skip(f"{name}: {info.reason}")
    return Space(name, where or None)


def moved(estimator, before):
    now = vars(estimator.backend_.transfers)
    return {name: now[name] - before[name] for name in now}


def counted(estimator, data):
    """The estimator after a fit, and what the fit moved."""
    estimator.fit(*data[:2], sample_weight=data[2] if len(data) > 2 else None)  # so that there is a backend to ask
    before = dict(vars(estimator.backend_.transfers))
    estimator.fit(*data[:2], sample_weight=data[2] if len(data) > 2 else None)
    return estimator, moved(estimator, before)


PARAMETERS = 4  # initial values of two matrices and two vectors, drawn on the host


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_classifier_follows_x(space, dtype):
    x, y = space(X.astype(dtype)), space(Y)
    mine = MLPClassifier(**FAST).fit(x, y)
    host = MLPClassifier(**FAST).fit(X.astype(dtype), Y)
    rtol = 1e-4 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(mine.loss_curve_, host.loss_curve_, rtol=rtol)
    np.testing.assert_array_equal(space.back(mine.predict(x)), host.predict(X))
    np.testing.assert_allclose(space.back(mine.predict_proba(x)), host.predict_proba(X), rtol=rtol)
    for a in (*mine.coefs_, *mine.intercepts_, mine.predict_proba(x), *mine.hidden_activations(x),
              mine.input_gradients(x)):  # fmt: skip
        assert array_namespace(a) is array_namespace(x)
        assert a.dtype == x.dtype
        assert device(a) == device(x)
    assert isinstance(mine.score(x, y), float)


def test_a_regressor_follows_x(space):
    x, y = space(A), space(B)
    for settings in ({}, {"loss": "poisson"}, {"early_stopping": True}, {"solver": "lbfgs"}, {"loss": "gaussian"}):
        mine, host = (MLPRegressor(**FAST, **settings).fit(*data) for data in ((x, y), (A, B)))
        predicted = mine.predict(x)
        assert array_namespace(predicted) is array_namespace(x)
        np.testing.assert_allclose(space.back(predicted), host.predict(A), rtol=1e-6)
    np.testing.assert_allclose(space.back(mine.predict_quantiles(x)), host.predict_quantiles(A), rtol=1e-6)


def test_labels_may_be_words_on_the_host(space):
    x = space(X)
    mine = MLPClassifier(**FAST).fit(x, WORDS)
    host = MLPClassifier(**FAST).fit(X, WORDS)
    np.testing.assert_array_equal(mine.predict(x), host.predict(X))
    np.testing.assert_array_equal(mine.classes_, np.unique(WORDS))
    assert array_namespace(mine.predict_proba(x)) is array_namespace(x)


def test_another_library_than_in_fit_is_refused(space):
    mine = MLPClassifier(**FAST).fit(space(X), space(Y))
    for method in ("predict", "predict_proba", "predict_log_proba", "hidden_activations", "input_gradients"):
        with pytest.raises(ValueError, match=rf"MLPClassifier\.{method}\(\) must use the same namespace"):
            getattr(mine, method)(X)
    with pytest.raises(ValueError, match="must use the same namespace"):
        mine.partial_fit(X, Y)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_fit_moves_labels_once_and_losses_once_an_epoch(space, weighted):
    data = [space(X), WORDS, *([space(np.linspace(1.0, 2.0, 150))] if weighted else [])]
    _, count = counted(MLPClassifier(**FAST), data)
    assert count["to_device"] == 1 + PARAMETERS + 2 * EPOCHS  # labels; initial values; an epoch's order and rate
    assert count["to_host"] == EPOCHS + weighted  # one vector of losses an epoch; the weights of the rows once
    assert count["to_device_bytes"] == 4 * 150 + 8 * (4 * 6 + 6 + 6 * 3 + 3) + EPOCHS * (4 * 150 + 8)


def test_labels_on_the_device_come_to_the_host_once(space):
    data = [space(X), space(Y)]
    _, count = counted(MLPClassifier(**FAST), data)
    assert (count["to_host"], count["to_device"]) == (
        1 + EPOCHS,
        2 + PARAMETERS + 2 * EPOCHS,
    )  # and the classes, for predict
    _, count = counted(MLPRegressor(**FAST), [space(A), space(B)])  # numbers are not looked at
    assert (count["to_host"], count["to_device"]) == (EPOCHS, PARAMETERS + 3 * EPOCHS)  # 442 rows: a ragged batch


def test_a_prediction_moves_nothing(space):
    x = space(X)
    mine, _ = counted(MLPClassifier(**FAST), [x, space(Y)])
    before = dict(vars(mine.backend_.transfers))
    mine.predict(x), mine.predict_proba(x), mine.predict_log_proba(x), mine.hidden_activations(x), mine.coefs_
    assert set(moved(mine, before).values()) == {0}


def test_lbfgs_moves_one_vector_each_way_an_evaluation(space):
    asked = []
    mine = MLPClassifier(solver="lbfgs", **FAST)
    x, y = space(X), WORDS
    mine.fit(x, y)
    from xbp.estimators import lbfgs

    real = lbfgs.scipy.optimize.minimize

    def counting(function, *args, **options):
        def noted(vector):
            before = dict(vars(mine.backend_.transfers))
            answer = function(vector)
            asked.append(moved(mine, before))
            return answer

        return real(noted, *args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lbfgs.scipy.optimize, "minimize", counting)
        mine.fit(x, y)
    size = 4 * 6 + 6 + 6 * 3 + 3
    expected = {"to_device": 1, "to_device_bytes": 8 * size, "to_host": 1, "to_host_bytes": 8 * (size + 1)}
    assert len(asked) >= EPOCHS
    assert all(count == expected for count in asked)


def test_streams_go_on_where_the_data_lives(space):
    mine, host = MLPClassifier(**FAST), MLPClassifier(**FAST)
    for start in (0, 50, 100):
        rows = slice(start, start + 50)
        mine.partial_fit(space(X[rows]), WORDS[rows], classes=np.unique(WORDS))
        host.partial_fit(X[rows], WORDS[rows], classes=np.unique(WORDS))
    np.testing.assert_allclose(mine.loss_curve_, host.loss_curve_, rtol=1e-9)


@pytest.mark.parametrize("name", ["strict:device1", "torch"])
def test_a_backend_that_is_named_computes_and_gives_back(name):
    if name == "torch":
        pytest.importorskip("torch")
    mine, host = MLPClassifier(backend=name, **FAST).fit(X, WORDS), MLPClassifier(**FAST).fit(X, WORDS)
    assert mine.backend_.name == name.partition(":")[0]
    np.testing.assert_array_equal(mine.predict(X), host.predict(X))
    assert isinstance(mine.predict_proba(X), np.ndarray)
    np.testing.assert_allclose(mine.predict_proba(X), host.predict_proba(X), rtol=1e-9)
    assert mine.backend_.owns(mine.coefs_[0])


def test_arrays_of_another_device_library_than_the_backend_are_refused():
    torch = pytest.importorskip("torch", reason="it is tensors that backend='strict' has no use for")
    with (
        sklearn.config_context(array_api_dispatch=True),
        pytest.raises(ValueError, match=r"X is an array of torch and backend='strict': leave backend=None"),
    ):
        MLPClassifier(**FAST, backend="strict").fit(torch.asarray(X), torch.asarray(Y))


def test_without_dispatch_tensors_are_read_as_numpy():
    torch = pytest.importorskip("torch")
    with sklearn.config_context(array_api_dispatch=False):
        fitted = MLPClassifier(**FAST).fit(torch.asarray(X), torch.asarray(Y))
        assert isinstance(fitted.predict(torch.asarray(X)), np.ndarray)
    assert fitted.backend_.name == "numpy"
