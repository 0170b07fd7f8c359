"""The pictures: what is drawn are the numbers, on the axes given, readable on light and dark ground and in any size."""

from __future__ import annotations

import io
import sys
from itertools import pairwise

import numpy as np
import pytest

import xbp

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib: pip install 'xbp[plot]'")
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb

from xbp import plots
from xbp.errors import DataError, LabelError, LibraryMissing, NameUnknown, ShapeError

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _no_figure_stays():
    yield
    plt.close("all")


@pytest.fixture(params=["default", "dark_background"])
def ax(request):
    with plt.style.context(request.param):
        yield plt.figure(figsize=(4, 3), layout="constrained").subplots()


def rendered(ax):
    ax.figure.savefig(io.BytesIO(), format="png")
    return ax


def network(*widths, seed=0):
    layers = [part for d, k in pairwise(widths) for part in (xbp.Affine(d, k), xbp.Tanh())]
    return xbp.Network(layers[:-1], backend="numpy", seed=seed)


def contrast(ax, colour):
    """By the formula of the Web Content Accessibility Guidelines."""
    light = []
    for c in (to_rgb(colour), to_rgb(ax.get_facecolor())):
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in c]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05)
    return max(light) / min(light)


def test_the_curves_are_the_history(ax):
    history = {"loss": [2.0, 1.0, 0.5], "val_loss": [2.1, 1.4], "lr": [0.1] * 3, "val_accuracy": [0.3, 0.6, 0.9]}
    assert plots.loss_curves(history, ax) is ax
    lines = {line.get_label(): line for line in rendered(ax).lines}
    assert list(lines) == ["training", "validation"]
    np.testing.assert_array_equal(lines["training"].get_xydata(), [[1, 2.0], [2, 1.0], [3, 0.5]])
    np.testing.assert_array_equal(lines["validation"].get_xydata(), [[1, 2.1], [2, 1.4]])
    assert (ax.get_title("left"), ax.get_xlabel()) == ("loss", "epoch")
    assert ax.get_ylim()[0] == 0
    for line in lines.values():
        assert contrast(ax, line.get_color()) > 3.5
    other = rendered(plots.loss_curves(history, metric="accuracy", held_out="test"))
    assert other is not ax
    assert [line.get_label() for line in other.lines] == ["test"]
    with pytest.raises(NameUnknown, match=r"'acuracy'\. Did you mean 'accuracy'"):
        plots.loss_curves(history, metric="acuracy")


class Fitted:
    """What a fitted estimator shows, of whichever library."""

    loss_curve_ = (2.0, 1.0, 0.5)

    def fit(self):
        raise NotImplementedError


def test_the_curves_of_a_trainer_and_of_an_estimator():
    net = network(2, 3)
    trainer = xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.Adam())
    trainer.fit(np.ones((4, 2)), np.ones((4, 3)), epochs=2)
    drawn = plots.loss_curves(trainer).lines
    np.testing.assert_array_equal(drawn[0].get_ydata(), trainer.history["loss"])
    estimator = Fitted()
    assert [line.get_label() for line in plots.loss_curves(estimator).lines] == ["training"]
    estimator.validation_loss_curve_ = None
    assert len(plots.loss_curves(estimator).lines) == 1
    estimator.validation_loss_curve_ = [2.1, 1.4]
    drawn = {line.get_label(): line.get_ydata().tolist() for line in plots.loss_curves(estimator).lines}
    assert drawn == {"training": [2.0, 1.0, 0.5], "validation": [2.1, 1.4]}


def test_curves_of_what_has_none_are_refused():
    class Unfitted:
        fit = Fitted.fit

    with pytest.raises(DataError, match="a Unfitted before fit has none"):
        plots.loss_curves(Unfitted())
    with pytest.raises(DataError, match="a list is none of them"):
        plots.loss_curves([1.0, 0.5])


def test_a_confusion_matrix_of_no_rows_needs_classes():
    with pytest.raises(DataError, match=r"no rows in t and y.*classes="):
        plots.confusion_matrix([], [])
    assert len(rendered(plots.confusion_matrix([], [], classes=["a", "b"])).get_xticks()) == 2


