"""The command line as a process of its own: terminals, pipes, Ctrl-C, and what starting it imports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

import xbp
import xbp.__main__
import xbp.cli
from cli_helpers import run_json

XBP = (sys.executable, "-m", "xbp")
BAR = "━"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
QUICK = ("train", "digits", "--hidden", "32", "--epochs", "3")


def environment(**more: str) -> dict[str, str]:
    """This one, without what decides about colours; OpenBLAS's threads are one, so that tests do not wait for them."""
    plain = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "CLICOLOR")}
    return {**plain, "TERM": "xterm-256color", "OPENBLAS_NUM_THREADS": "1", **more}


def in_pipe(*args: str, cwd, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*XBP, *args], cwd=cwd, env=environment(**more), capture_output=True, text=True, check=False, timeout=120
    )


def in_terminal(*args: str, cwd, **more: str) -> tuple[int, str]:
    """(exit code, what the terminal received) of a command whose three streams are a terminal of 100 columns."""
    pty = pytest.importorskip("pty", reason="there are no pseudo-terminals on this system")
    ours, theirs = pty.openpty()
    try:
        process = subprocess.Popen(
            [*XBP, *args], cwd=cwd, env=environment(COLUMNS="100", **more), stdin=theirs, stdout=theirs, stderr=theirs
        )
    finally:
        os.close(theirs)
    received = b""
    try:
        while data := os.read(ours, 65536):
            received += data
    except OSError:  # Linux's way to say that the other end is closed
        pass
    finally:
        os.close(ours)
    return process.wait(timeout=60), received.decode()


def test_no_bar_and_no_codes_in_a_pipe(tmp_path):
    result = in_pipe(*QUICK, "--json", cwd=tmp_path, FORCE_COLOR="1")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["epochs"] == 3
    for stream in (result.stdout, result.stderr):
        assert BAR not in stream
        assert "\x1b" not in stream
        assert "\r" not in stream
    assert len([line for line in result.stderr.splitlines() if line.startswith("epoch")]) == 3


def test_the_bar_shows_on_a_terminal(tmp_path):
    code, text = in_terminal(*QUICK, cwd=tmp_path)
    assert code == 0, text
    assert BAR in text
    assert re.search(r"epoch 1/3.*%", text)
    assert COLOUR.search(text)
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back
    lines = COLOUR.sub("", text)
    assert len(re.findall(r"epoch \d/3   loss .*test accuracy 0\.\d{4}", lines)) == 3
    assert "model: digits.safetensors" in lines


def test_no_colour_where_none_is_wanted(tmp_path):
    code, text = in_terminal(*QUICK, cwd=tmp_path, NO_COLOR="1")
    assert code == 0, text
    assert BAR in text
    assert not COLOUR.search(text)


@pytest.mark.skipif(not hasattr(signal, "SIGINT") or os.name == "nt", reason="sends a POSIX signal")
def test_ctrl_c_leaves_a_usable_model(tmp_path):
    process = subprocess.Popen(
        [*XBP, "train", "digits", "--hidden", "32", "--epochs", "1000000", "--json"],
        cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("epoch") and "2/1000000" in line:
                process.send_signal(signal.SIGINT)
                break
        out, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, "".join(said) + rest
    assert "Traceback" not in rest
    assert "the model is saved to digits.safetensors" in rest
    found = json.loads(out.splitlines()[-1])
    assert found["stop_reason"] == "interrupted"
    assert found["epochs"] >= 2
    model = str(tmp_path / "digits.safetensors")
    assert run_json("evaluate", model, "digits")["accuracy"] == found["test_accuracy"]
    again = run_json("train", "--resume", model, "--epochs", 1, "--quiet")
    assert again["epochs"] == found["epochs"] + 1


def test_the_script_and_the_module_are_the_same(tmp_path):
    shown = in_pipe("--version", cwd=tmp_path)
    assert shown.stdout == f"xbp {xbp.__version__}\n"
    assert xbp.__main__.app is xbp.cli.app


def test_starting_imports_no_library_that_only_some_commands_need(tmp_path):
    code = (
        "import sys; from xbp.cli import app\n"
        "heavy = {'cupy', 'jax', 'matplotlib', 'scipy', 'sklearn', 'torch', 'hypothesis', 'pytest'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout == "[]\n", result.stderr
