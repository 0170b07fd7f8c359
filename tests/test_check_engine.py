"""`xbp.testing.check_engine` passes what is right, and names what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.errors import BackendUnavailable, NotCompiled
from xbp.program import Interpreter
from xbp.runner import FunctionRunner
from xbp.testing import check_engine

RIGHT = [("numpy", engine) for engine in ("numba", "planned", "eager")]
RIGHT += [
    ("jax", "jit"),
    ("torch", "eager"),
    ("strict", "eager"),
    pytest.param("cupy", "eager", marks=pytest.mark.cuda),
]


@pytest.mark.parametrize(("name", "engine"), RIGHT)
def test_engines_of_xbp_pass(name, engine):
    try:
        backend = xbp.get_backend(name)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    if engine not in backend.engines:
        pytest.skip(f"the engine {engine} needs {backend.extras[engine]}")
    check_engine(backend, engine)


@pytest.mark.parametrize("engine", xbp.get_backend("numpy").engines)
def test_in_float64(engine):
    check_engine("numpy", engine, dtype="float64")


class Mine(type(xbp.get_backend("numpy"))):
    """NumPy with an engine that goes wrong in a way of one's choice."""

    engines = ("mine", "eager")

    def __init__(self, change):
        super().__init__("mine", np, device="cpu")
        self._change = change

    def compile(self, program, engine):
        interpreter = Interpreter(program, np, device="cpu")
        return FunctionRunner(program, self, engine, lambda arrays: self._change(interpreter(arrays)))


def shifted(name, by):
    return lambda outputs: outputs | {name: outputs[name] + by}


def refused(outputs):
    raise AssertionError("is never called")


def test_what_is_wrong_is_named():
    check_engine(Mine(dict), "mine")
    for name in ("params.0.W", "buffers.5.running_mean", "state.v.7.W", "loss"):
        with pytest.raises(AssertionError, match=f"{name} after step 1, of 7 rows differs"):
            check_engine(Mine(shifted(name, np.float32(1e-3))), "mine")
    with pytest.raises(AssertionError, match=r"float64\(\), where float32\(\) is right"):
        check_engine(Mine(lambda outputs: outputs | {"loss": np.float64(outputs["loss"])}), "mine")


@pytest.mark.falls_back
def test_an_engine_that_gives_up_does_not_pass(monkeypatch):
    def give_up(self, program, engine):
        raise NotCompiled("No.")

    monkeypatch.setattr(Mine, "compile", give_up)
    with pytest.raises(AssertionError, match="gave up; the step ran on 'eager'"):
        check_engine(Mine(refused), "mine")
