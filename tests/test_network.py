"""Network by hand: forward, backward, and the four mappings that it owns, on every space."""

from __future__ import annotations

import numpy as np
import pytest

import xbp
from xbp.errors import CacheEmpty, DTypeError, NameUnknown, ShapeError, XBPError
from xbp.testing import assert_close

N, D, H, C = 6, 4, 5, 3
LAYERS = [xbp.Affine(D, H), xbp.ReLU(), xbp.Affine(H, C)]
NAMES = {"0.W": (D, H), "0.b": (H,), "2.W": (H, C), "2.b": (C,)}


def network(space, layers=LAYERS, **options):
    return xbp.Network(layers, backend=space.backend, **{"dtype": space.dtype, "seed": 1, **options})


def data(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)), rng.normal(size=(N, C))


def tolerance(space):
    return 1e-12 if space.dtype == "float64" else 1e-5


def by_hand(params, x, dy):
    """Output and gradients of LAYERS in NumPy's own words."""
    h = x @ params["0.W"] + params["0.b"]
    z = np.maximum(h, 0.0)
    dh = (dy @ params["2.W"].T) * (h > 0.0)
    grads = {"0.W": x.T @ dh, "0.b": dh.sum(axis=0), "2.W": z.T @ dy, "2.b": dy.sum(axis=0)}
    return z @ params["2.W"] + params["2.b"], grads, dh @ params["0.W"].T


def host(space, arrays):
    return {name: space.get(a) for name, a in arrays.items()}


# The two passes.


def test_forward_and_backward_are_the_formulas(space):
    net = network(space)
    x, dy = data()
    desired, grads, dx = by_hand(host(space, net.params), x, dy)
    y = net.forward(space.put(x))
    assert_close(y, desired, space, atol=tolerance(space))
    slope = net.backward(space.put(dy), input_gradient=True)
    assert_close(slope, dx, space, rtol=tolerance(space), atol=tolerance(space))
    assert list(net.grads) == list(net.params) == list(NAMES)
    for name, g in grads.items():
        assert_close(net.grads[name], g, space, rtol=tolerance(space), atol=tolerance(space))


def test_the_input_gradient_is_computed_on_request_only(space):
    net = network(space)
    x, dy = map(space.put, data())
    net.forward(x)
    assert net.backward(dy) is None
    without = dict(net.grads)
    net.forward(x)
    assert net.backward(dy, input_gradient=True).shape == (N, D)
    for name, g in without.items():
        assert_close(net.grads[name], space.get(g), space, rtol=0.0)


def test_forward_fills_the_cache_backward_empties_it_and_a_second_backward_raises(space):
    net = network(space)
    x, dy = map(space.put, data())
    assert dict(net.cache) == dict(net.grads) == {}
    net.forward(x)
    assert list(net.cache) == ["0", "1", "2"]
    net.backward(dy)
    assert dict(net.cache) == {}
    before = dict(net.grads)
    with pytest.raises(CacheEmpty, match=r"needs a forward\(\) before it.*One forward serves one backward") as error:
        net.backward(dy)
    assert isinstance(error.value, RuntimeError)
    assert isinstance(error.value, XBPError)
    assert all(net.grads[name] is g for name, g in before.items())


def test_backward_needs_a_forward_and_predict_is_none():
    net = network(xbp.testing.space("numpy"))
    x, dy = data()
    with pytest.raises(CacheEmpty):
        net.backward(dy)
    net.predict(x)
    assert dict(net.cache) == {}
    with pytest.raises(CacheEmpty):
        net.backward(dy)


def test_predict_leaves_the_cache_of_a_forward_alone(space):
    net = network(space)
    x, dy = data()
    net.forward(space.put(x))
    net.predict(space.put(x[:1] * 100.0))
    net.backward(space.put(dy))
    _, grads, _ = by_hand(host(space, net.params), x, dy)
    assert_close(net.grads["0.W"], grads["0.W"], space, rtol=tolerance(space), atol=tolerance(space))


def test_the_last_forward_is_the_one_that_counts(space):
    net = network(space)
    x, dy = data()
    net.forward(space.put(x * -3.0))
    net.forward(space.put(x))
    net.backward(space.put(dy))
    _, grads, _ = by_hand(host(space, net.params), x, dy)
    assert_close(net.grads["2.W"], grads["2.W"], space, rtol=tolerance(space), atol=tolerance(space))


