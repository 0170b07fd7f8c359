"""Pictures of trainings and networks, for matplotlib: each function takes the axes to draw on, and returns them.

Colours are told apart by the colour-blind as well, and in grey by their lightness; which of two sets is taken depends
on the background. Fonts and sizes are those that the user has set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import DataError, LabelError, ShapeError, unknown_name
from .libraries import need
from .model import Model
from .training import Trainer

__all__ = ["confusion_matrix", "decision_boundary", "loss_curves", "partial_dependence", "weights"]

# Training and held-out rows on a light and on a dark background.
LIGHT, DARK = ("#1f5fa8", "#d1651a"), ("#7db8f2", "#ffa35c")
# The eight colours of Okabe and Ito, black last; markers tell classes apart where colours do not.
CLASSES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
MARKERS = "osD^vPX*<>"
LABELS = {"accuracy": "accuracy", "r2": "R²", "mae": "mean absolute error", "rmse": "root mean squared error"}
NAMED = 20  # classes up to which a confusion matrix writes its numbers
SMALLEST = 4.0  # points: smaller letters nobody reads


def loss_curves(
    history: Mapping[str, Sequence[float]] | Any, ax: Any = None, *, metric: str = "loss", held_out: str = "validation"
) -> Any:
    """The loss over the epochs, in training and on held-out rows as far as the history has them.

    history     what `fit` returned, a Trainer, or a fitted estimator with `loss_curve_`
    metric      another series than "loss", such as "accuracy", which is drawn as "val_accuracy"
    held_out    what to call the rows that the series "val_..." are measured on

    The scale is logarithmic where losses span a factor of 20. Raises `NameUnknown` for a series that is not there.
    """
    history = _history(history)
    series = {label: list(history[name]) for name, label in _series(metric, held_out) if history.get(name)}
    if not series:
        raise unknown_name("series of the history", metric, {n.removeprefix("val_") for n in history})
    ax = _axes(ax)
    colours = dict(zip(("training", held_out), LIGHT if _is_light(ax) else DARK, strict=True))
    epochs = max(map(len, series.values()))
    for label, values in series.items():
        mark = "o" if epochs <= 20 else None  # a single epoch would be an invisible line
        numbers = range(1, len(values) + 1)
        ax.plot(numbers, values, color=colours[label], label=label, linewidth=1.8, marker=mark, markersize=3.5)
    if metric == "loss":
        _scale(ax, [v for values in series.values() for v in values if math.isfinite(v)])
    _dress(ax, LABELS.get(metric, metric), epochs)
    return ax


def _history(given: Any) -> Mapping[str, Sequence[float]]:
    """The series of a trainer, or of an estimator, by the names that histories have."""
    if isinstance(given, Trainer):
        return given.history
    if isinstance(given, Mapping):
        return given
    if not hasattr(given, "loss_curve_"):
        raise DataError(
            "loss_curves draws what fit of a Trainer returned, the Trainer, or a fitted estimator with loss_curve_; a "
            f"{type(given).__name__} {'before fit has none' if hasattr(given, 'fit') else 'is none of them'}."
        )
    return {"loss": given.loss_curve_, "val_loss": getattr(given, "validation_loss_curve_", None) or ()}


def weights(
    model: Model | Trainer,
    layer: str | int | None = None,
    ax: Any = None,
    *,
    shape: tuple[int, int] | None = None,
    most: int = 64,
) -> Any:
    """The weights of a layer: as an image for each unit where its inputs are an image, else as a histogram.

    layer    name of a parameter's layer, "0"; None is the first
    shape    of an input row as an image; None takes a square, from 4 x 4 pixels on, where the width is one
    most     how many units are shown

    Blue is negative, red positive, the palest is 0, on one scale for all units; 1 weight in 200 may lie beyond its end.
    """
    network = model.model if isinstance(model, Trainer) else model
    matrices = {name.rpartition(".")[0]: a for name, a in network.params.items() if len(a.shape) == 2}
    name = next(iter(matrices), "") if layer is None else str(layer)
    if name not in matrices:
        raise unknown_name("layer with a matrix", name, matrices)
    W = network.backend.to_host(matrices[name])
    side = math.isqrt(W.shape[0])
    if shape is None and side * side == W.shape[0] and side >= 4:
        shape = (side, side)
    if shape is not None and math.prod(shape) != W.shape[0]:
        raise ShapeError(f"An image of shape {shape} has {math.prod(shape)} pixels; layer {name!r} takes {W.shape[0]}.")
    ax = _axes(ax)
    if shape is None:
        ax.hist(W.ravel(), bins=min(60, max(10, math.isqrt(W.size))), color=(LIGHT if _is_light(ax) else DARK)[0])
        ax.axvline(0.0, color=_ink(ax), linewidth=0.8, alpha=0.5)
        ax.set_xlabel("weight")
        ax.set_ylabel("number")
        _frame(ax)
    else:
        tiles = _tiled(W[:, :most].T.reshape(-1, *shape))
        limit = float(np.nanquantile(np.abs(tiles), 0.995)) or 1.0
        colours = need("matplotlib", "plots", "plot").colormaps["RdBu_r"].with_extremes(bad=(0.0, 0.0, 0.0, 0.0))
        image = ax.imshow(tiles, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
        bar = ax.figure.colorbar(image, ax=ax, fraction=0.04, pad=0.02)
        bar.outline.set_visible(False)
        ax.set_axis_off()
    shown = f", {min(most, W.shape[1])} of {W.shape[1]} units" if shape is not None and W.shape[1] > most else ""
    ax.set_title(f"layer {name}, {W.shape[0]} x {W.shape[1]}{shown}", loc="left", fontsize="medium")
    return ax


def confusion_matrix(t: Any, y: Any, ax: Any = None, *, classes: Sequence[Any] | None = None) -> Any:
    """How many rows of each class were taken for which: true classes in the rows, predicted ones in the columns.

    t          (N,), the true classes
    y          (N,) predicted classes, or (N, C) scores, of which the largest counts; C = 1 is positive or not
    classes    the classes in order; None takes those that occur, or 0 ... C - 1

    The colour is the share of the row's class, the number the count. Raises `LabelError` for a class not among them.
    """
    true, said = _host(t), _host(y)
    if said.ndim == 2:
        count = max(2, said.shape[1])
        said = said.argmax(axis=1) if said.shape[1] > 1 else (said[:, 0] > 0).astype(int)
        numbers = np.arange(count)
        names = [str(c) for c in (numbers if classes is None else classes)]
        if classes is not None and len(names) == count and not np.isin(true, numbers).all():
            numbers = np.asarray(classes)
            said = numbers[said]
    else:
        numbers = np.unique(np.concatenate([true, said])) if classes is None else np.asarray(classes)
        names = [str(c) for c in numbers]
    if not len(names):
        raise DataError(
            "There are no rows in t and y, so no classes to draw. Give rows, or name the classes, classes=."
        )
    if true.shape != said.shape or true.ndim != 1:
        raise ShapeError(
            f"t has shape {true.shape} and y {_host(y).shape}; give one class a row, or scores (N, C) in y."
        )
    unknown = sorted(set(np.concatenate([true, said]).tolist()) - set(numbers.tolist()), key=str)
    if unknown or len(names) != len(numbers):
        raise LabelError(
            f"classes= has {', '.join(names)}; the rows have {', '.join(map(str, unknown)) or len(numbers)}."
        )
    place = {c: i for i, c in enumerate(numbers.tolist())}
    counts = np.zeros((len(place), len(place)), dtype=int)
    np.add.at(counts, ([place[c] for c in true.tolist()], [place[c] for c in said.tolist()]), 1)
    ax = _axes(ax)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    ends = [ax.get_facecolor(), (LIGHT if _is_light(ax) else DARK)[0]]
    blues = need("matplotlib.colors", "plots", "plot").LinearSegmentedColormap.from_list("shares", ends)
    image = ax.imshow(shares, cmap=blues, vmin=0.0, vmax=1.0)
    size = _size_of_numbers(ax, len(place), int(counts.max(initial=0)))
    if len(place) <= NAMED and size >= SMALLEST:
        for (i, j), n in np.ndenumerate(counts):
            if n:
                colour = "black" if _brightness(image.cmap(image.norm(shares[i, j]))) > 0.5 else "white"
                ax.text(j, i, n, ha="center", va="center", fontsize=size, color=colour)
    for edge in np.arange(len(place) + 1) - 0.5 if len(place) <= NAMED else ():
        ax.axhline(edge, color=_ink(ax), alpha=0.15, linewidth=0.6)
        ax.axvline(edge, color=_ink(ax), alpha=0.15, linewidth=0.6)
    step = max(1, math.ceil(len(place) / NAMED))
    ticks = range(0, len(place), step)
    long = max(map(len, names)) > 3 and len(place) > 3
    ax.set_xticks(ticks, [names[i] for i in ticks], **({"rotation": 45, "ha": "right"} if long else {}))
    ax.set_yticks(ticks, [names[i] for i in ticks])
    ax.set_xlabel("predicted class")
    ax.set_ylabel("true class")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return ax


def decision_boundary(model: Any, x: Any, t: Any, ax: Any = None, *, resolution: int = 200) -> Any:
    """The regions in which a classifier of two columns says which class, with the rows of a data set on them.

    model    a Network or Trainer of scores (N, C), or an estimator with `predict`
    x, t     (N, 2) and (N,), the rows to draw and their classes

    A region is paler where the classes are closer: by the probability, where the model tells it.
    """
    rows, labels = _host(x), _host(t)
    if rows.ndim != 2 or rows.shape[1] != 2:
        raise ShapeError(f"A picture of the plane needs x of shape (N, 2); it is {rows.shape}.")
    if labels.shape != rows.shape[:1]:
        raise ShapeError(f"t has shape {labels.shape}, and x {rows.shape[0]} rows: one class a row.")
    ax = _axes(ax)
    low, high = rows.min(axis=0), rows.max(axis=0)
    margin = np.where(high > low, 0.08 * (high - low), 0.5)
    low, high = low - margin, high + margin
    grid = np.stack(np.meshgrid(*(np.linspace(a, b, resolution) for a, b in zip(low, high, strict=True))), axis=-1)
    best, names, certain = _regions(model, grid.reshape(-1, 2).astype(rows.dtype), np.unique(labels))
    rgb = need("matplotlib.colors", "plots", "plot").to_rgb
    palette = np.asarray([rgb(c) for c in CLASSES])[np.arange(len(names)) % len(CLASSES)]
    if not _is_light(ax):
        palette = np.where(palette.sum(axis=1, keepdims=True) < 0.1, 0.75, palette)  # black is no colour on black
    ground = np.asarray(rgb(ax.get_facecolor()))
    share = (0.08 + 0.32 * certain)[:, None]
    picture = (share * palette[best] + (1.0 - share) * ground).reshape(resolution, resolution, 3)
    extent = (low[0], high[0], low[1], high[1])
    ax.imshow(picture, extent=extent, origin="lower", aspect="auto", interpolation="bilinear", zorder=0)
    regions = best.reshape(resolution, resolution)
    for k in range(len(names)):
        if 0 < np.mean(regions == k) < 1:
            line = (regions == k).astype(float)
            ax.contour(line, levels=[0.5], extent=extent, colors=[_ink(ax)], linewidths=0.7, alpha=0.6)
    size = 26 if len(rows) <= 300 else 16
    for k, name in enumerate(names):
        at = labels == name
        style = {"edgecolors": _ink(ax), "linewidths": 0.4, "marker": MARKERS[k % len(MARKERS)]}
        ax.scatter(*rows[at].T, s=size, color=palette[k], label=str(name), zorder=2, **style)
    ax.set_xlim(low[0], high[0])
    ax.set_ylim(low[1], high[1])
    if len(names) <= 10:
        near = {"borderpad": 0.3, "labelspacing": 0.2, "handletextpad": 0.1, "framealpha": 0.85}
        ax.legend(title="class", fontsize="small", title_fontsize="small", **near)
    return ax


def partial_dependence(model: Any, x: Any, features: Sequence[Any], ax: Any = None, **options: Any) -> Any:
    """What a model predicts on average as one column, or two, take other values: scikit-learn's display.

    model       an estimator, or a Network or Trainer, whose scores are then taken as numbers
    features    columns, or pairs of them; `options` are those of `PartialDependenceDisplay.from_estimator`, such as
                kind="both", or target= for one of several outputs

    Returns the axes, an array of them for several features.
    """
    inspection = need("sklearn.inspection", "plots.partial_dependence", "sklearn")
    if isinstance(model, Model | Trainer):
        model = _as_regressor(model, options.pop("target", None))
    axes = _fields(len(features)) if ax is None else ax
    first = np.ravel(np.asarray(axes, dtype=object))[0]
    if not {"line_kw", "ice_lines_kw", "pd_line_kw"} & set(options) and options.get("kind", "average") == "average":
        options["line_kw"] = {"color": (LIGHT if _is_light(first) else DARK)[0]}
    display = inspection.PartialDependenceDisplay.from_estimator(model, x, features, ax=axes, **options)
    found = np.asarray([a for a in display.axes_.ravel() if a is not None], dtype=object)
    for marks in (display.deciles_vlines_, display.deciles_hlines_):  # which scikit-learn draws in black
        for lines in marks.ravel():
            if lines is not None:
                lines.set_color(_ink(first))
    for a in found:
        _frame(a)
    return found[0] if len(found) == 1 else found


# --- models -----------------------------------------------------------------------------------------------------------


def _host(a: Any) -> np.ndarray:
    """An array of any library on the host."""
    if hasattr(a, "detach"):
        a = a.detach().cpu()
    return np.asarray(a.get() if hasattr(a, "get") and hasattr(a, "dtype") else a)


def _scores(model: Model | Trainer) -> Callable[[Any], np.ndarray]:
    network = model.model if isinstance(model, Trainer) else model
    return lambda x: network.backend.to_host(network.predict(np.asarray(x, dtype=network.dtype)))


def _regions(model: Any, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, list[Any], np.ndarray]:
    """For each point the place of its class, all classes, and how far it is from another one, from 0 to 1."""
    if isinstance(model, Model | Trainer):
        y = _scores(model)(points).astype(np.float64)
        if y.shape[1] == 1:
            y = np.concatenate([np.zeros_like(y), y], axis=1)
        names = labels if len(labels) == y.shape[1] else np.arange(y.shape[1])
        p = np.exp(y - y.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
    elif hasattr(model, "predict_proba"):
        p, names = np.asarray(_host(model.predict_proba(points))), np.asarray(model.classes_)
    else:
        said = _host(model.predict(points))
        names = np.unique(np.concatenate([said, labels]))
        p = (said[:, None] == names[None, :]).astype(float)
    if not np.isin(labels, names).all():
        raise LabelError(f"The model knows the classes {list(names)}; t has {list(labels)}.")
    ordered = np.sort(p, axis=1)
    return p.argmax(axis=1), list(names), ordered[:, -1] - (ordered[:, -2] if p.shape[1] > 1 else 0.0)


def _as_regressor(model: Model | Trainer, target: int | None) -> Any:
    """The scores of a model as what scikit-learn's displays take: an estimator that is fitted."""
    base = need("sklearn.base", "plots.partial_dependence", "sklearn")
    scores = _scores(model)

    def predict(self: Any, x: Any) -> np.ndarray:
        y = scores(x)
        if target is None and y.shape[1] > 1:
            raise DataError(f"The model has {y.shape[1]} outputs; say which one is meant, target=0.")
        return y[:, target or 0].astype(np.float64)

    methods = {"fit": lambda self, x, t=None: self, "predict": predict, "__sklearn_is_fitted__": lambda self: True}
    return type("Scores", (base.RegressorMixin, base.BaseEstimator), methods)()


