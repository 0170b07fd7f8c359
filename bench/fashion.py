"""A training that people do: Fashion-MNIST, 60,000 pictures, by xbp's `fit`, scikit-learn and PyTorch.

    python bench/fashion.py                 # writes bench/results/fashion.json, which report.py puts into the README

Each trains in a process of its own, so that memory and threads are its own, and one after the other. They read the same
arrays from a file, with NumPy. Initial weights and the order of the rows are each library's usual ones. xbp's also
answers what an epoch of `fit` costs beside its steps: both are timed in turns, in the same process.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from ratios import ratio

__all__ = ["PEERS", "main", "train"]

HERE = Path(__file__).resolve()
DATA = Path("/usr/share/datasets/fashion-mnist")
RESULTS = HERE.parent / "results"
HIDDEN, BATCH, RATE = (512, 256), 128, 1e-3
ROUNDS = 5  # in which an epoch of `fit` and an epoch of single steps take turns

Json = dict[str, Any]
Data = dict[str, np.ndarray]


def peak_mb() -> float:
    """The most memory that this process has held so far; Linux counts in KiB, macOS in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1e6 if sys.platform == "darwin" else 1e6 / 1024)


def right(labels: np.ndarray, t: np.ndarray) -> float:
    return float(np.mean(labels == t))


def outcome(name: str, version: str, start: float, before: float) -> Json:
    """What is to be noted the moment that a training has ended."""
    seconds = time.perf_counter() - start
    return {"name": name, "version": version, "seconds": seconds, "peak_mb": peak_mb(), "before_mb": before}


def with_xbp(d: Data, epochs: int) -> Json:
    import xbp

    net = xbp.Network(layers(d), backend="numpy")
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(RATE))
    before, start = peak_mb(), time.perf_counter()
    trainer.fit(d["x"], d["t"], epochs=epochs, batch_size=BATCH)
    found = outcome(f"xbp, numpy, {trainer.engine}", str(xbp.__version__), start, before)
    found["accuracy"] = right(np.argmax(np.asarray(net.predict(d["x_test"])), axis=1), d["t_test"])
    found["steps"] = against_steps(trainer, d)
    return found


def layers(d: Data) -> list[Any]:
    import xbp

    widths = (d["x"].shape[1], *HIDDEN, int(d["t"].max()) + 1)
    return [layer for D, M in itertools.pairwise(widths) for layer in (xbp.Affine(D, M), xbp.ReLU())][:-1]


def against_steps(trainer: Any, d: Data) -> Json:
    """An epoch of `fit`, and the same number of single steps on batches that lie ready, in turns."""
    cuts = [slice(i, i + BATCH) for i in range(0, len(d["x"]), BATCH)]
    batches = [(d["x"][rows], d["t"][rows]) for rows in cuts]

    from xbp.benchmark import Load

    def steps() -> None:
        for x, t in batches:
            trainer.step(x, t)

    def fit() -> None:
        trainer.fit(d["x"], d["t"], epochs=1, batch_size=BATCH)

    steps()  # prepares what a single step needs
    load = Load()
    times: dict[str, list[float]] = {"fit": [], "steps": []}
    for i in range(ROUNDS):
        for work in (fit, steps) if i % 2 else (steps, fit):
            times[work.__name__].append(timed(work))
    others, stands = load.others(), ratio(times["fit"], times["steps"])
    step_us = 1e6 * float(np.median(times["steps"])) / len(batches)
    return {
        "ratio": stands["median"],
        "low": stands["low"],
        "high": stands["high"],
        "rounds": ROUNDS,
        "count": len(batches),
        "step_us": step_us,
        "others": round(others, 2) if others >= 0 else None,  # cores; NaN where nobody tells
        "blocks": times,
    }


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def with_sklearn(d: Data, epochs: int) -> Json:
    sklearn = importlib.import_module("sklearn")
    model = importlib.import_module("sklearn.neural_network").MLPClassifier(
        hidden_layer_sizes=HIDDEN,
        alpha=0.0,
        batch_size=BATCH,
        learning_rate_init=RATE,
        max_iter=epochs,
        n_iter_no_change=10**9,  # it never stops by itself
        random_state=0,
    )
    before, start = peak_mb(), time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", importlib.import_module("sklearn.exceptions").ConvergenceWarning)
        model.fit(d["x"], d["t"])
    found = outcome("scikit-learn, MLPClassifier", sklearn.__version__, start, before)
    if {a.dtype for a in model.coefs_} != {d["x"].dtype}:
        raise TypeError(f"scikit-learn computes in {model.coefs_[0].dtype}, not in {d['x'].dtype}.")
    found["accuracy"] = right(model.predict(d["x_test"]), d["t_test"])
    return found


