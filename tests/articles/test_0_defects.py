"""Article 0, what its code gets wrong or leaves out: each defect is shown on the article's code, then sought in xbp."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import weakref
from dataclasses import dataclass

import by_hand
import numpy as np
import pytest
from inventory import ids
from run_in import few_shapes, over

import xbp
from xbp.layers.activations import get_activation
from xbp.layers.base import Result
from xbp.random import epoch_order
from xbp.testing import assert_close
from xbp.testing.assertions import mismatch

LAYERS = [xbp.Affine(6, 8), xbp.ReLU(), xbp.Affine(8, 3)]


def clusters(rows=60, seed=0):
    """Three clusters in six dimensions."""
    rng = np.random.default_rng(seed)
    t = rng.integers(0, 3, rows)
    return np.eye(3, 6)[t] * 4.0 + rng.normal(size=(rows, 6)), t


def trainer(layers=LAYERS, *, backend="numpy", dtype="float32", seed=0, **settings):
    net = xbp.Network(layers, backend=backend, dtype=dtype, seed=seed)
    return xbp.Trainer(net, **{"loss": xbp.SoftmaxCrossEntropy(), "optimizer": xbp.SGD(0.1), **settings})


# Numbers that overflow.


@ids("B0-01", "B0-02")
@few_shapes
@pytest.mark.parametrize("high", [89.0, 800.0, 1e30])
def test_no_score_is_too_high_for_the_softmax(space, high):
    scores = np.array([[high, 0.0, 0.0], [0.0, -high, -high]])
    with np.errstate(all="ignore"):
        assert high == 89.0 or np.isnan(by_hand.cross_entropy_loss(scores, np.array([0, 0]))[0])
        assert np.isnan(by_hand.cross_entropy_loss(scores.astype(np.float32), np.array([0, 0]))[0])
    for labels, loss, p in (([0, 0], 0.0, [[0.0] * 3] * 2), ([1, 2], high, [[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]])):
        # The second pair asks for classes whose probability is 0 in any dtype: the loss is the distance of the scores.
        value, dy = xbp.SoftmaxCrossEntropy().value_and_grad(space.put(scores), space.put(np.array(labels, np.int32)))
        assert_close(value, np.asarray(loss), space, atol=1e-30)
        assert_close(dy, np.array(p) / 2, space, atol=1e-30)
        one_hot = space.put(np.eye(3)[labels])
        assert_close(xbp.SoftmaxCrossEntropy().value_and_grad(space.put(scores), one_hot)[0], space.get(value), space)


@ids("B0-03", "B0-10")
@pytest.mark.parametrize("rows", [2, 40])
def test_a_batch_takes_one_exponential_and_no_loop_over_its_labels(counting, rows):
    kernel, calls = xbp.kernels.softmax_cross_entropy, counting.xp.calls
    rng = np.random.default_rng(0)
    y, t = rng.normal(size=(rows, 3)), rng.integers(0, 3, rows, dtype=np.int32)
    _, cache = kernel.forward(y, t, None, label_smoothing=0.0, xp=counting.xp)
    kernel.backward(1.0, cache, label_smoothing=0.0, xp=counting.xp)
    assert calls["exp"] == 1
    assert calls.total() < 30  # for 40 rows as for 2


@ids("B0-05")
def test_a_sigmoid_before_the_softmax_is_warned_of_because_it_can_never_be_sure():
    best = xbp.softmax(np.array([[1.0, 0.0, 0.0, 0.0, 0.0]]))  # the surest that five scores between 0 and 1 can be
    assert best[0, 0] == pytest.approx(0.405, abs=5e-4)
    assert -math.log(best[0, 0]) == pytest.approx(0.905, abs=5e-4)
    (x, t), squashed = clusters(), [*LAYERS, xbp.Sigmoid()]
    floor = -math.log(math.e / (math.e + 2.0))
    with pytest.warns(UserWarning, match="ends in Sigmoid.*squashes its input itself"):
        bounded = trainer(squashed)
    assert min(bounded.fit(x, t, epochs=30)["loss"]) > floor
    assert min(trainer().fit(x, t, epochs=30)["loss"]) < 0.1 * floor


@ids("B0-06", "S0-11")
@pytest.mark.parametrize("end", [[], [xbp.Identity()]], ids=["affine", "identity"])
def test_a_linear_output_learns_numbers_of_any_size(end):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 3))
    t = np.stack([100.0 * x[:, 0] - 50.0, 30.0 * np.abs(x[:, 1])], axis=1)
    machine = trainer(
        [xbp.Affine(3, 32), xbp.ReLU(), xbp.Affine(32, 2), *end],
        loss=xbp.MeanSquaredError(),
        optimizer=xbp.Adam(0.1),
        metrics=["r2"],
    )
    machine.fit(x, t, epochs=120)
    assert machine.evaluate(x, t)["r2"] > 0.99
    assert machine.model.predict(x).min() < -100.0


# Batches.


@ids("B0-07")
@few_shapes
def test_the_loss_of_an_epoch_weights_its_last_batch_by_the_rows_in_it(space):
    """With scores of 0 every row's loss is log 5; of ten rows in batches of four the article reports 1.2 log 5."""
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(10, 10)), rng.integers(0, 5, 10, dtype=np.int32)
    layers = [{"input_dim": 10, "output_dim": 5, "activation_func": "relu"}]
    article = by_hand.Network(layers, 0.0, rng)
    article.params = {name: np.zeros_like(a) for name, a in article.params.items()}
    assert article.train(x, t, 4) == pytest.approx(1.2 * math.log(5.0))

    layers, still = [xbp.Affine(10, 5, init="zeros")], xbp.SGD(0.0)
    machine = trainer(layers, backend=space.backend, dtype=space.dtype, optimizer=still)
    rows, labels, weights = space.put(x), space.put(t), np.arange(10.0)
    losses = machine.fit(rows, labels, epochs=1, batch_size=4)["loss"]
    assert losses == pytest.approx([math.log(5.0)], rel=1e-6)
    # Rows of different losses and weights, one epoch without learning: the mean over rows, whatever the batches.
    machine.model.params["0.W"] = space.put(rng.normal(size=(10, 5)).astype(space.dtype))
    machine.fit(rows, labels, epochs=1, batch_size=4)
    machine.fit(rows, labels, sample_weight=space.put(weights), epochs=1, batch_size=4)
    log_p = space.get(xbp.log_softmax(machine.model.predict(rows)))
    each = -log_p[np.arange(10), t]
    assert machine.history["loss"][1:] == pytest.approx([each.mean(), np.average(each, weights=weights)], rel=1e-5)