# --- axes -------------------------------------------------------------------------------------------------------------


def _axes(ax: Any) -> Any:
    return need("matplotlib.pyplot", "plots", "plot").subplots(layout="constrained")[1] if ax is None else ax


def _fields(count: int) -> Any:
    """Axes for several pictures, three in a row."""
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    size = (3.6 * columns + 0.8, 3.4 * rows + 0.4)
    pyplot = need("matplotlib.pyplot", "plots", "plot")
    figure, axes = pyplot.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for ax in axes.ravel()[count:]:
        figure.delaxes(ax)
    return axes.ravel()[:count] if count > 1 else axes[0, 0]


def _is_light(ax: Any) -> bool:
    return _brightness(need("matplotlib.colors", "plots", "plot").to_rgba(ax.get_facecolor())) > 0.5


def _brightness(rgba: Sequence[float]) -> float:
    r, g, b, a = rgba
    return float(a * (0.299 * r + 0.587 * g + 0.114 * b) + (1.0 - a))  # what shines through is taken as white


def _size_of_numbers(ax: Any, fields: int, largest: int) -> float:
    """The size of letters with which the largest number fills three quarters of a field, at most the usual one."""
    usual = need("matplotlib", "plots", "plot").rcParams["font.size"]
    place, inches = ax.get_position(), ax.figure.get_size_inches()
    points = 72.0 * min(place.width * inches[0], place.height * inches[1]) / fields
    return float(min(usual, 0.75 * points / (0.65 * max(2, len(str(largest))))))


