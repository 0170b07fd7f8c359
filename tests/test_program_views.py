"""Views lie where NumPy's do, and the arena has room for whatever is alive at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as ns
from program_cases import Case, leaves
from xbp.program import Interpreter, Program, Recorder, bound
from xbp.program.fusion import fused
from xbp.program.memory import ALIGNMENT, Lifetime, arena_plan
from xbp.program.shapes import Dim
from xbp.program.views import Layout, Linear, constant, contiguous, linear, size_of, times, viewed
from xbp.recording import BATCH, record

N = Dim(BATCH)


# views


@st.composite
def view_programs(draw):
    """One input with N at its front, and some views of views of it."""
    recorder = Recorder(BATCH)
    y = recorder.input("x", ("N", *draw(st.lists(st.integers(1, 4), max_size=3))))
    for _ in range(draw(st.integers(1, 4))):
        y = VIEWS[draw(st.sampled_from(sorted(VIEWS) if y.ndim > 1 else ["broadcast", "key", "reshape"]))](
            draw, recorder.xp, y
        )
    return recorder.program("views", {"y": y})


def reshaped(draw, xp, y):
    n = next((i for i, length in enumerate(y.shape) if isinstance(length, Dim)), None)
    choices = [(-1,), (*y.shape, 1), (1, *y.shape)]
    if n is not None:
        choices += [(*y.shape[: n + 1], -1), (-1, *y.shape[n + 1 :]), (*y.shape[: n + 1], 1, *y.shape[n + 1 :])]
        choices += [tuple(length for length in y.shape if isinstance(length, Dim) or length != 1)]
    return xp.reshape(y, draw(st.sampled_from(choices)))


def broadcast(draw, xp, y):
    wide = [draw(st.sampled_from([1, 3])) if not isinstance(n, Dim) and n == 1 else n for n in y.shape]
    return xp.broadcast_to(y, (*draw(st.sampled_from([(), (2,), (1, 2)])), *wide))


def keyed(draw, xp, y):
    key = []
    for length in y.shape:
        key += draw(st.sampled_from([[], [], [], [None]]))
        if isinstance(length, Dim):
            key.append(draw(st.sampled_from([slice(None), slice(None), 0, -1, slice(0, 1)])))
            continue
        ends = st.one_of(st.none(), st.integers(-length, length))
        parts = [st.builds(slice, ends, ends, st.sampled_from([None, 1, 2, -1, -2])), st.just(slice(None))]
        key.append(draw(st.one_of(*parts, *([st.integers(-length, length - 1)] if length else []))))
    while key and key[-1] == slice(None) and draw(st.booleans()):
        key = key[:-1] if Ellipsis in key else [*key[:-1], Ellipsis]
    part = y[tuple(key)]
    return y if 0 in part.shape else part


VIEWS = {
    "reshape": reshaped,
    "broadcast": broadcast,
    "key": keyed,
    "transpose": lambda draw, xp, y: xp.matrix_transpose(y),
}


@settings(max_examples=60)
@given(program=view_programs(), n=st.sampled_from([1, 2, 5]))
def test_views_lie_where_numpys_do(program, n):
    (x,) = program.inputs.values()
    memory = np.arange(np.prod(bound(x.shape, n)), dtype=np.int64).reshape(bound(x.shape, n))
    layouts, arrays = {x: Layout(x, Linear(0), contiguous(x.shape))}, {x: memory}
    for op in program.operations:
        one = Program("one", {"x": op.operands[0]}, (op,), {"y": op.result})
        arrays[op.result] = Interpreter(one, np, device="cpu")({"x": arrays[op.operands[0]]})["y"]
        layout = viewed(op, layouts)
        if layout is None:
            continue  # it has to be computed
        layouts[op.result] = layout
        expected = arrays[op.result]
        strides = [s.at(n) for s in layout.strides]
        assert len(strides) == expected.ndim
        if not expected.size:
            continue
        lies = np.lib.stride_tricks.as_strided(
            memory.reshape(-1)[layout.offset.at(n) :], expected.shape, [8 * s for s in strides], writeable=False
        )
        np.testing.assert_array_equal(lies, expected)
        if np.shares_memory(expected, memory):
            long = [i for i, length in enumerate(expected.shape) if length > 1]
            assert [8 * strides[i] for i in long] == [expected.strides[i] for i in long]
            start = expected.__array_interface__["data"][0] - memory.__array_interface__["data"][0]
            assert 8 * layout.offset.at(n) == start


def test_what_is_no_view_has_to_be_computed():
    recorder = Recorder(BATCH)
    xp, x = recorder.xp, recorder.input("x", ("N", 6))
    turned = xp.matrix_transpose(x)
    made = [
        xp.reshape(turned, (-1,)),
        xp.reshape(x[:, :3], (-1,)),
        xp.reshape(xp.broadcast_to(x[:, :1], x.shape), (-1,)),
    ]
    made += [x[-1, :], x[:2, :], xp.exp(x)]
    program = recorder.program("views", {f"y{i}": y for i, y in enumerate(made)})
    layouts = {x.value: Layout(x.value, Linear(0), contiguous(x.shape))}
    for op in program.operations:
        layout = viewed(op, layouts)
        assert (layout is None) == (op.result in program.outputs.values())
        if layout is not None:
            layouts[op.result] = layout


@given(shape=st.lists(st.one_of(st.integers(1, 5), st.just(N)), max_size=4), n=st.integers(1, 4))
def test_sizes_and_contiguous_strides(shape, n):
    shape = tuple(shape)
    real, symbols = np.empty(bound(shape, n), dtype=np.int8), sum(isinstance(length, Dim) for length in shape)
    size, strides = size_of(shape), contiguous(shape)
    assert (size is None) == (symbols > 1)
    if size is not None:
        assert size.at(n) == real.size
    assert (strides is None) == (sum(isinstance(length, Dim) for length in shape[1:]) > 1)
    if strides is not None:
        assert [s.at(n) for s in strides] == list(real.strides)


def test_numbers_that_grow_with_the_batch():
    assert linear(N) == (0, 1)
    assert linear(Dim(3 * BATCH, 3)) == (0, 3)
    assert linear(4) == (4, 0)
    assert Linear(2, 3).at(10) == 32
    assert times(Linear(2), Linear(1, 3)) == (2, 6)
    assert times(Linear(1, 3), Linear(2)) == (2, 6)
    assert times(Linear(0, 1), Linear(0, 1)) is None
    assert constant(Linear(3), 3)
    assert not constant(Linear(3, 1), 3)


# memory


@st.composite
def lifetimes(draw):
    first = draw(st.integers(0, 12))
    return Lifetime(draw(st.integers(0, 400)), first, first + draw(st.integers(0, 8)))


def padded(block, alignment=ALIGNMENT):
    return -(-block.size // alignment) * alignment


@given(blocks=st.lists(lifetimes(), max_size=12), alignment=st.sampled_from([1, 16, ALIGNMENT]))
def test_blocks_that_are_alive_together_have_places_of_their_own(blocks, alignment):
    offsets, size = arena_plan(blocks, alignment)
    assert (offsets, size) == arena_plan(list(blocks), alignment)
    for i, (a, at) in enumerate(zip(blocks, offsets, strict=True)):
        assert at % alignment == 0
        assert 0 <= at <= at + a.size <= size
        for b, other in zip(blocks[:i], offsets[:i], strict=True):
            if a.first <= b.last and b.first <= a.last:
                assert at + a.size <= other or other + b.size <= at or not (a.size and b.size)
    for moment in range(22):
        assert size >= sum(padded(b, alignment) for b in blocks if b.first <= moment <= b.last)
    assert size <= sum(padded(b, alignment) for b in blocks)


def test_blocks_that_are_never_alive_together_share_their_place():
    assert arena_plan([]) == ([], 0)
    assert arena_plan([Lifetime(100, 0, 1), Lifetime(90, 2, 3), Lifetime(80, 4, 5)]) == ([0, 0, 0], 128)
    assert arena_plan([Lifetime(100, 0, 2), Lifetime(100, 2, 3), Lifetime(64, 3, 4)]) == ([0, 128, 0], 256)
    assert arena_plan([Lifetime(10, 0, 9), Lifetime(100, 0, 1), Lifetime(60, 2, 3)], 1) == ([100, 0, 0], 110)


def test_the_arena_of_a_step_is_smaller_than_its_values():
    case = Case(ns.Described(inputs=20, width=40, layers=("tanh", 40, "relu", 40, "gelu"), outputs=10), n=32)
    program = record("step", case.step, case.tree, case.look)
    f, n = fused(program), 32
    last = {a.root: number for number, group in enumerate(f.groups) for op in group.operations for a in leaves(f, op)}
    blocks = [
        Lifetime(4 * size_of(v.shape).at(n), f.home[v], max(last.get(v, 0), f.home[v])) for v in f.stored if v in f.home
    ]
    size = arena_plan(blocks)[1]
    live = max(sum(padded(b) for b in blocks if b.first <= m <= b.last) for m in range(len(f.groups)))
    assert live <= size <= 1.2 * live
    assert size < 0.8 * sum(padded(b) for b in blocks)
