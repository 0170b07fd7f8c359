"""From the words of the command line to layers, losses, optimisers and schedules.

A name may carry one value, `leaky_relu:0.2` or `quantile:0.1,0.5,0.9`: the first option of the class of that name.
Names are read without regard to case, hyphens and underscores, and a wrong one is told the nearest right one.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any, TypeVar

import typer

from ..errors import unknown_name
from ..layers import BatchNorm, Dropout, Layer, LayerNorm
from ..layers.activations import ACTIVATIONS, Activation
from ..layers.affine import Affine
from ..losses import LOSSES, Loss
from ..optimizers import OPTIMIZERS, SGD, Optimizer
from ..schedules import Cosine, Exponential, OneCycle, Schedule, StepDecay, WarmUp
from .guard import option_errors

__all__ = [
    "LOSS_NAMES",
    "SCHEDULE_NAMES",
    "activation_of_text",
    "hidden_layers",
    "hidden_widths",
    "known_name",
    "layers_of_text",
    "loss_of_text",
    "optimizer_of",
    "schedule_of",
    "spelled",
]

T = TypeVar("T")

LOSS_NAMES: dict[str, type[Loss]] = {re.sub(r"(?<=[a-z])(?=[A-Z])", "_", n).lower(): c for n, c in LOSSES.items()}
SHORT = {"mse": "mean_squared_error", "mae": "mean_absolute_error", "cross_entropy": "softmax_cross_entropy"}
BENDING: dict[str, type[Activation]] = {name: type(layer) for name, layer in ACTIVATIONS.items()}
DROPPING_OR_BENDING: dict[str, type[Layer]] = {"dropout": Dropout, **BENDING}
SIZED: dict[str, type[Layer]] = {"batch_norm": BatchNorm, "layer_norm": LayerNorm}
SCHEDULE_NAMES = ("auto", "constant", "step", "exponential", "cosine", "onecycle", "warmup", "plateau")
RATES = {"sgd": 0.05, "adagrad": 0.01, "rmsprop": 1e-3, "adam": 2e-3, "adamw": 2e-3}
MOMENTUM = 0.9


def spelled(text: str) -> str:
    return re.sub(r"[-_ ]", "", text).lower()


def known_name(kind: str, text: str, known: Mapping[str, Any] | tuple[str, ...], option: str) -> str:
    """The registered name that `text` spells; a usage error with the nearest right one where there is none."""
    found = next((name for name in known if spelled(name) == spelled(text)), None)
    if found is None:
        raise typer.BadParameter(_unknown(kind, text, known), param_hint=option)
    return found


def _unknown(kind: str, text: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """The message for an unknown name; the nearest right one may also begin with what was written, nearly."""
    message = str(unknown_name(kind, text, known))
    starts = {name[: len(text)]: name for name in known}
    near = difflib.get_close_matches(spelled(text), starts, n=1)
    if near and "Did you mean" not in message:
        message = message.replace(". Known", f". Did you mean {starts[near[0]]!r}? Known", 1)
    return message


def _of_text(kind: str, text: str, classes: Mapping[str, type[T]], option: str) -> T:
    """An instance from `name` or `name:value`."""
    word, colon, value = text.strip().partition(":")
    made = classes[known_name(kind, word, classes, option)]
    first: Field[Any] | None = next(iter(fields(made)), None)  # type: ignore[arg-type]  # all of them are dataclasses
    if not colon:
        with option_errors(option):
            return made()
    if first is None:
        raise typer.BadParameter(f"{word} takes no value; {text!r} gives it one.", param_hint=option)
    read = value if isinstance(first.default, str) else _numbers(value, f"{word}:{first.name.upper()}", option)
    with option_errors(option):
        return made(read)  # type: ignore[call-arg]  # the first field of a dataclass that has one


def _numbers(text: str, form: str, option: str) -> float | tuple[float, ...]:
    try:
        values = tuple(float(v) for v in text.split(","))
    except ValueError:
        raise typer.BadParameter(f"{text!r} in {form} is not a number.", param_hint=option) from None
    return values if len(values) > 1 else values[0]


def hidden_widths(text: str, option: str = "--hidden") -> tuple[int, ...]:
    """Widths of the hidden layers: "512,256"; "none" is a linear model."""
    if text.strip().lower() in ("", "none"):
        return ()
    words = [w for w in re.split(r"[,\s]+", text.strip()) if w]
    if not all(re.fullmatch(r"[0-9]+", w) and int(w) > 0 for w in words):
        raise typer.BadParameter(
            f"{text!r} are no widths. Write whole numbers of at least 1 with commas between, such as 512,256; or none.",
            param_hint=option,
        )
    return tuple(map(int, words))


def activation_of_text(text: str) -> Activation:
    return _of_text("activation", text, BENDING, "--activation")


def hidden_layers(
    inputs: int, hidden: tuple[int, ...], outputs: int, activation: Activation, dropout: float
) -> list[Layer]:
    """Affine, activation and, where asked for, dropout for each hidden layer; Affine at the end."""
    with option_errors("--dropout"):
        drop = Dropout(dropout)
    layers: list[Layer] = []
    width = inputs
    for size in hidden:
        layers += [Affine(width, size), activation, *([drop] if dropout else [])]
        width = size
    return [*layers, Affine(width, outputs)]


def layers_of_text(text: str, option: str = "--layers") -> list[Layer]:
    """Layers from words such as "affine:8-5 relu batch_norm dropout:0.2 affine:3"; widths that follow need no word."""
    known = {"affine": Affine, **SIZED, **DROPPING_OR_BENDING}
    layers: list[Layer] = []
    width: int | None = None
    for word in text.split():
        name = known_name("layer", word.partition(":")[0], known, option)
        value = word.partition(":")[2]
        if name == "affine":
            sizes = re.fullmatch(r"(?:([0-9]+)-)?([0-9]+)", value)
            inputs = width if sizes is None or sizes[1] is None else int(sizes[1])
            if sizes is None or inputs is None:
                raise typer.BadParameter(
                    f"{word!r}: the first is written affine:IN-OUT, such as affine:8-5; later ones may be affine:OUT.",
                    param_hint=option,
                )
            width = int(sizes[2])
            with option_errors(option):
                layers.append(Affine(inputs, width))
        elif name in SIZED:
            if not value and width is None:
                raise typer.BadParameter(f"{word!r} has no layer before it; write {name}:SIZE.", param_hint=option)
            if value and not value.isdecimal():
                raise typer.BadParameter(f"{word!r}: the size is a whole number.", param_hint=option)
            width = int(value) if value else width
            with option_errors(option):
                layers.append(SIZED[name](width))  # type: ignore[call-arg]  # both take a size
        else:
            layers.append(_of_text("layer", word, DROPPING_OR_BENDING, option))
    if not layers:
        raise typer.BadParameter("there are no layers in it.", param_hint=option)
    return layers


def loss_of_text(text: str) -> Loss:
    short = SHORT.get(text.strip().lower())
    return _of_text("loss", short or text, LOSS_NAMES, "--loss")


def optimizer_of(name: str, lr: float | Schedule, weight_decay: float | None, momentum: float | None) -> Optimizer:
    """The optimiser of that name; `None` leaves its own default, which for SGD's momentum is 0.9 here."""
    found = OPTIMIZERS[known_name("optimiser", name, OPTIMIZERS, "--optimizer")]
    options: dict[str, Any] = {} if weight_decay is None else {"weight_decay": weight_decay}
    if found is SGD:
        options["momentum"] = MOMENTUM if momentum is None else momentum
    elif momentum is not None:
        raise typer.BadParameter(f"goes with --optimizer sgd; {name} has none to set.", param_hint="--momentum")
    with option_errors("--weight-decay" if momentum is None else "--weight-decay, --momentum"):
        return found(lr=lr, **options)  # type: ignore[call-arg]  # every rule has a rate


