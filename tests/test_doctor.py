"""`xbp doctor`: it tells what is there, judges what is broken, and survives everything that it examines."""

from __future__ import annotations

import json
import re
import threading
from importlib import metadata

import pytest

import xbp
import xbp_cupy.doctor as cuda
from xbp import doctor
from xbp.doctor import Finding
from xbp.errors import BackendUnavailable
from xbp_cupy.driver import Card, Driver

H200 = Card("NVIDIA H200", 141 * 2**30, (9, 0))
V100 = Card("Tesla V100", 32 * 2**30, (7, 0))
K80 = Card("Tesla K80", 12 * 2**30, (3, 7))
READY = Driver(True, version=(13, 0), cards=(H200,))
NONE = Driver(False, text="libcuda.so.1 does not load (no such file)")
CUDA13 = {"cupy-cuda13x": "14.2.0"}


def states(found) -> dict[str, str]:
    return {f.what: f.state for f in found}


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def everything():
    return doctor.findings()


def test_it_tells_what_auto_takes_and_every_backend(everything):
    auto = next(f for f in everything if f.what == "auto")
    backend = xbp.get_backend("auto")
    assert auto.state == "ok"
    assert f"backend {backend.name} " in auto.text
    assert auto.text.endswith(f"engine {backend.engines[0]}")
    assert xbp.__version__ in next(f for f in everything if f.what == "xbp").text
    infos = {f"backend {i.name}": "ok" if i.available else "missing" for i in xbp.available_backends()}
    assert {what: state for what, state in states(everything).items() if what.startswith("backend ")} == infos


def test_doctors_of_the_backends_are_asked(everything):
    assert {"cupy", "driver", "machine code", "cache"} <= set(states(everything))
    assert {e.name for e in metadata.entry_points(group=doctor.GROUP)} >= {"numpy", "cupy"}


def test_each_finding_says_something_and_what_to_do(everything):
    for finding in everything:
        assert finding.text.strip(), finding
        assert finding.state in ("ok", "missing", "wrong")
        assert finding.remedy or finding.state == "ok" or finding.what.startswith("backend "), finding


class Entry:
    """An entry point of somebody's package."""

    name = "theirs"

    def __init__(self, examine):
        self.examine = examine

    def load(self):
        return self.examine


def examined_by(monkeypatch, examine) -> list[Finding]:
    monkeypatch.setattr(doctor, "_auto", list)
    monkeypatch.setattr(doctor, "_backends", list)
    monkeypatch.setattr(metadata, "entry_points", lambda group: [Entry(examine)])
    return doctor.findings()


