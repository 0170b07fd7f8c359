"""Trainers as files: the model's file, with the optimiser's state, the settings and the history beside the weights.

The tensors of the model keep the names that `Model.save` gives them, so a checkpoint opens as a model too. A resume
needs no generator state, because every random number follows from the seed and a count.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import scaling, storage
from .backend import Backend
from .describe import build, describe
from .errors import CheckpointError, DTypeError
from .graph import Graph
from .losses import LOSSES
from .metrics import METRICS, BinaryAccuracy
from .network import Network
from .optimizers import OPTIMIZERS, selects
from .schedules import SCHEDULES

__all__ = ["load", "save"]

STATE, BEST = "state/", "best/"

log = logging.getLogger(__name__)

CLASSES: dict[str, type] = {
    **LOSSES,
    **SCHEDULES,
    **{rule.__name__: rule for rule in OPTIMIZERS.values()},
    **{type(m).__name__: type(m) for m in (*METRICS.values(), BinaryAccuracy())},
}


def save(trainer: Any, path: str | Path) -> None:
    model, backend = trainer.model, trainer.model.backend
    tree = trainer._tree()  # the checkpoint is Trainer's own
    arrays = {**tree["params"], **tree["buffers"]}
    arrays.update({STATE + name: a for name, a in tree["state"].items()})
    for section in (trainer._best or {}).values():  # as above
        arrays.update({BEST + name: a for name, a in section.items()})
    header = {**model.header(), "trainer": _settings(trainer)}
    storage.write(path, {name: backend.to_host(a) for name, a in arrays.items()}, header)


def _settings(trainer: Any) -> dict[str, Any]:
    step, lr = trainer._step, trainer._scalars.lr  # as above
    optimizer = step.optimizer
    rule = {"type": type(optimizer).__name__}
    for name, value in vars(optimizer).items():
        if name == "decay":  # a predicate is not data; the names that it selects are
            value = None if value is None else [n for n in step.trainable if selects(value, n)]
        if name != "slots":
            rule[name] = describe(lr if name == "lr" else value)
    return {
        "loss": describe(step.loss),
        "optimizer": rule,
        "metrics": [describe(m) for m in step.metrics],
        "clip_norm": step.clip_norm,
        "accumulate": trainer.accumulate,
        "trainable": list(step.trainable),
        "engine": trainer.engine,
        "precision": trainer.precision,
        "memory_limit": trainer._engine.memory_limit,
        "penalty": step.penalty,
        "epoch": trainer.epoch,
        "steps": trainer.steps,
        "history": trainer.history,
    }


def load(
    cls: Any,
    path: str | Path,
    backend: str | Backend,
    engine: str | None,
    precision: str | None,
    custom: Mapping[str, type],
) -> Any:
    arrays, header = storage.read(path)
    settings = header.get("trainer")
    if settings is None:
        raise CheckpointError(
            f"{path} holds a model without a training. Load it with xbp.Network.load, and make a Trainer for it."
        )
    kind = Graph if header.get("kind") == "graph" else Network
    model = kind.restore(arrays, header, path, backend, custom)
    classes = CLASSES | dict(custom)
    try:
        trainer = cls(
            model,
            loss=build(settings["loss"], classes),
            optimizer=build(settings["optimizer"], classes),
            metrics=build(settings["metrics"], classes),
            clip_norm=settings["clip_norm"],
            accumulate=settings["accumulate"],
            trainable=tuple(settings["trainable"]),
            engine=_engine_here(settings["engine"], model.backend) if engine is None else engine,
            precision=_precision_here(settings, model.backend, path) if precision is None else precision,
            memory_limit=settings.get("memory_limit"),
            penalty=settings.get("penalty", 0.0),
        )
        trainer.epoch, trainer.steps = int(settings["epoch"]), int(settings["steps"])
        trainer.history = {name: [float(v) for v in values] for name, values in settings["history"].items()}
        fresh = {n: a for n, a in trainer._state.items() if n in scaling.NAMES and STATE + n not in arrays}  # as above
        saved = {n: a for n, a in trainer._state.items() if n not in fresh}
        trainer._state = _section(arrays, saved, STATE, model.backend) | fresh
        if any(name.startswith(BEST) for name in arrays):
            trainer._best = {  # as above
                "params": _section(arrays, dict(model.params), BEST, model.backend),
                "buffers": _section(arrays, dict(model.buffers), BEST, model.backend),
            }
    except DTypeError:
        raise  # it says itself what is wrong, and that need not be the file
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the description of the training is damaged ({error!r}).") from error
    return trainer


def _engine_here(engine: str, backend: Backend) -> str:
    """The engine of the file; where this machine or backend does not have it, the best of those that it has."""
    return engine if engine in backend.engines else "auto"


def _precision_here(settings: Mapping[str, Any], backend: Backend, path: str | Path) -> str:
    """The precision of the file; float32, in which the file's numbers are, where this backend does not have it."""
    precision: str = settings.get("precision", "float32")  # of files from before there was a choice
    if precision in backend.precisions:
        return precision
    log.warning(
        "%s was trained in precision %r, which backend %r does not have; the training goes on in float32.",
        path,
        precision,
        backend.name,
    )
    return "float32"


def _section(
    arrays: Mapping[str, np.ndarray], like: Mapping[str, Any], prefix: str, backend: Backend
) -> dict[str, Any]:
    """The arrays of a section on the device, with the names and shapes of `like`."""
    section = {}
    for name, a in like.items():
        host = arrays[prefix + name]
        if tuple(host.shape) != tuple(a.shape):
            raise CheckpointError(f"{prefix}{name} has shape {host.shape}, where {tuple(a.shape)} is needed.")
        section[name] = backend.asarray(host)
    return section