def with_torch(d: Data, epochs: int) -> Json:
    from threads import cores

    torch = importlib.import_module("torch")
    torch.set_num_threads(cores())
    torch.manual_seed(0)
    nn = torch.nn
    widths = (d["x"].shape[1], *HIDDEN, int(d["t"].max()) + 1)
    parts = [part for D, M in itertools.pairwise(widths) for part in (nn.Linear(D, M), nn.ReLU())]
    model = nn.Sequential(*parts[:-1])
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    x, t = torch.from_numpy(d["x"]), torch.from_numpy(d["t"].astype(np.int64))
    before, start = peak_mb(), time.perf_counter()
    for _ in range(epochs):
        losses = []
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            loss = nn.functional.cross_entropy(model(x[rows]), t[rows])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()  # an epoch's loss is read, as xbp's is
    found = outcome("torch, autograd, fused", torch.__version__, start, before)
    with torch.no_grad():
        labels = model(torch.from_numpy(d["x_test"])).argmax(1).numpy()
    found["accuracy"] = right(labels, d["t_test"])
    return found


PEERS: dict[str, tuple[str, Callable[[Data, int], Json]]] = {
    "xbp": ("xbp", with_xbp),
    "sklearn": ("sklearn", with_sklearn),
    "torch": ("torch", with_torch),
}


def train(who: str, folder: Path, epochs: int) -> Json:
    """One training in a process of its own, on the arrays of that folder; and how many cores others used meanwhile."""
    from xbp.benchmark import Load

    load, start, used = Load(), time.monotonic(), children_seconds()
    command = [sys.executable, str(HERE), "--train", who, "--data", str(folder), "--epochs", str(epochs)]
    run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{who} failed:\n{run.stderr}")
    found: Json = json.loads(run.stdout.splitlines()[-1])
    others = load.others() - (children_seconds() - used) / (time.monotonic() - start)
    return {**found, "others": None if math.isnan(others) else round(max(0.0, others), 2)}


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def prepare(source: Path, folder: Path) -> Data:
    """Read and scale the pictures once, for everyone. Ends the program where they are not there."""
    from xbp.datasets import load

    if not source.is_dir():
        sys.exit(
            f"There is no folder {source}. Fashion-MNIST is four IDX files, train-images-idx3-ubyte.gz and so on; "
            "--data names the folder that holds them."
        )
    data = load(source)
    t, t_test = (labels.astype(np.int32) for labels in (data.t, data.t_test))
    arrays = {"x": data.x, "t": t, "x_test": data.x_test, "t_test": t_test}
    for name, a in arrays.items():
        np.save(folder / f"{name}.npy", a)
    return arrays


def row(found: Json) -> str:
    crowd = f"; others used {found['others']} cores" if found["others"] else ""
    return (
        f"{found['name']:<30}{found['seconds']:8.1f} s {100 * found['accuracy']:9.1f} % "
        f"{found['peak_mb']:8.0f} MB ({found['before_mb']:.0f} before){crowd}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of IDX files (%(default)s)")
    parser.add_argument("--threads", type=int, help="for every library (one a core)")
    parser.add_argument("--out", type=Path, default=RESULTS / "fashion.json", help="(bench/results/fashion.json)")
    parser.add_argument("--train", choices=PEERS, help=argparse.SUPPRESS)  # what each process is started with
    options = parser.parse_args(argv)
    if options.train is not None:
        arrays = {name: np.load(options.data / f"{name}.npy") for name in ("x", "t", "x_test", "t_test")}
        print(json.dumps(PEERS[options.train][1](arrays, options.epochs)))
        return
    if options.threads is not None:  # before any library counts cores: those of the children do
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])

    from threads import cores

    from xbp.benchmark import conditions

    fits: dict[str, Json] = {}
    before = list(os.getloadavg())
    with tempfile.TemporaryDirectory() as folder:
        arrays = prepare(options.data, Path(folder))
        for who, (module, _) in PEERS.items():
            if find_spec(module) is None:
                print(f"{who} is not installed and does not take part.", file=sys.stderr)
                continue
            fits[who] = train(who, Path(folder), options.epochs)
            print(row(fits[who]))
    steps, whole = fits["xbp"]["steps"], fits["xbp"]["seconds"]
    steps["ratio_of_whole_fit"] = whole / (options.epochs * steps["count"] * 1e-6 * steps["step_us"])
    widths = (arrays["x"].shape[1], *HIDDEN, int(arrays["t"].max()) + 1)
    settings = {
        "epochs": options.epochs,
        "rows": len(arrays["x"]),
        "steps": steps["count"],
        "network": "-".join(map(str, widths)),
        "batch": BATCH,
        "threads": cores(),
        "data_mb": sum(a.nbytes for a in arrays.values()) / 1e6,
        "load_average_before": before,
    }
    print(
        f"an epoch of fit: {steps['ratio']:.3f} times its {steps['count']} steps of {steps['step_us']:,.0f} µs "
        f"({steps['low']:.3f}-{steps['high']:.3f}); the whole first fit, compilation included: "
        f"{steps['ratio_of_whole_fit']:.3f}"
    )
    if "sklearn" in fits:
        print(f"scikit-learn takes {fits['sklearn']['seconds'] / fits['xbp']['seconds']:.2f} times as long as xbp")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    found = {**conditions({}), "settings": settings, "fashion": fits}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written to {options.out}", file=sys.stderr)


if __name__ == "__main__":
    main()
