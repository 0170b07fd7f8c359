"""What scikit-learn's perceptrons do not have: each option, against what it says."""

import inspect
import time

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")

from sklearn import neural_network as theirs
from sklearn.datasets import load_diabetes, load_iris, make_multilabel_classification
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import scale
from sklearn.utils._param_validation import InvalidParameterError

import xbp
from xbp import estimators as ours
from xbp.callbacks import Callback
from xbp.estimators import MLPClassifier, MLPRegressor
from xbp.losses import GaussianNLL, Quantile, SoftmaxCrossEntropy

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

X, Y = load_iris(return_X_y=True)
A, B = load_diabetes(return_X_y=True)
A, B = scale(A), scale(B)
FAST = {"random_state": 0, "max_iter": 12, "hidden_layer_sizes": (9, 5)}


@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_the_constructor_begins_with_scikit_learns(name):
    mine, other = (inspect.signature(getattr(library, name)).parameters for library in (ours, theirs))
    own = list(mine.values())
    for a, b in zip(own, other.values(), strict=False):
        assert (a.name, a.default, a.kind) == (b.name, b.default, b.kind)
    assert all(a.kind is inspect.Parameter.KEYWORD_ONLY for a in own[len(other) :])
    assert len(own) > len(other)


def test_class_weights_multiply_sample_weights():
    w = np.random.default_rng(0).uniform(0.5, 2.0, len(X))
    by_class = {0: 1.0, 1: 2.0, 2: 0.5}
    mine = MLPClassifier(class_weight=by_class, **FAST).fit(X, Y, sample_weight=w)
    other = theirs.MLPClassifier(**FAST).fit(X, Y, sample_weight=w * np.array([1.0, 2.0, 0.5])[Y])
    np.testing.assert_allclose(mine.loss_curve_, other.loss_curve_, rtol=1e-12)


@pytest.mark.parametrize("activation", [["gelu", "elu"], [xbp.LeakyReLU(0.2), "tanh"], "silu", xbp.Softplus(2.0)])
def test_an_activation_for_each_layer(activation):
    fitted = MLPClassifier(activation=activation, **FAST).fit(X, Y)
    each = activation if isinstance(activation, list) else [activation] * 2
    layers = [xbp.layers.activations.get_activation(a) if isinstance(a, str) else a for a in each]
    assert [layer for layer in fitted._model.layers if not isinstance(layer, xbp.Affine)] == layers
    hidden = fitted.hidden_activations(X)
    assert [h.shape for h in hidden] == [(150, 9), (150, 5)]
    below = X
    for layer, W, b, h in zip(layers, fitted.coefs_, fitted.intercepts_, hidden, strict=False):
        below = xbp.Network([xbp.Affine(*W.shape), layer], backend="numpy", dtype="float64")
        below.load_params({"0.W": W, "0.b": b})
        np.testing.assert_allclose(h, below.predict(X if h is hidden[0] else hidden[0]), rtol=1e-12)


@pytest.mark.parametrize("option", [{"dropout": 0.5}, {"dropout": [0.0, 0.5]}, {"normalization": "layer"}, {
    "normalization": "batch", "dropout": 0.25}])  # fmt: skip
def test_dropout_and_normalisation(option):
    first, second = (MLPClassifier(**FAST, **option).fit(X, Y) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(X), second.predict_proba(X))  # masks follow random_state
    np.testing.assert_array_equal(first.predict_proba(X), first.predict_proba(X))  # and are off in prediction
    assert first.loss_curve_ != MLPClassifier(**FAST).fit(X, Y).loss_curve_
    assert [h.shape for h in first.hidden_activations(X)] == [(150, 9), (150, 5)]
    np.testing.assert_allclose(first.predict_proba(X[40:]), first.predict_proba(X)[40:], rtol=1e-12)


def test_an_optimizer_of_xbp_replaces_the_solver():
    by_name = MLPClassifier(optimizer="adamw", learning_rate_init=0.01, alpha=0.0, **FAST).fit(X, Y)
    given = MLPClassifier(optimizer=xbp.AdamW(0.01), solver="sgd", alpha=0.0, **FAST).fit(X, Y)
    assert by_name.loss_curve_ == given.loss_curve_
    assert by_name.loss_curve_ != MLPClassifier(learning_rate_init=0.01, alpha=0.0, **FAST).fit(X, Y).loss_curve_


def test_a_schedule_says_the_rate_of_each_step():
    asked = []

    def schedule(step):
        asked.append(step)
        return 1e-3

    scheduled = MLPClassifier(schedule=schedule, **FAST).fit(X, Y)
    np.testing.assert_allclose(scheduled.loss_curve_, MLPClassifier(**FAST).fit(X, Y).loss_curve_, rtol=1e-12)
    assert set(asked) == set(range(12))


