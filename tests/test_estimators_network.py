"""`network_`: the Network of an estimator says what the estimator says, here, in a file and in other programs."""

import os

os.environ.setdefault("SCIPY_ARRAY_API", "1")  # before SciPy is imported, where this file runs on its own

import copy
import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

import sklearn
from sklearn import neural_network as theirs
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

import xbp
from xbp.callbacks import Callback
from xbp.errors import ExchangeError
from xbp.estimators import MLPClassifier, MLPRegressor
from xbp.interchange import (
    export_onnx,
    export_safetensors,
    from_sklearn,
    from_torch,
    onnx_bytes,
    to_sklearn,
    to_torch,
    torch_state_dict,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X = np.random.default_rng(0).normal(size=(60, 4))
CLASSES = np.array(["ash", "birch", "cedar"])[np.digitize(X[:, 0], [-0.5, 0.5])]
FAST = {"random_state": 0, "max_iter": 4, "hidden_layer_sizes": (9, 5)}
RICH = {"activation": ["gelu", xbp.LeakyReLU(0.2)], "normalization": "batch", "dropout": 0.25, **FAST}
CASES = {
    "classes": (MLPClassifier(**RICH), CLASSES),
    "classes, one layer norm": (MLPClassifier(**RICH | {"normalization": "layer", "activation": "silu"}), CLASSES),
    "two classes": (MLPClassifier(**RICH), CLASSES == "ash"),
    "two classes, a score each": (MLPClassifier(loss=xbp.SoftmaxCrossEntropy(), **RICH), CLASSES == "ash"),
    "multilabel": (MLPClassifier(**RICH), (X[:, :3] > 0).astype(int)),
    "plain": (MLPClassifier(**FAST), CLASSES),
    "lbfgs": (MLPClassifier(solver="lbfgs", activation="identity", **FAST), CLASSES),
    "no hidden layer": (MLPClassifier((), max_iter=4, random_state=0), CLASSES),
    "number": (MLPRegressor(**RICH), X[:, 0]),
    "numbers": (MLPRegressor(**RICH), X[:, :2]),
    "rates": (MLPRegressor("poisson", **RICH), np.abs(X[:, 0])),
    "how sure": (MLPRegressor("gaussian", **RICH), X[:, 0]),
    "quantiles": (MLPRegressor(xbp.Quantile((0.1, 0.5, 0.9)), **RICH), X[:, 0]),
}
WAYS = {"itself": lambda e: e, "pickled": lambda e: pickle.loads(pickle.dumps(e)), "copied": copy.deepcopy}


@pytest.fixture(params=sorted(CASES))
def fitted(request):
    estimator, y = CASES[request.param]
    return clone(estimator).fit(X, y)


def said(estimator, scores):
    """What the estimator makes of its network's scores, and what it says itself."""
    if hasattr(estimator, "predict_proba"):
        p = estimator.predict_proba(X)
        if estimator.out_activation_ == "softmax":
            return np.asarray(xbp.softmax(scores)), p
        return np.asarray(xbp.sigmoid(scores)), p[:, 1:] if len(estimator.classes_) == 2 else p
    if estimator.loss == "gaussian":
        mean, std = estimator.predict(X, return_std=True)
        return np.stack([scores[:, 0], np.exp(0.5 * scores[:, 1])], axis=1), np.stack([mean, std], axis=1)
    if isinstance(estimator.loss, xbp.Quantile):
        return np.sort(scores, axis=1), estimator.predict_quantiles(X)
    y = estimator.predict(X)
    return np.exp(scores) if estimator.loss == "poisson" else scores, y.reshape(len(X), -1)


def assert_says_the_same(estimator, scores, atol=1e-12):
    np.testing.assert_allclose(*said(estimator, scores), rtol=0, atol=atol)


@pytest.mark.parametrize("way", sorted(WAYS))
def test_the_network_says_what_the_estimator_says(fitted, way, tmp_path):
    estimator = WAYS[way](fitted)
    net = estimator.network_
    assert type(net) is xbp.Network
    assert (net.dtype, net.backend.name) == ("float64", "numpy")
    assert_says_the_same(fitted, net.predict(X))
    names = getattr(fitted, "classes_", None)
    assert net.metadata == ({} if names is None else {"classes": names.tolist()})
    net.save(tmp_path / "net.safetensors")
    again = xbp.Network.load(tmp_path / "net.safetensors", backend="numpy")
    np.testing.assert_array_equal(again.predict(X), net.predict(X))
    assert again.metadata == net.metadata
    assert again.seed == fitted._model.seed == net.seed


def test_it_has_the_newest_weights_and_they_are_its_own():
    estimator = MLPClassifier(**RICH).fit(X, CLASSES)
    before, start = estimator.network_, estimator.predict_proba(X)
    estimator.partial_fit(X, CLASSES)
    after = estimator.network_
    assert np.abs(after.predict(X) - before.predict(X)).max() > 1e-5
    np.testing.assert_allclose(xbp.softmax(before.predict(X)), start, atol=1e-12)
    estimator.coefs_[0][...] *= 0.5  # what is written counts, before a training has taken it over and after
    assert_says_the_same(estimator, estimator.network_.predict(X))
    said_before = estimator.predict_proba(X)
    trainer = xbp.Trainer(after, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(0.1))
    trainer.fit(X, np.searchsorted(estimator.classes_, CLASSES), epochs=1)
    np.testing.assert_array_equal(estimator.predict_proba(X), said_before)


def test_looking_changes_no_training():
    class Looks(Callback):
        def __init__(self):
            self.nets = []

        def on_epoch_end(self, trainer):
            self.nets.append(estimator.network_)

    looks = Looks()
    estimator = MLPClassifier(callbacks=[looks], **RICH)
    plain = MLPClassifier(**RICH).fit(X, CLASSES)
    assert estimator.fit(X, CLASSES).loss_curve_ == plain.loss_curve_
    assert len(looks.nets) == 4
    assert np.abs(looks.nets[0].predict(X) - looks.nets[-1].predict(X)).max() > 1e-5
    assert_says_the_same(plain, looks.nets[-1].predict(X))


def test_what_is_not_fitted_has_none():
    estimator = MLPClassifier()
    assert not hasattr(estimator, "network_")
    with pytest.raises(AttributeError, match="no attribute 'network_'"):
        estimator.network_  # noqa: B018  # looking is what raises
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator)
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator, "network_")
    check_is_fitted(estimator.fit(X, CLASSES), "network_")


