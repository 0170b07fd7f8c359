"""xbp's estimators beside scikit-learn's, with the same settings: seconds, accuracy and R², seed by seed.

    python bench/estimators.py              # writes bench/results/estimators.json, which report.py puts into the README

For each seed both train on the same rows, one right after the other in an order that alternates, and each ratio is of
two such trainings. Both start from the same weights and take the same batches, because `random_state` means the same
to both; so what they predict differs by rounding alone, and the scores are there to show it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ratios import ratio
from sklearn import datasets, neural_network
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from xbp import estimators, get_backend
from xbp.benchmark import Load, conditions

__all__ = ["main"]

HERE = Path(__file__).resolve()
FASHION = Path("/usr/share/datasets/fashion-mnist")
RESULTS = HERE.parent / "results"
SEEDS = 5
PAUSE = 0.3  # seconds between two trainings, in which the helper threads of a BLAS fall asleep
STREAM = {"batch": 32, "width": 32, "calls": 300, "blocks": 9}  # of partial_fit

Json = dict[str, Any]
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # X, X_test, y, y_test


class Case(NamedTuple):
    """A training that both do: on which data, by which of the two estimators, with which settings."""

    name: str
    estimator: str
    rows: Callable[[int], Split]  # of a seed
    settings: Json


# --- data -----------------------------------------------------------------------------------------------------------


def shipped(load: Callable[..., Any], dtype: str = "float64") -> Callable[[int], Split]:
    """A data set that scikit-learn ships, split anew for each seed, with the columns of X scaled."""

    def rows(seed: int) -> Split:
        X, y = load(return_X_y=True)
        X, X_test, y, y_test = train_test_split(X, y, random_state=seed)
        scaler = StandardScaler().fit(X)
        return scaler.transform(X).astype(dtype), scaler.transform(X_test).astype(dtype), y, y_test

    return rows


def fashion(folder: Path, dtype: str) -> Callable[[int], Split]:
    """Fashion-MNIST with its own test rows, pixels from 0 to 1."""
    from xbp.datasets import load

    data = load(folder)
    t, t_test = data.t.astype(np.int32), data.t_test.astype(np.int32)
    X, X_test = data.x.astype(dtype), data.x_test.astype(dtype)
    return lambda seed: (X, X_test, t, t_test)


def cases(folder: Path, epochs: int) -> list[Case]:
    deep = {"hidden_layer_sizes": (512, 256), "batch_size": 128}
    found = []
    if folder.is_dir():
        for dtype in ("float32", "float64"):
            rows = fashion(folder, dtype)
            found += [
                Case(f"Fashion-MNIST, {dtype}, {settings['max_iter']} epochs", "MLPClassifier", rows, settings)
                for settings in ({"max_iter": 4 * epochs}, {"max_iter": epochs, **deep})
            ]
    else:
        print(f"There is no folder {folder}; Fashion-MNIST is left out.", file=sys.stderr)
    long = {"max_iter": 2000}
    return [
        *found,
        Case("digits", "MLPClassifier", shipped(datasets.load_digits), {}),
        Case("diabetes", "MLPRegressor", shipped(datasets.load_diabetes), long),
        Case("linnerud", "MLPRegressor", shipped(datasets.load_linnerud), long),
    ]


# --- trainings ------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], object]) -> float:
    time.sleep(PAUSE)
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compared(case: Case, seeds: int) -> Json:
    """Both on every seed: seconds, scores on the test rows, and the ratios of the seconds."""
    makers = {"xbp": getattr(estimators, case.estimator), "sklearn": getattr(neural_network, case.estimator)}
    seconds: dict[str, list[float]] = {who: [] for who in makers}
    scores: dict[str, list[float]] = {who: [] for who in makers}
    X, _, y, _ = case.rows(0)
    for make in makers.values():  # compiles the step, and wakes the threads
        make(**{**case.settings, "max_iter": 1}, random_state=0).fit(X, y)
    load, engine = Load(), ""
    for seed in range(seeds):
        X, X_test, y, y_test = case.rows(seed)
        for who in list(makers) if seed % 2 else list(makers)[::-1]:
            model = makers[who](**case.settings, random_state=seed)
            seconds[who].append(timed(lambda model=model, X=X, y=y: model.fit(X, y)))
            scores[who].append(float(model.score(X_test, y_test)))
            engine = model._trainer.engine if who == "xbp" else engine
    others = load.others()
    return {
        "name": case.name,
        "estimator": case.estimator,
        "rows": len(X),
        "network": "-".join(map(str, widths(model))),
        "settings": case.settings,
        "engine": engine,
        "seconds": seconds,
        "scores": scores,
        "times_as_fast": ratio(seconds["sklearn"], seconds["xbp"]),
        "others": round(others, 2) if others >= 0 else None,  # cores that other programs used; None: nobody tells
    }


def widths(model: Any) -> list[int]:
    return [model.coefs_[0].shape[0], *(W.shape[1] for W in model.coefs_)]


def streamed(engine: str) -> Json:
    """Batches of 32 rows, one call of `partial_fit` after the other, in blocks that take turns."""
    X, _, y, _ = shipped(datasets.load_digits)(0)
    classes, size, calls = np.unique(y), STREAM["batch"], STREAM["calls"]
    batches = [(X[i : i + size], y[i : i + size]) for i in range(0, len(X) - size, size)]
    settings = {"hidden_layer_sizes": (STREAM["width"],), "random_state": 0}
    models = {
        "xbp": estimators.MLPClassifier(**settings, engine=engine),
        "sklearn": neural_network.MLPClassifier(**settings),
    }
    for model in models.values():
        model.partial_fit(*batches[0], classes=classes)

    def block(model: Any) -> None:
        for i in range(calls):
            model.partial_fit(*batches[i % len(batches)])

    for model in models.values():
        block(model)
    blocks: dict[str, list[float]] = {who: [] for who in models}
    for i in range(STREAM["blocks"]):
        for who in list(models) if i % 2 else list(models)[::-1]:
            model = models[who]
            blocks[who].append(timed(lambda model=model: block(model)) / calls)
    gap = max(float(np.abs(a - b).max()) for a, b in zip(models["xbp"].coefs_, models["sklearn"].coefs_, strict=True))
    if gap > 1e-8:
        raise ArithmeticError(f"After equal steps the weights of the two differ by {gap:.1e}.")
    return {
        "engine": models["xbp"]._trainer.engine,
        "network": "-".join(map(str, widths(models["xbp"]))),
        "microseconds": {who: 1e6 * float(np.median(b)) for who, b in blocks.items()},
        "times_as_fast": ratio(blocks["sklearn"], blocks["xbp"]),
        "gap": gap,
        **STREAM,
    }


# --- what is printed ------------------------------------------------------------------------------------------------


def row(found: Json) -> str:
    score, times = {who: np.mean(s) for who, s in found["scores"].items()}, found["times_as_fast"]
    middle = {who: np.median(s) for who, s in found["seconds"].items()}
    return (
        f"{found['name']:<35}{found['network']:<18}{found['engine']:<9}{middle['xbp']:8.2f} s"
        f"{middle['sklearn']:11.2f} s {times['median']:13.2f} ({times['low']:.2f}-{times['high']:.2f})"
        f"   {score['xbp']:.4f} {score['sklearn']:.4f}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=FASHION, help="the folder of Fashion-MNIST (%(default)s)")
    parser.add_argument(
        "--epochs",
        type=int,
        default=5,
        help="of the larger network on Fashion-MNIST; the default one takes four times as many (%(default)s)",
    )
    parser.add_argument("--seeds", type=int, default=SEEDS, help="(%(default)s)")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--out", type=Path, default=RESULTS / "estimators.json")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore", ConvergenceWarning)  # so many epochs are what was asked for
    from threads import cores

    fits = []
    print(f"{'':<62}{'xbp':>10}{'scikit-learn':>13} times as fast       scores: xbp, scikit-learn")
    for case in cases(options.data, options.epochs):
        if options.only in case.name:
            fits.append(compared(case, options.seeds))
            print(row(fits[-1]), flush=True)
    engines = ["auto", *(e for e in get_backend("numpy").engines if e == "numba")]
    streams = [streamed(engine) for engine in engines]
    for s in streams:
        times = s["times_as_fast"]
        print(
            f"partial_fit, {s['network']}, batches of {s['batch']}, {s['engine']}: {s['microseconds']['xbp']:.0f} µs, "
            f"{s['microseconds']['sklearn']:.0f} µs, {times['median']:.1f} ({times['low']:.1f}-{times['high']:.1f})"
        )
    settings = {"seeds": options.seeds, "threads": cores()}
    found = {**conditions({}), "settings": settings, "estimators": fits, "partial_fit": streams}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
