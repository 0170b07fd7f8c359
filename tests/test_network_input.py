"""What may be given to a network: host data in every form, arrays of its own library, and nothing else."""

from __future__ import annotations

import math

import numpy as np
import pytest

import xbp
from xbp.errors import DataError, DTypeError, ShapeError
from xbp.testing import assert_close

N, D = 6, 4
X = np.random.default_rng(0).integers(-4, 5, (N, D)).astype(np.float64)  # exact in every dtype that is tried


def network(space, **options):
    net = xbp.Network([xbp.Affine(D, 3)], backend=space.backend, **{"dtype": space.dtype, **options})
    net.params["0.W"] = np.arange(3.0 * D).reshape(D, 3).astype(net.dtype)
    return net


DESIRED = X @ np.arange(3.0 * D).reshape(D, 3)


class Frame:
    """What a data frame looks like from outside: it knows how to become an array."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.array(self.values, dtype=dtype)


FORMS = {
    "float64": X,
    "float32": X.astype(np.float32),
    "float16": X.astype(np.float16),
    "int64": X.astype(np.int64),
    "int8": X.astype(np.int8),
    "list": X.tolist(),
    "list of whole numbers": X.astype(int).tolist(),
    "tuple of arrays": tuple(X),
    "data frame": Frame(X),
    "big-endian": X.astype(">f8"),
    "Fortran order": np.asfortranarray(X),
    "reversed": X[::-1],
    "every second of more": np.repeat(X, 2, axis=0)[::2],
    "matrix": X.view(np.matrix),
}


@pytest.mark.parametrize("form", FORMS)
def test_host_data_in_every_form_gives_the_same_scores(space, form):
    desired = DESIRED[::-1] if form == "reversed" else DESIRED
    for dtype in space.dtypes:
        net = network(space, dtype=dtype)
        assert_close(net.forward(FORMS[form]), desired, space, rtol=0.0, dtype=dtype)
        assert_close(net.predict(FORMS[form], batch_size=4), desired, space, rtol=0.0, dtype=dtype)


def test_booleans_and_bytes_are_numbers(space):
    net = network(space)
    assert_close(net.forward(X > 0), (X > 0) @ np.arange(12.0).reshape(4, 3), space, rtol=0.0)
    pixels = np.arange(N * D, dtype=np.uint8).reshape(N, D)
    assert_close(net.predict(pixels), pixels @ np.arange(12.0).reshape(4, 3), space, rtol=0.0)


def test_a_memory_map_and_a_read_only_array_are_taken_as_they_are(space, tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    locked = X.copy()
    locked.flags.writeable = False
    for x in (mapped, locked):
        assert_close(network(space).predict(x, batch_size=3), DESIRED, space, rtol=0.0)
        assert_close(network(space).forward(x), DESIRED, space, rtol=0.0)


def test_own_arrays_of_other_dtypes_are_cast_and_keep_the_network_in_its_own(space):
    for dtype in space.dtypes:
        net = network(space, dtype=dtype)
        for own in (X.astype("float32"), X.astype(space.dtype), X.astype(np.int32), X > 0):
            y = net.forward(space.put(own), train=True)
            assert_close(y, own @ np.arange(12.0).reshape(4, 3), space, rtol=0.0, dtype=dtype)
            dx = net.backward(y, input_gradient=True)
            for a in (dx, *net.grads.values(), *net.params.values()):
                assert_close(a, space.get(a), space, dtype=dtype)


def test_own_arrays_of_the_right_dtype_are_not_copied(space):
    net = xbp.Network([xbp.Identity()], backend=space.backend, dtype=space.dtype)
    x = space.put(X)
    before = (space.backend.transfers.to_device, space.backend.transfers.to_host)
    y = net.forward(x)
    assert y is x or y.data_ptr() == x.data_ptr()  # PyTorch: without the record of autograd, over the same memory
    assert (space.backend.transfers.to_device, space.backend.transfers.to_host) == before


@pytest.mark.not_in("numpy", "numpy-readonly", reason="nothing is moved where the device is the host")
def test_host_data_is_moved_once_for_each_chunk(space):
    net = network(space)
    before = space.backend.transfers.to_device
    net.predict(X, batch_size=2)
    assert space.backend.transfers.to_device == before + 3


def test_no_rows_give_no_scores(space):
    net = network(space)
    assert net.forward(X[:0]).shape == (0, 3)
    assert net.predict(X[:0]).shape == (0, 3)
    net.forward(X[:0])
    net.backward(np.zeros((0, 3)))
    assert_close(net.grads["0.W"], np.zeros((D, 3)), space, rtol=0.0)


REFUSED = {
    "too wide": (np.zeros((N, 5)), ShapeError, r"Layer '0', after 'x': .* width 4, .* shape \(5,\)"),
    "too narrow": (np.zeros((N, 1)), ShapeError, r"takes rows of width 4, but gets rows of shape \(1,\)"),
    "a vector": (np.zeros(D), ShapeError, r"x must be \(N, D\).*its shape is \(4,\); one row is x\[None, :\]"),
    "images": (np.zeros((N, 2, 2)), ShapeError, r"its shape is \(6, 2, 2\); flatten each row first: x\.reshape\(len"),
    "a number": (1.5, ShapeError, r"x must be \(N, D\), N rows of D numbers; its shape is \(\)"),
    "ragged": ([[1.0, 2.0], [3.0]], ShapeError, r"x is not a regular array of numbers"),
    "text": ([["a"] * D] * N, DTypeError, r"x must hold real numbers; its dtype is <U1"),
    "objects": (np.array([[None] * D] * N), DTypeError, r"x must hold real numbers; its dtype is object"),
    "dates": (np.zeros((N, D), dtype="datetime64[s]"), DTypeError, r"its dtype is datetime64\[s\]"),
    "complex": (X.astype(np.complex64), DTypeError, r"x must hold real numbers; its dtype is complex64"),
    "masked": (np.ma.masked_array(X, X > 0), DataError, r"x is a masked array.*Fill its gaps first"),
    "a set": ({1.0, 2.0}, DTypeError, r"x must hold real numbers; its dtype is object"),
    "other names": ({"y": X}, ShapeError, r"The model has inputs x; it is given y"),
    "nothing": (None, DTypeError, r"x must hold real numbers; its dtype is object"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("method", ["forward", "predict"])
def test_what_does_not_fit_is_refused_with_what_came(space, case, method):
    x, error, match = REFUSED[case]
    with pytest.raises(error, match=match):
        getattr(network(space), method)(x)


def test_own_arrays_that_do_not_fit_are_refused_too(space):
    for case in ("too wide", "too narrow", "a vector", "images"):
        x, error, match = REFUSED[case]
        with pytest.raises(error, match=match):
            network(space).forward(space.put(x))
    if "complex64" in space.backend.xp.__dir__():
        with pytest.raises(DTypeError, match=r"x must hold real numbers; its dtype is .*complex64"):
            network(space).forward(space.put(X.astype(np.complex64)))


def test_the_only_input_may_come_by_its_name(space):
    assert_close(network(space).forward({"x": X}), DESIRED, space, rtol=0.0)
    assert_close(network(space).predict({"x": X}, batch_size=2), DESIRED, space, rtol=0.0)


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_prediction_names_the_place_of_what_is_not_finite_and_forward_does_not_look(space, value, text):
    net = network(space)
    bad = X.copy()
    bad[4, 2] = value
    for x in (bad, space.put(bad)):
        with pytest.raises(DataError, match=rf"x contains {text} at row 4, column 2 \(counted from 0\)"):
            net.predict(x, batch_size=3)
    if math.isnan(value):  # an infinity times 0 would warn, rightly
        assert np.isnan(space.get(net.forward(space.put(bad)))[4]).all()


@pytest.mark.parametrize(
    ("home", "stranger"), [("numpy", "torch"), ("torch", "jax"), ("jax", "torch"), ("strict", "jax")]
)
def test_arrays_of_other_libraries_are_refused_by_name(home, stranger):
    try:
        here, there = xbp.testing.space(home), xbp.testing.space(stranger)
    except xbp.BackendUnavailable as error:
        pytest.skip(str(error))
    net = network(here, dtype="float32")
    x = there.put(X.astype(np.float32))
    match = rf'is a {stranger} array, but the model lives on backend=\'{home}\'\. Build it with backend="{stranger}"'
    for method in (net.forward, net.predict):
        with pytest.raises(DTypeError, match=f"^x {match}, or convert x to NumPy first"):
            method(x)
    net.forward(X)
    with pytest.raises(DTypeError, match=f"^dy {match}"):
        net.backward(x[:, :3])
    with pytest.raises(DTypeError, match=rf"parameter '0\.W': a {stranger} array cannot be assigned .*'{home}'"):
        net.params["0.W"] = x


def test_numpy_arrays_are_host_data_for_every_backend(space):
    assert_close(network(space).predict(X), DESIRED, space, rtol=0.0)


# Dtypes.


@pytest.mark.parametrize("dtype", ["float16", "int32", "double precision", "complex64", None, int, 32])
def test_dtypes_are_float32_or_float64(dtype):
    with pytest.raises(DTypeError, match=r'dtype must be "float32" or "float64"; it is '):
        xbp.Network([xbp.ReLU()], backend="numpy", dtype=dtype)


def test_a_dtype_may_be_given_as_the_librarys_own(space):
    for name in space.dtypes:
        for dtype in (name, np.dtype(name), getattr(np, name), space.dtype_of(name)):
            assert xbp.Network([xbp.ReLU()], backend=space.backend, dtype=dtype).dtype == name


@pytest.mark.not_in(
    "numpy", "numpy-readonly", "strict", "strict-device1", "torch", "jax-x64", "cupy", reason="they have float64"
)
def test_float64_where_there_is_none_is_refused_when_the_network_is_made(space):
    match = r"jax_enable_x64" if space.name == "jax" else r"no dtype 'float64' on device .*no_float64"
    with pytest.raises(DTypeError, match=match):
        xbp.Network([xbp.Affine(2, 2)], backend=space.backend, dtype="float64")


def test_unknown_backends_are_refused_when_the_network_is_made():
    with pytest.raises(xbp.UnknownBackend, match=r"Unknown backend 'numpi'\. Did you mean 'numpy'\?"):
        xbp.Network([xbp.ReLU()], backend="numpi")
    with pytest.raises(DTypeError, match=r"backend= takes a name or a Backend, not module"):
        xbp.Network([xbp.ReLU()], backend=np)
