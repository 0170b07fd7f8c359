"""The checkers themselves: they pass what is right and fail what is wrong, by little and in every way."""

from __future__ import annotations

import numpy as np
import pytest

from xbp.errors import BackendUnavailable, DTypeError, GradientError, NameUnknown, ShapeError
from xbp.kernels import affine, relu, softmax_cross_entropy
from xbp.testing import assert_close, check_backward, numerical_gradient, spaces
from xbp.testing import space as find_space


def rng():
    return np.random.default_rng(20240)


def arrays(*shapes):
    generator = rng()
    return [generator.standard_normal(shape) for shape in shapes]


def check_affine(space, backward=affine.backward, forward=affine.forward, **options):
    return check_backward(forward, backward, arrays((4, 3), (3, 2), (2,)), (0, 1, 2), space, rng(), **options)


# what is right passes


def test_right_gradients_pass(space):
    errors = check_affine(space)
    assert list(errors) == ["x", "W", "b"]
    assert max(errors.values()) < (1e-9 if "float64" in space.dtypes else 1e-6)


def test_arguments_without_gradient_are_handed_on(space):
    (y,) = arrays((4, 3))
    labels, weight = np.asarray([0, 2, 1, 1]), np.asarray([1.0, 0.5, 0.0, 2.0])
    errors = check_backward(
        softmax_cross_entropy.forward,
        softmax_cross_entropy.backward,
        [y, labels, weight],
        (0,),
        space,
        rng(),
        options={"label_smoothing": 0.1},
    )
    assert list(errors) == ["y"]


def test_a_gradient_that_vanishes_passes(space):
    """The mean of a centred array is 0 whatever x is: differences are pure rounding, and so is the gradient."""

    def forward(x, *, xp):
        return xp.mean(x - xp.mean(x, axis=0), axis=0), x

    def backward(dy, x, *, xp):
        spread = xp.broadcast_to(dy, x.shape) / 4.0
        return spread - xp.mean(spread, axis=0)

    check_backward(forward, backward, arrays((4, 3)), (0,), space, rng())


# what is wrong fails


@pytest.mark.parametrize("wrong", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.001, 0.999, -1.0, 0.0, float("nan")])
def test_one_part_in_a_thousand_fails(space, wrong, factor):
    def backward(dy, cache, *, xp):
        grads = affine.backward(dy, cache, xp=xp)
        return tuple(g * factor if i == wrong else g for i, g in enumerate(grads))

    name = "xWb"[wrong]
    with pytest.raises(GradientError, match=rf"affine in .*space '{space.name}', float\d\d: the gradient of '{name}'"):
        check_affine(space, backward)


def test_one_wrong_entry_fails(space):
    def backward(dy, cache, *, xp):
        dx, dW, db = affine.backward(dy, cache, xp=xp)
        first = xp.reshape(xp.arange(6, dtype=xp.int32, device=dW.device) == 0, (3, 2))
        return dx, xp.where(first, dW + 0.01, dW), db

    with pytest.raises(GradientError, match=r"gradient of 'W' is wrong.*Errors: .*W \d\.\de"):
        check_affine(space, backward)


def test_swapped_gradients_fail(space):
    def forward(x, y, *, xp):
        return x * y, (x, y)

    with pytest.raises(GradientError, match=r"is wrong"):
        check_backward(forward, lambda dy, c, *, xp: (dy * c[0], dy * c[1]), arrays((3,), (3,)), (0, 1), space, rng())


def test_a_wrong_value_fails_where_gradients_cannot_tell(space):
    """A constant too much in y: in float32, y is compared with NumPy's in float64."""

    def forward(x, *, xp):
        return x * 2.0 + (1.0 if x.dtype == xp.float32 else 0.0), None

    with pytest.raises(
        GradientError, match=r"float32: the result of forward is wrong: at \(\d+,\) it is .*, in NumPy's float64"
    ):
        check_backward(forward, lambda dy, c, *, xp: dy * 2.0, arrays((3,)), (0,), space, rng())


