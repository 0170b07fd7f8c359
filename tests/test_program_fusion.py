"""Groups are an order of the whole program, and each reads what is in memory or at hand in its own loop."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import network_strategies as ns
from program_cases import Case, assert_same_bits, leaves
from xbp.errors import NotCompiled
from xbp.program import Program, Recorder, optimised
from xbp.program.fusion import REDUCTIONS, fused, reduction_kind, space
from xbp.program.shapes import Dim, same
from xbp.program.views import Linear, linear
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
