"""Metrics against scikit-learn's, with weights and cut into chunks, on every space; and what their names mean."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

import xbp
from xbp.errors import NameUnknown, ShapeError
from xbp.metrics import METRICS, Accuracy, BinaryAccuracy, Metric, TopKAccuracy, resolve_metrics

SKLEARN = "scikit-learn, the reference of this test, is not installed"
N = 24
CHUNKS = [(0, 24), (0, 8, 16, 24)]  # of few sizes: JAX compiles anew for each


def measured(space, metric, y, t, w=None, chunks=(0, N)):
    """The value as `evaluate` computes it: sums of each chunk on the device, the rest on the host in float64."""
    w = np.ones(len(y)) if w is None else w
    y, t, w = space.put(y), space.put(t), space.put(w)
    parts = [
        space.get(metric.sums(y[i:j, ...], t[i:j, ...], w[i:j], xp=space.xp)).astype(np.float64)
        for i, j in itertools.pairwise(chunks)
    ]
    assert {p.shape for p in parts} == {(metric.size(t.shape[1] if t.ndim > 1 else 1),)}
    value = metric.value(np.stack(parts))
    assert type(value) is float
    return value


def regression(columns=3, offset=0.0):
    rng = np.random.default_rng(0)
    t = rng.normal(size=(N, columns)) * [1.0, 5.0, 0.1][:columns] + offset
    return t + rng.normal(size=t.shape) * 0.3, t, rng.uniform(0.2, 3.0, N)


def classification(classes=5):
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, classes)), rng.integers(0, classes, N).astype(np.int32), rng.uniform(0.2, 3.0, N)


def close(space):
    return 1e-12 if space.dtype == "float64" else 2e-6


def root_mean_squared_error(t, y, *, sample_weight):
    """The root of the mean over everything; scikit-learn takes a root for each column and then their mean."""
    return math.sqrt(np.average(((y - t) ** 2).mean(axis=1), weights=sample_weight))


NUMBERS = {
    "mae": lambda m: m.mean_absolute_error,
    "mse": lambda m: m.mean_squared_error,
    "rmse": lambda m: root_mean_squared_error,
    "r2": lambda m: m.r2_score,
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_numbers_are_measured_as_by_scikit_learn(space, name, chunks):
    reference = NUMBERS[name](pytest.importorskip("sklearn.metrics", reason=SKLEARN))
    y, t, w = regression()
    for weights in (None, w):
        desired = reference(t, y, sample_weight=weights)
        assert measured(space, METRICS[name], y, t, weights, chunks) == pytest.approx(desired, rel=close(space))


def test_rmse_of_one_column_is_that_of_scikit_learn(space):
    metrics = pytest.importorskip("sklearn.metrics", reason=SKLEARN)
    y, t, w = regression(columns=1)
    desired = metrics.root_mean_squared_error(t, y, sample_weight=w)
    assert measured(space, METRICS["rmse"], y, t, w) == pytest.approx(desired, rel=close(space))


@pytest.mark.parametrize("chunks", CHUNKS, ids=str)
def test_classes_are_measured_as_by_scikit_learn(space, chunks):
    metrics = pytest.importorskip("sklearn.metrics", reason=SKLEARN)
    y, labels, w = classification()
    one_hot = np.eye(5)[labels]
    for weights in (None, w):
        desired = metrics.accuracy_score(labels, y.argmax(axis=1), sample_weight=weights)
        for t in (labels, one_hot):
            assert measured(space, Accuracy(), y, t, weights, chunks) == pytest.approx(desired, rel=close(space))
        for k in (1, 2, 4):
            desired = metrics.top_k_accuracy_score(labels, y, k=k, sample_weight=weights)
            for t in (labels, one_hot):
                assert measured(space, TopKAccuracy(k), y, t, weights, chunks) == pytest.approx(
                    desired, rel=close(space)
                )


def test_answers_are_measured_as_by_scikit_learn(space):
    metrics = pytest.importorskip("sklearn.metrics", reason=SKLEARN)
    rng = np.random.default_rng(1)
    y, t, w = rng.normal(size=(N, 1)), rng.integers(0, 2, (N, 1)).astype(float), rng.uniform(0.2, 3.0, N)
    for weights in (None, w):
        desired = metrics.accuracy_score(t[:, 0], y[:, 0] > 0.0, sample_weight=weights)
        for chunks in CHUNKS:
            assert measured(space, BinaryAccuracy(), y, t, weights, chunks) == pytest.approx(desired, rel=close(space))


def test_several_answers_of_a_row_count_one_by_one():
    y = np.array([[1.0, -1.0], [-1.0, -1.0]])
    t = np.array([[1.0, 1.0], [0.0, 1.0]])
    assert BinaryAccuracy().value(BinaryAccuracy().sums(y, t, np.array([1.0, 3.0]), xp=np)[None]) == 0.5


def test_top_k_counts_equal_scores_for_the_row_and_all_of_too_few_classes(space):
    y, labels = np.zeros((N, 5)), np.full(N, 4, dtype=np.int32)
    assert measured(space, TopKAccuracy(1), y, labels) == 1.0
    y, labels, _ = classification()
    assert measured(space, TopKAccuracy(5), y, labels) == 1.0
    assert measured(space, TopKAccuracy(9), y, labels) == 1.0


def test_metrics_of_means_ignore_the_log_variances(space):
    y, t, w = regression()
    wide = np.concatenate([y, np.full_like(y, 99.0)], axis=1)
    for name in NUMBERS:
        desired = measured(space, METRICS[name], y, t, w)
        assert measured(space, METRICS[name], wide, t, w) == pytest.approx(desired, rel=1e-6)


def test_a_weight_of_0_is_a_row_left_out_and_no_weight_at_all_is_nan(space):
    y, t, w = regression()
    w[:8] = 0.0
    for name in NUMBERS:
        host = xbp.testing.space("numpy")
        desired = measured(host, METRICS[name], y[8:], t[8:], w[8:], (0, N - 8))
        # A chunk of no weight among the others, too.
        assert measured(space, METRICS[name], y, t, w, (0, 8, 16, 24)) == pytest.approx(desired, rel=close(space))
        assert math.isnan(measured(space, METRICS[name], y, t, np.zeros(N)))
    y, labels, _ = classification()
    assert math.isnan(measured(space, Accuracy(), y, labels, np.zeros(N)))


# R^2.


def test_r2_keeps_its_digits_where_the_mean_is_large_against_the_spread(space):
    """In float32 the difference of the squares' sum and the sum's square would have none left."""
    metrics = pytest.importorskip("sklearn.metrics", reason=SKLEARN)
    y, t, w = regression(columns=2, offset=1000.0)
    y, t = y.astype(np.float32).astype(float), t.astype(np.float32).astype(float)
    desired = metrics.r2_score(t, y, sample_weight=w)
    for chunks in CHUNKS:
        rel = 1e-9 if space.dtype == "float64" else 1e-5
        assert measured(space, METRICS["r2"], y, t, w, chunks) == pytest.approx(desired, rel=rel)


def test_r2_is_no_better_than_0_for_a_constant_guess_of_each_column(space):
    """Columns at different places must not lend each other their distance as if it had been predicted."""
    t = np.random.default_rng(0).normal(size=(N, 3)) + np.array([0.0, 10.0, -50.0])
    guess = np.broadcast_to(t.mean(axis=0), t.shape)
    assert measured(space, METRICS["r2"], guess, t) == pytest.approx(0.0, abs=1e-5)


def test_r2_of_targets_that_do_not_vary_is_nan(space):
    assert math.isnan(measured(space, METRICS["r2"], np.zeros((N, 1)), np.ones((N, 1))))


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_cannot_be_measured_on_labels(name):
    y, labels, w = classification()
    with pytest.raises(ShapeError, match=r"compare numbers, but the targets are class labels"):
        METRICS[name].sums(y, labels, w, xp=np)


# Names.


def names(metrics, loss):
    return [type(m).__name__ for m in resolve_metrics(metrics, loss)]


def test_the_metrics_of_the_loss_come_first_and_none_comes_twice():
    assert names([], xbp.SoftmaxCrossEntropy()) == ["Accuracy"]
    assert names(["top_k_accuracy", "accuracy"], xbp.SoftmaxCrossEntropy()) == ["Accuracy", "TopKAccuracy"]
    assert names([], xbp.MeanSquaredError()) == []
    assert names(["r2", "mae"], xbp.MeanSquaredError()) == ["R2", "MeanAbsoluteErrorMetric"]


def test_accuracy_means_what_it_means_for_the_loss():
    assert names(["accuracy"], xbp.SigmoidCrossEntropy()) == ["BinaryAccuracy"]
    assert names(["accuracy"], xbp.SoftmaxCrossEntropy()) == ["Accuracy"]


def test_one_metric_needs_no_list():
    assert names("mae", xbp.MeanSquaredError()) == ["MeanAbsoluteErrorMetric"]
    assert names(TopKAccuracy(3), xbp.SoftmaxCrossEntropy()) == ["Accuracy", "TopKAccuracy"]


def test_unknown_names_get_the_nearest():
    with pytest.raises(NameUnknown, match=r"Unknown metric 'acuracy'\. Did you mean 'accuracy'\? Known: accuracy, mae"):
        resolve_metrics(["acuracy"], xbp.MeanSquaredError())


@pytest.mark.parametrize("k", [0, -1, 2.5, None])
def test_k_is_a_whole_number(k):
    with pytest.raises(ValueError, match=r"TopKAccuracy: k must be a whole number of at least 1; it is "):
        TopKAccuracy(k)


def test_metrics_are_equal_by_their_options_and_say_which_way_is_up():
    assert TopKAccuracy(3) == TopKAccuracy(3) != TopKAccuracy(5)
    assert hash(Accuracy()) == hash(Accuracy())
    better = {name: m.higher_is_better for name, m in METRICS.items()}
    assert better == {
        "accuracy": True, "top_k_accuracy": True, "mae": False, "mse": False, "rmse": False, "r2": True,
    }  # fmt: skip
    assert all(m.name == name for name, m in METRICS.items())


@dataclass(frozen=True)
class Largest(Metric):
    """A metric as a user would write it, that is no mean: the largest error of all chunks."""

    name = "largest"

    def size(self, targets):
        return 1

    def sums(self, y, t, w, *, xp):
        return xp.reshape(xp.max(xp.abs(y - t)), (1,))

    def value(self, sums):
        return float(sums.max())


def test_a_metric_of_your_own_sees_every_chunk(space):
    y, t, w = regression()
    assert measured(space, Largest(), y, t, w, (0, 8, 16, 24)) == pytest.approx(np.abs(y - t).max(), rel=close(space))
    assert resolve_metrics([Largest(), "mae"], xbp.MeanSquaredError())[0] == Largest()
    net = xbp.Network([xbp.Affine(3, 3)], backend=space.backend, dtype=space.dtype)
    trainer = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.1), metrics=[Largest(), "r2", "mae"])
    found = trainer.evaluate(space.put(y), space.put(t), space.put(w))
    score = space.get(net.predict(space.put(y)))
    assert list(found) == ["loss", "largest", "r2", "mae"]
    assert found["largest"] == pytest.approx(np.abs(score - t).max(), rel=1e-5)
    assert found["mae"] == pytest.approx(np.average(np.abs(score - t).mean(axis=1), weights=w), rel=1e-5)
