"""The gradients of a whole network against central differences, parameter by parameter and entry by entry.

`check_backward` finds out that a kernel is wrong; this finds out where a network is: it names the parameter and the
entry, and shows both numbers. What is checked is the path that training takes, from the loss down to the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..backend import Backend, get_backend
from ..data import Rows, open_rows
from ..errors import DTypeError, GradientError
from ..losses import Loss
from ..model import Model
from ..traversal import backward, forward
from ..typing import Array, device_of

__all__ = ["GradientReport", "GradientRow", "check_gradients"]

EPS = float(np.finfo(np.float64).eps)
STEP = EPS ** (1 / 3)  # where the errors of truncation (step^2) and of rounding (eps / step) are of one size
UPSTREAM = 1.75  # the loss is checked as part of something larger, so that a forgotten factor shows
TOLERANCE = {"float64": 1e-6, "float32": 1e-4}
FLOOR = {"float64": 1e-3, "float32": 1e-2}  # of a parameter's largest gradient; smaller entries count as if so large
ROUNDING = {name: 10 * float(np.finfo(name).eps) for name in FLOOR}  # of gradients, relative to the loss


@dataclass(frozen=True)
class GradientRow:
    """One parameter, or input.

    relative_error    the largest over the entries compared: |analytic - numeric| over the larger of the two
    worst_index       where that is, with the two values there
    entries           how many were compared, of `size`
    kinks             how many were left out, because the loss has a corner there and no derivative
    """

    name: str
    relative_error: float
    worst_index: tuple[int, ...]
    analytic: float
    numeric: float
    entries: int
    size: int
    kinks: int
    ok: bool


@dataclass(frozen=True)
class GradientReport:
    """The rows of a check; `str(report)` is a table."""

    rows: tuple[GradientRow, ...]
    tolerance: float
    dtype: str
    backend: str

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.rows)

    @property
    def worst(self) -> GradientRow:
        """The row with the largest error, NaN being the largest."""
        return max(self.rows, key=lambda r: (not r.ok, math.inf if math.isnan(r.relative_error) else r.relative_error))

    def __str__(self) -> str:
        head = ("name", "error", "worst entry", "analytic", "numeric", "compared", "kinks", "")
        lines = [head, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = "\n".join(_aligned(line, widths) for line in lines)
        wrong = sum(not row.ok for row in self.rows)
        verdict = f"{wrong} of {len(self.rows)} gradients are WRONG" if wrong else "all gradients are right"
        return f"{text}\n{verdict}: {self.backend}, {self.dtype}, relative error of {self.tolerance:.0e} allowed"


NUMBERS = (1, 3, 4, 5, 6)  # columns of the table that are set to the right


def _aligned(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = [c.rjust(w) if i in NUMBERS else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
    return "  ".join(padded).rstrip()


def _cells(row: GradientRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.relative_error:.1e}",
        ", ".join(map(str, row.worst_index)) or "-",
        f"{row.analytic:.9g}",
        f"{row.numeric:.9g}",
        f"{row.entries} of {row.size}",
        str(row.kinks),
        "ok" if row.ok else "WRONG",
    )


def check_gradients(
    model: Model,
    x: Any,
    t: Any,
    *,
    loss: Loss,
    sample_weight: Any = None,
    tolerance: float | None = None,
    raise_on_failure: bool = False,
    entries: int = 100,
    train: bool = True,
    seed: int = 0,
) -> GradientReport:
    """Check every parameter's gradient, and the input's, on a batch; the model is left as it was.

    loss              such as SoftmaxCrossEntropy()
    tolerance         for the relative error; None is 1e-6 in float64 and 1e-4 in float32
    raise_on_failure  raise `GradientError` with the report instead of returning it
    entries           of a larger array so many are compared, drawn with `seed`
    train             with dropout (one fixed mask) and batch statistics, as in a training step; False: as in prediction

    Everything is computed in float64, also for a model in float32. Where the backend has no float64, its float32
    gradients are compared with central differences that NumPy takes in float64. An entry that seems wrong is looked at
    again with smaller steps: where the slopes to the left and to the right stay different, the loss has a kink, and the
    entry is left out and counted. A parameter of which nothing could be compared is not ok.
    """
    if entries < 1:
        raise ValueError(f"check_gradients: entries must be at least 1; it is {entries!r}.")
    if tolerance is not None and not tolerance > 0:
        raise ValueError(f"check_gradients: tolerance must be above 0; it is {tolerance!r}.")
    with model.backend.active():
        found, truth = _both(model, loss, train, open_rows(model, loss, x, t, sample_weight))
        allowed = TOLERANCE[found.dtype] if tolerance is None else tolerance
        gradients, value, rng = found.gradients(), truth.value({}), np.random.default_rng(seed)
        rows = tuple(
            _row(name, gradients[name], truth, value, allowed, found.dtype, entries, rng)
            for name in (*found.params, *found.inputs)
        )
    report = GradientReport(rows, allowed, found.dtype, model.backend.name)
    if raise_on_failure and not report.ok:
        raise GradientError(f"The gradient of {report.worst.name!r} is wrong.\n{report}")
    return report


def _both(model: Model, loss: Loss, train: bool, rows: Rows) -> tuple[_Function, _Function]:
    """Whose gradients are checked, and what takes the differences: the same, or NumPy where there is no float64."""
    batch = next(iter(rows.chunks(rows.n)))
    inputs = dict(batch[0]) if isinstance(batch[0], Mapping) else {model.plan.inputs[0]: batch[0]}
    parts = (dict(model.params), inputs, dict(model.buffers), batch[1], batch[2])
    try:
        model.backend.dtype("float64")
    except DTypeError:
        found = _Function(model, loss, train, model.backend, "float32", parts)
        return found, _Function(model, loss, train, get_backend("numpy"), "float64", parts)
    found = _Function(model, loss, train, model.backend, "float64", parts)
    return found, found


class _Function:
    """The loss as a function of parameters and inputs, on one backend and in one dtype."""

    def __init__(
        self, model: Model, loss: Loss, train: bool, backend: Backend, dtype: str, parts: tuple[Any, ...]
    ) -> None:
        self.plan, self.loss, self.train, self.backend, self.xp = model.plan, loss, train, backend, backend.xp
        self.keys = model._keys(0) if train else None
        self._own, self.dtype = model.backend, dtype
        params, inputs, buffers, t, w = parts
        self.params, self.inputs, self.buffers = (
            {name: self._taken(a) for name, a in part.items()} for part in (params, inputs, buffers)
        )
        self.t, self.w = self._taken(t), None if w is None else self._taken(w)

    def _taken(self, a: Array) -> Array:
        """An array of the model's as one of this backend; what is floating in this dtype."""
        floating = self._own.xp.isdtype(a.dtype, "real floating")
        if self.backend is not self._own:
            return self.backend.asarray(self._own.to_host(a), self.dtype if floating else None)
        return self.xp.astype(a, self.backend.dtype(self.dtype)) if floating else a

    def array(self, name: str) -> Array:
        return self.params[name] if name in self.params else self.inputs[name]

    def value(self, changed: Mapping[str, Array]) -> float:
        params = {name: changed.get(name, a) for name, a in self.params.items()}
        inputs = {name: changed.get(name, a) for name, a in self.inputs.items()}
        passed = forward(
            self.plan, params, self.buffers, inputs, xp=self.xp, train=self.train, keys=self.keys, keep=False
        )
        loss, _ = self.loss.forward(passed.y, self.t, self.w, xp=self.xp)
        return UPSTREAM * float(self.backend.to_host(loss))

    def gradients(self) -> dict[str, np.ndarray]:
        """By back-propagation, on the host; zeros for what does not reach the output."""
        passed = forward(
            self.plan, self.params, self.buffers, self.inputs, xp=self.xp, train=self.train, keys=self.keys
        )
        _, cache = self.loss.forward(passed.y, self.t, self.w, xp=self.xp)
        dy = self.loss.backward(UPSTREAM, cache, xp=self.xp)
        wanted = self.plan.wanted(self.params, input_gradient=True)
        grads, slopes = backward(self.plan, passed.caches, dy, wanted=wanted, xp=self.xp)
        found = {}
        for name, a in {**self.params, **self.inputs}.items():
            g = grads.get(name) if name in self.params else slopes.get(name)
            found[name] = np.zeros(a.shape) if g is None else self.backend.to_host(g).astype(np.float64)
            if found[name].shape != tuple(a.shape):
                raise GradientError(f"{name!r} has shape {tuple(a.shape)}, and its gradient {found[name].shape}.")
        return found

    def along(self, name: str, i: int) -> Callable[[float], float]:
        """The value as a function of how far entry i is moved."""
        a, xp = self.array(name), self.xp
        flat = xp.reshape(a, (-1,))
        here = xp.arange(flat.shape[0], dtype=xp.int32, device=device_of(flat)) == i
        at = float(self.backend.to_host(flat)[i])

        def moved(by: float) -> float:
            return self.value({name: xp.reshape(xp.where(here, at + by, flat), a.shape)})

        return moved