def _ink(ax: Any) -> str:
    return "#2b2b2b" if _is_light(ax) else "#e8e8e8"


def _series(metric: str, held_out: str) -> tuple[tuple[str, str], tuple[str, str]]:
    return (metric, "training"), (f"val_{metric}", held_out)


def _scale(ax: Any, losses: Sequence[float]) -> None:
    """Logarithmic where the losses span a factor of 20, else from 0; negative ones, as densities have, as they are."""
    ticker = need("matplotlib.ticker", "plots", "plot")
    low, high = min(losses, default=0.0), max(losses, default=0.0)
    if low > 0 and high > 20 * low:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_locator(ticker.NullLocator())
    elif low > 0:
        ax.set_ylim(bottom=0)


def _dress(ax: Any, label: str, epochs: int) -> None:
    ticker = need("matplotlib.ticker", "plots", "plot")
    ax.set_title(label, fontsize="medium", loc="left")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(ticker.MaxNLocator(nbins=8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    margin = 0.5 if epochs == 1 else 0.02 * epochs
    ax.set_xlim(1 - margin, epochs + margin)
    _frame(ax)
    ax.legend(frameon=False, fontsize="small")


def _frame(ax: Any) -> None:
    """A faint grid below the data, and no box around it."""
    ax.grid(visible=True, color=_ink(ax), alpha=0.18, linewidth=0.7)
    ax.set_axisbelow(True)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)


def _tiled(images: np.ndarray) -> np.ndarray:
    """Images (K, H, W) side by side as one, with a line of nothing between them."""
    count, height, width = images.shape
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    gap = max(1, width // 14)
    tiles = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        tiles[top : top + height, left : left + width] = image
    return tiles
