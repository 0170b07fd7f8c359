"""The peers: the libraries that a reader would otherwise use, each in its fastest ordinary form, as contestants.

They start from xbp's weights, train on the same batches in the same precision, and `xbp.benchmark.verify` compares
their losses with xbp's before they are timed. Whatever is not installed does not take part.
"""

from __future__ import annotations

import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from products import LIMIT, Products

from xbp import available_backends
from xbp.benchmark import Case, Contestant, Training

__all__ = ["Jax", "ScikitLearn", "Torch", "TorchCompiled", "entrants", "is_peer"]


def batches(case: Case, x: Any, t: Any) -> Iterator[tuple[Any, Any]]:
    """The batches of an epoch in the order of the rows, over and over, as `xbp.benchmark.Training` takes them."""
    rows = [slice(i * case.batch, (i + 1) * case.batch) for i in range(case.steps)]
    return itertools.cycle([(x[r], t[r]) for r in rows])


class ScikitLearn:
    """`MLPClassifier`: `partial_fit` on a batch, and `fit` for whole epochs."""

    engine = "MLPClassifier"
    device = "cpu"

    def __init__(self, case: Case) -> None:
        sklearn = importlib.import_module("sklearn")
        self._classifier = importlib.import_module("sklearn.neural_network").MLPClassifier
        self._warning = importlib.import_module("sklearn.exceptions").ConvergenceWarning
        self.case, self.library, self.version = case, "scikit-learn", sklearn.__version__
        self.name = "scikit-learn, MLPClassifier"
        weights = case.weights()
        self._start = [[a for name, a in weights.items() if name.endswith(kind)] for kind in (".W", ".b")]
        self._x, self._t = case.data()
        self._batches = batches(case, self._x, self._t)
        self._stepping = self._model(shuffle=False)  # a batch is one batch: shuffling it would only copy it
        self._fitting = self._model(shuffle=True).set_params(warm_start=True)

    def _model(self, shuffle: bool) -> Any:
        adam = type(self.case.optimizer).__name__ == "Adam"
        # It adds epsilon to the root of a v that is not corrected yet, in the first steps about a tenth of ours.
        ours = {"solver": "adam", "epsilon": 1e-9}
        options = ours if adam else {"solver": "sgd", "momentum": 0.0, "nesterovs_momentum": False}
        model = self._classifier(
            hidden_layer_sizes=self.case.widths[1:-1],
            alpha=0.0,
            batch_size=self.case.batch,
            learning_rate_init=self.case.optimizer.lr,  # type: ignore[attr-defined]  # every rule has a rate
            shuffle=shuffle,
            n_iter_no_change=10**9,  # it never stops by itself
            random_state=0,
            **options,
        )
        model.partial_fit(
            self._x[: self.case.batch], self._t[: self.case.batch], classes=np.arange(self.case.widths[-1])
        )
        if {a.dtype.name for a in model.coefs_} != {self.case.dtype}:
            raise TypeError(f"{self.name} computes in {model.coefs_[0].dtype}, not in {self.case.dtype}.")
        del model._optimizer  # its averages are of a step that is to be forgotten; the next step makes a new one
        self._reset(model)
        return model

    def _reset(self, model: Any) -> None:
        for arrays, start in zip((model.coefs_, model.intercepts_), self._start, strict=True):
            for a, value in zip(arrays, start, strict=True):
                a[...] = value

    def restart(self) -> None:
        self._reset(self._stepping)
        self._reset(self._fitting)

    def step(self) -> float:
        self._stepping.partial_fit(*next(self._batches))
        return float(self._stepping.loss_)

    def epochs(self, n: int) -> float:
        self._fitting.max_iter = n
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._warning)  # that it has not converged is no news
            self._fitting.fit(self._x, self._t)
        return float(self._fitting.loss_)

    def number(self, loss: float) -> float:
        return loss

    def synchronize(self) -> None:
        """It returns when it is done."""


