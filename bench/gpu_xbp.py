"""xbp in the GPU benchmark: `Trainer.step`, many steps of a Runner, and whole epochs of `fit`; and what xbp can tell.

On a machine without a GPU the same class runs on NumPy, which is how the benchmark itself is tested.
"""

from __future__ import annotations

import itertools
import logging
from typing import Any

import numpy as np
from gpu_contest import FIRST_SCALE, Way, chosen_rows, steps_together

import xbp
from xbp.backend import Backend
from xbp.benchmark import Case
from xbp.scaling import FACTOR

__all__ = ["Own", "digits", "transfers"]

EPOCHS = 4  # of one call of `fit`


class Own:
    """xbp on one engine of CuPy, or of NumPy."""

    def __init__(self, case: Case, precision: str, device: str, engine: str) -> None:
        self.backend = backend = backend_on(device)
        if device == "cpu" and engine == "graph":
            engine = backend.engines[0]  # the host's best, which is not what this benchmark is about
        self.case, self.precision, self.engine, self.version = case, precision, engine, xbp.__version__
        self.net = xbp.Network(case.layers(), backend=backend, dtype=case.dtype)
        self.trainer = xbp.Trainer(
            self.net, loss=xbp.SoftmaxCrossEntropy(), optimizer=case.optimizer, engine=engine, precision=precision
        )
        if self.trainer.engine != engine:
            raise ValueError(f"{backend!r} has no engine {engine!r} here; it would be {self.trainer.engine!r}.")
        self._start = case.weights()
        self.net.load_params(self._start)
        self._x, self._t = (backend.asarray(a) for a in case.data())
        rows = [slice(i * case.batch, (i + 1) * case.batch) for i in range(case.steps)]
        self._all = [(self._x[r, :], self._t[r]) for r in rows]
        self._batches = itertools.cycle(self._all)
        self._runner: Any = None
        self.ways = {"step": Way(self._step)}
        if engine != "eager":
            self.ways |= {"many": Way(self._many, steps_together(case)), "fit": Way(self._fit, EPOCHS * case.steps)}
        self._told = _Told()

    def _step(self) -> Any:
        loss = self.trainer.step(*next(self._batches))
        if self.trainer.engine != self.engine:
            raise RuntimeError(" ".join(self._told.lines) or f"{self.engine!r} gave up without a word.")
        return loss

    def _fit(self) -> Any:
        history = self.trainer.fit(self._x, self._t, epochs=EPOCHS, batch_size=self.case.batch)
        return np.asarray(history["loss"][-1:])

    def _many(self) -> Any:
        return self._runner.run(self._x, self._t, None, self._index, self._rates)

    def restart(self, way: str) -> None:
        self._batches = itertools.cycle(self._all)
        if way != "many":
            self.net.load_params(self._start)
            self._forget()
            return
        if self._runner is None:  # one of its own, by the backend's public contract
            backend, step = self.backend, self.trainer._step
            self._runner = backend.compile(self.trainer.program, self.engine)
            self._index = backend.asarray(chosen_rows(self.case))
            rate = self.case.optimizer.lr  # type: ignore[attr-defined]  # every rule has a rate
            self._rates = {"lr": backend.asarray(np.full(steps_together(self.case), rate, dtype=np.float32))}
            params = {name: backend.asarray(a) for name, a in self._start.items()}
            state = self._with_scale(step.init(params, xp=backend.xp))
            self._beginning = {"params": params, "buffers": {}, "state": state}
        self._runner.load(self._beginning)

    def _forget(self) -> None:
        """Start over: the optimiser remembers no step, and everybody's loss scale is the same."""
        trainer = self.trainer
        params = {name: trainer.model.params[name] for name in trainer.model.params}
        trainer.steps = 0
        trainer._load({**trainer._tree(), "state": self._with_scale(trainer._step.init(params, xp=self.backend.xp))})

    def _with_scale(self, state: Any) -> dict[str, Any]:
        """An optimiser's state with the loss scale that everybody starts from."""
        if FACTOR not in state:
            return dict(state)
        return {**state, FACTOR: self.backend.asarray(np.float32(FIRST_SCALE))}

    def numbers(self, losses: Any) -> np.ndarray:
        return self.backend.to_host(losses) if self.backend.owns(losses) else np.asarray(losses)

    def params(self, way: str) -> list[np.ndarray]:
        found = self._runner.read()["params"] if way == "many" else self.net.params
        return [self.backend.to_host(found[name]) for name in self._start]

    def synchronize(self) -> None:
        self.backend.synchronize()

    def mark(self) -> Any:
        if self.backend.name != "cupy":
            return None
        import cupy

        event = cupy.cuda.Event()
        event.record()
        return event

    def between(self, start: Any, stop: Any) -> float:
        import cupy

        return float(cupy.cuda.get_elapsed_time(start, stop)) / 1e3

    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = {"launches": launches(self._runner)}
        used = self.backend.memory()
        if "reserved" in used:
            found |= {"memory": used["reserved"], "memory_is": "what its pool has, for two Runners of the same step"}
        return found


class _Told(logging.Handler):
    """What xbp logs: why an engine gave up."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        logging.getLogger("xbp").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def backend_on(device: str) -> Backend:
    return xbp.get_backend("numpy" if device == "cpu" else "cupy")


def launches(runner: Any) -> int | None:
    """Kernels and products of a step, where the Runner knows them."""
    found = getattr(runner, "launches", None)
    return found if isinstance(found, int) else None


def transfers(case: Case, device: str, engine: str) -> dict[str, int]:
    """What an epoch of `fit` moves between host and device: copies and bytes, as the difference of longer fits."""
    own = Own(case, "float32", device, engine)
    counts = []
    for epochs in (1, 1, 3):
        before = dict(vars(own.backend.transfers))
        own.trainer.fit(own._x, own._t, epochs=epochs, batch_size=case.batch)
        counts.append({name: n - before[name] for name, n in vars(own.backend.transfers).items()})
    return {name: (counts[2][name] - counts[1][name]) // 2 for name in counts[0]}


def digits(device: str, engines: list[str]) -> dict[str, float]:
    """Test accuracies of the same training on scikit-learn's digits: NumPy's, and each precision's of the device."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, t = (data.data[order] / 16.0).astype(np.float32), data.target[order]
    host = xbp.get_backend("numpy")
    there = backend_on(device)
    runs = [("numpy, eager, float32", host, "eager", "float32")]
    runs += [(f"{there.name}, {e}, {p}", there, e, p) for e in engines for p in there.precisions]
    found: dict[str, float] = {}
    for name, backend, engine, precision in runs:
        layers = [xbp.Affine(64, 64), xbp.ReLU(), xbp.Affine(64, 32), xbp.ReLU(), xbp.Affine(32, 10)]
        net = xbp.Network(layers, backend=backend, seed=0)
        trainer = xbp.Trainer(
            net,
            loss=xbp.SoftmaxCrossEntropy(),
            optimizer=xbp.Adam(3e-3),
            metrics=["accuracy"],
            engine=engine,
            precision=precision,
        )
        trainer.fit(x[:1000], t[:1000], epochs=15, batch_size=50)
        found[name] = trainer.evaluate(x[1000:], t[1000:])["accuracy"]
    return found
