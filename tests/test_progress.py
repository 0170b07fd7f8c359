"""The bar: on a terminal, in a pipe, without colour, on a narrow screen, and when a training ends early."""

from __future__ import annotations

import io
import re
import sys

import numpy as np
import pytest

import xbp

pytest.importorskip("rich", reason="the bar is drawn by rich: pip install 'xbp[progress]'")

from xbp import progress
from xbp.callbacks import Callback, EarlyStopping, Progress
from xbp.errors import LibraryMissing
from xbp.journal import EpochLog
from xbp.progress import ProgressBar, watchers


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _plain_surroundings(monkeypatch):
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(progress, "REDRAW", 0.0)


def trained(*callbacks, epochs=3, batches=False, **options):
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(96, 4)), rng.integers(0, 3, 96)
    net = xbp.Network([xbp.Affine(4, 3)], backend="numpy")
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(0.1))
    if batches:
        trainer.fit([(x[:48], t[:48]), (x[48:], t[48:])], epochs=epochs, callbacks=callbacks, **options)
    else:
        trainer.fit(x, t, epochs=epochs, validation=(x, t), callbacks=callbacks, **options)
    return trainer


def shown(out):
    """The text without control codes, one state of the screen's lines after the other."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue()).replace("\r", "\n")


LINE = r"epoch %d/3   loss \d\.\d+   val loss \d\.\d+   val accuracy \d\.\d{4}   \d+\.\d s"


def test_a_pipe_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out = io.StringIO()
    trained(ProgressBar(out))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    for i, line in enumerate(lines):
        assert re.fullmatch(LINE % (i + 1), line), line


def test_a_terminal_gets_a_bar_with_speed_time_and_figures():
    out = Terminal()
    trainer = trained(ProgressBar(out))
    assert "\x1b[32m" in out.getvalue()  # held-out figures in green
    text = shown(out)
    for i in (1, 2, 3):
        assert re.search(LINE % i, text)
    bars = [line for line in text.splitlines() if "rows/s" in line]
    assert any("100 %" in bar for bar in bars)
    assert all("epoch" in bar and "%" in bar for bar in bars)
    assert any(re.search(r"[\d.]+k? rows/s +\d+:\d\d", bar) for bar in bars)
    assert any(f"loss {trainer.history['loss'][-1]:#.4g}" in bar and "val accuracy" in bar for bar in bars)
    assert out.getvalue().endswith("\x1b[2K")  # what stays are the lines


def test_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    trained(ProgressBar(out))
    assert re.findall(r"\x1b\[[0-9;]*m", out.getvalue()) == []
    assert "rows/s" in out.getvalue()


@pytest.mark.parametrize("columns", [40, 60, 80])
def test_a_narrow_terminal_keeps_the_bar_on_one_line(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    out = Terminal()
    trained(ProgressBar(out, every=0))
    lines = [line for line in shown(out).splitlines() if line.strip()]
    assert lines
    assert max(map(len, lines)) <= columns
    assert all(line.startswith("epoch") for line in lines)


def test_a_dumb_terminal_gets_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    trained(ProgressBar(out))
    assert "\x1b[2K" not in out.getvalue()
    assert re.search(LINE % 3, shown(out))


def test_fewer_lines_none_and_nothing():
    out = io.StringIO()
    trained(ProgressBar(out, every=2))
    assert [line[:9] for line in out.getvalue().splitlines()] == ["epoch 2/3", "epoch 3/3"]
    for options in ({"every": 0}, {"disable": True}):
        out = io.StringIO()
        trained(ProgressBar(out, **options))
        assert out.getvalue() == ""
    with pytest.raises(ValueError, match="every"):
        ProgressBar(every=-1)


def test_batches_of_unknown_number():
    out = Terminal()
    trained(ProgressBar(out), batches=True)
    assert "rows/s" not in shown(out)
    assert "epoch 3/3" in shown(out)


class Failing(Callback):
    def on_epoch_end(self, trainer):
        raise RuntimeError("on purpose")


def test_the_bar_goes_away_however_the_training_ends():
    out = Terminal()
    bar = ProgressBar(out)
    with pytest.raises(RuntimeError, match="on purpose"):
        trained(bar, Failing())
    assert "\x1b[?25h" in out.getvalue()  # the cursor is back
    assert bar._bar is None
    again = trained(bar, EarlyStopping("loss", patience=1, min_delta=10.0))
    assert again.epoch == 2
    assert bar._bar is None


def test_fit_takes_the_bar_on_a_terminal_alone(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert [type(w) for w in watchers([], True)] == [EpochLog, ProgressBar]
    assert [type(w) for w in watchers([TrainingStops()], False)] == [TrainingStops, EpochLog]
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert [type(w) for w in watchers([], True)] == [EpochLog, Progress]
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "installed", lambda name: False)
    assert [type(w) for w in watchers([], True)] == [EpochLog, Progress]


class TrainingStops(Callback):
    pass


def test_without_rich(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(LibraryMissing, match=r"ProgressBar needs rich.*xbp\[progress\]"):
        ProgressBar()


@pytest.mark.parametrize(
    ("number", "text"),
    [(3.0, "3"), (999.4, "999"), (999.9, "1.00k"), (12345, "12.3k"), (1e6, "1.00M"), (4.56e8, "456M")],
)
def test_short_numbers(number, text):
    assert progress._short(number) == text