def test_a_wrong_dtype_fails(space):
    other = "float64" if space.dtypes == ("float32", "float64") else "int32"

    def backward(dy, cache, *, xp):
        dx, dW, db = affine.backward(dy, cache, xp=xp)
        return dx, dW, xp.astype(db, getattr(xp, other))

    with pytest.raises(GradientError, match=r"float32: the gradient of 'b' has dtype .*, not float32"):
        check_affine(space, backward)

    def forward(x, W, b, *, xp):
        y, cache = affine.forward(x, W, b, xp=xp)
        return xp.astype(y, getattr(xp, other)), cache

    with pytest.raises(GradientError, match=r"float32: the result of forward has dtype"):
        check_affine(space, forward=forward)


def test_a_wrong_shape_fails(space):
    def backward(dy, cache, *, xp):
        dx, dW, _ = affine.backward(dy, cache, xp=xp)
        return dx, dW, dy  # the broadcast was not undone

    with pytest.raises(GradientError, match=r"the gradient of 'b' has shape \(4, 2\), not \(2,\)"):
        check_affine(space, backward)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_a_changed_argument_fails(name):
    space = usable(name)

    def forward(x, *, xp):
        x += 1.0
        return x * 1.0, None

    with pytest.raises(GradientError, match="argument 'x' was changed"):
        check_backward(forward, lambda dy, c, *, xp: dy, arrays((3,)), (0,), space, rng())

    def in_place(dy, cache, *, xp):  # as the articles' Relu.backward
        dy *= xp.astype(cache > 0.0, dy.dtype)
        return dy

    with pytest.raises(GradientError, match="backward changed dy"):
        check_backward(relu.forward, in_place, arrays((30,)), (0,), space, rng())


def test_a_changed_cache_fails():
    def backward(dy, cache, *, xp):
        cache.append(1.0)
        return dy * (1.0 if len(cache) == 1 else 2.0)

    with pytest.raises(GradientError, match="a second backward gives another gradient of 'x'"):
        check_backward(lambda x, *, xp: (x * 1.0, []), backward, arrays((3,)), (0,), find_space("numpy"), rng())


def test_read_only_arrays_stop_the_write_itself():
    def forward(x, *, xp):
        x += 1.0
        return x, None

    with pytest.raises(ValueError, match="read-only"):
        check_backward(forward, None, arrays((3,)), (0,), find_space("numpy-readonly"), rng())


def test_read_only_covers_what_functions_return_and_leaves_arguments_alone():
    xp = find_space("numpy-readonly").xp
    mine = np.zeros(3)
    for a in (xp.asarray(mine), xp.reshape(mine, (3, 1)), xp.exp(mine), xp.concat([mine, mine])):
        assert not a.flags.writeable
    assert mine.flags.writeable
    assert xp.float32 is np.float32
    assert xp.isdtype(mine.dtype, "real floating") is True


def test_a_wrong_library_fails(space):
    if space.backend.on_host:
        strict = usable("strict")

        def elsewhere(g):
            return strict.put(g)
    else:
        elsewhere = space.get

    def backward(dy, cache, *, xp):
        dx, dW, db = affine.backward(dy, cache, xp=xp)
        return dx, elsewhere(dW), db

    with pytest.raises(GradientError, match=r"gradient of 'W' is an array of \w+, not an array of space"):
        check_affine(space, backward)
    with pytest.raises(GradientError, match="gradient of 'b' is a float, no array"):
        check_affine(space, lambda dy, c, *, xp: (*affine.backward(dy, c, xp=xp)[:2], 1.0))


def test_a_wrong_device_fails():
    space, other = usable("strict"), usable("strict-device1")

    def backward(dy, cache, *, xp):
        dx, dW, db = affine.backward(dy, cache, xp=xp)
        return dx, dW, xp.asarray(db, device=other.backend.device)

    with space.active(), pytest.raises(GradientError, match=r"gradient of 'b' is on device .*device1.*, not on"):
        check_affine(space, backward)


def test_a_wrong_number_of_gradients_fails(space):
    with pytest.raises(GradientError, match=r"backward returned 2 gradients for 3 arguments \(x, W, b\)"):
        check_affine(space, lambda dy, c, *, xp: affine.backward(dy, c, xp=xp)[:2])


def test_value_dependent_indexing_is_refused_on_strict():
    space = usable("strict")
    with space.active():
        x = space.put([1.0, 2.0])
        with pytest.raises(RuntimeError, match="boolean_indexing"):
            x[x > 1.0]


