"""Targets and scores that a loss refuses, by an error that holds what came, the rule, and the way out."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xbp
from xbp.errors import DTypeError, LabelError, ShapeError

CE, BCE, MSE = xbp.SoftmaxCrossEntropy(), xbp.SigmoidCrossEntropy(), xbp.MeanSquaredError()
N, C = 3, 4
REFUSED = [
    # labels
    ("label too large", CE, C, np.array([0, 1, 4], np.int32), LabelError, r"in 0 \.\.\. 3, .* 4 outputs.* from 0 to 4"),
    ("label negative", CE, C, np.array([0, -1, 2], np.int32), LabelError, r"in 0 \.\.\. 3, .*they range from -1 to 2"),
    ("labels of float", CE, C, np.array([0.0, 1.0, 2.0]), LabelError, r"must be integers .*they are .*float.*astype"),
    ("labels of bool", CE, C, np.array([True, False, True]), LabelError, r"must be integers .*bool.*astype"),
    ("labels one too many", CE, C, np.zeros(4, np.int32), ShapeError, r"N = 3 rows and C = 4 outputs.*shape \(4,\)"),
    ("labels as a column", CE, C, np.zeros((3, 1), np.int32), ShapeError, r"labels \(N,\) or .*shape \(3, 1\)"),
    ("labels as a row", CE, C, np.zeros((1, 3), np.int32), ShapeError, r"shape \(1, 3\)"),
    ("label alone", CE, C, np.asarray(1, np.int32), ShapeError, r"shape \(\)"),
    ("uint32 beyond int32", CE, C, np.array([0, 1, 2**32 - 1], np.uint32), LabelError, r"must lie in 0 \.\.\. 3"),
    # probabilities
    ("wrong number of classes", CE, C, np.eye(3), ShapeError, r"C = 4 outputs; the targets have shape \(3, 3\)"),
    (
        "do not sum to one",
        CE,
        C,
        np.array([[1.0, 0, 0, 0], [0.5, 0.2, 0.1, 0.1], [0, 0, 0, 1]]),
        LabelError,
        r"sum to 1; row 1 \(counted from 0\) is \[0\.5, 0\.2, 0\.1, 0\.1\]\. Divide each row by its sum",
    ),
    ("below 0", CE, C, np.array([[1.5, -0.5, 0, 0]] * 3), LabelError, r"in \[0, 1\].*row 0 .* \[1\.5, -0\.5, 0, 0\]"),
    ("NaN", CE, C, np.full((3, 4), math.nan), LabelError, r"row 0 \(counted from 0\) is \[nan, nan, nan, nan\]"),
    ("complex", CE, C, np.ones((3, 4), np.complex64), DTypeError, r"t must hold real numbers; .*complex64"),
    # answers
    ("answers of -1 and 1", BCE, 1, np.array([1.0, -1.0, 1.0]), LabelError, r"0 \(no\) and 1 \(yes\); row 1 .*\[-1\]"),
    ("answers of NaN", BCE, 2, np.array([[0, 1], [1, 1], [0, math.nan]]), LabelError, r"row 2 .* is \[0, nan\]"),
    ("answers too wide", BCE, 1, np.zeros((3, 2)), ShapeError, r"\(N, 1\) or \(N,\), for 1 .*N = 3 rows; .*\(3, 2\)"),
    # numbers
    ("NaN number", MSE, 2, np.array([[0, 1], [math.nan, 1], [0, 1]]), LabelError, r"finite targets; row 1 .*nan, 1"),
    ("infinity in a target", MSE, 1, np.array([0, 1, math.inf]), LabelError, r"finite targets; row 2 .*inf.*fill such"),
    ("a row would broadcast", MSE, 2, np.zeros(3), ShapeError, r"shape \(N, 2\), for 2 outputs .*shape \(3,\)"),
    ("a width would broadcast", MSE, 3, np.zeros((3, 1)), ShapeError, r"shape \(N, 3\), .*shape \(3, 1\)"),
    ("one row would broadcast", MSE, 1, np.zeros((1, 3)), ShapeError, r"\(N, 1\) or \(N,\).*shape \(1, 3\)"),
    ("one number would broadcast", MSE, 1, np.zeros(()), ShapeError, r"N = 3 rows; they have shape \(\)"),
    ("rows differ", MSE, 1, np.zeros((4, 1)), ShapeError, r"N = 3 rows; they have shape \(4, 1\)"),
    ("three axes", MSE, 1, np.zeros((3, 1, 1)), ShapeError, r"they have shape \(3, 1, 1\)"),
    ("Huber", xbp.Huber(), 2, np.zeros((2, 3)), ShapeError, r"Huber needs targets of shape \(N, 2\)"),
    ("negative counts", xbp.PoissonNLL(), 2, -np.eye(3)[:, :2], LabelError, r"at least 0 .*row 0 .*\[-1, -?0\]"),
    ("NaN counts", xbp.PoissonNLL(), 1, np.array([0, 1, math.nan]), LabelError, r"needs finite targets; row 2"),
    ("odd outputs", xbp.GaussianNLL(), 3, np.zeros((3, 1)), ShapeError, r"a log-variance; .* has 3 outputs"),
    ("log-variances as targets", xbp.GaussianNLL(), 4, np.zeros((3, 4)), ShapeError, r"\(N, 2\), for 4 .*\(3, 4\)"),
    ("too few levels", xbp.Quantile((0.1, 0.9)), 3, np.zeros((3, 3)), ShapeError, r"2 levels q, .* outputs; it has 3"),
    ("one level, three outputs", xbp.Quantile(0.1), 3, np.zeros(3), ShapeError, r"shape \(N, 3\).*shape \(3,\)"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "width", "t", "error", "match"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_wrong_targets_are_refused_with_what_came_and_what_to_do(space, loss, width, t, error, match):
    y = space.put(np.zeros((N, width)))
    with pytest.raises(error, match=match):
        loss.value_and_grad(y, space.put(t))


def test_the_tail_of_a_wide_row_is_left_out_of_the_message():
    with pytest.raises(LabelError, match=r"is \[nan, 0, 0, 0, 0, 0, 0, 0, 0, 0, \.\.\.\]\."):
        MSE.value_and_grad(np.zeros((1, 50)), np.where(np.arange(50) == 0, math.nan, 0.0)[None, :])


def test_scores_that_are_none_are_refused(space):
    t = space.put(np.zeros((3, 1)))
    with pytest.raises(DTypeError, match=r"y must be floating scores.*it is .*int32.*astype"):
        MSE.value_and_grad(space.put(np.zeros((3, 1), dtype=np.int32)), t)
    for shape in ((3,), (), (3, 1, 1)):
        with pytest.raises(ShapeError, match=r"y must be \(N, K\), N rows of K scores; its shape is \("):
            MSE.value_and_grad(space.put(np.zeros(shape)), t)
    with pytest.raises(DTypeError, match=r"y must be an array of an Array API library; it is a list"):
        MSE.value_and_grad([[0.0]], t)


def test_targets_that_are_no_numbers_are_refused(space):
    y = space.put(np.zeros((2, 1)))
    for t in (["cat", "dog"], [[1.0], [2.0, 3.0]], [None, 1.0]):
        with pytest.raises(DTypeError, match=r"^t must (be an array or a regular list of|hold real) numbers"):
            MSE.value_and_grad(y, t)


def test_arrays_of_two_libraries_are_refused():
    torch = pytest.importorskip("torch", reason="the other library of this test, PyTorch, is not installed")
    host, tensor = np.zeros((2, 1)), torch.zeros(2, 1)
    with pytest.raises(
        DTypeError, match=r"t is an array of numpy, y one of torch\. All arguments must be of one library"
    ):
        MSE.value_and_grad(tensor, host)
    with pytest.raises(DTypeError, match=r"t is an array of torch, y one of numpy"):
        MSE.value_and_grad(host, tensor)
    with pytest.raises(DTypeError, match=r"sample_weight is an array of numpy, y one of torch"):
        MSE.value_and_grad(tensor, tensor, np.ones(2))