def test_dy_of_another_shape_is_refused_and_the_cache_survives(space):
    net = network(space)
    x, dy = data()
    net.forward(space.put(x))
    for wrong in (dy[:-1], dy[:, :1], dy[0], dy.sum()):
        with pytest.raises(ShapeError, match=r"dy must have the shape of the output, \(6, 3\); it has \("):
            net.backward(space.put(np.asarray(wrong)))
    net.backward(space.put(dy))
    assert list(net.grads) == list(NAMES)


def test_gradients_are_replaced_and_added_up_on_request(space):
    net = network(space)
    x, dy = map(space.put, data())
    net.forward(x)
    net.backward(dy)
    once = host(space, net.grads)
    for accumulate, times in ((False, 1.0), (True, 2.0), (True, 3.0), (False, 1.0)):
        net.forward(x)
        net.backward(dy, accumulate=accumulate)
        for name, g in once.items():
            assert_close(net.grads[name], times * g, space, rtol=1e-6)


def test_accumulating_without_gradients_before_is_the_first_of_them(space):
    net = network(space)
    x, dy = map(space.put, data())
    net.forward(x)
    net.backward(dy, accumulate=True)
    assert list(net.grads) == list(NAMES)


def test_grads_and_cache_are_for_reading():
    net = network(xbp.testing.space("numpy"))
    net.forward(data()[0])
    for mapping in (net.grads, net.cache):
        with pytest.raises(TypeError, match=r"does not support item assignment"):
            mapping["0.W"] = 1.0


# Parameters.


def test_parameters_have_the_names_shapes_dtype_library_and_device_of_the_layers(space):
    for dtype in space.dtypes:
        net = network(space, dtype=dtype)
        assert {name: tuple(a.shape) for name, a in net.params.items()} == NAMES
        for a in net.params.values():
            assert_close(a, space.get(a), space, rtol=0.0, dtype=dtype)
        assert len(net.params) == 4
        assert "0.W" in net.params
        assert repr(net.params) == "{'0.W': (4, 5), '0.b': (5,), '2.W': (5, 3), '2.b': (3,)}"
        assert dict(net.buffers) == {}


def test_a_layer_without_bias_has_no_b():
    net = network(xbp.testing.space("numpy"), [xbp.Affine(D, C, bias=False)])
    assert list(net.params) == ["0.W"]
    net.forward(data()[0])
    net.backward(data()[1])
    assert list(net.grads) == ["0.W"]


@pytest.mark.parametrize("source", ["host", "device"])
def test_assigning_a_parameter_copies_it(space, source):
    net = network(space)
    value = np.full((C,), 2.0, dtype=space.dtype)
    net.params["2.b"] = value if source == "host" else space.put(value)
    value[:] = 99.0
    assert_close(net.params["2.b"], np.full((C,), 2.0), space, rtol=0.0)
    x, dy = data()
    assert_close(net.predict(space.put(x)), by_hand(host(space, net.params), x, dy)[0], space, atol=tolerance(space))


def test_assigning_a_writable_array_of_the_device_shares_no_memory():
    for name in ("numpy", "torch"):
        try:
            space = xbp.testing.space(name)
        except xbp.BackendUnavailable as error:
            pytest.skip(str(error))
        net = network(space)
        value = space.put(np.zeros(C))
        net.params["2.b"] = value
        value[:] = 99.0
        net.load_params({**net.params, "2.b": value})
        value[:] = 77.0
        assert_close(net.params["2.b"], np.full(C, 99.0), space, rtol=0.0)


def test_one_parameter_may_be_assigned_to_another(space):
    net = network(space, [xbp.Affine(3, 3), xbp.Affine(3, 3)])
    net.params["0.W"] = net.params["1.W"]
    assert_close(net.params["0.W"], space.get(net.params["1.W"]), space, rtol=0.0)


def test_the_update_written_by_hand_learns(space):
    """The loop of the articles: forward, loss, backward, and a step against every gradient."""
    net = network(space)
    x = space.put(data()[0])
    labels = space.put(np.array([0, 1, 2, 0, 1, 2], dtype=np.int32))
    loss, losses, lr = xbp.SoftmaxCrossEntropy(), [], 0.5
    for _ in range(15):
        value, dy = loss.value_and_grad(net.forward(x, train=True), labels)
        losses.append(float(value))
        net.backward(dy)
        for name in net.params:
            net.params[name] = net.params[name] - lr * net.grads[name]
    assert losses[-1] < 0.5 * losses[0]
    reference = network(xbp.testing.space("numpy"), dtype="float64")
    for _ in range(15):
        _, dy = loss.value_and_grad(reference.forward(data()[0]), space.get(labels))
        reference.backward(dy)
        for name, g in reference.grads.items():
            reference.params[name] = reference.params[name] - lr * g
    for name, a in reference.params.items():
        assert_close(net.params[name], np.asarray(a), space, rtol=1e-4, atol=1e-5)


