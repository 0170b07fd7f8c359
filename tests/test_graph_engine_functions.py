"""Pure programs on the CUDA engine, its kernels run on a processor: twenty networks, random ones, two threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as ns
from engine_networks import STARTED
from graph_engine_helpers import (
    WAYS,
    assert_bits,
    assert_near,
    by_name,
    device,
    function_on,
    in_precision_of,
    interpreted,
    scalars_of,
    trained,
    values_of,
)
from network_strategies import Described
from xbp.data import prepare_batch
from xbp.recording import flat, inputs_of, record, signature_of
from xbp_cupy.graph import plans
from xbp_cupy.graph.runner import KEPT, GraphRunner

WHATS = ["scores", "sums", "piece", "apply"]


def arrays_for(t, program, rows):
    """What a program of the training reads, for these rows."""
    tree = t.tree
    grads = {name: np.cos(a) for name, a in tree["params"].items()}
    every = flat({**tree, "grads": grads, "scalars": scalars_of(t, STARTED)}) | inputs_of(*t.batch(rows))
    every |= {"share": np.asarray(0.25, t.dtype), "first_row": np.asarray(3, "int32")}
    return {name: np.asarray(every[name]) for name in program.inputs}


@by_name
@pytest.mark.parametrize("what", WHATS)
def test_functions_are_the_interpreters(name, what):
    """At several batch sizes, with the same bits in either order of threads; what they are given is left alone."""
    t = trained(name)
    program, _ = in_precision_of(t, "float32", what)
    functions = [function_on(device(backwards=backwards), program) for backwards in (False, True)]
    # Of two rows a batch norm makes 1 and -1 whatever they are: their gradient is nothing but rounding.
    for n in (7, 2, 1, 7) if name != "batch-norm" else (7, 4, 7):
        given_ = arrays_for(t, program, slice(1, 1 + n))
        copies = {k: a.copy() for k, a in given_.items()}
        for a in given_.values():
            a.flags.writeable = False
        found = [function(given_) for function in functions]
        assert list(found[0]) == list(program.outputs)
        assert_near(found[0], interpreted(program, given_), "float32")
        assert_bits(*found)
        assert_bits(given_, copies)
        for a in given_.values():
            a.flags.writeable = True


@pytest.mark.parametrize("what", WHATS)
@pytest.mark.parametrize("name", ["deep-adam", "batch-norm", "dropout"])
def test_functions_in_float64(name, what):
    t = trained(name, "float64")
    program, _ = in_precision_of(t, "float32", what)
    given_ = arrays_for(t, program, slice(0, 9))
    assert_near(function_on(device(), program)(given_), interpreted(program, given_), "float64")


def test_results_belong_to_whoever_asked():
    t = trained("deep-adam")
    program, _ = in_precision_of(t, "float32", "piece")
    function = function_on(device(), program)
    first_given, second_given = (arrays_for(t, program, slice(k, k + 7)) for k in (0, 20))
    first = function(first_given)
    copies = {k: a.copy() for k, a in first.items()}
    second = function(second_given)
    assert_bits(first, copies)
    assert not np.array_equal(first["loss"], second["loss"])
    for name, a in first.items():
        assert not any(np.shares_memory(a, b) for b in (*second.values(), *first_given.values())), name


def test_many_batch_sizes():
    t = trained("dropout")
    program, _ = in_precision_of(t, "float32", "scores")
    function = function_on(device(), program)
    for n in [*range(1, KEPT + 5), 1, 2]:
        given_ = arrays_for(t, program, slice(0, n))
        assert_near(function(given_), interpreted(program, given_), "float32")
        assert len(function._launches) <= KEPT


@pytest.mark.parametrize("shared", [True, False], ids=["one function", "one each"])
def test_two_threads_at_once(shared):
    t = trained("batch-norm")
    program, _ = in_precision_of(t, "float32", "piece")
    one = function_on(device(), program)
    functions = [one, one if shared else function_on(device(), program)]
    given_ = [arrays_for(t, program, slice(k, k + n)) for k, n in ((0, 7), (10, 12))]
    wanted = [function_on(device(), program)(g) for g in given_]
    errors = []

    def work(k):
        try:
            for _ in range(20):
                assert_bits(functions[k](given_[k]), wanted[k])
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors


# --- random networks --------------------------------------------------------------------------------------------------


def check_all_programs(described, n, seed, way):
    with np.errstate(all="ignore"):
        trainer = ns.trainer(described, "eager")
        for k in range(2):
            trainer.step(*ns.batch(described, max(n, 2), seed + k + 1))
        x, t, w = prepare_batch(trainer.model, trainer.loss, *ns.batch(described, n, seed))
    tree = {s: {k: np.array(a) for k, a in arrays.items()} for s, arrays in trainer._tree().items()}
    scalars = {k: np.asarray(v) for k, v in trainer._scalars.single(trainer.steps).items()}
    program = record("step", trainer._step, tree, signature_of(x, t, w))
    every = flat({**tree, "scalars": scalars}) | inputs_of(x, t, w)
    wanted = interpreted(program, every)
    if not all(np.isfinite(a).all() for a in wanted.values()):
        return
    wanted = {**flat(tree), **wanted}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "SMALL", WAYS[way])
        runner = GraphRunner(program, device())
        runner.load(tree)
        loss = runner.step(x, t, w, scalars)
    assert_near({**values_of(runner), "loss": loss}, wanted, described.dtype)
    for what, given_ in (("scores", (x, None, None)), ("sums", (x, t, w))):
        program = record(what, trainer._step, tree, signature_of(*given_))
        inputs = {name: every[name] for name in program.inputs}
        assert_near(function_on(device(), program)(inputs), interpreted(program, inputs), described.dtype)


@settings(max_examples=9, derandomize=True)
@given(ns.networks(("float32",)), st.integers(1, 20), st.integers(0, 3), st.sampled_from(list(WAYS)))
def test_random_networks(described, n, seed, way):
    check_all_programs(described, max(n, described.smallest), seed, way)


@settings(max_examples=4, derandomize=True)
@given(
    rows=st.integers(1, 70),
    widths=st.lists(st.integers(1, 300), min_size=2, max_size=4),
    loss=st.sampled_from(["softmax", "squared"]),
)
def test_rows_of_any_width(rows, widths, loss):
    described = Described(
        inputs=widths[0], width=widths[1], layers=("layer", "relu", *widths[2:]), outputs=widths[-1], loss=loss
    )
    check_all_programs(described, rows, 0, "launches")


@pytest.mark.parametrize("width", [1024, 1030])  # up to which a warp has a row, and from which a block has
def test_wide_rows(width):
    check_all_programs(Described(inputs=5, width=width, layers=("layer", "relu"), outputs=3), 9, 0, "launches")
