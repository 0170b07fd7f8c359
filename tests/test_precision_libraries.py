"""Mixed precision elsewhere: other libraries and their compilers compute what the interpreter says, or refuse."""

from __future__ import annotations

import numpy as np
import pytest

from engine_networks import CASES
from precision_helpers import EPSILON, arrays_of, by_name, in_both, interpreted, programs, same_bits, trained
from training_helpers import backend_or_skip
from xbp.errors import NotCompiled


@in_both
@pytest.mark.parametrize("engine", ["numba", "planned"])
def test_engines_of_numpy_refuse_what_they_cannot_compute(half, engine):
    backend = backend_or_skip("numpy")
    if engine not in backend.engines:
        pytest.skip(f"engine {engine!r} needs {backend.extras[engine]}")
    for what in ("step", "scores"):
        make = backend.compile if what == "step" else backend.function
        with pytest.raises(NotCompiled, match=f"{engine!r}.* computes with no {half}"):
            make(programs(trained(CASES[0]), f"mixed-{half}")[what], engine)


# --- other libraries run the same program -----------------------------------------------------------------------------


def on(backend, array):
    return backend.asarray(np.asarray(array))


def agree(found, wanted, half, what):
    """Equal but for the order of summation, which may send a number to the other neighbour when it is rounded."""
    assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype), what
    if found.dtype.kind == "f":
        limit = 2 * EPSILON[half] * max(np.abs(wanted).max(initial=0.0), 1e-2)
        assert np.abs(found - wanted).max(initial=0.0) <= limit, what
    else:
        same_bits(found, wanted)


@in_both
@pytest.mark.parametrize("name", ["torch", "jax"])
@by_name
def test_libraries_interpret_it_as_numpy_does(case, name, half):
    backend, precision = backend_or_skip(name), f"mixed-{half}"
    program, arrays = programs(trained(case), precision)["step"], arrays_of(trained(case), precision)
    wanted = interpreted(program, arrays)
    found = backend.interpreted(program)({k: on(backend, a) for k, a in arrays.items()})
    for key, a in wanted.items():
        agree(backend.to_host(found[key]), np.asarray(a), half, key)


COMPILERS = [(case, "jax", "jit") for case in CASES if case.name in ("deep-adam", "dropout", "fan-out")]
COMPILERS += [(case, "torch", "compile") for case in CASES if case.name == "deep-adam"]  # takes seconds each


@in_both
@pytest.mark.parametrize(("case", "name", "engine"), COMPILERS, ids=lambda v: getattr(v, "name", v))
def test_compilers_keep_the_rounding(case, name, engine, half):
    backend, precision = backend_or_skip(name), f"mixed-{half}"
    made, arrays = programs(trained(case), precision), arrays_of(trained(case), precision)
    for what in ("step", "scores"):
        program = made[what]
        wanted = interpreted(program, arrays)
        given_ = {k: on(backend, arrays[k]) for k in program.inputs}
        found = backend.function(program, engine)(given_)
        for key, a in wanted.items():
            agree(backend.to_host(found[key]), np.asarray(a), half, key)
    # A compiler that leaves the rounding out would be this far from it.
    plain = interpreted(programs(trained(case), "float32")["scores"], arrays)["scores"]
    shifted = np.abs(plain - wanted["scores"]).max()
    assert np.abs(backend.to_host(found["scores"]) - wanted["scores"]).max() < 0.01 * shifted
