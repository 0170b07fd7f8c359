"""The penalty that counts once a batch: its value, its gradient, and every way in which a batch is taken."""

import numpy as np
import pytest
from array_api_compat import array_namespace

import xbp
from xbp.checks import check_trainer

ALPHA = 0.7


def network(backend="numpy", dtype="float64"):
    return xbp.Network(
        [xbp.Affine(4, 5), xbp.LayerNorm(5), xbp.Tanh(), xbp.Affine(5, 3)], backend=backend, dtype=dtype, seed=3
    )


def rows(n=11, weighted=False):
    rng = np.random.default_rng(5)
    w = rng.uniform(0.1, 2.0, n) if weighted else None
    return rng.normal(size=(n, 4)), rng.integers(0, 3, n), w


def trained(backend="numpy", weighted=False, dtype="float64", **options):
    net = network(backend, dtype)
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), **options)
    x, t, w = rows(weighted=weighted)
    trainer.fit(x, t, sample_weight=w, epochs=3, batch_size=4, shuffle=False)
    return trainer, {name: net.backend.to_host(a) for name, a in net.params.items()}


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradient_are_those_of_the_formula(weighted):
    net, loss = network(), xbp.SoftmaxCrossEntropy()
    x, t, w = rows(weighted=weighted)
    value, dy = loss.value_and_grad(net.forward(x, train=True), t, w)
    net.backward(dy)
    total = len(x) if w is None else w.sum()
    matrices = [name for name in net.params if name.endswith("W")]
    before = {name: np.array(a) for name, a in net.params.items()}
    expected = {
        name: a - 0.1 * (net.grads[name] + (ALPHA / total * a if name in matrices else 0.0))
        for name, a in before.items()
    }
    trainer = xbp.Trainer(net, loss=loss, optimizer=xbp.SGD(0.1), penalty=ALPHA, engine="eager")
    told = trainer.step(x, t.astype(np.int32), w)
    squares = sum(float(np.sum(before[name] ** 2)) for name in matrices)
    np.testing.assert_allclose(told, value + ALPHA / (2 * total) * squares, rtol=1e-14)
    for name, a in expected.items():
        np.testing.assert_allclose(net.params[name], a, rtol=1e-13, err_msg=name)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("engine", [e for e in xbp.get_backend("numpy").engines if e != "eager"])
def test_every_engine_trains_alike(engine, weighted):
    trainer, params = trained(weighted=weighted, engine=engine, penalty=ALPHA)
    assert trainer.engine == engine
    oracle, expected = trained(weighted=weighted, engine="eager", penalty=ALPHA)
    np.testing.assert_allclose(trainer.history["loss"], oracle.history["loss"], rtol=1e-12)
    for name, a in expected.items():
        np.testing.assert_allclose(params[name], a, rtol=1e-12, atol=1e-14, err_msg=name)
    _, without = trained(weighted=weighted, engine=engine)
    assert not np.allclose(without["0.W"], params["0.W"])


@pytest.mark.parametrize("backend", ["strict", "torch"])
def test_other_libraries_train_alike(backend):
    if backend == "torch":
        pytest.importorskip("torch")
    trainer, params = trained(backend, True, engine="eager", penalty=ALPHA)
    assert array_namespace(trainer.model.params["0.W"]).__name__.rpartition(".")[2] in ("torch", "array_api_strict")
    for name, a in trained(weighted=True, engine="eager", penalty=ALPHA)[1].items():
        assert params[name].dtype == a.dtype
        np.testing.assert_allclose(params[name], a, rtol=1e-12, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("engine", xbp.get_backend("numpy").engines)
@pytest.mark.parametrize("weighted", [False, True])
def test_pieces_of_a_batch_count_the_penalty_once(engine, weighted):
    whole, expected = trained(weighted=weighted, engine=engine, penalty=ALPHA)
    cut, params = trained(weighted=weighted, engine=engine, penalty=ALPHA, accumulate=3)
    np.testing.assert_allclose(cut.history["loss"], whole.history["loss"], rtol=1e-12)
    for name, a in expected.items():
        np.testing.assert_allclose(params[name], a, rtol=1e-12, atol=1e-14, err_msg=name)


def test_a_batch_of_no_weight_has_no_penalty():
    net = network()
    before = {name: np.array(a) for name, a in net.params.items()}
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), penalty=ALPHA, engine="eager")
    x, t, _ = rows()
    assert float(trainer.step(x, t.astype(np.int32), np.zeros(len(x)))) == 0.0
    for name, a in before.items():
        np.testing.assert_array_equal(net.params[name], a)


def test_frozen_matrices_are_not_penalised():
    _, params = trained(engine="eager", penalty=ALPHA, trainable=("0.W",))
    start = network().params
    np.testing.assert_array_equal(params["3.W"], start["3.W"])
    assert not np.allclose(params["0.W"], start["0.W"])


def test_clipping_comes_after_the_penalty():
    net = network()
    before = {name: np.array(a) for name, a in net.params.items()}
    trainer = xbp.Trainer(
        net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(1.0), penalty=1e6, clip_norm=0.5, engine="eager"
    )
    x, t, _ = rows()
    trainer.step(x, t.astype(np.int32))
    moved = sum(float(np.sum((net.params[name] - a) ** 2)) for name, a in before.items())
    np.testing.assert_allclose(np.sqrt(moved), 0.5, rtol=1e-12)


def test_a_checkpoint_keeps_the_penalty(tmp_path):
    trainer, _ = trained(penalty=ALPHA, engine="eager")
    x, t, _ = rows()
    trainer.save(tmp_path / "t.safetensors")
    loaded = xbp.Trainer.load(tmp_path / "t.safetensors", backend="numpy")
    for each in (trainer, loaded):
        each.fit(x, t, epochs=1, batch_size=4)
    assert loaded.history == trainer.history
    for name, a in trainer.model.params.items():
        np.testing.assert_array_equal(loaded.model.params[name], a)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "much", None, True])
def test_what_is_no_penalty_is_refused(value):
    with pytest.raises(ValueError, match=r"penalty must be a finite number of at least 0; it is"):
        check_trainer(network(), xbp.SoftmaxCrossEntropy(), xbp.SGD(0.1), None, 1, None, value)


# --- the order of the rows, said by the caller --------------------------------------------------------------------


def test_fit_takes_the_order_that_it_is_told():
    x, t, _ = rows()
    asked = []

    def order(epoch):
        asked.append(epoch)
        return np.roll(np.arange(len(x)), epoch + 1)

    trainer = xbp.Trainer(network(), loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="eager")
    trainer.fit(x, t, epochs=2, batch_size=4, shuffle=order)
    assert asked == [0, 1]
    by_hand = xbp.Trainer(network(), loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="eager")
    for epoch in range(2):
        now = order(epoch)
        by_hand.fit(x[now], t[now], epochs=1, batch_size=4, shuffle=False)
    assert trainer.history["loss"] == by_hand.history["loss"]
    assert len(trainer.step_losses) == 3
    np.testing.assert_allclose(trainer.step_losses @ [4, 4, 3] / 11, trainer.history["loss"][-1], rtol=1e-14)


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 1], [0, 1, 3], [-1, 0, 1], [0.0, 1.0, 2.0], [[0], [1], [2]]])
def test_what_is_no_order_is_refused(order):
    x, t, _ = rows(3)
    trainer = xbp.Trainer(network(), loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="eager")
    with pytest.raises(xbp.DataError, match="shuffle= gave no order of the rows for epoch 0"):
        trainer.fit(x, t, shuffle=lambda epoch: order)
