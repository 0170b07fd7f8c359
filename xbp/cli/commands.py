"""The commands and their options, with the texts of `--help`. What they do is in the modules beside this one."""

from __future__ import annotations

import logging
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from ..interchange import OPSET
from ..program import PRECISIONS
from . import evaluate as models
from . import tables
from .check import Described
from .check import check as check_network
from .console import show
from .doctor import doctor as run_doctor
from .export import export as run_export
from .guard import Guarded
from .names import LOSS_NAMES, SCHEDULE_NAMES
from .session import ACTIVATION, HIDDEN, OPTIMIZER, SCHEDULE, TEST_FRACTION, VALIDATION, Options
from .train import Output
from .train import train as run_training

__all__ = ["app", "backends", "bench", "check", "doctor", "evaluate", "export", "main", "predict", "train"]

DATA, NETWORK, TRAINING, MACHINE, OUTPUT = "Data", "Network", "Training", "Where it runs", "Output"

app = typer.Typer(
    name="xbp",
    cls=Guarded,
    help="Train neural networks on any array library.",
    epilog="A first try: xbp train digits",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)


def _option(panel: str, metavar: str, help: str, unset: object = None, **rest: Any) -> Any:
    """An option of a command; `unset` is what the help calls the default of one that is None unless given."""
    if unset is not None:
        help = f"{help} (default: {unset})"
    return typer.Option(help=help, rich_help_panel=panel, metavar=metavar, show_default=False, **rest)


def _flag(panel: str, name: str, help: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel, show_default=False)


def _argument(name: str, help: str) -> Any:
    return typer.Argument(help=help, metavar=name, show_default=False)


LOSSES = f"{', '.join(LOSS_NAMES)}; with a value as in huber:0.5, quantile:0.1,0.9"
SHARE = {"min": 0.0, "max": 0.9}

Source = Annotated[
    str | None, _argument("SOURCE", "digits, a folder of IDX files such as MNIST's, a .npz or .csv file")
]
Target = Annotated[str | None, _option(DATA, "NAME", "column of a .csv to learn, or array of an .npz")]
Model = Annotated[Path, _argument("MODEL", "a model file that xbp train wrote")]
Backend = Annotated[
    str,
    _option(
        MACHINE, "NAME", "numpy, cupy, torch, jax, ...; with a device as in cupy:1", "cupy, where it runs, or numpy"
    ),
]
Device = Annotated[str | None, _option(MACHINE, "NAME", "device, in the words of the backend's library")]
Dtype = Annotated[str | None, _option(NETWORK, "NAME", "float32 or float64", "float32")]
Json = Annotated[
    bool, _flag(OUTPUT, "--json", "one JSON object as the last line of standard output, all else on standard error")
]


@app.callback(invoke_without_command=True)
def main(version: Annotated[bool, _flag("Options", "--version", "Print the version and exit.")] = False) -> None:
    if logging.lastResort is not None:  # what the library warns of, as a program without a log of its own would show it
        logging.getLogger("xbp").addHandler(logging.lastResort)
    if version:
        show(f"xbp {metadata.version('xbp')}")
        raise typer.Exit


