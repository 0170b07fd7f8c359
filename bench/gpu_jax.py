"""JAX in the GPU benchmark: one jitted function a step, and one for many, which is a scan; both own what they train.

The precision of products is named in each of them: by default JAX takes TF32 where a device has it. Mixed precision is
casts, as JAX has no switch for it.
"""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
from gpu_contest import FIRST_SCALE, Way, chosen_rows, steps_together

from xbp.benchmark import Case

__all__ = ["Jax"]

HALF = {"mixed-bfloat16": "bfloat16", "mixed-float16": "float16"}
EVERY = 2000  # good steps after which the loss scale is doubled


class Jax:
    """JAX, by hand but for the gradient."""

    engine = "jit, scan"

    def __init__(self, case: Case, precision: str, device: str) -> None:
        self._jax = jax = importlib.import_module("jax")
        self.case, self.precision, self.version = case, precision, jax.__version__
        kind = "cpu" if device == "cpu" else "gpu"
        if precision == "tf32" and kind == "cpu":
            raise ValueError("A CPU has no TF32.")
        self._device = jax.devices(kind)[0]
        half = HALF.get(precision)
        self._half = None if half is None else getattr(jax.numpy, half)
        levels = jax.lax.Precision
        self._products = {"float32": levels.HIGHEST, "tf32": levels.HIGH}.get(precision, levels.DEFAULT)
        self._rate = case.optimizer.lr  # type: ignore[attr-defined]  # every rule has a rate
        self._adam = type(case.optimizer).__name__ == "Adam"
        self._start = list(case.weights().values())
        x, t = case.data()
        self._x, self._t = (jax.device_put(a, self._device) for a in (x, t))
        self._index = jax.device_put(chosen_rows(case), self._device)
        rows = [slice(i * case.batch, (i + 1) * case.batch) for i in range(case.steps)]
        # Cut on the host: cutting on the device may compile something for each batch.
        self._all = [(jax.device_put(x[r], self._device), jax.device_put(t[r], self._device)) for r in rows]
        self._stepping = jax.jit(self._train, donate_argnums=0)
        self._scanning = jax.jit(self._scan, donate_argnums=0)
        self._states: dict[str, Any] = {}
        self.ways = {"step": Way(self._step), "many": Way(self._many, steps_together(case))}
        self.restart("step")

    def restart(self, way: str) -> None:
        zeros = [np.zeros_like(a) for a in self._start]
        averages = (zeros, zeros, np.int32(0)) if self._adam else ()
        scale = (np.float32(FIRST_SCALE), np.int32(0)) if self.precision == "mixed-float16" else ()
        # A new state, and copies: what is donated must not be anybody else's, least of all NumPy's.
        made = self._jax.tree.map(lambda a: self._jax.numpy.array(a, copy=True), (self._start, averages, scale))
        self._states = {way: self._jax.device_put(made, self._device)}
        self._batches = itertools.cycle(self._all)

    # --- the step -------------------------------------------------------------------------------------------------

    def _loss(self, params: list[Any], scale: Any, x: Any, t: Any) -> tuple[Any, Any]:
        jax, half = self._jax, self._half
        low = params if half is None else [p.astype(half) for p in params]
        h = x if half is None else x.astype(half)
        for k in range(0, len(low) - 2, 2):
            h = jax.nn.relu(jax.numpy.matmul(h, low[k], precision=self._products) + low[k + 1])
        y = jax.numpy.matmul(h, low[-2], precision=self._products) + low[-1]
        logs = jax.nn.log_softmax(y.astype(jax.numpy.float32))
        loss = -jax.numpy.take_along_axis(logs, t[:, None], axis=1).mean()
        return loss * scale, loss

    def _train(self, state: Any, x: Any, t: Any) -> tuple[Any, Any]:
        jax = self._jax
        params, averages, scaling = state
        scale = scaling[0] if scaling else 1.0
        (_, loss), grads = jax.value_and_grad(self._loss, has_aux=True)(params, scale, x, t)
        if not scaling:
            return (*self._updated(params, averages, grads), ()), loss
        grads = [g / scale for g in grads]
        taken = jax.numpy.all(jax.numpy.stack([jax.numpy.isfinite(g).all() for g in grads]))
        new = self._updated(params, averages, grads)
        kept = jax.tree.map(lambda a, b: jax.numpy.where(taken, a, b), new, (params, averages))
        good = jax.numpy.where(taken, (scaling[1] + 1) % EVERY, 0)
        grown = jax.numpy.where(good == 0, 2.0 * scale, scale)
        return (*kept, (jax.numpy.where(taken, grown, 0.5 * scale), good)), loss

    def _updated(self, params: list[Any], averages: Any, grads: list[Any]) -> tuple[Any, Any]:
        rate = self._rate
        if not self._adam:
            return [p - rate * g for p, g in zip(params, grads, strict=True)], ()
        m, v, count = averages
        count = count + 1
        m = [0.9 * a + 0.1 * g for a, g in zip(m, grads, strict=True)]
        v = [0.999 * a + 0.001 * g * g for a, g in zip(v, grads, strict=True)]
        far, wide, sqrt = 1 - 0.9**count, 1 - 0.999**count, self._jax.numpy.sqrt
        params = [p - rate * (a / far) / (sqrt(b / wide) + 1e-8) for p, a, b in zip(params, m, v, strict=True)]
        return params, (m, v, count)

    def _scan(self, state: Any, x: Any, t: Any, index: Any) -> tuple[Any, Any]:
        result: tuple[Any, Any] = self._jax.lax.scan(lambda s, rows: self._train(s, x[rows], t[rows]), state, index)
        return result

    def _step(self) -> Any:
        self._states["step"], loss = self._stepping(self._states["step"], *next(self._batches))
        return loss

    def _many(self) -> Any:
        self._states["many"], losses = self._scanning(self._states["many"], self._x, self._t, self._index)
        return losses

    # --- the rest -------------------------------------------------------------------------------------------------

    def numbers(self, losses: Any) -> np.ndarray:
        return np.asarray(losses, dtype=np.float32)

    def params(self, way: str) -> list[np.ndarray]:
        return [np.asarray(p) for p in self._states[way][0]]

    def synchronize(self) -> None:
        self._jax.block_until_ready(self._states)

    def mark(self) -> Any:
        return None  # it has no events

    def between(self, start: Any, stop: Any) -> float:
        raise NotImplementedError("JAX has no events.")

    def told(self) -> dict[str, Any]:
        stats = self._device.memory_stats() or {}
        if "bytes_in_use" not in stats:
            return {}
        return {"memory": stats["bytes_in_use"], "memory_is": "arrays in use, without what a step takes on the way"}
