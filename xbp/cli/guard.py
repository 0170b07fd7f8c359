"""How commands end: 0 for success, 1 for a failure, 2 for a command that makes no sense, 130 for Ctrl-C.

What xbp raises on purpose is a message to the user, so it is printed as one, on standard error and without a traceback.
An exception that nobody foresaw keeps its traceback, because that is a bug and wants to be reported.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

import typer
from typer.core import TyperGroup

from ..errors import NameUnknown, XBPError
from .console import note

__all__ = ["INTERRUPTED", "Guarded", "option_errors"]

INTERRUPTED = 130
UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # typer lends its base no public name


class Guarded(TyperGroup):
    """The group of commands that turns exceptions into messages and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _told
            try:
                return super().invoke(ctx)
            except UsageError as error:
                raise _usage(error, ctx) from error
            except NameUnknown as error:
                note(f"Error: {_as_options(str(error))}")
                raise typer.Exit(2) from error
            except XBPError as error:
                note(f"Error: {_as_options(str(error))}")
                raise typer.Exit(1) from error
            except MemoryError as error:
                note(f"Error: the memory of this machine does not suffice. {error}".rstrip())
                raise typer.Exit(1) from error
            except KeyboardInterrupt as error:
                note("Interrupted.")
                raise typer.Exit(INTERRUPTED) from error


def _usage(error: Any, ctx: Any) -> typer.Exit:
    """A usage error on plain lines, without a frame, so that it can be searched and read out."""
    where = (error.ctx or ctx).command_path
    note(f"Error: {error.format_message()}\nHelp: {where} --help")
    return typer.Exit(2)


def _as_options(message: str) -> str:
    """What Python writes as target=..., the command line calls --target."""
    names = "target|task|test_fraction|backend|device|engine|precision|dtype|clip_norm"
    message = re.sub(rf"\b({names})=(\S?)", _option, message)
    return re.sub(r"\bclip_norm\b", "--clip-norm", message)


def _option(match: re.Match[str]) -> str:
    return f"--{match[1].replace('_', '-')}{' ' if match[2] else ''}{match[2]}"


def _told(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    note(f"Warning: {message}")


@contextmanager
def option_errors(option: str) -> Iterator[None]:
    """Whatever the library says against a value of `option` becomes a usage error that names the option."""
    try:
        yield
    except (XBPError, ValueError, TypeError) as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
