"""What shares a launch and what shares memory: checked on the launches themselves, with the twenty networks."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import xbp
from graph_engine_helpers import (
    by_name,
    device,
    go,
    in_precision_of,
    one_step,
    rows_of,
    runner_on,
    trained,
    values_of,
)
from xbp.program import Value
from xbp.program.fusion import ELEMENTWISE, FREE, REDUCTIONS, leaves
from xbp.recording import record, signature_of
from xbp_cupy.graph.epilogues import BIAS_GRADIENT, MASK
from xbp_cupy.graph.lowering import ALIGNMENT, Lowered
from xbp_cupy.graph.runner import GraphRunner

KINDS = ["float32", "mixed-bfloat16", "declined", "kernels alone", "piece"]
in_all = pytest.mark.parametrize("kind", KINDS)
ROWS = (1, 2, 7, 64, 1000)


@cache
def lowered(name, kind):
    t = trained(name)
    precision = kind if kind == "mixed-bfloat16" else "float32"
    program, _ = in_precision_of(t, precision, "piece" if kind == "piece" else "step")
    if kind == "kernels alone":
        return Lowered(program, by_library=False)
    declined: frozenset[str] = frozenset()
    low = Lowered(program, kind != "piece", declined)
    while kind == "declined":  # every epilogue, also those that are asked for in place of others
        asked = {x.product.request for x in low.launches if x.product is not None and x.product.epilogue}
        if not asked:
            return low
        declined |= asked
        low = Lowered(program, True, declined)
    return low


def reads_of(f, group):
    """The values in memory that a group starts from, and what its own operations make."""
    made = {op.result for op in group.operations}
    found = set()

    def note(value: Value):
        root = f.layouts[value].root
        if root in f.inlined:
            for v in f.makers[root].operands:
                note(v)
        elif root not in made:
            found.add(root)

    for op in group.operations:
        if op.function in ELEMENTWISE | REDUCTIONS:
            found |= {a.root for a in leaves(f, op)} - made
        elif op.function not in {*FREE, MASK, BIAS_GRADIENT}:
            for v in op.operands:
                note(v)
    return found


def order_of(low):
    """The groups of each launch."""
    order = [[] for _ in low.launches]
    for number, moment in low._moments.items():
        order[moment].append(number)
    return order


@by_name
@in_all
def test_groups_run_once_and_after_what_they_read(name, kind):
    low = lowered(name, kind)
    f, order = low.fused, order_of(low)
    assert sorted(number for launch in order for number in launch) == list(range(len(f.groups)))
    for numbers in order:
        for number in numbers:
            for root in reads_of(f, f.groups[number]):
                home = f.home.get(root)
                assert home is None or low._moments[home] < low._moments[number]
    for numbers in order:  # bodies that share a launch have nothing to say to one another
        made = [{op.result for op in f.groups[number].operations} for number in numbers]
        reads = [reads_of(f, f.groups[number]) for number in numbers]
        for i in range(len(numbers)):
            assert not any(reads[i] & made[j] for j in range(len(numbers)) if i != j)


def written_and_read(launch):
    """The places that each body of a launch writes to, and those that it only reads."""
    if launch.product is not None:
        p = launch.product
        writes = {p.d.place}
        beside = list(p.beside)
        if p.epilogue in ("drelu_bgrad", "bgrada"):
            writes.add(beside[0])
        if p.epilogue == "relu_aux_bias":
            writes.add(beside[1])
        return [(writes, {p.a.place, p.b.place, *beside} - writes)]
    found = []
    for body in launch.bodies:
        declared = dict(zip(body.arguments, body.parameters(), strict=True))
        writes = {place for place, text in declared.items() if not text.startswith("const ")}
        found.append((writes, set(declared) - writes))
    return found


@by_name
@in_all
def test_no_body_writes_what_another_of_its_launch_touches(name, kind):
    low = lowered(name, kind)
    for launch in low.launches:
        bodies = written_and_read(launch)
        for i, (writes, _) in enumerate(bodies):
            for j, (others, reads) in enumerate(bodies):
                assert i == j or not writes & (others | reads), launch.name


def check_those_aside(launches):
    """What goes aside may run at any moment until it is waited for; how many there are."""
    beside, found = [], 0
    for launch in launches:
        bodies = written_and_read(launch)
        writes, reads = (set().union(*sets) for sets in zip(*bodies, strict=True))
        if launch.joins:
            beside = []
        for others, read in beside:
            assert not writes & (others | read)
            assert not reads & others
        if launch.aside:
            beside.append((writes, reads))
            found += 1
    assert not beside, "nobody waits for the last"
    return found


@by_name
@in_all
def test_what_goes_aside_meets_nobody_until_it_is_waited_for(name, kind):
    check_those_aside(lowered(name, kind).launches)


def test_what_goes_aside_in_the_studys_network():
    runner = GraphRunner(mid(xbp.Adam(1e-3)), device())
    assert check_those_aside(runner.plan.launches) == sum(launch.aside for launch in runner.plan.launches)


@by_name
def test_the_launches_of_a_runner_keep_to_it_too(name, monkeypatch):
    """With those that come before and after: rows, scalars, the loss, values that waited."""
    go(monkeypatch, "launches")
    for launch in runner_on(device(), trained(name)).plan.launches:
        bodies = written_and_read(launch)
        for i, (writes, _) in enumerate(bodies):
            for j, (others, reads) in enumerate(bodies):
                assert i == j or not writes & (others | reads), launch.name


@by_name
@in_all
def test_blocks_that_live_together_lie_apart(name, kind):
    low = lowered(name, kind)
    blocks = low.places.blocks
    for moment, launch in enumerate(low.launches):
        touched = set().union(*(writes | reads for writes, reads in written_and_read(launch)))
        for place in touched & set(blocks):
            assert blocks[place].first <= moment <= blocks[place].last, place
    for n in ROWS:
        offsets, size = low.plan(n)
        spans = {k: (offsets[k], offsets[k] + b.size.at(n)) for k, b in blocks.items()}
        assert all(start % ALIGNMENT == 0 and end <= size for start, end in spans.values())
        names = sorted(spans, key=lambda k: spans[k])
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if spans[b][0] >= spans[a][1]:
                    break
                one, other = blocks[a], blocks[b]
                assert one.last < other.first or other.last < one.first, (a, b)


@by_name
@in_all
@pytest.mark.parametrize("n", [2, 64])
def test_every_read_finds_the_value_that_is_meant(name, kind, n):
    """The launches in order on a memory of names: writing a place forgets whatever lay in any of its bytes."""
    low = lowered(name, kind)
    f, places, program = low.fused, low.places, low.fused.program
    offsets, _ = low.plan(n)
    spans = {k: (offsets[k], offsets[k] + b.size.at(n)) for k, b in places.blocks.items()}
    contents = {place: value for value, place in ((v, n_) for n_, v in program.inputs.items())}

    def write(place, value):
        if place in spans:
            start, end = spans[place]
            for other in [k for k in contents if k in spans and spans[k][0] < end and start < spans[k][1]]:
                del contents[other]
        contents[place] = value

    for numbers in order_of(low):
        for number in numbers:
            for root in reads_of(f, f.groups[number]):
                assert contents.get(places.of[root]) is root, f"{root} is read, and is not there"
        for number in numbers:
            for op in f.groups[number].operations:
                if op.result in places.of:
                    write(places.of[op.result], op.result)
    for output, value in program.outputs.items():
        root = f.layouts[value].root
        assert contents[places.of[root]] is root, output
    for updated, block in places.late.items():
        assert contents[block] is f.layouts[program.outputs[updated]].root


@by_name
def test_most_new_values_take_the_places_of_old_ones(name):
    """And where they do, whoever reads the old one is in an earlier launch, or reads the entry it is about to make."""
    low = lowered(name, "float32")
    f, places, program = low.fused, low.places, low.fused.program
    updates = program.updates
    in_place = [u for u in updates if places.where(u) == u]
    waiting = {"clipped": 3, "batch-norm": 2}.get(name, 0)  # made along with a sum, which has to be complete first
    assert len(in_place) >= len(updates) - waiting
    for u in in_place:
        home = f.home[f.layouts[program.outputs[u]].root]
        for number, group in enumerate(f.groups):
            if program.inputs[u] in reads_of(f, group):
                assert number == home or low._moments[number] < low._moments[home], u


# --- how many ---------------------------------------------------------------------------------------------------------


def mid(optimizer, precision="float32"):
    """The study's network: rows of 784 through 512 and 256 to 10 classes."""
    layers = [xbp.Affine(784, 512), xbp.ReLU(), xbp.Affine(512, 256), xbp.ReLU(), xbp.Affine(256, 10)]
    net = xbp.Network(layers, backend="numpy", dtype="float32", seed=0)
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=optimizer, engine="eager")
    look = signature_of(np.zeros((4, 784), np.float32), np.zeros(4, np.int32), None)
    return record("step", trainer._step, trainer._tree(), look)