@ids("B0-08", "B0-11")
def test_every_epoch_has_its_own_order_of_the_rows_and_all_of_it_follows_from_the_seed():
    x, t = clusters(rows=20)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    first, second, other = trainer(seed=3), trainer(seed=3), trainer(seed=4)
    first.fit(x, t, epochs=2, batch_size=8)
    np.random.seed(2)
    second.fit(x, t, epochs=2, batch_size=8)
    other.fit(x, t, epochs=2, batch_size=8)
    by_hand.assert_same(second.model.params, first.model.params, 0.0)
    assert not np.array_equal(other.model.params["0.W"], first.model.params["0.W"])
    np.random.seed(1)
    assert np.array_equal(np.random.get_state()[1], state)

    orders = [epoch_order(3, epoch, 20) for epoch in range(2)]
    assert [sorted(order) for order in orders] == [list(range(20))] * 2
    assert not np.array_equal(*orders)
    by_steps = trainer(seed=3)
    for order in orders:
        for start in range(0, 20, 8):
            by_steps.step(x[order[start : start + 8]], t[order[start : start + 8]])
    by_hand.assert_same(by_steps.model.params, first.model.params, 1e-6)
    in_order = trainer(seed=3)
    in_order.fit(x, t, epochs=2, batch_size=8, shuffle=False)
    assert by_hand.relative_error(in_order.model.params["0.W"], first.model.params["0.W"]) > 1e-4


