"""The engine of a trainer: records the step, has the backend compile it, and hands batches to the Runner that fits.

A program fits one look of a batch (`Signature`): with weights or without, labels or probabilities. Each look has a
Runner of its own, made when it is first met; the newest values move to whichever Runner is used, so that together they
are one Runner. What an engine cannot compile runs on the next best one, for one logged reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace

from .backend import Backend
from .budget import needed, pieces_that_fit
from .errors import MemoryExceeded, RecordingError, ShapeError, XBPError
from .losses import SoftmaxCrossEntropy
from .optimizers import global_norm
from .program import MeasuredProgram, Memory, readable
from .recording import Kind, Signature, flat, inputs_of, record, signature_of
from .runner import EagerRunner, FunctionRunner, Preparing, Runner
from .step import Gradients, Step
from .typing import Array, Inputs, Namespace, Scalar, Tree

__all__ = ["Engine"]

Function = Callable[[Mapping[str, Array]], dict[str, Array]]

log = logging.getLogger(__name__)


class Engine:
    """All Runners of one trainer, as one.

    name      what runs the steps; another one from the moment on in which something could not be compiled
    pieces    into how many pieces batches are cut; more from the moment on in which a batch would not fit into
              `memory_limit` bytes
    """

    def __init__(
        self, step: Step, backend: Backend, name: str, memory_limit: int | None = None, uncut: str = ""
    ) -> None:
        self.name = name
        self.pieces = step.accumulate
        self.memory_limit = memory_limit
        self._uncut = uncut  # why batches cannot be cut
        self._fitting: set[tuple[Signature, int]] = set()  # batches that are known to fit
        self._step = step
        self._backend = backend
        # The step as it is written knows float32 alone. In any other precision "eager" interprets the program.
        self._interprets = step.precision != "float32"
        self._runners: dict[Signature | None, Runner] = {}
        self._functions: dict[tuple[str, Signature], Function] = {}
        self._programs: dict[tuple[str, Signature], MeasuredProgram] = {}
        self._refused: set[tuple[str, Signature]] = set()  # what is computed eagerly, although steps are not
        self._current: Runner | None = None
        self._tree: Tree = {}
        self._look: Signature | None = None
        self._stepped: Runner | None = None  # that of the last single step

    # --- the values -----------------------------------------------------------------------------------------------

    def load(self, tree: Tree) -> None:
        """Take over parameters, buffers and optimiser state."""
        self._tree = tree
        if self._current is not None:
            self._current.load(tree)

    def read(self) -> Tree:
        """The values after the last finished step, valid until the next."""
        return self._tree if self._current is None else self._current.read()

    # --- the programs ---------------------------------------------------------------------------------------------

    def program(self, what: str = "step", look: Signature | None = None) -> MeasuredProgram:
        """The program for batches of that look; None: of the last one that was met, before that the likeliest one."""
        look = look or self._look or _likely(self._step, self.read())
        key = (what, look)
        if key not in self._programs:
            program = record(what, self._step, self.read(), look)
            self._programs[key] = replace(program, arena=self._backend.arena(program, self.name))
        return self._programs[key]

    def prepare(self, x: Inputs, t: Array, w: Array | None, rows: int) -> None:
        """Record and compile for batches of this look, so that what fails, or takes time, does so before training.

        Raises `MemoryExceeded` where a step on so many rows would not fit, however it is cut.
        """
        look = signature_of(x, t, w)
        self._runner(look, rows)
        self._prediction("sums", look)

    def _make_room(self, look: Signature, rows: int) -> None:
        """Cut batches into more pieces, from here on, if a step on so many rows would not fit otherwise."""
        if self.memory_limit is None or (look, rows) in self._fitting:
            return

        def memory(what: str) -> Memory:
            try:
                return self.program(what, look).memory
            except RecordingError as error:
                error.add_note("memory_limit= needs to record the step. Leave it out to train without.")
                raise

        pieces = pieces_that_fit(self.memory_limit, memory, rows, self.pieces, self._uncut)
        self._fitting.add((look, rows))
        if pieces <= self.pieces:
            return
        log.info(
            "A step on %d rows needs %s, and memory_limit is %s: batches are cut into %d pieces, which need %s.",
            rows,
            readable(needed(memory, rows, 1)),
            readable(self.memory_limit),
            pieces,
            readable(needed(memory, rows, pieces)),
        )
        self._begin_anew()
        self.pieces = pieces
        self._step = replace(self._step, accumulate=pieces)

    def _begin_anew(self) -> None:
        """Forget all Runners, but not the values."""
        self._tree = {section: dict(arrays) for section, arrays in self.read().items()}
        self._current = None
        self._runners.clear()

    def _runner(self, look: Signature, rows: int) -> Runner:
        """The Runner for that look, holding the newest values."""
        self._look = look
        self._make_room(look, rows)
        key = None if self._as_written else look  # the eager one takes batches of any look
        runner = self._runners.get(key)
        if runner is None:
            runner = self._runners[key] = self._compiled(look, rows)
        if runner is not self._current:
            tree = self.read()
            self._current = None  # until the values have moved there is no owner but `_tree`
            self._tree = {section: dict(arrays) for section, arrays in tree.items()}
            runner.load(self._tree)
            self._current = runner
        return runner

    @property
    def _as_written(self) -> bool:
        """Whether steps are calls of the step itself, and not of a program of it."""
        return self.name == "eager" and not self._interprets

    def _compiled(self, look: Signature, rows: int) -> Runner:
        while not self._as_written:
            try:
                if self._step.accumulate > 1:
                    return EagerRunner(self.pieces_by(look), self._backend, self.name)
                program = self.program("step", look)
                if self.name == "eager":
                    return FunctionRunner(program, self._backend, self.name, self._backend.interpreted(program))
                runner: Runner = self._backend.compile(program, self.name)
                if isinstance(runner, Preparing):
                    runner.prepare(rows)
                return runner
            except MemoryExceeded:
                raise  # another engine would need no less
            except XBPError as error:
                self._give_up(error)
        return self._runners.setdefault(None, EagerRunner(self._step, self._backend))

    def _give_up(self, error: Exception) -> None:
        """From here on, everything runs on the next best engine; what could not be recorded at all, eagerly.

        Raises the error again where that would be another precision than the one asked for.
        """
        if self._interprets and (self.name == "eager" or isinstance(error, RecordingError)):
            raise error
        engines = self._backend.engines
        after = engines.index(self.name) + 1 if self.name in engines else len(engines)
        recorded = not isinstance(error, RecordingError) and after < len(engines)
        slower = engines[after] if recorded else "eager"
        log.warning(
            "Engine %r of backend %r cannot run this training, which goes on with engine %r. The reason: %s",
            self.name,
            self._backend.name,
            slower,
            error,
        )
        self._begin_anew()
        self._programs.clear()  # another engine, another plan of their memory
        self._functions.clear()
        self._refused.clear()
        self.name = slower

    def pieces_by(self, look: Signature) -> Step:
        """The step whose pieces, and what is done with them, are computed by this engine."""
        values = {f.name: getattr(self._step, f.name) for f in fields(self._step) if f.init}
        piece, apply = self._function("piece", look), self._function("apply", look)
        return _Pieces(**values, compiled_piece=piece, compiled_apply=apply, backend=self._backend)

    def _function(self, what: str, look: Signature) -> Function:
        key = (what, look)
        if key not in self._functions:
            program, backend = self.program(what, look), self._backend
            eager = self.name == "eager"
            self._functions[key] = backend.interpreted(program) if eager else backend.function(program, self.name)
        return self._functions[key]

    # --- what is computed -----------------------------------------------------------------------------------------

    def step(self, x: Inputs, t: Array, w: Array | None, scalars: Mapping[str, Scalar], *, same: bool = False) -> Array:
        """One step. `same`: the batch looks as that of the last step did, so its Runner fits, if it is still there."""
        if not same or self._stepped is None or self._stepped is not self._current:
            self._stepped = self._runner(signature_of(x, t, w), t.shape[0])
        return self._stepped.step(x, t, w, scalars)

    def run(self, x: Inputs, t: Array, w: Array | None, index: Array, scalars: Mapping[str, Array]) -> Array:
        return self._runner(signature_of(x, t, w), index.shape[1]).run(x, t, w, index, scalars)

    def scores(self, x: Inputs) -> Array:
        """The output (N, K) in prediction."""
        tree, xp = self.read(), self._backend.xp
        # A graph may take numbers and vectors beside its batches, which no program does; nor does one take no rows.
        arrays = list(x.values()) if isinstance(x, Mapping) else [x]
        rows = {a.shape[0] if a.ndim else None for a in arrays}
        fits = len(rows) == 1 and not rows & {0, None}
        compiled = self._prediction("scores", signature_of(x, None, None)) if fits else None
        if compiled is None:
            return self._step.scores(tree["params"], tree["buffers"], x, xp=xp)
        return compiled({**self._weights, **inputs_of(x)})["scores"]

    def sums(self, x: Inputs, t: Array, w: Array | None) -> Array:
        """What evaluation adds up, (2 + S,)."""
        tree, xp = self.read(), self._backend.xp
        compiled = self._prediction("sums", signature_of(x, t, w))
        if compiled is None:
            return self._step.sums(tree["params"], tree["buffers"], x, t, w, xp=xp)
        return compiled({**self._weights, **inputs_of(x, t, w)})["sums"]

    def gradient_norm(
        self, chunks: Iterable[tuple[tuple[Inputs, Array, Array | None], float]], scalars: Mapping[str, Scalar]
    ) -> Array:
        """The norm of the gradient of the mean loss over chunks of rows, each with its share of the whole; eagerly."""
        tree, xp, total = self.read(), self._backend.xp, None
        for (x, t, w), share in chunks:
            part = self._step.piece(tree["params"], tree["buffers"], x, t, w, scalars, 0, float(share), xp=xp)
            scaled = part.grads
            total = scaled if total is None else {name: g + scaled[name] for name, g in total.items()}
        assert total is not None  # a fit has rows
        return global_norm(total, xp=xp)

    @property
    def _weights(self) -> dict[str, Array]:
        tree = self.read()
        return flat({"params": tree["params"], "buffers": tree["buffers"]})

    def _prediction(self, what: str, look: Signature) -> Function | None:
        """The compiled function; None where it has to be computed eagerly, which does not concern the steps."""
        if self._as_written or (what, look) in self._refused:
            return None
        try:
            return self._function(what, look)
        except XBPError as error:
            log.warning(
                "Engine %r of backend %r cannot compute the %s, which is done with engine 'eager'. The reason: %s",
                self.name,
                self._backend.name,
                what,
                error,
            )
            self._refused.add((what, look))
            return None


def _likely(step: Step, tree: Tree) -> Signature:
    """The look of a batch before the first one: rows as wide as the first layers take them, without weights.

    Raises `ShapeError` where no layer says how wide the rows are.
    """
    plan, widths = step.plan, {}
    dtype = str(next(iter(tree["params"].values())).dtype).rpartition(".")[2]
    for node in plan.nodes:
        width = getattr(node.layer, "in_features", getattr(node.layer, "size", None))
        widths.update({v: Kind((width,), dtype) for v in node.inputs if isinstance(width, int) and v not in widths})
    shape = plan.row_shapes().get(plan.output)
    if shape is None or any(name not in widths for name in plan.inputs):
        raise ShapeError("No layer says how wide the rows are, so nothing can be recorded before the first batch.")
    labels = isinstance(step.loss, SoftmaxCrossEntropy)
    t = Kind((), "int32") if labels else Kind((step.loss.target_width(shape[0]),), dtype)
    single = len(plan.inputs) == 1
    return Signature(tuple(("" if single else name, widths[name]) for name in plan.inputs), t, None)


@dataclass(frozen=True)
class _Pieces(Step):
    """A step that cuts its batches into pieces, with compiled functions for a piece and for the optimiser's end."""

    compiled_piece: Function | None = None
    compiled_apply: Function | None = None
    backend: Backend | None = None

    def piece(
        self,
        params: Mapping[str, Array],
        buffers: Mapping[str, Array],
        x: Inputs,
        t: Array,
        weight: Array | None,
        scalars: Mapping[str, Scalar],
        first_row: Scalar,
        share: Scalar,
        *,
        xp: Namespace,
        scale: Array | None = None,
    ) -> Gradients:
        assert self.compiled_piece is not None  # set by the only one who makes these
        dtype = next(iter(params.values())).dtype
        given = flat({"params": params, "buffers": buffers, "scalars": _keys(scalars)}) | inputs_of(x, t, weight)
        given["share"] = share if not isinstance(share, float) else self._number(share, dtype, xp)
        given["first_row"] = self._number(first_row, xp.int32, xp)
        if scale is not None:
            given["scale"] = scale
        out = self.compiled_piece(given)
        grads = {name: out[f"grads.{name}"] for name in self.trainable}
        return Gradients(out["loss"], grads, {name: out.get(f"buffers.{name}", a) for name, a in buffers.items()})

    def _number(self, value: Scalar, dtype: object, xp: Namespace) -> Array:
        assert self.backend is not None
        return xp.full((), value, dtype=dtype, device=self.backend.device)  # type: ignore[arg-type]  # a number

    def apply(
        self,
        params: Mapping[str, Array],
        state: Mapping[str, Array],
        grads: dict[str, Array],
        scalars: Mapping[str, Scalar],
        *,
        xp: Namespace,
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        assert self.compiled_apply is not None
        lr: Array = scalars["lr"]  # type: ignore[assignment]  # an array, in every training
        given = flat({"params": params, "state": state, "grads": grads, "scalars": {"lr": lr}})
        out = self.compiled_apply(given)
        return (
            {name: out.get(f"params.{name}", a) for name, a in params.items()},
            {name: out.get(f"state.{name}", a) for name, a in state.items()},
        )


def _keys(scalars: Mapping[str, Scalar]) -> dict[str, Array]:
    return {name: key for name, key in scalars.items() if name != "lr"}  # type: ignore[misc]  # arrays, as in apply