def _row(
    name: str,
    gradient: np.ndarray,
    truth: _Function,
    value: float,
    allowed: float,
    dtype: str,
    entries: int,
    rng: np.random.Generator,
) -> GradientRow:
    flat, host = gradient.reshape(-1), truth.backend.to_host(truth.array(name)).reshape(-1)
    chosen = np.arange(flat.size)
    if flat.size > entries:
        chosen = np.sort(rng.choice(flat.size, entries, replace=False))
    least = max(FLOOR[dtype] * float(np.max(np.abs(flat), initial=0.0)), ROUNDING[dtype] * abs(value) / allowed)
    worst = (-1.0, 0, 0.0, 0.0)
    kinks = 0
    for i in map(int, chosen):
        step = STEP * max(1.0, abs(float(host[i])))
        noise = (
            20 * EPS * abs(value) / step
        )  # of rounding in the value, which is all there is where a gradient vanishes
        numeric, error = _compared(truth.along(name, i), float(flat[i]), value, step, least, noise, allowed)
        if error is None:
            kinks += 1
        elif not error <= worst[0]:  # also takes NaN, and keeps it
            worst = (math.inf if math.isnan(error) else error, i, float(flat[i]), numeric)
    compared = len(chosen) - kinks
    index = tuple(int(k) for k in np.unravel_index(worst[1], gradient.shape)) if compared else ()
    error = worst[0] if compared else math.nan
    ok = bool(error <= allowed) or flat.size == 0
    return GradientRow(name, error, index, worst[2], worst[3], compared, int(flat.size), kinks, ok)


def _compared(
    f: Callable[[float], float],
    analytic: float,
    middle: float,
    step: float,
    least: float,
    noise: float,
    allowed: float,
) -> tuple[float, float | None]:
    """(numeric slope, relative error) of one entry; no error at a kink.

    With a kink within reach of the step, the slopes to the left and to the right differ by more than twice the error
    that it causes; if they do not, the gradient is wrong. A smaller step leaves a kink beside the entry behind. At a
    kink the slopes differ however small the step; on a smooth curve, in proportion to it.
    """
    gaps: list[float] = []
    best = (math.nan, math.inf)
    for shrink in (1.0, 8.0, 64.0):
        h = step / shrink
        up, down = f(h), f(-h)
        numeric = (up - down) / (2 * h)
        off = abs(analytic - numeric)
        if math.isnan(off):
            return numeric, math.nan
        scale = max(abs(analytic), abs(numeric), least, noise * shrink / allowed)
        error = off / scale if scale else 0.0
        if error < best[1]:
            best = numeric, error
        gaps.append(abs((up - middle) - (middle - down)) / h)
        if error <= allowed or off > gaps[-1] + noise * shrink:
            return best
    return best[0], None if gaps[-1] > 0.5 * gaps[0] else best[1]
