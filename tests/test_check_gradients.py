"""check_gradients: passes what is right, names what is wrong, knows a kink when it meets one, and leaves no trace."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

import xbp
from xbp import (
    Affine,
    BatchNorm,
    Dropout,
    GradientError,
    LayerNorm,
    MeanSquaredError,
    Network,
    ReLU,
    SoftmaxCrossEntropy,
)
from xbp import check_gradients as check
from xbp.kernels import affine, mean_squared_error, relu
from xbp.testing import GradientReport

RNG = np.random.default_rng(0)
X_ND = RNG.standard_normal((12, 6))
LABELS = RNG.integers(0, 3, 12)
T_NK = RNG.standard_normal((12, 3))
LAYERS = (Affine(6, 5), BatchNorm(5), ReLU(), Dropout(0.3), LayerNorm(5), Affine(5, 3))


def backend_or_skip(name):
    try:
        return xbp.get_backend(name)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))


def row_of(report: GradientReport, name: str):
    return next(row for row in report.rows if row.name == name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("backend", ["numpy", "strict", "torch"])
def test_right_gradients_pass(backend, dtype):
    net = Network(LAYERS, backend=backend_or_skip(backend), dtype=dtype)
    report = check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy(0.1), raise_on_failure=True)
    assert report.ok
    assert report.dtype == "float64"
    assert report.tolerance == 1e-6
    assert [row.name for row in report.rows] == [*net.params, "x"]
    assert all(row.entries == row.size and row.kinks == 0 for row in report.rows)
    assert all(row.relative_error < 1e-6 for row in report.rows)


def test_a_device_without_float64_is_checked_against_numpy():
    net = Network(LAYERS, backend=backend_or_skip("jax"), dtype="float32")
    report = check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy())
    if report.dtype == "float64":
        pytest.skip("JAX computes in float64 here")
    assert report.ok
    assert report.tolerance == 1e-4


def test_as_in_prediction():
    net = Network(LAYERS, backend="numpy")
    for _ in range(3):
        net.forward(X_ND, train=True)
    report = check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy(), train=False)
    assert report.ok
    assert abs(row_of(report, "0.b").analytic) > 1e-3  # with frozen statistics, a bias before BatchNorm matters


def test_a_graph_with_two_inputs_and_weights():
    nodes = {
        "ha": (Affine(6, 4), "a"),
        "hb": (Affine(3, 4), "b"),
        "s": (xbp.Add(), "ha", "hb"),
        "y": (xbp.Mul(), "s", "ha"),
    }
    graph = xbp.Graph(nodes, inputs=["a", "b"], output="y", backend="numpy")
    weight = np.arange(12.0)
    x = {"a": X_ND, "b": T_NK}
    report = check(graph, x, RNG.standard_normal((12, 4)), loss=xbp.Huber(0.7), sample_weight=weight)
    assert report.ok
    assert {"a", "b"} <= {row.name for row in report.rows}


def test_the_model_is_left_as_it_was():
    net = Network(LAYERS, backend="numpy")
    before = {**{k: a.copy() for k, a in net.params.items()}, **{k: a.copy() for k, a in net.buffers.items()}}
    check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy())
    after = {**net.params, **net.buffers}
    assert all(np.array_equal(after[k], a) and after[k].dtype == np.float32 for k, a in before.items())
    assert (net.passes, dict(net.grads), dict(net.cache)) == (0, {}, {})


@pytest.mark.parametrize("backend", ["numpy", "strict"])
def test_an_entry_wrong_by_one_part_in_a_thousand_is_named(backend, monkeypatch):
    right = affine.backward

    def wrong(dy, cache, **kwargs):
        dx, dW, *rest = right(dy, cache, **kwargs)
        if dW.shape != (5, 3):
            return dx, dW, *rest
        xp = xbp.get_backend(backend).xp
        here = xp.reshape(xp.arange(15), (5, 3)) == 7
        return dx, xp.where(here, dW * 1.001, dW), *rest

    monkeypatch.setattr(affine, "backward", wrong)
    net = Network(LAYERS, backend=backend_or_skip(backend))
    report = check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy())
    assert [row.name for row in report.rows if not row.ok] == ["5.W"]
    row = row_of(report, "5.W")
    assert row.worst_index == (2, 1)
    assert row.analytic / row.numeric == pytest.approx(1.001, rel=1e-5)
    assert report.worst == row
    assert "1 of" in str(report)
    assert "WRONG" in str(report)
    with pytest.raises(GradientError, match=r"'5\.W'"):
        check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy(), raise_on_failure=True)


def test_a_wrong_gradient_of_the_input_is_found(monkeypatch):
    right = affine.backward
    monkeypatch.setattr(affine, "backward", lambda dy, c, **k: (g := right(dy, c, **k)) and (g[0] * 1.001, *g[1:]))
    report = check(Network([Affine(6, 3)], backend="numpy"), X_ND, T_NK, loss=MeanSquaredError())
    assert [row.name for row in report.rows if not row.ok] == ["x"]


def test_a_loss_that_forgets_its_upstream_factor_is_found():
    kernel = SimpleNamespace(
        forward=mean_squared_error.forward,
        backward=lambda dloss, cache, **rest: mean_squared_error.backward(1.0, cache, **rest),
    )

    @dataclass(frozen=True)
    class ForgetfulError(MeanSquaredError):
        pass

    ForgetfulError.kernel = kernel
    report = check(Network([Affine(6, 3)], backend="numpy"), X_ND, T_NK, loss=ForgetfulError())
    assert not any(row.ok for row in report.rows)


def test_a_kink_is_left_out_and_counted():
    net = Network([Affine(2, 2), ReLU(), Affine(2, 1)], backend="numpy", dtype="float64", seed=1)
    x = np.asarray([[1.0, 0.5], [-0.5, 1.5]])
    net.params["0.W"] = np.asarray([[1.0, 1.0], [-2.0, 1.0]])  # the first row lies at the kink of the first unit
    report = check(net, x, np.ones((2, 1)), loss=MeanSquaredError())
    assert report.ok
    assert {row.name: (row.kinks, row.entries) for row in report.rows} == {
        "0.W": (2, 2), "0.b": (1, 1), "2.W": (0, 2), "2.b": (0, 1), "x": (2, 2),
    }  # fmt: skip


@pytest.mark.parametrize("distance", [1e-6, -3e-7])
def test_a_kink_beside_an_entry_is_stepped_back_from(distance):
    """The first step of the differences, 6e-6, reaches over it."""
    net = Network([Affine(1, 1), ReLU()], backend="numpy", dtype="float64")
    net.params["0.W"] = np.ones((1, 1))
    net.params["0.b"] = np.zeros(1)
    report = check(net, np.asarray([[distance], [2.0]]), np.ones((2, 1)), loss=MeanSquaredError())
    assert report.ok
    assert row_of(report, "0.b").kinks == 0
    assert row_of(report, "0.b").relative_error < 1e-6


def test_a_wrong_slope_beside_a_kink_is_no_kink(monkeypatch):
    monkeypatch.setattr(relu, "backward", lambda dy, cache, *, xp: dy * 0.9)
    net = Network([Affine(6, 4), ReLU(), Affine(4, 3)], backend="numpy")
    report = check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy())
    assert not row_of(report, "0.W").ok
    assert row_of(report, "0.W").kinks == 0
    assert row_of(report, "2.W").ok


def test_where_nothing_could_be_compared_nothing_is_right():
    net = Network([Affine(1, 1), ReLU()], backend="numpy", dtype="float64")
    net.params["0.W"] = np.ones((1, 1))
    report = check(net, np.zeros((2, 1)), np.ones((2, 1)), loss=MeanSquaredError())
    row = row_of(report, "0.b")
    assert (row.entries, row.kinks, row.ok) == (0, 1, False)


def test_gradients_that_are_nan_are_wrong(monkeypatch):
    monkeypatch.setattr(relu, "backward", lambda dy, cache, *, xp: dy * float("nan"))
    report = check(
        Network([Affine(6, 4), ReLU(), Affine(4, 3)], backend="numpy"), X_ND, LABELS, loss=SoftmaxCrossEntropy()
    )
    assert not row_of(report, "0.W").ok
    assert row_of(report, "2.W").ok


def test_large_arrays_are_sampled_the_same_way_each_time():
    net = Network([Affine(6, 300), ReLU(), Affine(300, 3)], backend="numpy")
    first, second, other = (
        check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy(), entries=20, seed=seed) for seed in (0, 0, 1)
    )
    assert first == second
    assert first != other
    assert all(row.entries == min(row.size, 20) for row in first.rows)


def test_bad_options_and_data_are_refused():
    net = Network([Affine(6, 3)], backend="numpy")
    with pytest.raises(ValueError, match="entries"):
        check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy(), entries=0)
    with pytest.raises(ValueError, match="tolerance"):
        check(net, X_ND, LABELS, loss=SoftmaxCrossEntropy(), tolerance=0.0)
    with pytest.raises(xbp.LabelError):
        check(net, X_ND, LABELS + 5, loss=SoftmaxCrossEntropy())
    with pytest.raises(xbp.ShapeError):
        check(net, X_ND[:, :4], LABELS, loss=SoftmaxCrossEntropy())