@pytest.mark.parametrize("optimizer", ["adamw", xbp.AdamW(77.0), xbp.AdamW(77.0, weight_decay=0.3)])
def test_a_schedule_takes_the_place_of_the_rate_of_an_optimizer(optimizer):
    schedule = xbp.schedules.OneCycle(0.05, 12)
    given = MLPClassifier(optimizer=optimizer, schedule=schedule, **FAST).fit(X, Y)
    decay = getattr(optimizer, "weight_decay", 0.01)
    assert given._trainer.optimizer == xbp.AdamW(schedule, weight_decay=decay)
    itself = MLPClassifier(optimizer=xbp.AdamW(schedule, weight_decay=decay), **FAST).fit(X, Y)
    assert given.loss_curve_ == itself.loss_curve_
    assert given.get_params()["optimizer"] is optimizer
    if given.optimizer != "adamw":
        assert given.optimizer.lr == 77.0


class Fixed(xbp.Optimizer):
    """A rule whose rate is no field."""

    lr = 0.1

    def rule(self, p, g, slots, t, lr, decay, xp):
        return p - lr * g, ()


@pytest.mark.parametrize(
    ("optimizer", "words"),
    [
        (xbp.SGD(xbp.schedules.WarmUp(3, then=0.1)), "Both optimizer=SGD.* and schedule=OneCycle.*Leave schedule=None"),
        (Fixed(), "Fixed has no field of that name.*frozen dataclass with a field lr"),
    ],
)
def test_a_schedule_that_has_no_place_is_refused(optimizer, words):
    with pytest.raises(ValueError, match=words):
        MLPClassifier(optimizer=optimizer, schedule=xbp.schedules.OneCycle(0.1, 12), **FAST).fit(X, Y)
    assert MLPClassifier(optimizer=optimizer, **FAST).fit(X, Y).n_iter_ == 12


def test_gradients_are_clipped():
    tight = MLPClassifier(clip_norm=1e-9, solver="sgd", momentum=0.0, **FAST).fit(X, Y)
    np.testing.assert_allclose(tight.loss_curve_, tight.loss_curve_[0], rtol=1e-6)


def test_rows_held_out_are_scored_and_their_loss_is_kept():
    X_train, X_val, y_train, y_val = train_test_split(X, Y, random_state=1)
    w = np.linspace(0.5, 1.5, len(X_val))
    fitted = MLPClassifier(**FAST).fit(X_train, y_train, X_val=X_val, y_val=y_val, sample_weight_val=w)
    assert fitted.loss_curve_ == MLPClassifier(**FAST).fit(X_train, y_train).loss_curve_
    assert len(fitted.validation_loss_curve_) == len(fitted.validation_scores_) == 12
    np.testing.assert_allclose(fitted.validation_scores_[-1], fitted.score(X_val, y_val, sample_weight=w), rtol=1e-12)
    own = fitted.predict_log_proba(X_val)[np.arange(len(X_val)), y_val]
    np.testing.assert_allclose(fitted.validation_loss_curve_[-1], -np.average(own, weights=w), rtol=1e-12)
    assert fitted.best_validation_score_ == max(fitted.validation_scores_)
    with pytest.raises(ValueError, match="X_val and y_val go together"):
        MLPClassifier().fit(X, Y, X_val=X)


@pytest.mark.parametrize("scoring", ["neg_log_loss", "balanced_accuracy", lambda e, a, b: -e.loss_])
def test_early_stopping_on_any_score(scoring):
    X_train, X_val, y_train, y_val = train_test_split(X, Y, random_state=1)
    options = FAST | {"max_iter": 200, "n_iter_no_change": 4, "learning_rate_init": 0.05}
    fitted = MLPClassifier(early_stopping=True, scoring=scoring, **options)
    fitted.fit(X_train, y_train, X_val=X_val, y_val=y_val)
    scores = fitted.validation_scores_
    assert fitted.best_validation_score_ == max(scores)
    assert len(scores) == fitted.n_iter_
    if scoring == "neg_log_loss":
        at_best = -np.mean(fitted.predict_log_proba(X_val)[np.arange(len(X_val)), y_val])
        np.testing.assert_allclose(at_best, -max(scores), rtol=1e-6)  # the best weights are back


def test_early_stopping_on_a_score_of_rows_split_off():
    fitted = MLPRegressor(early_stopping=True, scoring="neg_mean_absolute_error", **FAST).fit(A, B)
    assert len(fitted.validation_scores_) == 12
    assert max(fitted.validation_scores_) < 0.0
    labels = MLPClassifier(early_stopping=True, scoring="f1_macro", **FAST).fit(X, np.array(["u", "v", "w"])[Y])
    assert 0.0 <= labels.best_validation_score_ <= 1.0


