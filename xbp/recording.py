"""The training step, the scores and the sums of a model, recorded as programs.

A program depends on what the arrays look like (shapes of a row, dtypes, whether there are weights), never on their
values or on the batch size; `Signature` says which of a model's programs fits a batch.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, cast

from .errors import RecordingError
from .program import MeasuredProgram, Program, RecordedArray, Recorder, in_precision
from .step import Step
from .traversal import Node, Plan
from .typing import Array, Inputs, Tree

__all__ = ["Kind", "Signature", "flat", "inputs_of", "nested", "record", "signature_of"]

BATCH = 65521  # what N stands for while recording: a number that no width has
SECTIONS = ("params", "buffers", "state")


class Kind(NamedTuple):
    """What an array looks like: the shape of a row, and its dtype by name."""

    row: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """What a batch looks like; weights None where rows have none."""

    x: tuple[tuple[str, Kind], ...]  # the name is "" for a single input
    t: Kind | None
    w: Kind | None


def _dtype_name(dtype: Any) -> str:
    return _name(cast(Hashable, type(dtype)), dtype)


@lru_cache(maxsize=64)
def _name(library: Hashable, dtype: Any) -> str:
    """The name of a dtype, which takes NumPy some microseconds. Dtypes of two libraries are never compared."""
    return str(dtype).rpartition(".")[2]


def _kind(array: Array) -> Kind:
    return Kind(tuple(array.shape[1:]), _dtype_name(array.dtype))


def signature_of(x: Inputs, t: Array | None, w: Array | None) -> Signature:
    inputs = x.items() if isinstance(x, Mapping) else (("", x),)
    return Signature(
        tuple((name, _kind(a)) for name, a in inputs),
        None if t is None else _kind(t),
        None if w is None else _kind(w),
    )


def inputs_of(x: Inputs, t: Array | None = None, w: Array | None = None) -> dict[str, Array]:
    """A batch by the names that its program has for it: "x" or "x.<name>", "t", "w"."""
    arrays = {f"x.{name}": a for name, a in x.items()} if isinstance(x, Mapping) else {"x": x}
    return arrays | ({} if t is None else {"t": t}) | ({} if w is None else {"w": w})


def flat(tree: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """A tree by the names that a program has for it: "params.0.W", "state.step"."""
    return {f"{section}.{name}": a for section, arrays in tree.items() for name, a in arrays.items()}


def nested(arrays: Mapping[str, Array]) -> Tree:
    """The tree in arrays named as `flat` does; other names are left out."""
    tree: Tree = {section: {} for section in SECTIONS}
    for full, a in arrays.items():
        section, _, name = full.partition(".")
        if section in tree:
            tree[section][name] = a
    return tree


def record(what: str, step: Step, tree: Tree, batch: Signature) -> MeasuredProgram:
    """The program "step", "scores", "sums", "piece" (of a batch that is cut up) or "apply" (its end).

    Optimised, and in the step's precision.

    Raises `RecordingError` where a layer, loss, optimiser or metric of somebody's own does what cannot be recorded.
    """
    if not _foreign(step):
        return _finished(_recorded(what, step, tree, batch, BATCH), step)
    try:
        program, other = (_recorded(what, step, tree, batch, n) for n in (BATCH, BATCH + 2))
    except Exception as error:  # somebody else's code may fail in any way
        raise RecordingError(
            f"A layer, loss, optimiser or metric cannot be recorded ({type(error).__name__}: {error}). Compute with "
            "functions of xp alone, as the layers of xbp do."
        ) from error
    if str(program) != str(other):
        raise RecordingError(
            "A layer, loss, optimiser or metric computes with the number of rows, x.shape[0], which a recorded step "
            "would keep for every batch. Count rows as an array: xp.sum(xp.ones_like(x[:, 0]))."
        )
    return _finished(program, step)


def _finished(program: Program, step: Step) -> MeasuredProgram:
    program = in_precision(program, step.precision)
    return MeasuredProgram(program.name, program.inputs, program.operations, program.outputs)


def _foreign(step: Step) -> bool:
    """Whether somebody else's rules take part, which no test of ours has seen."""
    parts = [*(node.layer for node in step.plan.nodes), step.loss, step.optimizer, *step.metrics]
    return any(not type(part).__module__.startswith("xbp.") for part in parts)