class Torch:
    """PyTorch as its tutorials use it: `nn.Sequential`, autograd, `torch.optim`, rows taken by a tensor of indices.

    kind    how its optimiser works: "fused", one kernel for all parameters, or "foreach", one for a list of them
    """

    def __init__(self, case: Case, kind: str, device: str = "cpu") -> None:
        self._torch = torch = importlib.import_module("torch")
        self.case, self.library, self.version, self.device = case, "torch", torch.__version__, device
        self.engine = f"autograd, {kind}"
        self.name = f"{self.library}, {self.engine}"
        nn, dtype = torch.nn, getattr(torch, case.dtype)
        widths = itertools.pairwise(case.widths)
        layers = [f for D, M in widths for f in (nn.Linear(D, M, device=device, dtype=dtype), nn.ReLU())]
        self._model = nn.Sequential(*layers[:-1])
        self._start = [
            torch.tensor(a.T if a.ndim == 2 else a, device=device).contiguous() for a in case.weights().values()
        ]
        self.restart()
        rule = getattr(torch.optim, type(case.optimizer).__name__)
        rate = case.optimizer.lr  # type: ignore[attr-defined]  # every rule has a rate
        self._optimizer = rule(self._model.parameters(), lr=rate, **{kind: True})
        self._loss = nn.functional.cross_entropy
        x, t = case.data()
        self._x = torch.tensor(x, device=device)
        self._t = torch.tensor(t.astype(np.int64), device=device)  # the only integers that its loss takes
        self._batches = batches(case, self._x, self._t)

    def restart(self) -> None:
        with self._torch.no_grad():
            for p, value in zip(self._model.parameters(), self._start, strict=True):
                p.copy_(value)

    def step(self) -> Any:
        return self._train(*next(self._batches))

    def _train(self, x: Any, t: Any) -> Any:
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(self._model(x), t)
        loss.backward()
        self._optimizer.step()
        return loss.detach()

    def epochs(self, n: int) -> float:
        losses: list[Any] = []
        for _ in range(n):
            order = self._torch.randperm(len(self._x), device=self.device)
            losses = [self._train(self._x[rows], self._t[rows]) for rows in order.split(self.case.batch)]
            losses = [self._torch.stack(losses).mean().item()]  # an epoch's loss is read, as xbp's is
        return float(losses[0])

    def number(self, loss: Any) -> float:
        return float(loss)

    def synchronize(self) -> None:
        if self.device != "cpu":
            self._torch.cuda.synchronize()


class TorchCompiled:
    """PyTorch as one compiled function a step: backward written by hand, parameters and averages updated in place."""

    engine = "compile, by hand"

    def __init__(self, case: Case, device: str = "cpu") -> None:
        self._torch = torch = importlib.import_module("torch")
        self.case, self.library, self.version, self.device = case, "torch", torch.__version__, device
        self.name = f"{self.library}, {self.engine}"
        self._start = [torch.tensor(a, device=device) for a in case.weights().values()]
        self._params = [a.clone() for a in self._start]
        self._m = [torch.zeros_like(a) for a in self._start]
        self._v = [torch.zeros_like(a) for a in self._start]
        self._count = torch.zeros((), dtype=torch.int32, device=device)
        x, t = case.data()
        self._x = torch.tensor(x, device=device)
        self._t = torch.tensor(t.astype(np.int64), device=device)
        self._batches = batches(case, self._x, self._t)
        self._compiled = torch.compile(self._train, fullgraph=True, dynamic=False)

    def restart(self) -> None:
        for p, value in zip(self._params, self._start, strict=True):
            p.copy_(value)

    def _train(self, params: list[Any], m: list[Any], v: list[Any], count: Any, x: Any, t: Any) -> Any:
        torch, rate = self._torch, self.case.optimizer.lr  # type: ignore[attr-defined]  # every rule has a rate
        hidden = [x]
        for W, b in zip(params[:-2:2], params[1:-2:2], strict=True):
            hidden.append(torch.relu(torch.addmm(b, hidden[-1], W)))
        logs = torch.log_softmax(torch.addmm(params[-1], hidden[-1], params[-2]), 1)
        loss = -logs.gather(1, t[:, None]).mean()
        d = (logs.exp() - (t[:, None] == torch.arange(logs.shape[1], device=t.device)).to(logs.dtype)) / len(t)
        grads: list[Any] = []
        for i in range(len(hidden) - 1, -1, -1):
            grads = [hidden[i].T @ d, d.sum(0), *grads]
            if i:
                d = torch.where(hidden[i] > 0, d @ params[2 * i].T, 0.0)
        if type(self.case.optimizer).__name__ != "Adam":
            for p, g in zip(params, grads, strict=True):
                p.sub_(g, alpha=rate)
            return loss
        count.add_(1)
        for p, m_, v_, g in zip(params, m, v, grads, strict=True):
            m_.mul_(0.9).add_(g, alpha=0.1)
            v_.mul_(0.999).addcmul_(g, g, value=0.001)
            p.sub_(rate * (m_ / (1 - 0.9**count)) / ((v_ / (1 - 0.999**count)).sqrt() + 1e-8))
        return loss

    def step(self) -> Any:
        return self._step(*next(self._batches))

    def _step(self, x: Any, t: Any) -> Any:
        return self._compiled(self._params, self._m, self._v, self._count, x, t)

    def epochs(self, n: int) -> float:
        loss = float("nan")
        for _ in range(n):
            order = self._torch.randperm(len(self._x), device=self.device)
            losses = [self._step(self._x[rows], self._t[rows]) for rows in order.split(self.case.batch)]
            loss = self._torch.stack(losses).mean().item()
        return loss

    def number(self, loss: Any) -> float:
        return float(loss)

    def synchronize(self) -> None:
        if self.device != "cpu":
            self._torch.cuda.synchronize()


