"""PyTorch in the GPU benchmark: autograd with a fused optimiser, a captured graph of whole steps, torch.compile.

Each is its fastest ordinary form. The graph is captured by hand as PyTorch's manual shows it, once for a step and once
for many; torch.compile gets the whole step as one function, backward by hand, with parameters at fixed addresses, so
that its modes with CUDA graphs can use them.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from gpu_contest import FIRST_SCALE, Way, chosen_rows, steps_together

from xbp.benchmark import Case

__all__ = ["TorchAutograd", "TorchCompiled", "TorchGraph"]

HALF = {"mixed-bfloat16": "bfloat16", "mixed-float16": "float16"}
EVERY = 2000  # good steps after which the loss scale is doubled, as in torch.amp


class _Torch:
    """What the three have in common: the data on the device, events, memory."""

    def __init__(self, case: Case, precision: str, device: str) -> None:
        self._torch = torch = importlib.import_module("torch")
        self.case, self.precision, self.device, self.version = case, precision, device, torch.__version__
        self._cuda = device != "cpu"
        if precision == "tf32" and not self._cuda:
            raise ValueError("A CPU has no TF32.")
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        half = HALF.get(precision)
        self._half = None if half is None else getattr(torch, half)
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        x, t = case.data()
        self._x = torch.tensor(x, device=device)
        self._t = torch.tensor(t.astype(np.int64), device=device)  # the only integers that its loss takes
        self._index = torch.tensor(chosen_rows(case).astype(np.int64), device=device)
        rows = [slice(i * case.batch, (i + 1) * case.batch) for i in range(case.steps)]
        self._all = [(self._x[r], self._t[r]) for r in rows]
        self._rate = case.optimizer.lr  # type: ignore[attr-defined]  # every rule has a rate
        self._adam = type(case.optimizer).__name__ == "Adam"
        self.ways: dict[str, Way] = {}

    def rewind(self) -> None:
        """The next batch is the first one."""
        self._batches = itertools.cycle(self._all)

    def numbers(self, losses: Any) -> np.ndarray:
        found: np.ndarray = losses.detach().float().cpu().numpy()
        return found

    def synchronize(self) -> None:
        if self._cuda:
            self._torch.cuda.synchronize()

    def mark(self) -> Any:
        if not self._cuda:
            return None
        event = self._torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, stop: Any) -> float:
        return float(start.elapsed_time(stop)) / 1e3

    def told(self) -> dict[str, Any]:
        if not self._cuda:
            return {}
        return {"memory": self._torch.cuda.max_memory_reserved(), "memory_is": "the most that its pool had"}


class TorchAutograd(_Torch):
    """`nn.Sequential`, autograd, autocast in mixed precision, a fused optimiser."""

    engine = "autograd, fused"
    capturable = False

    def __init__(self, case: Case, precision: str, device: str) -> None:
        super().__init__(case, precision, device)
        torch, nn = self._torch, self._torch.nn
        layers = [f for D, M in itertools.pairwise(case.widths) for f in (nn.Linear(D, M, device=device), nn.ReLU())]
        self._model = nn.Sequential(*layers[:-1])
        self._start = [torch.tensor(a.T if a.ndim == 2 else a, device=device).contiguous() for a in self._weights()]
        options = {"capturable": True} if self.capturable and self._adam else {}
        rule = torch.optim.Adam if self._adam else torch.optim.SGD
        self._optimizer = rule(self._model.parameters(), lr=self._rate, fused=True, **options)
        scaled = precision == "mixed-float16"
        self._scaler = torch.amp.GradScaler(device, init_scale=FIRST_SCALE, enabled=scaled)
        self._put(self._start)
        self.rewind()
        self.ways = {"step": Way(self._step)}

    def _weights(self) -> list[np.ndarray]:
        return list(self.case.weights().values())

    def _put(self, values: list[Any]) -> None:
        with self._torch.no_grad():
            for p, value in zip(self._model.parameters(), values, strict=True):
                p.copy_(value)

    def _narrow(self) -> AbstractContextManager[object]:
        if self._half is None:
            return nullcontext()
        narrow: AbstractContextManager[object] = self._torch.autocast(self.device, dtype=self._half)
        return narrow

    def train(self, x: Any, t: Any) -> Any:
        """One step."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._narrow():
            loss = self._torch.nn.functional.cross_entropy(self._model(x), t)
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return loss.detach()

    def _step(self) -> Any:
        return self.train(*next(self._batches))

    def restart(self, way: str) -> None:
        self._put(self._start)
        for state in self._optimizer.state.values():
            for value in state.values():
                if self._torch.is_tensor(value):
                    value.zero_()
        self.rewind()

    def params(self, way: str) -> list[np.ndarray]:
        host = [p.detach().cpu().numpy() for p in self._model.parameters()]
        return [a.T if a.ndim == 2 else a for a in host]