def test_another_packages_doctor_is_heard(monkeypatch):
    finding = Finding("theirs", "ok", "well")
    assert examined_by(monkeypatch, lambda: [finding]) == [finding]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ImportError("no such library"), "ImportError: no such library"),
        (RuntimeError("broken"), "RuntimeError: broken"),
        (SystemExit(3), "SystemExit: 3"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_whatever_fails_is_told_and_what_came_before_it_kept(monkeypatch, failure, words):
    def examine():
        yield Finding("first", "ok", "fine")
        raise failure

    first, second = examined_by(monkeypatch, examine)
    assert first.what == "first"
    assert (second.what, second.state) == ("theirs", "wrong")
    assert words in second.text


def test_a_doctor_that_talks_nonsense_is_told(monkeypatch):
    (finding,) = examined_by(monkeypatch, lambda: ["all is well"])
    assert finding.state == "wrong"
    assert "returned a str" in finding.text


def test_what_hangs_is_left_behind(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0.05)
    release = threading.Event()

    def examine():
        yield Finding("first", "ok", "fine")
        release.wait(60)

    first, second = examined_by(monkeypatch, examine)
    release.set()
    assert first.what == "first"
    assert second.state == "wrong"
    assert "has not come back" in second.text


def test_broken_metadata_is_told(monkeypatch):
    def broken(group):
        raise ValueError("damaged METADATA")

    monkeypatch.setattr(doctor, "_auto", list)
    monkeypatch.setattr(doctor, "_backends", list)
    monkeypatch.setattr(metadata, "entry_points", broken)
    (finding,) = doctor.findings()
    assert finding.state == "wrong"
    assert "damaged METADATA" in finding.text


def test_where_auto_finds_nothing_that_is_wrong(monkeypatch):
    def nothing(name):
        raise BackendUnavailable("No backend can run here.")

    monkeypatch.setattr(doctor, "get_backend", nothing)
    found = doctor._auto()
    assert states(found) == {"xbp": "ok", "auto": "wrong"}
    assert not doctor.healthy(found)


def test_missing_is_not_ill():
    assert doctor.healthy([Finding("a", "ok", "x"), Finding("b", "missing", "x")])
    assert not doctor.healthy([Finding("a", "ok", "x"), Finding("b", "wrong", "x")])


# --- CUDA: judgements of facts that this machine need not have --------------------------------------------------------


def test_one_cupy_is_right():
    (finding,) = cuda.of_wheels(CUDA13, READY)
    assert (finding.state, finding.remedy) == ("ok", "")
    assert "cupy-cuda13x 14.2.0" in finding.text


@pytest.mark.parametrize(
    ("version", "install"),
    [
        ((13, 1), "pip install 'xbp[cuda13]'"),
        ((14, 0), "pip install 'xbp[cuda13]'"),
        ((12, 4), "pip install 'xbp[cuda12]'"),
        ((11, 8), "update the driver"),
        ((0, 0), "whichever CUDA the driver supports"),
    ],
)
def test_two_cupys_are_wrong_and_the_driver_decides(version, install):
    both = {"cupy-cuda12x": "13.6.0", "cupy-cuda13x": "14.2.0"}
    (finding,) = cuda.of_wheels(both, Driver(True, version=version, cards=(H200,)))
    assert finding.state == "wrong"
    assert "cupy-cuda12x 13.6.0 and cupy-cuda13x 14.2.0" in finding.text
    assert "pip uninstall -y cupy-cuda12x cupy-cuda13x" in finding.remedy
    assert install in finding.remedy


def test_no_cupy_is_missing():
    (finding,) = cuda.of_wheels({}, Driver(True, version=(12, 8), cards=(H200,)))
    assert (finding.state, finding.remedy) == ("missing", "pip install 'xbp[cuda12]'")
    (finding,) = cuda.of_wheels({}, NONE)
    assert finding.state == "missing"
    assert finding.remedy.startswith("For a machine with an NVIDIA GPU")


@pytest.mark.parametrize(
    ("seen", "state", "text", "remedy"),
    [
        (READY, "ok", "CUDA 13.0", ""),
        (NONE, "missing", "libcuda.so.1 does not load", "--gpus all"),
        (Driver(True, 100, "CUDA_ERROR_NO_DEVICE: no device (100)", (13, 0)), "missing", "no device", "nvidia-smi"),
        (Driver(True, 34, "CUDA_ERROR_STUB_LIBRARY (34)"), "wrong", "stub", "LD_LIBRARY_PATH"),
        (Driver(True, 803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH (803)"), "wrong", "MISMATCH", "Restart"),
        (Driver(True, 0, "", (12, 4), (H200,)), "wrong", "CUDA 12.4 .* built for CUDA 13", r"xbp\[cuda12\]"),
    ],
)
def test_the_driver_is_judged(seen, state, text, remedy, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (finding,) = cuda.of_driver(seen, CUDA13)
    assert finding.state == state
    assert re.search(text, finding.text), finding
    assert re.search(remedy, finding.remedy), finding


def test_hidden_devices_are_told(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (finding,) = cuda.of_driver(Driver(True, 100, "no device", (13, 0)), CUDA13)
    assert "CUDA_VISIBLE_DEVICES is ''" in finding.text
    assert finding.remedy == "Unset it."


def test_a_driver_is_not_compared_with_what_is_not_known():
    old = Driver(True, 0, "", (12, 4), (H200,))
    for installed in ({}, {"cupy": "14.2.0"}, {"cupy-cuda12x": "1", "cupy-cuda13x": "2"}):
        assert states(cuda.of_driver(old, installed)) == {"driver": "ok"}


def test_devices_are_named_and_judged():
    seen = Driver(True, version=(13, 0), cards=(H200, V100, K80))
    new, old, oldest = cuda.of_cards(seen, CUDA13)
    assert (new.what, new.state) == ("device 0", "ok")
    assert new.text == "NVIDIA H200, 141 GiB, compute capability 9.0"
    assert (old.state, old.remedy) == ("wrong", "An older CUDA has it: pip install 'xbp[cuda12]'")
    assert oldest.state == "wrong"
    assert "NumPy can" in oldest.remedy
    assert set(states(cuda.of_cards(seen, {"cupy": "14.2.0"})).values()) == {"ok"}


def test_wheels_are_found_by_their_names(monkeypatch):
    class Package:
        version = "1.0"

        def __init__(self, name):
            self.metadata = {"Name": name}

    names = ["CuPy", "cupy_cuda12x", "cupy-cuda110", "cupy.rocm-7-0", "cupy-xarray", "cupyx", "numpy", None]
    monkeypatch.setattr(metadata, "distributions", lambda: [Package(n) for n in names])
    assert set(cuda.wheels()) == {"cupy", "cupy-cuda12x", "cupy-cuda110", "cupy-rocm-7-0"}


def broken_library(name):
    raise BackendUnavailable(f"The CUDA library {name} cannot be used: it is not there.\nmore")


def test_a_library_that_is_not_there_matters_where_there_is_a_device(monkeypatch):
    monkeypatch.setattr(cuda, "VERSIONS", {"cublas": lambda: broken_library("cublas")})
    monkeypatch.setattr(cuda.nvrtc, "include_options", tuple)
    for seen, state in ((READY, "wrong"), (NONE, "missing")):
        found = list(cuda._of_libraries(seen))
        assert states(found) == {"cublas": state, "headers": state}
        assert found[0].text == "The CUDA library cublas cannot be used: it is not there."
        assert "xbp[cuda13]" in found[0].remedy


@pytest.mark.nvrtc
def test_libraries_newer_than_the_driver_are_wrong():
    if not cuda.wheels():
        pytest.skip("CUDA: no CuPy is installed")
    found = {f.what: f for f in cuda._of_libraries(READY)}
    if any(found[n].state != "ok" for n in cuda.VERSIONS):
        pytest.skip("CUDA's libraries are not all installed")
    old = {f.what: f.state for f in cuda._of_libraries(Driver(True, version=(11, 8), cards=(H200,)))}
    assert {old[n] for n in cuda.VERSIONS} == {"wrong"}


def test_a_cupy_that_cannot_be_imported_is_wrong(monkeypatch):
    def fails(name):
        raise OSError("undefined symbol")

    monkeypatch.setattr(cuda, "import_module", fails)
    (finding,) = cuda._of_cupy(CUDA13, READY)
    assert finding.state == "wrong"
    assert "OSError: undefined symbol" in finding.text
    assert "pip uninstall -y cupy-cuda13x and then pip install 'xbp[cuda13]'" in finding.remedy
    assert cuda._of_computing().state == "wrong"


def test_a_compiler_that_fails_is_told(monkeypatch):
    monkeypatch.setattr(cuda.nvrtc, "compiled", lambda *_: broken_library("nvrtc"))
    assert cuda._of_compiler(READY).state == "wrong"
    assert cuda._of_compiler(NONE).state == "missing"


# --- the command ------------------------------------------------------------------------------------------------------


def invoked(monkeypatch, found, *options):
    pytest.importorskip("typer", reason="the command line needs the extra: pip install 'xbp[cli]'")
    from typer.testing import CliRunner

    import xbp.cli
    import xbp.cli.doctor

    monkeypatch.setattr(xbp.cli.doctor, "findings", lambda: found)
    return CliRunner().invoke(xbp.cli.app, ["doctor", *options])


WELL = [Finding("xbp", "ok", "0.1.0"), Finding("driver", "missing", "there is none", "Install one.")]
ILL = [*WELL, Finding("cupy", "wrong", "two at once", "pip uninstall one")]


@pytest.mark.parametrize(("found", "code"), [(WELL, 0), (ILL, 1)])
def test_the_command_ends_with_what_was_found(monkeypatch, found, code):
    result = invoked(monkeypatch, found)
    assert result.exit_code == code
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["ok", "xbp", "0.1.0"]
    assert lines[1] == "missing  driver  there is none"
    assert lines[2] == " " * 17 + "Install one."
    if code:
        assert lines[3] == "wrong    cupy    two at once"
    answer = invoked(monkeypatch, found, "--json")
    assert answer.exit_code == code
    assert json.loads(answer.stdout) == {"ok": code == 0, "findings": [vars(f) for f in found]}


def test_the_command_has_a_help(monkeypatch):
    result = invoked(monkeypatch, WELL, "--help")
    assert result.exit_code == 0
    assert "missing or broken" in result.stdout
    assert "--json" in result.stdout


def test_the_command_as_it_is_here(monkeypatch, everything):
    result = invoked(monkeypatch, everything)
    assert result.exit_code == (0 if doctor.healthy(everything) else 1)
    for finding in everything:
        assert finding.text in result.stdout
