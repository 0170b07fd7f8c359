"""From options to a Trainer with its data: a new training, or one that a file goes on with.

What the command line does not say is chosen here, and only here, in the open: the defaults are constants with reasons.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import typer

from ..backend import Backend, get_backend
from ..callbacks import Callback, EarlyStopping, ReduceLROnPlateau, TimeLimit
from ..datasets import Dataset, load
from ..datasets.split import held_out
from ..errors import CheckpointError, DataError
from ..layers import Affine
from ..losses import Loss, MeanSquaredError, SoftmaxCrossEntropy
from ..network import Network
from ..storage import read_header
from ..training import Trainer
from .answers import classifies, metrics_for, network_targets, outputs_for, target_scaling
from .guard import option_errors
from .names import (
    SCHEDULE_NAMES,
    activation_of_text,
    hidden_layers,
    hidden_widths,
    known_name,
    loss_of_text,
    optimizer_of,
    schedule_of,
)
from .recipe import KEY, Recipe, fingerprint, inputs_of, targets_of

__all__ = ["Options", "Session", "begin", "describe_network", "resume"]

HIDDEN, ACTIVATION = "256,128", "relu"
DROPOUT = {"classification": 0.1, "regression": 0.0}  # noise in a sum of units blurs a number more than a class
OPTIMIZER, SCHEDULE = "adam", "auto"
TEST_FRACTION, VALIDATION = 0.2, 0.1
SMALL, TINY = 10_000, 500  # rows; fewer of them need more epochs, and smaller batches, for as many steps


def _usual_epochs(rows: int) -> int:
    return 15 if rows >= SMALL else 60 if rows >= TINY else 200


def _usual_batch(rows: int) -> int:
    return 128 if rows >= SMALL else 32


@dataclass(frozen=True)
class Options:
    """What the user said; None is nothing."""

    source: str | None
    target: str | None = None
    task: str | None = None
    test_fraction: float | None = None
    validation: float | None = None
    scale_targets: bool | None = None
    hidden: str | None = None
    activation: str | None = None
    dropout: float | None = None
    loss: str | None = None
    optimizer: str | None = None
    lr: float | None = None
    momentum: float | None = None
    weight_decay: float | None = None
    schedule: str | None = None
    clip_norm: float | None = None
    epochs: int | None = None
    batch_size: int | None = None
    patience: int | None = None
    time_limit: float | None = None
    seed: int | None = None
    dtype: str | None = None
    backend: str = "auto"
    device: str | None = None
    engine: str | None = None
    precision: str | None = None
    resume: Path | None = None


FIXED = (
    "task", "test_fraction", "validation", "scale_targets", "hidden", "activation", "dropout", "loss", "optimizer",
    "momentum", "weight_decay", "schedule", "clip_norm", "seed", "dtype",
)  # fmt: skip
"""Options that a training keeps from its first epoch to its last."""


@dataclass
class Session:
    """A training that is ready to run. Targets of the test are as the recipe has them, for scores in their own units.

    watched    what is evaluated after each epoch, and what to call it; None where nothing is held out
    """

    trainer: Trainer
    recipe: Recipe
    x: np.ndarray
    t: np.ndarray
    watched: tuple[np.ndarray, np.ndarray] | None
    watched_as: str
    x_test: np.ndarray
    t_test: np.ndarray
    epochs: int
    callbacks: list[Callback]


def begin(o: Options) -> Session:
    """A new training."""
    if o.source is None:
        raise typer.BadParameter("say what to train on: digits, a folder, an .npz or a .csv file.", param_hint="SOURCE")
    _check_options(o)
    backend = get_backend(o.backend, o.device)
    loss = None if o.loss is None else loss_of_text(o.loss)
    seed, dtype = o.seed or 0, known_name("dtype", o.dtype or "float32", ("float32", "float64"), "--dtype")
    fraction = TEST_FRACTION if o.test_fraction is None else o.test_fraction
    task = _task(o.task, loss)
    data = load(o.source, target=o.target, task=task, test_fraction=fraction, seed=seed, dtype=dtype)
    rows = len(data.x)
    loss = loss or (SoftmaxCrossEntropy() if data.classes else MeanSquaredError())
    if classifies(loss) and not data.classes:
        raise typer.BadParameter(f"{o.loss} learns classes; --task regression has none.", param_hint="--loss")
    wants = (o.patience is not None) or (o.schedule is not None and _known_schedule(o.schedule) == "plateau")
    recipe = Recipe(
        name=data.name,
        source=o.source,
        task=data.task,
        target=o.target,
        classes=data.classes,
        columns=data.features,
        scaling=data.scaling,
        target_scaling=target_scaling(loss, data.t, not data.classes and o.scale_targets is not False),
        target_width=1 if data.classes else data.t.shape[1],
        dtype=dtype,
        seed=seed,
        test_fraction=fraction,
        held_out=fingerprint(data),
        validation=(VALIDATION if wants else 0.0) if o.validation is None else o.validation,
        schedule=_known_schedule(o.schedule or SCHEDULE),
        batch_size=o.batch_size or _usual_batch(rows),
        epochs=o.epochs or _usual_epochs(rows),
    )
    trainer = _trainer(o, recipe, data, loss, backend)
    return _session(o, recipe, data, trainer, recipe.epochs)


def _check_options(o: Options) -> None:
    """Refuse words that mean nothing before the data is read, which may take a while."""
    hidden_layers(
        1, hidden_widths(o.hidden or HIDDEN), 1, activation_of_text(o.activation or ACTIVATION), o.dropout or 0.0
    )
    optimizer_of(o.optimizer or OPTIMIZER, 0.0, o.weight_decay, o.momentum)
    schedule_of(o.schedule or SCHEDULE, o.lr, o.optimizer or OPTIMIZER, 1, 1, 1)
    if o.clip_norm is not None and not o.clip_norm > 0:
        raise typer.BadParameter(f"must be above 0; it is {o.clip_norm!r}.", param_hint="--clip-norm")


def _known_schedule(text: str) -> str:
    return known_name("schedule", text, SCHEDULE_NAMES, "--schedule")


def _task(task: str | None, loss: Loss | None) -> str:
    """What the targets are: as the user says, else as the loss needs them, else as they look."""
    if task is not None:
        return known_name("task", task, ("auto", "classification", "regression"), "--task")
    if loss is None:
        return "auto"
    return "classification" if classifies(loss) else "regression"


def _trainer(o: Options, recipe: Recipe, data: Dataset, loss: Loss, backend: Backend) -> Trainer:
    with option_errors("--loss"):
        outputs = outputs_for(loss, len(recipe.classes), recipe.target_width)
    layers = hidden_layers(
        data.x.shape[1],
        hidden_widths(HIDDEN if o.hidden is None else o.hidden),
        outputs,
        activation_of_text(o.activation or ACTIVATION),
        DROPOUT[recipe.task] if o.dropout is None else o.dropout,
    )
    n = len(data.x) - (int(_validation_rows(recipe, data.t).sum()) if recipe.validation else 0)
    rule = o.optimizer or OPTIMIZER
    rate = schedule_of(
        recipe.schedule, o.lr, rule, recipe.epochs, -(-n // recipe.batch_size), _usual_epochs(len(data.x))
    )
    optimizer = optimizer_of(rule, rate, o.weight_decay, o.momentum)
    network = Network(layers, backend=backend, dtype=recipe.dtype, seed=recipe.seed)
    return Trainer(
        network,
        loss=loss,
        optimizer=optimizer,
        metrics=metrics_for(loss, len(recipe.classes), recipe.target_width),
        clip_norm=o.clip_norm,
        engine=o.engine or "auto",
        precision=o.precision or "float32",
    )


def resume(o: Options, path: Path) -> Session:
    """The training in a file, to go on with; its settings are those of the file."""
    given = [f"--{name.replace('_', '-')}" for name in FIXED if getattr(o, name) is not None]
    if given:
        raise typer.BadParameter(
            f"{', '.join(given)} cannot change in the middle of a training. Leave it out, or begin a new one.",
            param_hint="--resume",
        )
    header = read_header(path)
    recipe = Recipe.of(header.get("metadata", {}), path)
    if o.patience is not None and not recipe.validation:
        raise typer.BadParameter(
            "needs rows that no epoch so far has learnt from. Begin the training with --patience or --validation.",
            param_hint="--patience",
        )
    backend = get_backend(o.backend, o.device)
    stored = header.get("trainer", {}).get("engine")
    engine = o.engine or (stored if stored in backend.engines else "auto")
    trainer = Trainer.load(path, backend=backend, engine=engine, precision=o.precision)
    _check_schedule(trainer, path, o.lr)
    data = recipe.load(o.source or recipe.source, o.target)
    rest = recipe.epochs - trainer.epoch
    epochs = o.epochs or (rest if rest > 0 else _usual_epochs(len(data.x)))
    recipe = replace(recipe, batch_size=o.batch_size or recipe.batch_size, epochs=trainer.epoch + epochs)
    return _session(o, recipe, data, trainer, epochs)


def _check_schedule(trainer: Trainer, path: Path, lr: float | None) -> None:
    if lr is not None:
        with option_errors("--lr"):
            trainer.lr = lr
    elif trainer.lr <= 0.0:
        raise CheckpointError(
            f"The schedule of {str(path)!r} has come to its end: its learning rate is {trainer.lr:g}, with which "
            "nothing more is learnt. Go on at a constant rate, such as --lr 1e-4."
        )


def _session(o: Options, recipe: Recipe, data: Dataset, trainer: Trainer, epochs: int) -> Session:
    """Cut the validation part off, bring all targets to the loss's form, and gather the stop conditions."""
    x, t = inputs_of(recipe, data, data.x), targets_of(recipe, data, data.t)
    x_test, t_test = inputs_of(recipe, data, data.x_test), targets_of(recipe, data, data.t_test)
    loss = trainer.loss
    watched = (x_test, network_targets(recipe, loss, t_test)) if len(x_test) else None
    if recipe.validation:
        mask = _validation_rows(recipe, t)
        watched = x[mask], network_targets(recipe, loss, t[mask])
        x, t = x[~mask], t[~mask]
    callbacks: list[Callback] = []
    if o.patience is not None:
        callbacks.append(EarlyStopping("val_loss", patience=o.patience))
    if recipe.schedule == "plateau":
        callbacks.append(ReduceLROnPlateau("val_loss", factor=0.3, patience=5))
    if o.time_limit is not None:
        callbacks.append(TimeLimit(o.time_limit))
    trainer.model.metadata[KEY] = recipe.to_json()
    return Session(
        trainer,
        recipe,
        x,
        network_targets(recipe, loss, t),
        watched,
        "validation" if recipe.validation else "test",
        x_test,
        t_test,
        epochs,
        callbacks,
    )


def _validation_rows(recipe: Recipe, t: np.ndarray) -> np.ndarray:
    try:
        return held_out(t, recipe.classes, recipe.validation, recipe.seed, "the training part")
    except DataError as error:
        raise DataError(f"No rows can be held back for the validation: {error}") from error


def describe_network(trainer: Trainer) -> str:
    """64-256-128-10, and how many parameters that are."""
    affine = [node.layer for node in trainer.model.plan.nodes if isinstance(node.layer, Affine)]
    widths = [affine[0].in_features, *(layer.out_features for layer in affine)]
    count = sum(int(np.prod(a.shape)) for a in trainer.model.params.values())
    return f"{'-'.join(map(str, widths))}, {count:,} parameters"