class TorchGraph(TorchAutograd):
    """The same step, captured whole: one graph of a step on a batch that is copied in, one of many that gather rows."""

    engine = "CUDA graph of whole steps, fused"
    capturable = True

    def __init__(self, case: Case, precision: str, device: str) -> None:
        super().__init__(case, precision, device)
        if not self._cuda:
            raise ValueError("A CUDA graph needs a CUDA device.")
        torch = self._torch
        self._x_now, self._t_now = (a.clone() for a in self._all[0])
        self._many_losses = torch.zeros(steps_together(case), device=device)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.train(self._x_now, self._t_now)
        torch.cuda.current_stream().wait_stream(side)
        self._one, self._loss = self._captured(lambda: self.train(self._x_now, self._t_now))
        self._many, _ = self._captured(self._gathered)
        self.ways = {"step": Way(self._replayed), "many": Way(self._replayed_many, steps_together(case))}
        self.restart("step")

    def _captured(self, work: Callable[[], Any]) -> tuple[Any, Any]:
        graph = self._torch.cuda.CUDAGraph()
        self._optimizer.zero_grad(set_to_none=True)  # gradients are to lie in the graph's own memory
        with self._torch.cuda.graph(graph):
            result = work()
        return graph, result

    def _gathered(self) -> None:
        for k in range(steps_together(self.case)):
            rows = self._index[k]
            self._many_losses[k].copy_(self.train(self._x.index_select(0, rows), self._t.index_select(0, rows)))

    def _replayed(self) -> Any:
        x, t = next(self._batches)
        self._x_now.copy_(x)
        self._t_now.copy_(t)
        self._one.replay()
        return self._loss

    def _replayed_many(self) -> Any:
        self._many.replay()
        return self._many_losses


class TorchCompiled(_Torch):
    """One compiled function a step: backward by hand, parameters and averages updated where they lie."""

    mode = "reduce-overhead"

    def __init__(self, case: Case, precision: str, device: str) -> None:
        super().__init__(case, precision, device)
        torch = self._torch
        self.engine = f"compile, {self.mode}"
        self._start = [torch.tensor(a, device=device) for a in case.weights().values()]
        self._params = [a.clone() for a in self._start]
        self._m = [torch.zeros_like(a) for a in self._start]
        self._v = [torch.zeros_like(a) for a in self._start]
        self._count = torch.zeros((), dtype=torch.int32, device=device)
        self._scale = torch.full((), FIRST_SCALE, device=device)
        self._good = torch.zeros((), dtype=torch.int32, device=device)
        for a in (*self._params, *self._m, *self._v, self._count, self._scale, self._good):
            torch._dynamo.mark_static_address(a, guard=False)  # else its graphs refuse what is written to
        options = {"mode": self.mode} if self._cuda else {}  # the modes are about a GPU
        self._compiled = torch.compile(self._train, fullgraph=True, dynamic=False, **options)
        self._skipped_before = self._skips()
        self.rewind()
        self.ways = {"step": Way(self._step)}

    def _step(self) -> Any:
        if self._cuda:
            self._torch.compiler.cudagraph_mark_step_begin()
        x, t = next(self._batches)
        return self._compiled(self._params, self._m, self._v, self._count, self._scale, self._good, x, t)

    def _train(
        self, params: list[Any], m: list[Any], v: list[Any], count: Any, scale: Any, good: Any, x: Any, t: Any
    ) -> Any:
        torch, half = self._torch, self._half
        scaled = self.precision == "mixed-float16"
        low = params if half is None else [p.to(half) for p in params]
        hidden = [x if half is None else x.to(half)]
        for W, b in zip(low[:-2:2], low[1:-2:2], strict=True):
            hidden.append(torch.relu(torch.addmm(b, hidden[-1], W)))
        logs = torch.log_softmax(torch.addmm(low[-1], hidden[-1], low[-2]).float(), 1)
        loss = -logs.gather(1, t[:, None]).mean()
        d = (logs.exp() - (t[:, None] == torch.arange(logs.shape[1], device=t.device)).to(logs.dtype)) / len(t)
        d = d * scale if scaled else d
        d = d if half is None else d.to(half)
        grads: list[Any] = []
        for i in range(len(hidden) - 1, -1, -1):
            grads = [hidden[i].T @ d, d.sum(0), *grads]
            if i:
                d = torch.where(hidden[i] > 0, d @ low[2 * i].T, 0.0)
        grads = [g.float() for g in grads]
        taken = None
        if scaled:
            grads = [g / scale for g in grads]
            taken = torch.stack([g.isfinite().all() for g in grads]).all()
            good.copy_(torch.where(taken, (good + 1) % EVERY, 0))
            scale.copy_(torch.where(taken, torch.where(good == 0, 2.0 * scale, scale), 0.5 * scale))
        self._update(params, m, v, count, grads, taken)
        return loss

    def _update(self, params: list[Any], m: list[Any], v: list[Any], count: Any, grads: list[Any], taken: Any) -> None:
        torch, rate = self._torch, self._rate

        def put(old: Any, new: Any) -> None:
            old.copy_(new if taken is None else torch.where(taken, new, old))

        if not self._adam:
            for p, g in zip(params, grads, strict=True):
                put(p, p - rate * g)
            return
        put(count, count + 1)
        far, wide = 1 - torch.pow(0.9, count), 1 - torch.pow(0.999, count)
        for p, a, b, g in zip(params, m, v, grads, strict=True):
            put(a, 0.9 * a + 0.1 * g)
            put(b, 0.999 * b + 0.001 * g * g)
            put(p, p - rate * (a / far) / ((b / wide).sqrt() + 1e-8))

    def restart(self, way: str) -> None:
        for p, value in zip(self._params, self._start, strict=True):
            p.copy_(value)
        for a in (*self._m, *self._v, self._count, self._good):
            a.zero_()
        self._scale.fill_(FIRST_SCALE)
        self.rewind()

    def params(self, way: str) -> list[np.ndarray]:
        return [p.cpu().numpy() for p in self._params]

    def told(self) -> dict[str, Any]:
        """Where a CUDA graph was skipped, its mode was not what its name says."""
        return {**super().told(), "graphs_skipped": self._skips() - self._skipped_before}

    def _skips(self) -> int:
        return int(self._torch._dynamo.utils.counters["inductor"]["cudagraph_skips"])