def test_a_pickle_holds_it_once():
    estimator = MLPRegressor(hidden_layer_sizes=(200, 200), max_iter=2).fit(X, X[:, 0])
    size = len(pickle.dumps(estimator))
    assert estimator.network_.params["0.W"].shape == (4, 200)
    assert len(pickle.dumps(estimator)) == size
    weights = sum(a.nbytes for a in estimator.coefs_ + estimator.intercepts_)
    assert size < 3.1 * weights + 10_000  # themselves, and Adam's two arrays for each


def test_what_a_callback_sees_is_pickled_as_a_network():
    estimator = MLPClassifier(**RICH).fit(X, CLASSES)
    again = pickle.loads(pickle.dumps(estimator._model))
    np.testing.assert_array_equal(again.predict(X), estimator.network_.predict(X))


@pytest.mark.parametrize("backend", ["strict", "torch"])
@pytest.mark.parametrize("way", sorted(WAYS))
def test_it_is_where_the_estimator_computes(backend, way):
    try:
        xbp.get_backend(backend)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))
    estimator = WAYS[way](MLPClassifier(backend=backend, **RICH).fit(X, CLASSES))
    net = estimator.network_
    assert net.backend is estimator.backend_
    assert_says_the_same(estimator, net.backend.to_host(net.predict(X)))
    here = from_sklearn(estimator, backend="numpy")
    assert here.backend.name == "numpy"
    np.testing.assert_allclose(here.predict(X), estimator.predict_proba(X), atol=1e-12)


def test_arrays_of_torch():
    torch = pytest.importorskip("torch")
    try:
        with sklearn.config_context(array_api_dispatch=True):
            there = torch.asarray(X)
            estimator = MLPClassifier(**RICH).fit(there, CLASSES)
            scores = estimator.network_.predict(there)
            assert isinstance(scores, torch.Tensor)
            torch.testing.assert_close(torch.softmax(scores, dim=1), estimator.predict_proba(there))
    except RuntimeError as error:
        pytest.skip(f"SciPy was imported without SCIPY_ARRAY_API=1: {error}")


# --- on to other programs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_onnx_runtime_says_what_the_estimator_says(fitted, dtype, tmp_path):
    pytest.importorskip("onnx", reason="the export is written by onnx: pip install 'xbp[onnx]'")
    runtime = pytest.importorskip("onnxruntime", reason="compared with ONNX Runtime: pip install 'xbp[onnx]'")
    if dtype == "float32":
        estimator, y = next((e, y) for e, y in CASES.values() if e.get_params() == fitted.get_params())
        fitted = clone(estimator).set_params(dtype=dtype).fit(X, y)
    atol = {"float32": 1e-4, "float64": 1e-12}[dtype]

    def answer(file):
        session = runtime.InferenceSession(
            file, providers=["CPUExecutionProvider"], disabled_optimizers=["MatMulScaleFusion"]
        )
        return session.run(["scores"], {"x": X.astype(dtype)})[0]

    export_onnx(fitted, tmp_path / "net.onnx")
    scores = answer(str(tmp_path / "net.onnx"))
    assert scores.dtype == dtype
    assert_says_the_same(fitted, scores, atol)
    np.testing.assert_array_equal(answer(onnx_bytes(fitted)), scores)
    if hasattr(fitted, "predict_proba"):
        p = fitted.predict_proba(X)
        probable = answer(onnx_bytes(from_sklearn(fitted, backend="numpy")))
        np.testing.assert_allclose(probable, p[:, -fitted.n_outputs_ :], rtol=0, atol=atol)