@pytest.mark.parametrize("losses", [[5.0, 0.01], [1.0], [0.5, -3.0], [1.0, np.nan], [0.0, 0.0]])
def test_losses_of_any_kind(losses):
    ax = rendered(plots.loss_curves({"loss": losses}))
    assert ax.get_yscale() == ("log" if losses == [5.0, 0.01] else "linear")


def test_weights_of_an_image_are_images(ax):
    net = network(64, 70, 3)
    plots.weights(net, ax=ax)
    (image,) = rendered(ax).images
    tiles = np.ma.filled(image.get_array(), np.nan)
    W = net.params["0.W"]
    assert tiles.shape == (8 * 9 - 1, 8 * 9 - 1)
    for unit, (i, j) in {0: (0, 0), 1: (0, 1), 8: (1, 0), 63: (7, 7)}.items():
        np.testing.assert_array_equal(tiles[9 * i : 9 * i + 8, 9 * j : 9 * j + 8], W[:, unit].reshape(8, 8))
    assert np.isnan(tiles[8, :]).all()
    low, high = image.get_clim()
    assert low == -high
    assert ax.get_title("left") == "layer 0, 64 x 70, 64 of 70 units"


def test_weights_of_anything_else_are_a_histogram(ax):
    net = network(10, 5, 3)
    plots.weights(net, 2, ax)
    assert sum(bar.get_height() for bar in rendered(ax).patches) == 15
    image = plots.weights(xbp.Trainer(net, loss=xbp.MeanSquaredError(), optimizer=xbp.SGD(0.1)), shape=(2, 5))
    assert np.ma.filled(rendered(image).images[0].get_array(), np.nan).shape == (8, 11)
    with pytest.raises(NameUnknown, match="layer with a matrix '1'"):
        plots.weights(net, 1)
    with pytest.raises(ShapeError, match="9 pixels; layer '0' takes 10"):
        plots.weights(net, shape=(3, 3))


def numbers(ax):
    return {tuple(int(v) for v in text.get_position()[::-1]): int(text.get_text()) for text in ax.texts}


def test_a_confusion_matrix_counts(ax):
    t, y = ["b", "a", "b", "b", "c"], ["b", "b", "b", "a", "c"]
    plots.confusion_matrix(t, y, ax)
    assert numbers(rendered(ax)) == {(0, 1): 1, (1, 0): 1, (1, 1): 2, (2, 2): 1}
    assert [x.get_text() for x in ax.get_yticklabels()] == ["a", "b", "c"]
    np.testing.assert_allclose(ax.images[0].get_array(), [[0, 1, 0], [1 / 3, 2 / 3, 0], [0, 0, 1]])
    for text in ax.texts:
        i, j = (int(v) for v in text.get_position()[::-1])
        field = ax.images[0].cmap(ax.images[0].norm(ax.images[0].get_array()[i, j]))
        brightness = np.dot(field[:3], [0.299, 0.587, 0.114])
        assert abs(brightness - np.dot(to_rgb(text.get_color()), [0.299, 0.587, 0.114])) > 0.4


def test_scores_names_and_many_classes():
    scores = np.asarray([[1.0, 0.0, 3.0], [0.0, 2.0, 1.0]])
    assert numbers(plots.confusion_matrix([2, 0], scores)) == {(2, 2): 1, (0, 1): 1}
    named = plots.confusion_matrix(["c", "a"], scores, classes=["a", "b", "c"])
    assert numbers(named) == {(2, 2): 1, (0, 1): 1}
    named = plots.confusion_matrix([2, 0], scores, classes=["ash", "birch", "cedar"])
    assert [x.get_text() for x in named.get_xticklabels()] == ["ash", "birch", "cedar"]
    assert numbers(plots.confusion_matrix([1, 0], np.asarray([[0.5], [0.1]]))) == {(1, 1): 1, (0, 1): 1}
    many = np.arange(200) % 40
    crowd = rendered(plots.confusion_matrix(many, many))
    assert len(crowd.texts) == 0
    assert len(crowd.get_xticks()) == 20
    tiny = plt.figure(figsize=(1.2, 1.2)).subplots()
    assert len(plots.confusion_matrix(many % 20, many % 20, tiny).texts) == 0
    with pytest.raises(LabelError, match="the rows have d"):
        plots.confusion_matrix(["d"], ["a"], classes=["a", "b"])
    with pytest.raises(ShapeError, match="one class a row"):
        plots.confusion_matrix([1, 2], [1])