def _recorded(what: str, step: Step, tree: Tree, batch: Signature, n: int) -> Program:
    recorder = Recorder(n)
    xp = cast(Any, recorder.xp)
    noted = _noted(step, recorder)
    arrays: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for section in SECTIONS if what in ("step", "apply") else SECTIONS[:2]:
        for name, a in tree[section].items():
            arrays[section][name] = recorder.input(f"{section}.{name}", tuple(a.shape), _dtype_name(a.dtype))
    params, buffers, state = (arrays[section] for section in SECTIONS)
    scalars = _scalars(what, step, tree, recorder)
    if what == "apply":
        all_grads: Any = {
            name: recorder.input(f"grads.{name}", tuple(params[name].shape), str(params[name].dtype))
            for name in step.trainable
        }
        new_params, new_state = noted.apply(params, state, all_grads, scalars, xp=xp)
        return recorder.program(what, _changed(recorder, {"params": new_params, "state": new_state}))
    x, t, w = _batch(recorder, batch)
    if what == "scores":
        return recorder.program(what, {"scores": cast(Any, noted.scores(params, buffers, x, xp=xp))})
    assert t is not None  # only scores do without targets
    if what == "sums":
        return recorder.program(what, {"sums": cast(Any, noted.sums(params, buffers, x, t, w, xp=xp))})
    if what == "piece":
        share = recorder.input("share", (), str(next(iter(params.values())).dtype))
        first = cast(Any, recorder.input("first_row", (), "int32"))
        scale = cast(Any, recorder.input("scale", (), "float32")) if step.scaled else None
        loss, grads, new_buffers = noted.piece(params, buffers, x, t, w, scalars, first, share, xp=xp, scale=scale)
        outputs = {f"grads.{name}": cast(Any, g) for name, g in grads.items()}
        return recorder.program(
            what, {"loss": cast(Any, loss), **outputs, **_changed(recorder, {"buffers": new_buffers})}
        )
    new_params, new_buffers, new_state, loss = noted(params, buffers, state, x, t, w, scalars, xp=xp)
    changed = _changed(recorder, {"params": new_params, "buffers": new_buffers, "state": new_state})
    return recorder.program(what, {**changed, "loss": cast(Any, loss)})


def _scalars(what: str, step: Step, tree: Tree, recorder: Recorder) -> dict[str, Any]:
    scalars: dict[str, Any] = {}
    if what in ("step", "apply"):
        like = tree["params"][step.trainable[0]]
        scalars["lr"] = recorder.input("scalars.lr", (), _dtype_name(like.dtype))
    if what in ("step", "piece"):
        for node in step.plan.random_nodes():
            scalars[f"key.{node}"] = recorder.input(f"scalars.key.{node}", (), "int32")
    return scalars


def _batch(recorder: Recorder, batch: Signature) -> tuple[Any, Any, Any]:
    def rows(name: str, kind: Kind | None) -> RecordedArray | None:
        return None if kind is None else recorder.input(name, ("N", *kind.row), kind.dtype)

    single = batch.x[0][0] == ""
    x = rows("x", batch.x[0][1]) if single else {name: rows(f"x.{name}", kind) for name, kind in batch.x}
    return x, rows("t", batch.t), rows("w", batch.w)


def _changed(recorder: Recorder, tree: Mapping[str, Mapping[str, Any]]) -> dict[str, RecordedArray]:
    """The arrays that are new: what went through untouched is no output."""
    given = {id(a.value) for a in recorder.inputs}
    return {name: a for name, a in flat(tree).items() if id(a.value) not in given}  # type: ignore[attr-defined, misc]


# --- which rule an operation comes from -------------------------------------------------------------------------------


class _Noted:
    """A layer, loss, optimiser or metric whose operations are noted under its name."""

    RULES = frozenset({"forward", "backward", "update", "sums"})

    def __init__(self, part: Any, name: str, recorder: Recorder) -> None:
        self._part, self._name, self._recorder = part, name, recorder

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._part, attribute)
        if attribute not in self.RULES:
            return value

        def noted(*args: Any, **options: Any) -> Any:
            with self._recorder.within(f"{self._name}.{attribute}"):
                return value(*args, **options)

        return noted


def _noted(step: Step, recorder: Recorder) -> Step:
    """The step with every part announcing itself."""

    def part(value: Any, name: str = "") -> Any:
        return _Noted(value, f"{name} {type(value).__name__}".strip(), recorder)

    plan = step.plan
    nodes = tuple(Node(node.name, part(node.layer, node.name), node.inputs) for node in plan.nodes)
    return replace(
        step,
        plan=Plan(nodes, plan.inputs, plan.output),
        loss=part(step.loss),
        optimizer=part(step.optimizer),
        metrics=tuple(part(m) for m in step.metrics),
        accumulate=1,
    )