def test_torch_says_what_the_estimator_says(fitted, tmp_path):
    torch = pytest.importorskip("torch", reason="compared with PyTorch: pip install 'xbp[torch]'")
    from safetensors.torch import load_file

    module = to_torch(fitted)
    with torch.no_grad():
        assert_says_the_same(fitted, module(torch.from_numpy(X)).numpy())
    state = torch_state_dict(fitted)
    export_safetensors(fitted, tmp_path / "net.safetensors")
    loaded = load_file(tmp_path / "net.safetensors")
    assert list(state) == list(module.state_dict())
    for name, a in module.state_dict().items():
        torch.testing.assert_close(state[name], a, rtol=0, atol=0)
        torch.testing.assert_close(loaded[name], a, rtol=0, atol=0)
    assert_says_the_same(fitted, from_torch(module, backend="numpy").predict(X))
    export_safetensors(fitted, tmp_path / "own.safetensors", layout="xbp")
    assert_says_the_same(fitted, xbp.Network.load(tmp_path / "own.safetensors", backend="numpy").predict(X))


def test_from_sklearn_keeps_norms_dropout_and_activations(fitted):
    net = from_sklearn(fitted, backend="numpy", probabilities=False)
    assert net.layers == fitted.network_.layers
    np.testing.assert_array_equal(net.predict(X), fitted.network_.predict(X))
    if fitted.out_activation_ == "exp":
        with pytest.raises(ExchangeError, match=r"'exp'.*probabilities=False"):
            from_sklearn(fitted, backend="numpy")
    elif hasattr(fitted, "predict_proba"):
        p = fitted.predict_proba(X)
        probable = from_sklearn(fitted, backend="numpy").predict(X)
        np.testing.assert_allclose(probable, p[:, -fitted.n_outputs_ :], atol=1e-12)


def test_a_plain_one_becomes_scikit_learns():
    estimator = MLPClassifier(**FAST).fit(X, CLASSES)
    back = to_sklearn(estimator.network_, loss=xbp.SoftmaxCrossEntropy())
    assert type(back) is theirs.MLPClassifier
    np.testing.assert_array_equal(back.predict(X), estimator.predict(X))
    np.testing.assert_allclose(back.predict_proba(X), estimator.predict_proba(X), atol=1e-12)


EXPORTS = {
    "export_onnx": lambda given, folder: export_onnx(given, folder / "a"),
    "onnx_bytes": lambda given, folder: onnx_bytes(given),
    "export_safetensors": lambda given, folder: export_safetensors(given, folder / "a"),
    "torch_state_dict": lambda given, folder: torch_state_dict(given),
    "to_torch": lambda given, folder: to_torch(given),
}


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_what_cannot_be_exported_is_refused(name, tmp_path):
    for unfitted in (MLPClassifier(), MLPRegressor()):
        with pytest.raises(NotFittedError, match=r"This MLP.* instance is not fitted yet"):
            EXPORTS[name](unfitted, tmp_path)
    for other, words in (
        (theirs.MLPClassifier().fit(X, CLASSES), rf"MLPClassifier\. Of an estimator of scikit.*{name}\(from_sklearn\("),
        (make_pipeline(StandardScaler(), MLPClassifier(**FAST)).fit(X, CLASSES), "Of a Pipeline, give its last step"),
        (xbp.Affine(2, 2), r"Affine\.$"),
    ):
        with pytest.raises(ExchangeError, match=f"{name} takes a Network, a Graph, the Trainer of one.*{words}"):
            EXPORTS[name](other, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", sorted(EXPORTS))
def test_a_trainer_is_exported_as_its_model(name, tmp_path):
    pytest.importorskip("onnx" if "onnx" in name else "torch")
    net = xbp.Network([xbp.Affine(4, 3)], backend="numpy")
    trainer = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.1))
    for given, folder in ((trainer, tmp_path / "one"), (net, tmp_path / "two")):
        folder.mkdir()
        EXPORTS[name](given, folder)
    files = [[p.read_bytes() for p in sorted(folder.iterdir())] for folder in sorted(tmp_path.iterdir())]
    assert files[0] == files[1]