def schedule_of(
    name: str, lr: float | None, optimizer: str, epochs: int, steps_per_epoch: int, usual: int
) -> float | Schedule:
    """The learning rate of a training of `epochs` epochs, where `usual` are usual for so much data.

    auto           evenly down to a fifth in the usual number of epochs. It does not depend on how many are asked for,
                   so two epochs and two more after a resume are the same as four
    step           a tenth after each third of the epochs
    exponential    evenly down to a hundredth at the end
    cosine         along half a cosine down to zero
    onecycle       up for three tenths of the steps, then down to almost zero
    warmup         up during the first twentieth, then cosine
    plateau        constant, and reduced by a callback
    """
    found = known_name("schedule", name, SCHEDULE_NAMES, "--schedule")
    top = RATES.get(spelled(optimizer), 1e-3) if lr is None else lr
    if not (math.isfinite(top) and top >= 0):
        raise typer.BadParameter(f"must be a finite number of at least 0; it is {top!r}.", param_hint="--lr")
    steps = max(2, epochs * steps_per_epoch)
    if found == "auto":
        return Exponential(top, usual * steps_per_epoch, 0.2)
    if found == "step":
        return StepDecay(top, max(1, math.ceil(steps / 3)))
    if found == "exponential":
        return Exponential(top, steps, 0.01)
    if found == "cosine":
        return Cosine(top, steps)
    if found == "onecycle":
        return OneCycle(top, steps)
    if found == "warmup":
        rising = max(1, steps // 20)
        return WarmUp(rising, Cosine(top, max(1, steps - rising)))
    return top