def test_a_time_limit_stops_between_steps():
    began = time.monotonic()
    fitted = MLPRegressor(time_limit=0.3, max_iter=10**6, tol=0.0, n_iter_no_change=np.inf, batch_size=5).fit(A, B)
    assert time.monotonic() - began < 30.0
    assert fitted._trainer.stop_reason == "time_limit"
    assert np.isfinite(fitted.predict(A)).all()


def test_callbacks_watch_and_stop():
    class Third(Callback):
        def on_epoch_end(self, trainer):
            return "enough" if len(trainer.history["loss"]) == 3 else None

    assert MLPClassifier(callbacks=[Third()], **FAST).fit(X, Y).n_iter_ == 3


@pytest.mark.parametrize("loss", ["absolute_error", "huber", "quantile", xbp.Huber(0.5), xbp.MeanSquaredError()])
def test_losses_of_xbp(loss):
    fitted = MLPRegressor(loss, **(FAST | {"max_iter": 100})).fit(A, B)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]
    assert fitted.predict(A).shape == B.shape
    assert fitted.score(A, B) > 0.3


def test_soft_labels_smooth():
    plain = MLPClassifier(**FAST).fit(X, Y)
    smooth = MLPClassifier(loss=SoftmaxCrossEntropy(label_smoothing=0.3), **FAST).fit(X, Y)
    assert smooth.loss_curve_[0] != plain.loss_curve_[0]


def test_quantiles_keep_their_order_and_cover():
    options = FAST | {"max_iter": 300}
    fitted = MLPRegressor(Quantile((0.9, 0.1, 0.5)), **options).fit(A, B)
    high, low, middle = fitted.predict_quantiles(A).T
    assert (low <= middle).all()
    assert (middle <= high).all()
    np.testing.assert_allclose([(q > B).mean() for q in (high, low, middle)], [0.9, 0.1, 0.5], atol=0.1)
    np.testing.assert_array_equal(fitted.predict(A), middle)
    with pytest.raises(ValueError, match="The levels of the quantiles are those of the loss"):
        fitted.predict_quantiles(A, q=[0.5])