@app.command()
def train(
    source: Source = None,
    target: Target = None,
    task: Annotated[
        str | None, _option(DATA, "NAME", "classification or regression", "from --loss, or the data")
    ] = None,
    test_fraction: Annotated[
        float | None, _option(DATA, "SHARE", "of the rows, held out for the test", TEST_FRACTION, **SHARE)
    ] = None,
    validation: Annotated[
        float | None,
        _option(
            DATA,
            "SHARE",
            "of the training rows, held back to decide when to stop",
            f"{VALIDATION} with --patience",
            **SHARE,
        ),
    ] = None,
    scale_targets: Annotated[
        bool | None,
        typer.Option(
            "--scale-targets/--raw-targets",
            help="train a regression on targets of mean 0 and deviation 1, or as they are; the results are in their "
            "own units (default: scale)",
            rich_help_panel=DATA,
            show_default=False,
        ),
    ] = None,
    hidden: Annotated[
        str | None, _option(NETWORK, "WIDTHS", "of the hidden layers, such as 512,256; or none", HIDDEN)
    ] = None,
    activation: Annotated[
        str | None, _option(NETWORK, "NAME", "relu, gelu, tanh, leaky_relu:0.2, ...", ACTIVATION)
    ] = None,
    dropout: Annotated[
        float | None,
        _option(NETWORK, "SHARE", "of the hidden units, left out at random in training", "0.1; regression 0"),
    ] = None,
    dtype: Dtype = None,
    seed: Annotated[
        int | None, _option(NETWORK, "NUMBER", "draws weights, order, dropout and the rows held out", 0, min=0)
    ] = None,
    loss: Annotated[str | None, _option(TRAINING, "NAME", LOSSES, "from the data")] = None,
    optimizer: Annotated[str | None, _option(TRAINING, "NAME", "sgd, adagrad, rmsprop, adam, adamw", OPTIMIZER)] = None,
    lr: Annotated[
        float | None, _option(TRAINING, "RATE", "the highest learning rate", "what suits the optimiser")
    ] = None,
    momentum: Annotated[
        float | None, _option(TRAINING, "SHARE", "of the last step of sgd, kept in the next", 0.9)
    ] = None,
    weight_decay: Annotated[
        float | None, _option(TRAINING, "FACTOR", "L2, or decoupled in adamw", "0; adamw 0.01")
    ] = None,
    schedule: Annotated[
        str | None, _option(TRAINING, "NAME", f"of the learning rate: {', '.join(SCHEDULE_NAMES)}", SCHEDULE)
    ] = None,
    epochs: Annotated[
        int | None,
        _option(TRAINING, "NUMBER", "how many, or how many more after --resume", "15; 60 or 200 for small data", min=1),
    ] = None,
    batch_size: Annotated[int | None, _option(TRAINING, "ROWS", "in a step", "128; 32 for small data", min=1)] = None,
    clip_norm: Annotated[float | None, _option(TRAINING, "NORM", "the largest norm of the gradients")] = None,
    patience: Annotated[
        int | None,
        _option(
            TRAINING,
            "EPOCHS",
            "stop after so many without a better loss on validation rows; the best weights are kept",
            min=1,
        ),
    ] = None,
    time_limit: Annotated[float | None, _option(TRAINING, "SECONDS", "stop after so many", min=0.0)] = None,
    resume: Annotated[
        Path | None, _option(TRAINING, "MODEL", "go on with the training in this file, with its settings")
    ] = None,
    backend: Backend = "auto",
    device: Device = None,
    engine: Annotated[str | None, _option(MACHINE, "NAME", "how steps are run, see xbp backends", "the best")] = None,
    precision: Annotated[
        str | None, _option(MACHINE, "NAME", f"of products: {', '.join(PRECISIONS)}", "float32")
    ] = None,
    out: Annotated[
        Path | None, _option(OUTPUT, "FILE", "the model", "NAME.safetensors, or the file of --resume")
    ] = None,
    plot: Annotated[Path | None, _option(OUTPUT, "FILE", "curves of loss and accuracy, as .png, .svg or .pdf")] = None,
    json: Json = False,
    quiet: Annotated[bool, _flag(OUTPUT, "--quiet", "nothing but errors, and what --json asks for")] = False,
) -> None:
    """Train a network, test it on rows held out, and save it.

    Each epoch gets a line with the loss on the training rows and the results on held-out ones. What the test rows say
    decides nothing; early stopping has validation rows of its own, cut from the training part.

    Ctrl-C stops after the step at hand and saves the model (exit code 130); --resume goes on with it.
    """
    given = {k: v for k, v in locals().items() if k not in ("out", "plot", "json", "quiet")}
    run_training(Options(**given), Output(out, plot, json, quiet))


@app.command()
def evaluate(
    model: Model,
    source: Annotated[str | None, _argument("SOURCE", "labelled data (default: what the model was trained on)")] = None,
    target: Target = None,
    rows: Annotated[
        str,
        _option(
            DATA, "PART", "held-out: what the model was not trained on; all", "held-out if the data is its own, or all"
        ),
    ] = "auto",
    backend: Backend = "auto",
    device: Device = None,
    json: Json = False,
) -> None:
    """Tell how well a model does: loss and accuracy, or R2 and root mean squared error."""
    models.evaluate(model, source, target, rows, backend, device, json)


