"""The record of any network is its step, bit for bit on NumPy, and knows no batch size; the passes keep it so."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as ns
import xbp
from network_strategies import Described
from program_cases import KINDS, Case, assert_same_bits
from xbp.errors import RecordingError
from xbp.layers import Layer
from xbp.layers.base import Result
from xbp.program import Interpreter, optimised
from xbp.program.liveness import deaths, last_uses
from xbp.program.passes import renumbered, simplified, without_copies, without_dead
from xbp.recording import BATCH, flat, record, signature_of

FEW = settings(max_examples=15)
TINY = Described(inputs=3, width=4, outputs=2)


@FEW
@given(described=ns.networks(), n=st.integers(2, 9), seed=st.integers(0, 99))
def test_a_record_is_its_step(described, n, seed):
    case = Case(described, n, seed)
    for what in KINDS:
        raw = case.recorded(what)
        program = record(what, case.step, case.tree, case.look)
        assert str(program) == str(optimised(raw))
        out, wanted = case.interpreted(program), case.eager(what)
        assert_same_bits(out, wanted)
        assert_same_bits(out, case.interpreted(raw))
        assert out.keys() == case.interpreted(raw).keys()
        for name in wanted.keys() - out.keys():  # what the step hands through is no output
            assert wanted[name] is flat(case.tree)[name]


@FEW
@given(described=ns.networks())
def test_a_record_knows_no_batch_size(described):
    case = Case(described)
    for what in KINDS:
        assert str(case.recorded(what, BATCH)) == str(case.recorded(what, BATCH + 2)), what


@FEW
@given(described=ns.networks())
def test_each_pass_keeps_the_bits_and_has_nothing_left_to_do_when_repeated(described):
    case = Case(described)
    program = case.recorded("step")
    before = case.interpreted(program)
    for one in (simplified, without_copies, without_dead, renumbered):
        program = one(program)
        assert_same_bits(before, case.interpreted(program))
        assert str(one(program)) == str(program)
    assert str(optimised(program)) == str(program)
    assert program.hash == optimised(program).hash


@FEW
@given(described=ns.networks())
def test_no_value_is_read_after_its_death(described):
    program = record("step", (case := Case(described)).step, case.tree, case.look)
    alive, died = set(program.inputs.values()), set()
    dead, last = deaths(program), last_uses(program)
    for i, (op, leaving) in enumerate(zip(program.operations, dead, strict=True)):
        assert alive.issuperset(op.operands)
        alive.add(op.result)
        assert alive.issuperset(leaving)
        assert died.isdisjoint(leaving)
        assert all(last[v] == i for v in leaving)  # not later than need be
        alive.difference_update(leaving)
        died.update(leaving)
    assert alive - set(program.inputs.values()) == set(program.outputs.values()) - set(program.inputs.values())


def test_lives_of_results_that_nobody_reads_and_of_inputs_that_are_outputs():
    case = Case(TINY)
    program = case.recorded("step")
    unread = [op.result for op in program.operations if op.result not in last_uses(program)]
    assert unread  # kernels keep what only some backward passes need
    dead = deaths(program)
    for value in unread:
        assert value in dead[[op.result for op in program.operations].index(value)]


def test_the_text_names_rules_and_n():
    described = replace(TINY, layers=("tanh",), weighted=True)
    text = str(record("step", (case := Case(described)).step, case.tree, case.look))
    for line in (
        "program step",
        "input x: float32[N, 3]",
        "input w: float32[N]",
        "# 0 Affine.forward",
        "# 1 Tanh.backward",
        "# 2 Affine.backward",
        "# SoftmaxCrossEntropy.forward",
        "# SGD.update",
        "%0: float32[N, 4] = matmul(x, params.0.W)",
    ):
        assert f"{line}\n" in f"{text}\n"
    assert str(BATCH) not in text


def test_the_hash_knows_the_constants_of_layers_and_optimisers():
    def hash_of(layer=None, optimizer=None, clip_norm=None):
        layers = [xbp.Affine(3, 4), layer or xbp.LeakyReLU(0.1), xbp.Affine(4, 2)]
        trainer = xbp.Trainer(
            xbp.Network(layers, backend="numpy", seed=0),
            loss=xbp.SoftmaxCrossEntropy(),
            optimizer=optimizer or xbp.AdamW(0.1, weight_decay=0.01),
            clip_norm=clip_norm,
        )
        x, t = np.zeros((5, 3), "float32"), np.zeros(5, "int32")
        return record("step", trainer._step, trainer._tree(), signature_of(x, t, None)).hash

    hashes = [
        hash_of(),
        hash_of(xbp.LeakyReLU(0.2)),
        hash_of(optimizer=xbp.AdamW(0.1, weight_decay=0.02)),
        hash_of(optimizer=xbp.AdamW(0.1, weight_decay=0.01, eps=1e-7)),
        hash_of(clip_norm=1.0),
        hash_of(clip_norm=2.0),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hash_of(optimizer=xbp.AdamW(0.3, weight_decay=0.01)) == hashes[0]  # the rate is an input


# layers of somebody else


@dataclass(frozen=True)
class Rows(Layer):
    """Divides by the number of rows, as a number or as an array."""

    baked: bool

    def forward(self, x, /, *, params, buffers, mode, xp):
        rows = x.shape[0] if self.baked else xp.sum(xp.ones_like(x[:, 0]))
        return Result(x / rows, rows)

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        return dy / cache, {}


def with_layer(layer):
    model = xbp.Network([xbp.Affine(3, 4), layer, xbp.Affine(4, 2)], backend="numpy", seed=0)
    return xbp.Trainer(model, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="eager")


def test_a_layer_that_computes_with_the_number_of_rows_is_refused():
    trainer = with_layer(Rows(baked=True))
    x, t = np.ones((5, 3), "float32"), np.zeros(5, "int32")
    for what in ("step", "scores", "sums"):
        with pytest.raises(
            RecordingError, match=r"computes with the number of rows, x\.shape\[0\].*xp\.sum\(xp\.ones_like"
        ):
            record(what, trainer._step, trainer._tree(), signature_of(x, t, None))


def test_a_layer_that_counts_rows_as_an_array_is_recorded():
    trainer = with_layer(Rows(baked=False))
    x, t = np.ones((5, 3), "float32"), np.zeros(5, "int32")
    program = record("step", trainer._step, trainer._tree(), signature_of(x, t, None))
    assert "%3: float32[] = full(shape=(), value=N)\n%4: float32[N, 4] = divide(%1, %3)\n" in str(program)
    given_ = flat({**trainer._tree(), "scalars": trainer._scalars.single(0)}) | {"x": x, "t": t}
    out = Interpreter(program, np, device="cpu")({name: given_[name] for name in program.inputs})
    assert out["loss"] == trainer.step(x, t)


# other libraries


def test_a_record_runs_on_every_library(space):
    case = Case(replace(TINY, layers=("dropout",), weighted=True))
    program = record("step", case.step, case.tree, case.look)
    wanted = case.interpreted(program)
    backend = space.backend
    given_ = {name: backend.asarray(a) for name, a in case.given(program).items()}
    out = Interpreter(program, space.xp, backend.device)(given_)
    assert out.keys() == wanted.keys()
    for name, array in out.items():
        found = space.get(array)
        assert backend.owns(array), name
        assert (found.shape, found.dtype) == (np.shape(wanted[name]), np.asarray(wanted[name]).dtype), name
        np.testing.assert_allclose(found, wanted[name], rtol=2e-5, atol=2e-6, err_msg=name)
