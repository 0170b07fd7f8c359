"""What the tests of the command line share: running a command in this process, and small files to run it on."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer", reason="the command line needs the extra: pip install 'xbp[cli]'")
from typer.testing import CliRunner, Result  # after the reason to skip

from xbp.cli import app

SMALL = ("--hidden", "16", "--epochs", "3")
TREES = ("ash", "birch", "cedar")


def run(*args: object, code: int = 0) -> Result:
    """Run a command in this process; its exit code has to be `code`, and no exception may get through."""
    result = CliRunner().invoke(app, [str(a) for a in args])
    problem = result.exception if not isinstance(result.exception, SystemExit) else None
    assert problem is None, f"{problem!r}\n{result.output}"
    assert result.exit_code == code, result.output
    return result


def run_json(*args: object, code: int = 0) -> dict:
    """The object on the last line of standard output."""
    return json.loads(run(*args, "--json", code=code).stdout.splitlines()[-1])


def refused(code: int, words: list[str], *args: object) -> None:
    """The command ends with `code`, with the words in one message on standard error, nothing on standard output."""
    result = run(*args, code=code)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("Error:") == 1, result.stderr
    for word in words:
        assert word in result.stderr, result.stderr


def write_trees(path: Path, n: int = 240, seed: int = 0) -> Path:
    """A CSV file with two features, and classes that they nearly tell."""
    rng = np.random.default_rng(seed)
    k = np.arange(n) % 3
    rows = zip(rng.normal(2.0 * k, 0.6), rng.normal(100.0 - 50.0 * k, 20.0), (TREES[i] for i in k), strict=True)
    return write_csv(path, ["girth", "height", "tree"], rows)


def write_prices(path: Path, n: int = 300, seed: int = 0) -> Path:
    """A CSV file with a number to predict, far from 0 and wide: 1000 (5 + 3 a - 2 b + sin 3 c), and noise."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n))
    price = 1000.0 * (5.0 + 3.0 * a - 2.0 * b + np.sin(3.0 * c) + 0.1 * rng.normal(size=n))
    return write_csv(path, ["a", "b", "c", "price"], zip(a, b, c, price, strict=True))


def write_counts(path: Path, n: int = 300) -> Path:
    """A CSV file with counts, whose mean is exp(1 + a / 2)."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=n)
    return write_csv(path, ["a", "b", "count"], zip(a, rng.normal(size=n), rng.poisson(np.exp(1 + a / 2)), strict=True))


def write_csv(path: Path, head: list[str], rows: object) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(head)
        writer.writerows(rows)
    return path


def read_csv(text: str) -> tuple[list[str], list[list[str]]]:
    head, *rows = csv.reader(text.splitlines())
    return head, rows


def close(a: float, b: float, rel: float = 1e-5) -> bool:
    return math.isclose(a, b, rel_tol=rel, abs_tol=1e-7)