# Input that is not what it should be.

WRONG = {
    "[]": xbp.ShapeError,
    "[{'input_dim': 10, 'output_dim': 20}]": TypeError,
    "xbp.Affine(3, 2)": TypeError,
    "[xbp.Affine]": TypeError,
    "[xbp.Affine(10, 20), xbp.ReLU(), xbp.Affine(30, 5)]": xbp.ShapeError,
    "[xbp.Affine(10, 0)]": xbp.ShapeError,
    "[xbp.Affine(10, 5, init='hee')]": xbp.errors.NameUnknown,
}


@ids("S0-27", "B0-18", "B0-09")
@pytest.mark.parametrize("layers", WRONG)
def test_an_architecture_is_checked_when_it_is_made(layers, capsys):
    with pytest.raises(WRONG[layers], match=r"\w{4,}") as caught:
        xbp.Network(eval(layers), backend="numpy")
    assert not issubclass(caught.type, AssertionError)
    assert capsys.readouterr() == ("", "")  # the article prints where it should say


@ids("B0-18", "B0-09")
def test_the_error_names_both_neighbours_and_their_widths():
    with pytest.raises(xbp.ShapeError, match=r"'2', after '1'.*in_features=30.*width 30.*\(20,\).*Set in_features"):
        xbp.Network([xbp.Affine(10, 20), xbp.ReLU(), xbp.Affine(30, 5)], backend="numpy")