def test_an_array_taken_out_keeps_its_values_through_an_update_by_hand(space):
    net = network(space)
    old = net.params["2.b"]
    net.params["2.b"] = old + 1.0
    assert_close(old, np.zeros(C), space, rtol=0.0)


REFUSED = {
    "unknown": ("0.w", np.zeros((D, H)), NameUnknown, r"^Unknown parameter '0\.w'\. Did you mean '0\.W'\?"),
    "transposed": ("0.W", np.zeros((H, D)), ShapeError, r"'0\.W' has shape \(4, 5\); the new value has \(5, 4\)"),
    "would broadcast": ("0.b", np.zeros((1, H)), ShapeError, r"has shape \(5,\); the new value has \(1, 5\)"),
    "a number": ("0.b", np.zeros(()), ShapeError, r"the new value has \(\)"),
    "integers": ("0.b", np.zeros(H, dtype=np.int32), DTypeError, r"'0\.b' is .*float\d\d; .* is .*int32.*astype"),
    "text": ("0.b", np.array(["a"] * H), DTypeError, r" <U1\. (Give|Convert)"),
    "nothing": ("0.b", None, DTypeError, r"host data of dtype object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_values_that_do_not_fit_are_refused_and_nothing_changes(space, case):
    name, value, error, match = REFUSED[case]
    net = network(space)
    before = host(space, net.params)
    given = value.astype(space.dtype) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
    with pytest.raises(error, match=match):
        net.params[name] = given
    with pytest.raises(error, match=match):
        net.load_params({**net.params, "2.b": space.put(np.ones(C)), name: given})
    for n, a in before.items():
        assert_close(net.params[n], a, space, rtol=0.0)


@pytest.mark.not_in("jax", "strict-no_float64", reason="they have one floating dtype only")
def test_the_other_floating_dtype_is_refused(space):
    net = network(space, dtype="float32")
    with pytest.raises(DTypeError, match=r"'2\.b' is .*float32; the new value is .*float64\. Convert it \(astype\)"):
        net.params["2.b"] = np.zeros(C)


def test_an_unknown_name_is_a_key_error_as_in_every_mapping():
    net = network(xbp.testing.space("numpy"))
    with pytest.raises(KeyError) as error:
        net.params["2.w"]
    assert isinstance(error.value, NameUnknown)
    assert str(error.value).startswith("Unknown parameter '2.w'. Did you mean '2.W'?")
    assert net.params.get("2.w") is None
    with pytest.raises(NameUnknown, match=r"^Unknown buffer '0\.x'\. Known: none\.$"):
        net.buffers["0.x"]


def test_names_cannot_be_removed():
    net = network(xbp.testing.space("numpy"))
    for remove in (lambda: net.params.pop("0.b"), lambda: net.params.clear(), lambda: net.params.__delitem__("0.b")):
        with pytest.raises(TypeError, match=r"belongs to the layers of the model and cannot be removed"):
            remove()
    assert list(net.params) == list(NAMES)


def test_load_params_takes_all_and_refuses_less(space):
    net, other = network(space), network(space, seed=2)
    net.load_params(other.params)
    for name, a in other.params.items():
        assert_close(net.params[name], space.get(a), space, rtol=0.0)
    net.load_params(host(space, network(space, seed=3).params))
    short = {n: a for n, a in other.params.items() if not n.endswith("b")}
    match = r"needs every parameter; missing: 0\.b, 2\.b\. Assign single ones with net\.params\[name\] = value"
    with pytest.raises(ShapeError, match=match):
        net.load_params(short)
    with pytest.raises(NameUnknown, match=r"Unknown parameter '3\.W'"):
        net.load_params({**other.params, "3.W": space.put(np.zeros((C, C)))})
    assert_close(net.params["0.W"], space.get(network(space, seed=3).params["0.W"]), space, rtol=0.0)


# Training passes.


def test_training_passes_are_counted_and_draw_masks_of_their_own():
    net = network(xbp.testing.space("numpy"), [xbp.Dropout()])
    x = np.ones((20, 20))
    first, second = net.forward(x, train=True), net.forward(x, train=True)
    assert net.passes == 2
    assert np.any(first != second)
    np.testing.assert_array_equal(net.forward(x, train=True, step=1), second)
    net.forward(x)
    net.predict(x)
    assert net.passes == 2  # neither a given step nor a prediction counts
