"""Random numbers: the same bits in every library, and bits that look like chance to every test we know of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xbp
from xbp.random import bits, epoch_order, keep_mask, mix, step_keys

same_everywhere = settings(derandomize=True, database=None, deadline=None, max_examples=40)
SHAPE = (150, 60)  # one for all spaces: JAX compiles anew for every other
KEYS = [0, 1, -1, 2**31 - 1, -(2**31), 123_456_789, (5 * 0x9E3779B9 + 2**31) % 2**32 - 2**31]


def reference_mix(h):
    """lowbias32 as its author writes it: unsigned, with logical shifts. Python's own integers, masked by hand."""
    h ^= h >> 16
    h = h * 0x7FEB352D & 0xFFFFFFFF
    h ^= h >> 15
    h = h * 0x846CA68B & 0xFFFFFFFF
    return h ^ h >> 16


def reference_bits(key, row, column):
    of_row = reference_mix((key + row * 0x9E3779B9) & 0xFFFFFFFF)
    of_column = reference_mix((column + 1) * 0xC2B2AE35 & 0xFFFFFFFF)
    return reference_mix(of_row ^ of_column)


def signed(h):
    return h - 2**32 if h >= 2**31 else h


def draw(shape, key=7, first_row=0):
    """Bits on the host, as uint32."""
    drawn = bits(np.zeros(shape, dtype=np.float32), key, first_row, xp=xbp.get_backend("numpy").xp)
    return drawn.view(np.uint32)


def chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


# The same bits everywhere.


def test_mix_is_the_published_hash(space):
    inputs = np.array([0, 1, 2, -1, 2**31 - 1, -(2**31), 65_535, 65_536, 0x12345678, -42], dtype=np.int32)
    got = space.get(mix(space.put(inputs)))
    assert got.dtype == np.int32
    assert got.tolist() == [signed(reference_mix(int(h) & 0xFFFFFFFF)) for h in inputs]


@pytest.mark.parametrize("key", KEYS)
def test_bits_are_the_same_in_every_library_and_those_of_the_definition(space, key):
    shape, first = (4, 5), 3
    desired = [[signed(reference_bits(key, r + first, c)) for c in range(shape[1])] for r in range(shape[0])]
    for dtype in space.dtypes:
        x = space.put(np.zeros(shape, dtype=dtype))
        got = space.get(bits(x, key, first, xp=space.xp))
        assert got.dtype == np.int32
        assert got.tolist() == desired
    # As the training step has them: key and row as 0-d arrays on the device.
    as_arrays = (space.put(np.asarray(key, dtype=np.int32)), space.put(np.asarray(first, dtype=np.int32)))
    assert space.get(bits(x, *as_arrays, xp=space.xp)).tolist() == desired


def test_masks_are_the_same_in_every_dtype(space):
    masks = [
        space.get(keep_mask(space.put(np.zeros(SHAPE, dtype=dtype)), 99, 0, 0.3, xp=space.xp)) for dtype in space.dtypes
    ]
    host = keep_mask(np.zeros(SHAPE), 99, 0, 0.3, xp=xbp.get_backend("numpy").xp)
    for mask in masks:
        assert mask.dtype == np.bool_
        np.testing.assert_array_equal(mask, host)


