"""The commands and their options, with the texts of `--help`. What they do is in the modules beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .check import check
from .console import show
from .evaluate import evaluate
from .guard import Guarded
from .predict import predict
from .session import ACTIVATION, DROPOUT, HIDDEN, OPTIMIZER, Options
from .show import backends, bench
from .train import Output, train

__all__ = ["app"]