# numerical_gradient


def test_numerical_gradient_of_a_cubic(space):
    x = space.put(np.asarray([[-2.0, 0.0], [0.5, 3.0]]))
    gradient = numerical_gradient(lambda a: space.xp.sum(a * a * a), x)
    rtol = 1e-8 if "float64" in space.dtypes else 1e-2
    assert_close(gradient, 3 * space.get(x) ** 2, space, rtol=rtol, atol=rtol)


def test_numerical_gradient_takes_any_callable_of_one_array(space):
    assert_close(numerical_gradient(lambda a: 3.0, space.put(np.ones(2))), np.zeros(2), space)
    assert_close(numerical_gradient(lambda a: a * 2.0, space.put(1.5)), np.asarray(2.0), space, rtol=1e-3)
    assert_close(numerical_gradient(lambda a: 0.0, space.put(np.ones((0, 2)))), np.zeros((0, 2)), space)
    stepped = numerical_gradient(lambda a: float(space.get(a)[0]) ** 2, space.put([3.0]), step=0.5)
    assert_close(stepped, np.asarray([6.0]), space, rtol=1e-6)


def test_numerical_gradient_says_what_it_needs(space):
    with pytest.raises(ShapeError, match=r"f returned an array of shape \(2,\)"):
        numerical_gradient(lambda a: a, space.put(np.ones(2)))
    with pytest.raises(DTypeError, match="needs a floating array"):
        numerical_gradient(lambda a: 0.0, space.put(np.ones(2, dtype=np.int32)))
    with pytest.raises(DTypeError, match="not list"):
        numerical_gradient(lambda a: 0.0, [1.0])
    with pytest.raises(GradientError, match="lost in the rounding of entry 0"):
        numerical_gradient(lambda a: 0.0, space.put([1.0]), step=1e-30)


# assert_close and the spaces


def test_assert_close_compares_more_than_values(space):
    host = np.asarray([1.0, 2.0], dtype=space.dtype)
    a = space.put(host)
    assert_close(a, host, space)
    assert_close(a, a, space)
    assert_close(a, host.astype(np.float64), space)
    assert_close(a > 1.5, np.asarray([False, True]), space)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(a, host * 1.001, space)
    with pytest.raises(AssertionError, match=r"has dtype .*int32, not float"):
        assert_close(space.put(np.asarray([1, 2], dtype=np.int32)), host, space)
    with pytest.raises(AssertionError, match=r"has shape \(2,\), not \(1, 2\)"):
        assert_close(a, host[None, :], space)
    with pytest.raises(AssertionError, match="is a list, no array"):
        assert_close([1.0, 2.0], host, space)
    assert_close(space.put(host.astype(np.float32)), host, space, dtype="float32")


def usable(name):
    try:
        return find_space(name)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def test_spaces_are_listed_with_a_reason_where_they_are_missing():
    names = [s.name for s in spaces()]
    assert names[:2] == ["numpy", "numpy-readonly"]
    assert len(set(names)) == len(names) == 9
    assert find_space("numpy").reason == ""
    for s in spaces():
        if s.reason:
            with pytest.raises(BackendUnavailable, match=f"Space '{s.name}'"):
                find_space(s.name)
    with pytest.raises(NameUnknown, match="Did you mean 'strict-device1'"):
        find_space("strict-device")


def test_put_narrows_only_where_there_is_nothing_wider(space):
    assert_close(space.put(np.ones(2)), np.ones(2, dtype=space.dtype), space)
    assert_close(space.put(np.ones(2, dtype=np.float32)), np.ones(2, dtype=np.float32), space)
    for dtype in space.dtypes:
        assert space.put(np.ones(2, dtype=dtype)).dtype == space.backend.dtype(dtype)


def test_jax_x64_is_on_only_while_it_is_active():
    jax = pytest.importorskip("jax", reason="needs jax")
    before = jax.config.jax_enable_x64
    with find_space("jax-x64").active() as space:
        assert space.put([1.0]).dtype == np.float64
    with find_space("jax").active() as space:
        assert space.put([1.0]).dtype == np.float32
    assert jax.config.jax_enable_x64 == before