class Jax:
    """JAX as one jitted function a step, and one an epoch, which is a scan; what they train is donated to them."""

    engine = "jit, by hand"

    def __init__(self, case: Case) -> None:
        self._jax = jax = importlib.import_module("jax")
        self.case, self.library, self.version = case, "jax", jax.__version__
        self.name = f"{self.library}, {self.engine}"
        self._start = list(case.weights().values())
        x, t = case.data()
        self._x, self._t = jax.numpy.asarray(x), jax.numpy.asarray(t)
        self.device = str(self._x.device)
        self._batches = batches(case, self._x, self._t)
        self._step = jax.jit(self._train, donate_argnums=0)
        self._epoch = jax.jit(self._scan, donate_argnums=0)
        self._key = jax.random.key(0)
        zeros = [np.zeros_like(a) for a in self._start]
        adam = type(case.optimizer).__name__ == "Adam"
        averages = (zeros, zeros, np.int32(0)) if adam else ()
        self._state: Any = jax.tree.map(jax.numpy.array, (self._start, *averages))
        self.restart()

    def restart(self) -> None:
        self._state = ([self._jax.numpy.array(a) for a in self._start], *self._state[1:])

    def _loss(self, params: list[Any], x: Any, t: Any) -> Any:
        for W, b in zip(params[:-2:2], params[1:-2:2], strict=True):
            x = self._jax.nn.relu(x @ W + b)
        logs = self._jax.nn.log_softmax(x @ params[-2] + params[-1])
        return -self._jax.numpy.take_along_axis(logs, t[:, None], axis=1).mean()

    def _train(self, state: Any, x: Any, t: Any) -> tuple[Any, Any]:
        sqrt, rate = self._jax.numpy.sqrt, self.case.optimizer.lr  # type: ignore[attr-defined]  # every rule has a rate
        params, *averages = state
        loss, grads = self._jax.value_and_grad(self._loss)(params, x, t)
        if not averages:
            return ([p - rate * g for p, g in zip(params, grads, strict=True)],), loss
        m, v, count = averages
        count = count + 1
        m = [0.9 * a + 0.1 * g for a, g in zip(m, grads, strict=True)]
        v = [0.999 * a + 0.001 * g * g for a, g in zip(v, grads, strict=True)]
        far, wide = 1 - 0.9**count, 1 - 0.999**count
        params = [p - rate * (a / far) / (sqrt(b / wide) + 1e-8) for p, a, b in zip(params, m, v, strict=True)]
        return (params, m, v, count), loss

    def _scan(self, state: Any, x: Any, t: Any, key: Any) -> tuple[Any, Any]:
        index = self._jax.random.permutation(key, len(x)).reshape(-1, self.case.batch)
        return self._jax.lax.scan(lambda s, rows: self._train(s, x[rows], t[rows]), state, index)  # type: ignore[no-any-return]

    def step(self) -> Any:
        self._state, loss = self._step(self._state, *next(self._batches))
        return loss

    def epochs(self, n: int) -> float:
        loss = float("nan")
        for _ in range(n):
            self._key, key = self._jax.random.split(self._key)
            self._state, losses = self._epoch(self._state, self._x, self._t, key)
            loss = float(losses.mean())
        return loss

    def number(self, loss: Any) -> float:
        return float(loss)

    def synchronize(self) -> None:
        self._jax.block_until_ready(self._state)


Entrant = Callable[[Case], Contestant]


def entrants() -> dict[str, Entrant]:
    """Everyone who can take part here, by name: xbp on each engine of each backend, the peers, and the limit."""
    found: dict[str, Entrant] = {}
    cuda = False
    for info in available_backends():
        if info.available:
            cuda = cuda or "cuda" in info.device.lower()
            for engine in info.engines:
                found[f"xbp, {info.name}, {engine}"] = partial(Training, backend=info.name, engine=engine)
    if find_spec("sklearn") is not None:
        found["scikit-learn, MLPClassifier"] = ScikitLearn
    if find_spec("torch") is not None:
        for kind in ("fused", "foreach"):
            found[f"torch, autograd, {kind}"] = partial(Torch, kind=kind)
        found["torch, compile, by hand"] = TorchCompiled
    if find_spec("jax") is not None:
        found["jax, jit, by hand"] = Jax
    if cuda and find_spec("torch") is not None and importlib.import_module("torch").cuda.is_available():
        found["torch, autograd, fused, cuda"] = partial(Torch, kind="fused", device="cuda")
    found[LIMIT] = Products
    return found


def is_peer(contestant: Contestant) -> bool:
    """Whether it is not xbp; a peer's epochs have an order of the rows of their own."""
    return not isinstance(contestant, Training)