def halves(columns):
    """A network that says 1 where the first column is above 0.5."""
    net = xbp.Network([xbp.Affine(2, columns)], backend="numpy")
    W, b = np.zeros((2, columns)), np.zeros(columns)
    W[0, -1], b[-1] = 40.0, -20.0
    net.params["0.W"], net.params["0.b"] = W.astype("float32"), b.astype("float32")
    return net


@pytest.mark.parametrize("columns", [1, 2])
def test_the_boundary_is_where_the_class_changes(ax, columns):
    x = RNG.uniform(0, 1, size=(60, 2))
    t = (x[:, 0] > 0.5).astype(int)
    plots.decision_boundary(halves(columns), x, t, ax, resolution=101)
    picture = np.asarray(rendered(ax).images[0].get_array())
    left, right = ax.images[0].get_extent()[:2]
    at = round((0.5 - left) / (right - left) * 101)
    blue = to_rgb("#0072b2")
    ground = np.asarray(to_rgb(ax.get_facecolor()))
    np.testing.assert_allclose(picture[50, 2], 0.4 * np.asarray(blue) + 0.6 * ground, atol=0.01)
    change = np.abs(np.diff(picture[50], axis=0)).sum(axis=1).argmax()
    assert abs(change - at) <= 8  # it fades out on the way
    first, second = ax.collections[-2:]
    np.testing.assert_array_equal(first.get_offsets(), x[t == 0])
    np.testing.assert_array_equal(second.get_offsets(), x[t == 1])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["0", "1"]


def test_the_boundary_of_estimators():
    linear = pytest.importorskip("sklearn.linear_model", reason="the estimators are scikit-learn's")
    x = RNG.normal(size=(80, 2))
    t = np.where(x[:, 0] > 0, "yes", "no")
    for estimator in (linear.LogisticRegression(), linear.RidgeClassifier()):
        ax = rendered(plots.decision_boundary(estimator.fit(x, t), x, t, resolution=30))
        assert [text.get_text() for text in ax.get_legend().get_texts()] == ["no", "yes"]
    with pytest.raises(ShapeError, match=r"shape \(N, 2\); it is \(80, 1\)"):
        plots.decision_boundary(estimator, x[:, :1], t)
    with pytest.raises(ShapeError, match="one class a row"):
        plots.decision_boundary(estimator, x, t[:3])
    with pytest.raises(LabelError, match="The model knows the classes"):
        plots.decision_boundary(halves(2), x, np.arange(80) % 3)


def test_partial_dependence(ax):
    pytest.importorskip("sklearn", reason="it is scikit-learn's display: pip install 'xbp[sklearn]'")
    net = xbp.Network([xbp.Affine(3, 2)], backend="numpy", dtype="float64")
    x = RNG.normal(size=(50, 3))
    found = plots.partial_dependence(net, x, [1], ax, target=1)
    (line,) = rendered(found).lines
    slope = np.polyfit(*line.get_xydata().T, 1)[0]
    np.testing.assert_allclose(slope, net.params["0.W"][1, 1])
    assert contrast(ax, line.get_color()) > 3.5
    several = plots.partial_dependence(net, x, [0, 1, 2, (0, 1)], target=0)
    assert len(several) == 4
    rendered(several[0])
    with pytest.raises(xbp.errors.DataError, match="2 outputs; say which one is meant"):
        plots.partial_dependence(net, x, [0])


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(LibraryMissing, match=r"plots needs matplotlib.*pip install 'xbp\[plot\]'"):
        plots.loss_curves({"loss": [1.0]})