@app.command()
def predict(
    model: Model,
    source: Annotated[str, _argument("SOURCE", "data like the model's; its targets need not be there")],
    out: Annotated[Path | None, _option(OUTPUT, "FILE", "a .csv or .npz", "CSV on standard output")] = None,
    backend: Backend = "auto",
    device: Device = None,
) -> None:
    """Write the class of each row with the probabilities of all classes, or the predicted numbers."""
    models.predict(model, source, out, backend, device)


@app.command()
def export(
    model: Model,
    file: Annotated[Path, _argument("FILE", "a .onnx, or a .safetensors as PyTorch reads it")],
    opset: Annotated[int | None, _option(OUTPUT, "NUMBER", "version of ONNX's operators", OPSET)] = None,
    json: Json = False,
) -> None:
    """Write the network of a model file for other programs: ONNX, or the weights of a torch.nn.Sequential.

    It predicts as in xbp, from rows to scores: dropout is gone, batch norms use their running statistics.
    """
    run_export(model, file, opset, json)


@app.command()
def backends(json: Json = False) -> None:
    """List the array libraries: which can run here, on what, and what the others lack."""
    tables.backends(json)


@app.command()
def doctor(json: Json = False) -> None:
    """Look for what is missing or broken here, and say what to do about it; something wrong gives exit code 1.

    What is merely missing, such as a GPU, is no failure: something else does its work.
    """
    run_doctor(json)


@app.command()
def check(
    layers: Annotated[
        str | None,
        _option(
            NETWORK, "LAYERS", "such as 'affine:8-5 relu batch_norm dropout:0.2 affine:3', in place of the next five"
        ),
    ] = None,
    inputs: Annotated[int, _option(NETWORK, "NUMBER", "of columns", 10, min=1)] = 10,
    hidden: Annotated[str, _option(NETWORK, "WIDTHS", "of the hidden layers", "16,8")] = "16,8",
    outputs: Annotated[int, _option(NETWORK, "NUMBER", "of outputs", 4, min=1)] = 4,
    activation: Annotated[str, _option(NETWORK, "NAME", "relu, gelu, tanh, ...", "relu")] = "relu",
    dropout: Annotated[float, _option(NETWORK, "SHARE", "of the hidden units left out", 0)] = 0.0,
    dtype: Dtype = "float32",
    seed: Annotated[int, _option(NETWORK, "NUMBER", "draws weights and data", 0, min=0)] = 0,
    loss: Annotated[str, _option(TRAINING, "NAME", LOSSES, "softmax_cross_entropy")] = "softmax_cross_entropy",
    batch_size: Annotated[int, _option(TRAINING, "ROWS", "of data", 16, min=2)] = 16,
    entries: Annotated[
        int, _option(TRAINING, "NUMBER", "of entries of a larger array that are compared", 100, min=1)
    ] = 100,
    tolerance: Annotated[
        float | None, _option(TRAINING, "ERROR", "the largest relative one", "1e-6; 1e-4 where there is no float64")
    ] = None,
    backend: Annotated[
        str, _option(MACHINE, "NAME", "a backend, or all, which is every one that runs here", "auto")
    ] = "auto",
    device: Device = None,
    json: Json = False,
) -> None:
    """Check gradients against central differences, parameter by parameter; a wrong one gives exit code 1.

    They are computed in float64, also those of a float32 network; on a backend without float64, NumPy's stand in for
    the differences.
    """
    check_network(
        Described(layers, hidden, activation, dropout, inputs, outputs),
        loss,
        rows=batch_size,
        entries=entries,
        seed=seed,
        tolerance=tolerance,
        backend=backend,
        device=device,
        dtype=dtype or "float32",
        as_json=json,
    )


@app.command()
def bench(
    backend: Annotated[list[str] | None, _option(MACHINE, "NAME", "may be given several times", "all that run")] = None,
    case: Annotated[
        list[str] | None,
        _option(MACHINE, "NAME", "tiny, book, mid, big, wide; may be given several times", "all that suit the backend"),
    ] = None,
    seconds: Annotated[float, _option(MACHINE, "SECONDS", "for each network, backend and engine", 1, min=0.001)] = 1.0,
    markdown: Annotated[bool, _flag(OUTPUT, "--markdown", "the table as Markdown")] = False,
    json: Json = False,
) -> None:
    """Time training steps of networks of fixed sizes, verified against float64 first, and print the table."""
    tables.bench(backend, case, seconds, json, "markdown" if markdown else "text")