@pytest.mark.parametrize("levels", [(0.1, 0.5, 0.9), (0.9, 0.5, 0.1), (0.5, 0.9, 0.1), (0.2, 0.4)])
def test_what_is_predicted_is_one_of_the_quantiles_also_where_they_cross(levels):
    fitted = MLPRegressor(Quantile(levels), activation="tanh", **FAST).fit(A, B)
    fitted.coefs_[-1][...] = np.random.default_rng(0).normal(size=fitted.coefs_[-1].shape)
    scores, nearest = fitted.network_.predict(A), int(np.argmin(np.abs(np.array(levels) - 0.5)))
    raw = scores[:, np.argsort(levels)]
    assert (np.diff(raw, axis=1) < 0.0).any()  # they do cross
    quantiles = fitted.predict_quantiles(A)
    np.testing.assert_array_equal(quantiles[:, np.argsort(levels)], np.sort(scores, axis=1))
    np.testing.assert_array_equal(fitted.predict(A), quantiles[:, nearest])
    assert not np.array_equal(fitted.predict(A), scores[:, nearest])
    step = 1e-6 * np.eye(A.shape[1])
    slopes = np.stack([(fitted.predict(A + e) - fitted.predict(A - e)) / 2e-6 for e in step], axis=1)
    np.testing.assert_allclose(fitted.input_gradients(A), slopes, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("targets", [B, np.stack([B, -B], axis=1)], ids=["one", "two"])
@pytest.mark.parametrize("loss", ["gaussian", GaussianNLL()])
def test_a_network_that_says_how_sure_it_is(loss, targets):
    from scipy.stats import norm

    fitted = MLPRegressor(loss, **(FAST | {"max_iter": 300})).fit(A, targets)
    mean, std = fitted.predict(A, return_std=True)
    assert mean.shape == std.shape == targets.shape
    np.testing.assert_array_equal(fitted.predict(A), mean)
    quantiles = fitted.predict_quantiles(A, q=[0.05, 0.5, 0.8])
    assert quantiles.shape == (*targets.shape, 3)
    np.testing.assert_allclose(quantiles, norm.ppf([0.05, 0.5, 0.8], mean[..., None], std[..., None]), rtol=1e-10)
    np.testing.assert_allclose((np.abs(targets - mean) < std).mean(), 0.68, atol=0.1)
    assert fitted.n_outputs_ == mean[0].size


def test_what_has_no_width_says_so():
    with pytest.raises(ValueError, match=r"predict\(return_std=True\) needs loss='gaussian'"):
        MLPRegressor(**FAST).fit(A, B).predict(A, return_std=True)


@pytest.mark.parametrize(
    ("fitted", "rows"),
    [
        (lambda: MLPClassifier(activation="tanh", **FAST).fit(X, Y), X),
        (lambda: MLPClassifier(activation="tanh", **FAST).fit(X, Y == 1), X),
        (lambda: MLPClassifier(activation="tanh", **FAST).fit(*make_multilabel_classification(50, 4)), X),
        (lambda: MLPRegressor(activation="tanh", **FAST).fit(A, B), A),
        (lambda: MLPRegressor(activation="tanh", **FAST).fit(A, np.stack([B, B**2], axis=1)), A),
        (lambda: MLPRegressor("poisson", activation="tanh", **FAST).fit(A, B - B.min()), A),
        (lambda: MLPRegressor(Quantile((0.1, 0.4)), activation="tanh", **FAST).fit(A, B), A),
    ],
    ids=["classes", "two classes", "multilabel", "number", "numbers", "counts", "quantiles"],
)
def test_slopes_are_those_of_what_is_predicted(fitted, rows):
    estimator, step = fitted(), 1e-6
    say = getattr(estimator, "predict_proba", estimator.predict)
    slopes = estimator.input_gradients(rows[:20])
    assert slopes.shape == (20, *say(rows[:20]).shape[1:], rows.shape[1])
    for d in range(rows.shape[1]):
        up, down = rows[:20].copy(), rows[:20].copy()
        up[:, d] += step
        down[:, d] -= step
        np.testing.assert_allclose(slopes[..., d], (say(up) - say(down)) / (2 * step), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_that_of_the_network(dtype):
    fitted = MLPClassifier(dtype=dtype, **FAST).fit(X, Y)
    assert fitted.coefs_[0].dtype == dtype
    assert fitted.predict_proba(X).dtype == dtype


def test_what_cannot_be_is_refused_before_training():
    with pytest.raises(ValueError, match="activation has 1 entries for 2 hidden layers"):
        MLPClassifier(activation=["relu"], **FAST).fit(X, Y)
    with pytest.raises(ValueError, match="dropout has 3 entries for 2 hidden layers"):
        MLPClassifier(dropout=[0.1, 0.2, 0.3], **FAST).fit(X, Y)
    with pytest.raises(InvalidParameterError, match="The 'normalization' parameter of MLPClassifier"):
        MLPClassifier(normalization="group").fit(X, Y)
    with pytest.raises(xbp.NameUnknown, match="relu"):
        MLPClassifier(activation="rellu").fit(X, Y)
    with pytest.raises(ValueError, match="solver='lbfgs' needs a loss that is the same each time"):
        MLPClassifier(solver="lbfgs", dropout=0.5).fit(X, Y)


def test_callbacks_in_scikit_learns_form():
    callback = pytest.importorskip("sklearn.callback", reason="this scikit-learn has no callbacks yet")

    class Watching:
        def __init__(self):
            self.noted, self.scores = [], []

        def setup(self, estimator, context):
            self.noted.append("setup")

        def on_fit_task_begin(self, estimator, context):
            self.noted.append(f"begin {context.task_name}")

        def on_fit_task_end(self, estimator, context, *, X, y, fitted_estimator):
            self.noted.append(f"end {context.task_name}")
            if fitted_estimator is not None:
                self.scores.append(fitted_estimator.score(X, y))
            return len(self.scores) == 3

        def teardown(self, estimator, context):
            self.noted.append("teardown")

    watching = Watching()
    assert isinstance(watching, callback._base.FitCallback)
    fitted = MLPClassifier(**FAST).set_callbacks(watching).fit(X, Y)
    assert fitted.n_iter_ == 3
    epochs = ["begin epoch", "end epoch"] * 3
    assert watching.noted == ["setup", "begin fit", *epochs, "end fit", "teardown"]
    assert watching.scores[-1] == watching.scores[-2] == fitted.score(X, Y)
    plain = MLPClassifier(**(FAST | {"max_iter": 3})).fit(X, Y)
    np.testing.assert_array_equal(fitted.predict_proba(X), plain.predict_proba(X))


def test_who_looks_during_a_training_changes_nothing():
    looks = []

    def score(estimator, a, b):
        looks.append(estimator.coefs_[0].copy())
        return 0.0

    held_out = {"X_val": X, "y_val": Y}
    fitted = MLPClassifier(scoring=score, **FAST).fit(X, Y, **held_out)
    plain = MLPClassifier(**FAST).fit(X, Y)
    assert len(looks) == FAST["max_iter"]
    assert not np.array_equal(looks[0], looks[-1])
    for a, b in zip(fitted.coefs_, plain.coefs_, strict=True):
        np.testing.assert_array_equal(a, b)
