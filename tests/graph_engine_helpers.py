"""What the tests of the CUDA engine share: a processor in the place of a device, networks, and comparisons.

The engine runs its own kernels and launches on a `Processor`. Compiled kernels are kept for the whole test session.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import processor as host
from engine_networks import CASES, STARTED, TOLERANCE, Trained
from processor import Processor, dtype_of
from xbp import scaling
from xbp.program import Interpreter
from xbp.recording import flat, inputs_of, record, signature_of
from xbp_cupy.graph import plans
from xbp_cupy.graph.lowering import PRELUDE
from xbp_cupy.graph.runner import GraphFunction, GraphRunner

WAYS = {"launches": -1, "one block": 2**62}  # multiplications up to which a step is one kernel
NAMES = [case.name for case in CASES]
by_name = pytest.mark.parametrize("name", NAMES)
in_both = pytest.mark.parametrize("dtype", ["float32", "float64"])
in_both_ways = pytest.mark.parametrize("way", WAYS)


def device(cls=Processor, **options):
    """A new device; skips where nothing compiles its kernels."""
    if host.COMPILER is None:
        pytest.skip("no C++ compiler to run CUDA kernels with")
    return cls(Path(os.environ["XBP_CACHE_DIR"]) / "cuda_on_host", **options)


def go(monkeypatch, way):
    """Steps run as separate launches, or as one kernel of one block."""
    monkeypatch.setattr(plans, "SMALL", WAYS[way])


@cache
def trained(name, dtype="float32"):
    """A training that has begun; nobody changes it."""
    return Trained(CASES[NAMES.index(name)], dtype)


def in_precision_of(t, precision, what="step"):
    """(a program of the training in a precision, the tree of its values)."""
    extra = scaling.init(xp=np, device="cpu") if precision == "mixed-float16" else {}
    tree = {**t.tree, "state": t.tree["state"] | extra}
    x, labels, w = t.data
    look = signature_of(x, None, None) if what == "scores" else signature_of(x, labels, w)
    return record(what, replace(t.trainer._step, precision=precision), tree, look), tree


def scalars_of(t, *steps):
    """The scalars of one step, () each; of several, (K,) each."""
    found = t.trainer._scalars.on_host(np.asarray(steps))
    found = {k: v.astype(t.dtype) if v.dtype.kind == "f" else v for k, v in found.items()}
    return {k: v[0] for k, v in found.items()} if len(steps) == 1 else found


def runner_on(processor, t, program=None, tree=None):
    """A runner with the training's values."""
    runner = GraphRunner(program or t.program, processor)
    runner.load(tree or t.tree)
    return runner


def poisoned(runner):
    """The runner, with NaN in all that a step has to write before it reads it."""
    if runner._arena is not None:
        runner._arena.bytes[...] = 0xFF
    return runner


def one_step(runner, t, rows, step=STARTED):
    return poisoned(runner).step(*t.batch(rows), scalars_of(t, step))


def values_of(runner):
    """Copies of all that the runner owns, flat."""
    return {name: np.array(a) for name, a in flat(runner.read()).items()}


def interpreted(program, arrays):
    with np.errstate(all="ignore"):
        return Interpreter(program, np, device="cpu", dtype=dtype_of)({n: arrays[n] for n in program.inputs})


def wanted_of(t, rows, step=STARTED, values=None, program=None):
    """The interpreter's values after one more step, flat, with the loss."""
    now = {f"scalars.{k}": np.asarray(v) for k, v in scalars_of(t, step).items()}
    before = values or flat(t.tree)
    return {**before, **interpreted(program or t.program, {**before, **inputs_of(*t.batch(rows)), **now})}


def assert_near(found, wanted, dtype, limits=None):
    """Alike within rounding, relative to the largest entry of each array; nothing but rounding counts as zero."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        a, b = np.asarray(found[name]), np.asarray(value)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        if b.dtype.kind in "iub":
            np.testing.assert_array_equal(a, b, err_msg=name)
        elif b.size:
            assert np.isfinite(b).all(), name
            limit = (limits or TOLERANCE)[dtype] * max(np.abs(b).max(), 1e-2)
            error = np.abs(a.astype(np.float64) - b).max()
            assert error <= limit, f"{name}: {error:.1e}, and {limit:.1e} is allowed"


def assert_bits(found, wanted):
    """Equal, bit for bit."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        a, b = np.asarray(found[name]), np.asarray(value)
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        np.testing.assert_array_equal(
            np.ascontiguousarray(a).view(f"u{a.itemsize}"), np.ascontiguousarray(b).view(f"u{b.itemsize}"), name
        )


def rows_of(t):
    return max(2, t.case.rows) if t.case.name != "one-row" else 1


def function_on(processor, program):
    return GraphFunction(program, processor)


def text_of(kernels, wide=False):
    """A text of one's own behind the prelude."""
    return f"typedef {'long long' if wide else 'int'} index_t;\n{PRELUDE.read_text()}\n{kernels}"


def run_kernel(processor, kernels, name, arrays, numbers=(), blocks=1, wide=False):
    """Launch a kernel on arrays, which it may write to; its parameters are pointers first, then numbers."""
    kernel = processor.compiled(text_of(kernels, wide))(name)
    sizes = kernel.sizes[len(arrays) :]
    typed = [np.dtype(f"i{size}").type(a) for a, size in zip(numbers, sizes, strict=True)]
    processor.launch(kernel, blocks, [*(a.ctypes.data for a in arrays), *typed])