def test_a_batch_in_pieces_draws_the_bits_of_the_whole(space):
    n, d = SHAPE
    whole = space.get(bits(space.put(np.zeros((n, d))), 5, 0, xp=space.xp))
    third = space.put(np.zeros((n // 3, d)))
    pieces = [space.get(bits(third, 5, start, xp=space.xp)) for start in (0, n // 3, 2 * n // 3)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)


def test_a_wider_layer_draws_the_same_bits_in_the_columns_they_share():
    np.testing.assert_array_equal(draw((10, 7)), draw((10, 20))[:, :7])


@same_everywhere
@given(st.integers(0, 2**63), st.integers(0, 99), st.integers(0, 2**31 - 1))
def test_keys_are_int32_and_do_not_depend_on_how_many_are_drawn(seed, layer, step):
    steps = np.arange(step, min(step + 4, 2**31))
    keys = step_keys(seed, layer, steps)
    assert keys.dtype == np.int32
    assert keys.shape == steps.shape
    for k, s in zip(keys, steps, strict=True):
        assert step_keys(seed, layer, np.asarray([s]))[0] == k


# Bits that look like chance.


def test_mix_is_a_bijection_on_a_stretch_of_numbers_and_spreads_it():
    h = np.arange(-(2**17), 2**17, dtype=np.int32)
    mixed = mix(h)
    assert np.unique(mixed).size == h.size
    assert chi_square(np.bincount(mixed.view(np.uint32) >> 24, minlength=256)) < 390.0  # 255 and six deviations


def test_every_bit_of_the_input_moves_about_half_of_the_output():
    h = np.random.default_rng(0).integers(-(2**31), 2**31, 20_000, dtype=np.int32)
    for i in range(32):
        flipped = h ^ np.asarray(1 << i, dtype=np.uint32).view(np.int32)
        moved = (mix(h) ^ mix(flipped)).view(np.uint32)
        rates = [np.mean(moved >> j & 1) for j in range(32)]
        # A fair coin stays within 0.018 in 20 000 throws, five deviations.
        assert max(abs(r - 0.5) for r in rates) < 0.02, f"input bit {i}: {rates}"


@pytest.mark.parametrize("key", KEYS)
def test_bytes_are_uniform(key):
    """Chi-square of 256 cells: 255 on average, with a deviation of 22.6; six of them are allowed."""
    drawn = draw((600, 500), key)
    for shift in (0, 8, 16, 24):
        assert chi_square(np.bincount((drawn >> shift & 255).ravel(), minlength=256)) < 390.0


def test_pairs_of_neighbours_are_uniform():
    """Four bits of a number with four of the one beside, below, in the next step and in the next layer."""
    keys = step_keys(3, 0, np.arange(2))
    here = draw((600, 500), int(keys[0])) >> 28
    other_step = draw((600, 500), int(keys[1])) >> 28
    other_layer = draw((600, 500), int(step_keys(3, 1, np.arange(1))[0])) >> 28
    other_seed = draw((600, 500), int(step_keys(4, 0, np.arange(1))[0])) >> 28
    pairs = {
        "columns": (here[:, 1:], here[:, :-1]),
        "rows": (here[1:], here[:-1]),
        "diagonal": (here[1:, 1:], here[:-1, :-1]),
        "steps": (here, other_step),
        "layers": (here, other_layer),
        "seeds": (here, other_seed),
    }
    for what, (a, b) in pairs.items():
        assert chi_square(np.bincount((a * 16 + b).ravel(), minlength=256)) < 390.0, what


def test_rows_columns_and_steps_do_not_correlate():
    """The largest of all correlations, which for chance is about sqrt(2 log pairs / n)."""
    rows = draw((64, 4096)).astype(np.float64)
    columns = draw((4096, 64)).T.astype(np.float64)
    keys = step_keys(0, 0, np.arange(64))
    steps = np.stack([draw((64, 64), int(k)).ravel() for k in keys]).astype(np.float64)
    for what, table in (("rows", rows), ("columns", columns), ("steps", steps)):
        correlation = np.corrcoef(table) - np.eye(64)
        assert np.abs(correlation).max() < 5.5 / np.sqrt(4096), what


def test_keys_differ_between_steps_layers_and_seeds():
    keys = [step_keys(seed, layer, np.arange(5000)) for seed in (0, 1) for layer in range(3)]
    for k in keys:
        assert np.unique(k).size == 5000  # a bijection of the step
    drawn = np.concatenate(keys)
    assert drawn.size - np.unique(drawn).size <= 4  # 30 000 of 2^32: a tenth of a collision is expected
    assert chi_square(np.bincount(drawn.view(np.uint32) >> 24, minlength=256)) < 390.0


@pytest.mark.parametrize("p", [0.0, 0.01, 0.1, 0.25, 0.5, 0.8, 0.99])
def test_a_mask_keeps_the_share_that_it_should(space, p):
    mask = space.get(keep_mask(space.put(np.zeros(SHAPE)), 17, 0, p, xp=space.xp))
    deviation = np.sqrt(p * (1 - p) / mask.size)
    assert abs(mask.mean() - (1 - p)) <= 4.5 * deviation
    assert mask.all() == (p == 0.0)


def test_p_within_rounding_of_1_keeps_almost_nothing(space):
    """round(p 2^32) would be 2^32, a threshold that no int32 reaches."""
    p = float(np.nextafter(1.0, 0.0))
    assert not space.get(keep_mask(space.put(np.zeros(SHAPE)), 17, 0, p, xp=space.xp)).any()


def test_masks_of_two_p_are_nested():
    """One comparison against one draw: what survives 0.6 survives 0.2."""
    xp = xbp.get_backend("numpy").xp
    x = np.zeros((50, 50))
    assert np.all(keep_mask(x, 3, 0, 0.2, xp=xp) >= keep_mask(x, 3, 0, 0.6, xp=xp))


def test_an_empty_batch_draws_nothing(space):
    assert space.get(bits(space.put(np.zeros((0, 3))), 1, 0, xp=space.xp)).shape == (0, 3)


# The order of the rows.


@same_everywhere
@given(st.integers(0, 2**40), st.integers(0, 10_000), st.integers(0, 500))
def test_an_epoch_visits_every_row_once(seed, epoch, n):
    order = epoch_order(seed, epoch, n)
    assert order.dtype == np.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))
    np.testing.assert_array_equal(order, epoch_order(seed, epoch, n))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [epoch_order(seed, epoch, 100) for seed in (0, 1) for epoch in range(3)]
    for a, b in itertools.combinations(orders, 2):
        assert np.mean(a == b) < 0.1
    first = np.bincount([epoch_order(0, epoch, 8)[0] for epoch in range(800)], minlength=8)
    assert chi_square(first) < 30.0  # 7 on average, 3.7 the deviation