@ids("B0-09")
def test_checks_survive_the_switch_that_removes_assertions():
    program = f"""
import xbp
for text in {list(WRONG)!r}:
    try:
        xbp.Network(eval(text), backend="numpy")
    except (ValueError, TypeError):
        continue
    raise SystemExit(text + " was accepted")
net = xbp.Network([xbp.Affine(2, 2)], backend="numpy")
try:
    xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1)).fit([[1.0, 2.0]], [-1])
except xbp.LabelError:
    print("checked", __debug__)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-O", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("checked False\n", "")


@ids("S0-34", "B0-18")
def test_an_unknown_name_is_refused_at_once_with_the_nearest_right_one():
    for ask, near in (
        (lambda: get_activation("sigmod"), "sigmoid"),
        (lambda: xbp.optimizers.get_optimizer("adan"), "adam"),
        (lambda: xbp.Affine(2, 2, init="glorott"), "glorot"),
        (lambda: trainer(metrics=["acuracy"]), "accuracy"),
        (lambda: trainer(engine="egaer"), "eager"),
        (lambda: xbp.get_backend("numpi"), "numpy"),
    ):
        with pytest.raises(xbp.errors.NameUnknown, match=f"Did you mean '{near}'"):
            ask()
    with pytest.raises(TypeError, match="loss must be a Loss; it is 'cross_entropy_loss'"):
        trainer(loss="cross_entropy_loss")


@ids("B0-10", "B3-02")
@pytest.mark.parametrize("label", [-1, 3, 2**31])
def test_a_label_outside_the_classes_is_refused_with_the_range(label):
    scores, labels = np.zeros((3, 3)), np.array([0, label, 2])
    if label == -1:
        gradient = by_hand.cross_entropy_loss(scores, labels)[1]
        assert np.array_equal(gradient[1], gradient[2])  # silently the last class
    for refuse in (
        lambda: xbp.SoftmaxCrossEntropy().value_and_grad(scores, labels),
        lambda: trainer().fit(np.zeros((3, 6)), labels),
        lambda: trainer().evaluate(np.zeros((3, 6)), labels),
    ):
        with pytest.raises(xbp.LabelError, match=rf"0 \.\.\. 2.*range from {min(0, label)} to {max(2, label)}"):
            refuse()


# Numbers and where they live.


@ids("S0-31", "B0-12")
@pytest.mark.parametrize(
    ("after", "variance"), [(xbp.ReLU(), 2 / 400), (xbp.Tanh(), 2 / 420), (xbp.Sigmoid(), 2 / 420)], ids=str
)
def test_initial_weights_follow_the_width_that_is_summed_over_and_biases_are_zero(after, variance):
    net = xbp.Network([xbp.Affine(400, 20), after, xbp.Affine(20, 3)], backend="numpy", dtype="float64")
    W = net.params["0.W"]
    assert W.shape == (400, 20)
    assert W.var() == pytest.approx(variance, rel=0.05)
    assert not np.any(net.params["0.b"])
    x = np.random.default_rng(0).normal(size=(500, 400))
    spread = float(np.std(x @ W))
    assert 1.0 < spread < 1.6
    article = by_hand.Network([{"input_dim": 400, "output_dim": 20}], 0.1, np.random.default_rng(0))
    assert np.std(article.params["w1"] @ x.T) > 3.0 * spread  # by the width of the output, and with random biases
    same = xbp.initializers.Normal(20**-0.5)(np.random.default_rng(0), (400, 20))  # for whoever wants the article's
    assert same.std() == pytest.approx(article.params["w1"].std(), rel=0.05)


@ids("B0-13", "B0-14")
@few_shapes
def test_the_dtype_of_the_parameters_decides_and_the_arrays_stay_in_their_library(space):
    x, labels = clusters(rows=4)
    for dtype, width in itertools.product(space.dtypes, space.dtypes):  # of the network, and of the data
        machine = trainer(backend=space.backend, dtype=dtype, optimizer=xbp.Adam(0.1))
        net = machine.model
        rows, t = space.put(x.astype(width)), space.put(labels.astype(np.int32))
        y = net.forward(rows)
        loss, dy = machine.loss.value_and_grad(y, t)
        dx = net.backward(dy, input_gradient=True)
        made = [y, loss, dy, dx, *net.params.values(), *net.grads.values(), net.predict(rows), machine.step(rows, t)]
        wrong = [mismatch(a, a.shape, dtype, space) for a in made]  # dtype, library, device
        assert wrong == [""] * len(made)


# Inference, and what is computed for nothing.


@dataclass(frozen=True)
class Watched(xbp.Layer):
    """Squares its input; notes how many outputs made by its kind are alive, and adds its own without keeping it so."""

    made: list
    alive: list

    def forward(self, x, /, *, params, buffers, mode, xp):
        self.alive.append(sum(ref() is not None for ref in self.made))
        y = x * x
        self.made.append(weakref.ref(y))
        return Result(y, x)

    def backward(self, dy, cache, /, *, xp, input_gradient=True):
        return 2.0 * dy * cache, {}


@ids("B0-16", "S0-45")
def test_inference_keeps_nothing_alive_and_training_keeps_what_backward_needs():
    made, alive = [], []
    watched = Watched(made, alive)
    net = xbp.Network([xbp.Affine(6, 8), watched, xbp.Affine(8, 4), watched, xbp.Affine(4, 3)], backend="numpy")
    machine = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="eager")
    x, t = clusters()
    net.predict(x)
    machine.evaluate(x, t)
    assert alive == [0, 0, 0, 0]  # the second square is taken when the first is gone
    y = net.forward(x)
    kept = net.cache["2"].x
    assert kept is made[-2]()
    net.predict(x[:5])
    machine.evaluate(x[:5], t[:5])
    assert alive[4:] == [0, 1, 2, 2, 2, 2]
    assert net.cache["2"].x is kept
    net.backward(y)
    assert not net.cache


@ids("B0-17")
def test_the_first_layers_input_gradient_is_computed_only_on_request(counting):
    calls = counting.xp.calls
    net = xbp.Network(LAYERS, backend=counting)
    x, t = clusters(rows=5)
    y = net.forward(x)
    calls.clear()
    assert net.backward(y) is None
    assert calls["matmul"] == 3  # two layers, two products each, less one
    net.forward(x)
    calls.clear()
    assert net.backward(y, input_gradient=True).shape == (5, 6)
    assert calls["matmul"] == 4
    machine = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1), engine="eager")
    calls.clear()
    machine.step(x, t)
    assert calls["matmul"] == 2 + 3


# What the article leaves out.


@ids("B0-21")
def test_validation_early_stopping_with_the_best_weights_and_a_schedule():
    (x, t), held_out = clusters(rows=12), clusters(rows=40, seed=1)
    t = np.where(np.arange(12) < 4, (t + 1) % 3, t)  # wrong labels, to be learnt by heart
    schedule = xbp.schedules.StepDecay(0.3, every=20, factor=0.5)
    machine = trainer(optimizer=xbp.SGD(schedule))
    patience = xbp.callbacks.EarlyStopping("val_loss", patience=15)
    history = machine.fit(x, t, epochs=500, batch_size=6, validation=held_out, callbacks=[patience])
    assert machine.stop_reason == "early_stopping"
    assert {"loss", "val_loss", "val_accuracy", "lr"} <= set(history)
    best = int(np.argmin(history["val_loss"]))
    assert best == len(history["val_loss"]) - 16
    assert machine.evaluate(*held_out)["loss"] == pytest.approx(history["val_loss"][best], rel=1e-6)
    assert history["lr"][:20] == pytest.approx([0.3] * 10 + [0.15] * 10)


@ids("B0-21")
@pytest.mark.parametrize("rule", xbp.optimizers.OPTIMIZERS.values(), ids=lambda rule: rule.__name__)
def test_there_are_several_optimisers_and_decay_keeps_weights_small(rule):
    x, t = clusters()
    free, decayed = (trainer(optimizer=rule(0.02, weight_decay=decay)) for decay in (0.0, 0.3))
    losses = [machine.fit(x, t, epochs=15)["loss"] for machine in (free, decayed)]
    assert losses[0][-1] < 0.7 * losses[0][0]
    sizes = [sum(float(np.sum(a * a)) for a in machine.model.params.values()) for machine in (free, decayed)]
    assert sizes[1] < 0.98 * sizes[0]


@ids("B0-21")
@over("numpy", "strict", "torch")
def test_what_was_trained_can_be_saved_and_opened_on_another_backend(space, tmp_path):
    x, t = clusters()
    machine = trainer()
    machine.fit(x, t, epochs=3)
    machine.model.save(tmp_path / "model.safetensors")
    opened = xbp.Network.load(tmp_path / "model.safetensors", backend=space.backend)
    by_hand.assert_same({n: space.get(a) for n, a in opened.params.items()}, machine.model.params, 0.0)
    assert by_hand.relative_error(space.get(opened.predict(x)), machine.model.predict(x)) < 1e-6


@ids("B0-22", "B1-09", "B3-11")
@few_shapes
def test_gradients_are_replaced_by_each_backward_and_added_up_only_on_request(space, network):
    x, _ = clusters(rows=8)
    net = network(LAYERS)

    def gradients(rows, **options):
        net.backward(net.forward(space.put(rows)), **options)
        return {name: space.get(g) for name, g in net.grads.items()}

    first, second = gradients(x[:4]), gradients(x[4:])
    tolerance = by_hand.TOLERANCE[space.dtype]
    by_hand.assert_same(gradients(x[4:]), second, 0.0)
    by_hand.assert_same(gradients(x[:4], accumulate=True), {n: first[n] + second[n] for n in first}, tolerance)
    by_hand.assert_same(gradients(x[:4]), first, 0.0)