def test_launches_of_the_studys_network():
    """Forward three products and a kernel, back five, one kernel for all updates; and rows come in."""
    runner = GraphRunner(mid(xbp.Adam(1e-3)), device())
    names = [x.name or x.product.epilogue for x in runner.plan.launches]
    assert len(names) == 1 + 10
    assert names[0] == "begin"
    assert names[-1] == "last"
    assert sum(x.product is not None for x in runner.plan.launches) == 8
    low = runner.plan.lowered
    assert set(low.places.late) == set()
    assert runner.plan.fits(4)
    # The step of a batch is too large for one block, and that of a few rows of few entries is not.
    assert not runner.one_block.fits(128)


@by_name
def test_what_is_launched_is_what_is_planned(name, monkeypatch):
    t = trained(name)
    go(monkeypatch, "launches")
    runner = runner_on(device(), t)
    before = runner._device.launches
    one_step(runner, t, slice(0, rows_of(t)))
    planned = [x.product is None for x in runner.plan.launches]
    assert runner._device.launches - before == planned.count(True) + 1  # and the one that writes the header
    assert runner._device.products == planned.count(False)
    go(monkeypatch, "one block")
    runner = runner_on(device(), t)
    one_step(runner, t, slice(0, rows_of(t)))
    assert (runner._device.launches, runner._device.products, runner._device.graphs) == (1, 0, 0)


def test_small_steps_are_one_kernel_and_large_ones_are_not():
    """Without a word from anybody: by how many multiplications there are."""
    t = trained("deep-adam")
    processor = device()
    runner = runner_on(processor, t)
    one_step(runner, t, slice(0, 7))
    assert (processor.launches, processor.products) == (1, 0)
    assert values_of(runner)
    program = mid(xbp.SGD(0.1))
    assert not GraphRunner(program, processor).one_block.fits(1)
