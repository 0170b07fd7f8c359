"""Groups are a valid order of the whole program, views lie where NumPy's do, and the arena holds everything at once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as ns
from test_program_networks import Case, assert_same_bits
from xbp.errors import NotCompiled
from xbp.program import Interpreter, Program, Recorder, bound, optimised
from xbp.program.fusion import REDUCTIONS, Access, fused, reduction_kind, space
from xbp.program.memory import ALIGNMENT, Lifetime, arena_plan
from xbp.program.shapes import Dim, same
from xbp.program.views import Layout, Linear, constant, contiguous, linear, size_of, times, viewed
from xbp.recording import record

BATCH = 65521
N = Dim(BATCH)
FEW = settings(max_examples=15)


def program_of(formula):
    """The optimised program of formula(xp, x, W, v, t): x (N, 6), W (6, 4), v (4,), t int32 (N,)."""
    recorder = Recorder(BATCH)
    i = recorder.input
    made = formula(recorder.xp, i("x", ("N", 6)), i("W", (6, 4)), i("v", (4,)), i("t", ("N",), "int32"))
    made = made if isinstance(made, tuple) else (made,)
    return optimised(recorder.program("tried", {f"y{k}": y for k, y in enumerate(made)}))


def groups_of(program):
    return [(g.kind, g.rows, g.columns, [op.function for op in g.operations]) for g in fused(program).groups]


# groups


def leaves(f, op):
    """What an operation reads, where inlined operands give what they read themselves."""
    shape = op.operands[0].shape if op.function in REDUCTIONS else op.result.shape
    for operand in op.operands:
        a = f.access(operand, shape) if op.function != "matmul" else Access(f.layouts[operand].root, *[Linear(0)] * 3)
        if a.root in f.inlined:
            yield from leaves(f, f.makers[a.root])
        else:
            yield a


def check_groups(program):
    f = fused(program)
    place = {op.result: (g, i) for g, group in enumerate(f.groups) for i, op in enumerate(group.operations)}
    assert sum(len(group.operations) for group in f.groups) == len(place)
    for op in program.operations:
        is_view = f.layouts[op.result].root is not op.result
        assert [is_view, op.result in f.inlined, op.result in place].count(True) == 1
        assert f.makers[op.result] is op
    assert not f.inlined & f.stored.keys()
    assert f.stored.keys() >= {f.layouts[v].root for v in program.outputs.values()} - set(program.inputs.values())
    for number, group in enumerate(f.groups):
        if group.kind != "loop":
            assert len(group.operations) == 1
        assert (group.kind == "product") == (group.operations[0].function == "matmul")
        for i, op in enumerate(group.operations):
            check_operation(f, place, number, i, op)
    return f


def check_operation(f, place, number, i, op):
    """Reads what is there: inputs, what an earlier group has stored, or what its own loop has just made."""
    group = f.groups[number]
    assert f.home[op.result] == number
    if group.kind == "loop":
        rows, columns = space((op.operands[0] if op.function in REDUCTIONS else op.result).shape)
        assert same(rows, group.rows)
        assert columns in (1, group.columns)
    for a in leaves(f, op):
        if a.root not in place:
            assert a.root in f.program.inputs.values()
            continue
        home, at = place[a.root]
        assert (home, at) < (number, i)
        if home < number:
            assert a.root in f.stored
        elif f.makers[a.root].function in REDUCTIONS:  # a sum is known when its row ends, or when the loop does
            kind = reduction_kind(f.makers[a.root])
            assert kind == "row" or (kind == "all" and same(group.rows, 1))
        else:  # the entry that the loop has just made, or one of its row's or its column's only ones
            assert a.offset == Linear(0)
            for step, length, own in zip((a.row, a.column), space(a.root.shape), own_strides(a.root), strict=True):
                assert step == own or length == 1


def own_strides(value):
    return linear(space(value.shape)[1]), Linear(1)


def in_order_of_groups(f):
    """The program with its operations in the order of the groups: views and what is inlined where they are read."""
    program, ordered = f.program, []
    known = set(program.inputs.values())

    def emit(op, of_a_group=False):
        for operand in op.operands:
            if operand not in known:
                emit(f.makers[operand])
        assert of_a_group or op.result in f.inlined or f.layouts[op.result].root is not op.result
        known.add(op.result)
        ordered.append(op)

    for group in f.groups:
        for op in group.operations:
            emit(op, of_a_group=True)
    for value in program.outputs.values():
        if value not in known:
            emit(f.makers[value])
    return Program(program.name, program.inputs, tuple(ordered), program.outputs)


@FEW
@given(described=ns.networks(), what=st.sampled_from(["step", "step", "scores", "sums", "piece", "apply"]))
def test_groups_are_an_order_of_the_whole_program(described, what):
    case = Case(described)
    program = record(what, case.step, case.tree, case.look)
    ordered = in_order_of_groups(check_groups(program))
    assert len(ordered.operations) <= len(program.operations)
    assert_same_bits(case.interpreted(ordered), case.interpreted(program))
    again = fused(program)
    assert [g.operations for g in again.groups] == [g.operations for g in fused(program).groups]
    assert list(again.stored) == list(fused(program).stored)


def softmax_loss(xp, x, W, v, t):
    """A softmax with its loss and gradient, by hand: (loss, dW, db)."""
    a = xp.matmul(x, W) + v
    a = a - xp.max(a, axis=1, keepdims=True)
    e = xp.exp(a)
    total = xp.sum(e, axis=1, keepdims=True)
    hot = xp.astype(t[:, None] == xp.arange(4, dtype=t.dtype, device=t.device), x.dtype)
    rows = xp.sum(xp.ones_like(x[:, 0]))
    loss = -xp.sum(hot * (a - xp.log(total))) / rows
    da = (e / total - hot) / rows
    return loss, xp.matmul(xp.matrix_transpose(x), da), xp.sum(da, axis=0)


def test_a_softmax_with_its_loss_and_gradient_is_one_group():
    groups = groups_of(program_of(softmax_loss))
    assert [kind for kind, *_ in groups] == ["product", "loop", "loop", "product"]
    _, rows, columns, inside = groups[1]
    assert (str(rows), columns) == ("N", 4)
    assert inside == [
        *("add", "max", "subtract", "exp", "sum", "log", "subtract", "multiply", "sum", "divide", "subtract"),
        *("divide", "sum"),
    ]
    assert groups[2][1:] == (1, 1, ["negative", "divide"])  # of the sum that is known when the walk has ended


@pytest.mark.parametrize(
    ("formula", "kinds"),
    [
        (lambda xp, x, W, v, t: xp.exp(x) * 2.0 + 1.0, ["loop"]),
        (lambda xp, x, W, v, t: x - xp.mean(x, axis=1, keepdims=True), ["loop"]),
        (lambda xp, x, W, v, t: x - xp.mean(x, axis=0), ["loop", "loop"]),
        (lambda xp, x, W, v, t: x - xp.mean(x), ["loop", "loop"]),
        (lambda xp, x, W, v, t: (xp.exp(x), xp.exp(W)), ["loop", "loop"]),
        (lambda xp, x, W, v, t: (xp.exp(x), xp.sum(x, axis=1), xp.sum(x, axis=0)), ["loop"]),
        (lambda xp, x, W, v, t: xp.matmul(xp.exp(x), W), ["loop", "product"]),
        (lambda xp, x, W, v, t: xp.exp(xp.matrix_transpose(xp.exp(W))), ["loop", "loop"]),
        (lambda xp, x, W, v, t: xp.concat([x, x * 2.0], axis=1), ["loop", "other"]),
        (lambda xp, x, W, v, t: xp.take(x, t, axis=0), ["other"]),
        (lambda xp, x, W, v, t: xp.matrix_transpose(x)[:2, :], []),
        (lambda xp, x, W, v, t: xp.exp(v) + xp.sum(xp.exp(v)), ["loop"]),
        (lambda xp, x, W, v, t: xp.exp(x)[:, ::-1] * xp.exp(x), ["loop", "loop"]),
        (lambda xp, x, W, v, t: xp.exp(W)[0, :] * xp.exp(W), ["loop", "loop"]),
        (lambda xp, x, W, v, t: xp.exp(v[None, :]) + xp.sum(xp.exp(v[None, :]), axis=0), ["loop", "loop"]),
    ],
)
def test_what_shares_a_walk(formula, kinds):
    program = program_of(formula)
    assert [g.kind for g in check_groups(program).groups] == kinds


def test_what_is_cheap_is_made_anew_and_outputs_are_stored():
    def formula(xp, x, W, v, t):
        mask = x > 0.0
        return xp.exp(xp.where(mask, x, 0.0)), xp.sum(xp.where(mask, 1.0, x), axis=0), -x

    f = check_groups(program_of(formula))
    assert [f.makers[v].function for v in f.inlined] == ["greater"]
    assert {f.makers[v].function for v in f.stored if v in f.makers} == {"exp", "sum", "negative"}


@pytest.mark.parametrize(
    ("formula", "reason"),
    [
        (lambda xp, x, W, v, t: xp.matmul(x, xp.matrix_transpose(x)), "grows with the square of the batch"),
        (lambda xp, x, W, v, t: xp.exp(xp.stack([x, x])), "batch on an inner axis"),
        (lambda xp, x, W, v, t: xp.exp(xp.reshape(x, (-1, 2, 3)) + xp.exp(x[:, :3])[:, None, :]), "an inner axis"),
        (lambda xp, x, W, v, t: xp.sum(xp.exp(xp.reshape(x, (-1, 2, 3))), axis=2), "reduce rows or columns"),
    ],
)
def test_what_no_loop_can_walk_is_refused_with_the_reason(formula, reason):
    def lowered(program):
        for op in fused(program).program.operations:
            if op.function in REDUCTIONS:
                reduction_kind(op)

    with pytest.raises(NotCompiled, match=reason):
        lowered(program_of(formula))


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((), 1, 1),
        ((3,), 1, 3),
        ((N,), N, 1),
        ((N, 3), N, 3),
        ((3, N), 3, N),
        ((N, 1), N, 1),
        ((N, 2, 3), N, 6),
        ((N, 1, 3), N, 3),
    ],
)
def test_rows_and_columns_of_a_loop(shape, rows, columns):
    found = space(shape)
    assert same(found[0], rows)
    assert same(found[1], columns)


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
    last = {root: number for number, group in enumerate(f.groups) for op in group.operations for root in _reads(f, op)}
    blocks = [
        Lifetime(4 * size_of(v.shape).at(n), f.home[v], max(last.get(v, 0), f.home[v])) for v in f.stored if v in f.home
    ]
    size = arena_plan(blocks)[1]
    live = max(sum(padded(b) for b in blocks if b.first <= m <= b.last) for m in range(len(f.groups)))
    assert live <= size <= 1.2 * live
    assert size < 0.8 * sum(padded(b) for b in blocks)


def _reads(f, op):
    return [a.root for a in leaves(f, op)]
