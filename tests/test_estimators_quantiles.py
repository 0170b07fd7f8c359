"""Quantiles of one target and of several, and a stream of batches that one batch cannot spoil."""

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

from sklearn.datasets import load_diabetes, load_digits
from sklearn.preprocessing import StandardScaler, scale

import xbp
from xbp.estimators import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

A, B = load_diabetes(return_X_y=True)
A, B = StandardScaler().fit_transform(A), scale(B)
TWO = np.stack([B, 3.0 * B + 10.0], axis=1)
FAST = {"hidden_layer_sizes": (8,), "max_iter": 5, "random_state": 0}


def test_a_level_for_each_target_leaves_the_targets_where_they_are():
    fitted = MLPRegressor(xbp.Quantile((0.1, 0.9)), **FAST).fit(A, TWO)
    np.testing.assert_allclose(fitted.predict(A), fitted.network_.predict(A), rtol=1e-12)
    moved = np.eye(A.shape[1])[3] * 1e-6
    slopes = fitted.input_gradients(A[:5])
    assert slopes.shape == (5, 2, A.shape[1])
    numerical = (fitted.predict(A[:5] + moved) - fitted.predict(A[:5] - moved)) / 2e-6
    np.testing.assert_allclose(slopes[:, :, 3], numerical, rtol=1e-4, atol=1e-7)
    for q in (None, [0.5]):
        with pytest.raises(ValueError, match=r"loss='gaussian' here, for there are 2 targets.*MultiOutputRegressor"):
            fitted.predict_quantiles(A, q=q)


@pytest.mark.filterwarnings("ignore:A column-vector y was passed")
def test_one_target_as_a_column_has_its_quantiles():
    fitted = [MLPRegressor(xbp.Quantile((0.1, 0.9)), **FAST).fit(A, y) for y in (B, B[:, None])]
    quantiles = [each.predict_quantiles(A) for each in fitted]
    assert quantiles[0].shape == (len(A), 2)
    np.testing.assert_array_equal(*quantiles)


@pytest.mark.parametrize("q", [[], [[0.5]], [0.0], 1.0, [0.5, np.nan]])
def test_levels_that_are_none(q):
    fitted = MLPRegressor("gaussian", **FAST).fit(A, B)
    with pytest.raises(ValueError, match=r"q must hold one or more levels between 0 and 1, such as \[0\.1, 0\.5"):
        fitted.predict_quantiles(A, q=q)


@pytest.mark.parametrize("loss", ["quantile", "squared_error", xbp.Quantile(0.3)], ids=["median", "mean", "one level"])
def test_a_loss_without_quantiles_names_both_that_have_them(loss):
    fitted = MLPRegressor(loss, **FAST).fit(A, B)
    with pytest.raises(ValueError, match=r"predict_quantiles needs a Quantile loss with a tuple.* or loss='gaussian'"):
        fitted.predict_quantiles(A)
    with pytest.raises(ValueError, match=r"predict\(return_std=True\) needs loss='gaussian'"):
        fitted.predict(A, return_std=True)


def test_a_loss_that_was_set_after_the_fit_is_not_asked_for_what_the_network_lacks():
    fitted = MLPRegressor(**FAST).fit(A, B).set_params(loss="gaussian")
    with pytest.raises(ValueError, match="needs loss='gaussian'"):
        fitted.predict(A, return_std=True)


# --- a batch that overflows, taken the quick way ----------------------------------------------------------------------


def batches(count, x=A, y=B):
    rng = np.random.RandomState(1)
    for _ in range(count):
        rows = rng.randint(0, len(x), 32)
        yield x[rows], y[rows]


def values(estimator):
    return {section: dict(arrays) for section, arrays in estimator._trainer._snapshot().items()}


def same(one, other):
    assert one.t_ == other.t_
    assert one.loss_curve_ == other.loss_curve_
    assert one._trainer.steps == other._trainer.steps
    first, second = values(one), values(other)
    for section, arrays in first.items():
        for name, a in arrays.items():
            np.testing.assert_array_equal(a, second[section][name])


OPTIONS = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate": "invscaling"},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.5},
    "rich": {"dropout": 0.3, "normalization": "batch"},
    "schedule": {"optimizer": "adamw", "schedule": xbp.schedules.Exponential(0.01, 1, 0.9)},
}


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("least", [2**20, 20_000], ids=["one start", "a start every few batches"])
@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_batch_that_overflows_leaves_the_weights_that_it_found(name, least, monkeypatch):
    monkeypatch.setattr("xbp.estimators.stream.LEAST", least)
    spoilt, spared = (MLPRegressor(hidden_layer_sizes=(8,), random_state=0, **OPTIONS[name]) for _ in range(2))
    for i, (x, y) in enumerate(batches(14)):
        if i in (1, 2, 9):
            with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
                spoilt.partial_fit(x, y * 1e200)
        spoilt.partial_fit(x, y)
        spared.partial_fit(x, y)
        same(spoilt, spared)
    assert np.isfinite(spoilt.predict(A)).all()


def test_what_overflows_is_restored_for_classes_too():
    x, y = load_digits(return_X_y=True)
    spoilt, spared = (
        MLPClassifier((8,), random_state=0).partial_fit(x[:32], y[:32], classes=range(10)) for _ in range(2)
    )
    for part, labels in batches(5, x, y):
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite parameter weights"):
            spoilt.partial_fit(part * 1e307, labels)
        spoilt.partial_fit(part, labels)
        spared.partial_fit(part, labels)
        same(spoilt, spared)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_steps_that_grow_without_bound_never_leave_weights_that_are_not_numbers():
    x, y = A[:32].astype(np.float32), B[:32].astype(np.float32)
    diverging = MLPRegressor(hidden_layer_sizes=(8, 8), solver="sgd", learning_rate_init=30.0, random_state=0)
    refused = 0
    for _ in range(30):
        try:
            diverging.partial_fit(x, y)
        except ValueError as error:
            refused += "non-finite" in str(error)
    assert refused > 0
    assert all(np.isfinite(W).all() for W in diverging.coefs_)
    assert np.isfinite(diverging.predict(x)).all()


def test_a_buffer_that_is_filled_again_does_not_change_what_is_repeated():
    buffer, target = np.empty((32, A.shape[1])), np.empty(32)
    spoilt, spared = (MLPRegressor(hidden_layer_sizes=(8,), random_state=0) for _ in range(2))
    for x, y in batches(6):
        buffer[:], target[:] = x, y
        spoilt.partial_fit(buffer, target)
        spared.partial_fit(x, y)
    target *= 1e200
    with np.errstate(all="ignore"), pytest.raises(ValueError, match="non-finite"):
        spoilt.partial_fit(buffer, target)
    same(spoilt, spared)


def test_an_interrupt_sends_the_next_batch_the_long_way(monkeypatch):
    fitted = MLPRegressor(hidden_layer_sizes=(8,), random_state=0)
    (x, y), *_ = batches(1)
    fitted.partial_fit(x, y).partial_fit(x, y)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitted._trainer._engine, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fitted.partial_fit(x, y)
    assert fitted._known is None
    assert np.isfinite(fitted.partial_fit(x, y).loss_)
