"""The prelude of the CUDA engine's kernels, run on a processor: reductions, argmax, and exact scalar functions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graph_engine_helpers import device, run_kernel
from xbp_cupy.graph.bodies import MOST_BLOCKS

HEAD = 'extern "C" __global__ void __launch_bounds__(THREADS, 4)'
C = {"float32": "float", "float64": "double", "int32": "int", "int64": "long long", "bool": "bool"}
RULES = {"Sum": np.sum, "Max": np.max, "Min": np.min}
SIZES = (1, 2, 4, 8, 16, 32, 256)
NUMBERS = ["float32", "float64", "int32", "int64"]
in_all = pytest.mark.parametrize("dtype", NUMBERS)


def numbers(dtype, size, seed=0):
    rng = np.random.default_rng([seed, size])
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=size).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, size, dtype=dtype, endpoint=True)


def both_orders(kernels, name, *arrays, numbers=(), blocks=1, wide=False):
    """The arrays after the kernel, the same bits in either order of threads."""
    results = []
    for backwards in (False, True):
        copies = [a.copy() for a in arrays]
        run_kernel(device(backwards=backwards), kernels, name, copies, numbers, blocks, wide)
        results.append(copies)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a.view(np.uint8), b.view(np.uint8))
    return results[0]


# --- along rows, down columns -----------------------------------------------------------------------------------------


def rows_kernels(dtype):
    """A kernel for each rule and team size: every thread stores what its team has got."""
    return "\n".join(
        f"{HEAD} row_{rule}_{size}(const {C[dtype]} *__restrict__ a, {C[dtype]} *__restrict__ b) {{ "
        f"b[threadIdx.x] = along_row<{rule}<{C[dtype]}>, {size}>(a[threadIdx.x]); "
        f"b[threadIdx.x] = along_row<{rule}<{C[dtype]}>, {size}>(a[threadIdx.x]); }}\n"
        for rule in RULES
        for size in SIZES
    ) + "\n".join(
        f"{HEAD} column_{rule}_{lines}(const {C[dtype]} *__restrict__ a, {C[dtype]} *__restrict__ b) {{ "
        f"b[threadIdx.x] = down_column<{rule}<{C[dtype]}>, {lines}>(a[threadIdx.x]); }}\n"
        for rule in RULES
        for lines in (1, 2, 8, 32, 128)
    )


def near(found, wanted, dtype):
    if np.dtype(dtype).kind == "f":
        np.testing.assert_allclose(found, wanted, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-5)
    else:
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(("dtype", "wide"), [*((dtype, False) for dtype in NUMBERS), ("float32", True)])
def test_along_rows_of_every_team_size(dtype, wide):
    a = numbers(dtype, 256)
    for rule, reduce in RULES.items():
        for size in SIZES:
            _, found = both_orders(rows_kernels(dtype), f"row_{rule}_{size}", a, np.zeros_like(a), wide=wide)
            with np.errstate(over="ignore"):
                wanted = np.repeat(reduce(a.reshape(-1, size), axis=1, **_kept(rule, dtype)), size)
            near(found, wanted, dtype)
            assert len(np.unique(found.reshape(-1, size), axis=1).T) == 1  # everybody in the team has the same bits


@in_all
def test_down_columns_of_every_number_of_lines(dtype):
    a = numbers(dtype, 256)
    for rule, reduce in RULES.items():
        for lines in (1, 2, 8, 32, 128):
            _, found = both_orders(rows_kernels(dtype), f"column_{rule}_{lines}", a, np.zeros_like(a))
            wanted = np.tile(reduce(a.reshape(-1, lines), axis=0, **_kept(rule, dtype)), 256 // lines)
            near(found, wanted, dtype)


def _kept(rule, dtype):
    return {"dtype": dtype} if rule == "Sum" else {}


ALL = f"""
{HEAD} every(const bool_t *__restrict__ a, bool_t *__restrict__ b) {{
    store(&b[threadIdx.x], along_row<All<bool>, 16>(loaded(a[threadIdx.x])));
}}
"""


def test_all_of_logical_numbers():
    a = np.ones(256, np.bool_)
    a[[3, 100, 255]] = False
    _, found = both_orders(ALL, "every", a, np.zeros_like(a))
    np.testing.assert_array_equal(found, np.repeat(a.reshape(-1, 16).all(axis=1), 16))


# --- over everything --------------------------------------------------------------------------------------------------


def total_kernels(dtype):
    t = C[dtype]
    return "\n".join(
        f"""
{HEAD} total_{rule}(const {t} *__restrict__ a, {t} *__restrict__ b, {t} *__restrict__ partial,
        unsigned *__restrict__ arrived, int *__restrict__ ends, const index_t n, const int blocks) {{
    const int block = blockIdx.x;
    {t} x = {rule}<{t}>::empty();
    for (index_t e = (index_t)block * THREADS + threadIdx.x; e < n; e += (index_t)blocks * THREADS)
        x = {rule}<{t}>::both(x, a[e]);
    if (over_all<{rule}<{t}>>(x, block, blocks, partial, arrived)) {{
        if (threadIdx.x == 0) {{ *b = x; *ends += 1; }}
    }}
}}
"""
        for rule in RULES
    )


@pytest.mark.parametrize(
    ("dtype", "wide", "blocks"),
    [(dtype, False, (1, 2, 3, 257)) for dtype in NUMBERS]
    + [("float32", True, (1, 3, 257)), ("int64", True, (2,)), ("float32", False, (MOST_BLOCKS,))],
)
def test_over_all_with_many_blocks(dtype, wide, blocks):
    """One block finishes, whichever comes last, and the counter is zero again for the next launch."""
    for count in blocks:
        size = min(count * 256 + 77, 70_000)
        a = numbers(dtype, size)
        for rule, reduce in RULES.items():
            beside = [np.zeros(1, dtype), np.zeros(count, dtype), np.zeros(1, np.uint32), np.zeros(1, np.int32)]
            found = both_orders(
                total_kernels(dtype), f"total_{rule}", a, *beside, numbers=[size, count], blocks=count, wide=wide
            )
            near(found[1][0], reduce(a, **_kept(rule, dtype)), dtype)
            assert (found[3][0], found[4][0]) == (0, 1)


# --- argmax -----------------------------------------------------------------------------------------------------------

ARGMAX = """
{head} first(const {t} *__restrict__ a, long long *__restrict__ b, const int rows, const int columns) {{
    const int team = threadIdx.x / {size}, lane = threadIdx.x % {size};
    for (int start = 0; start < rows; start += THREADS / {size}) {{
        const int i = start + team < rows ? start + team : 0;
        Best<{t}> x = First<{t}>::empty();
        for (int j = lane; j < columns; j += {size}) {{
            Best<{t}> y = {{a[i * columns + j], j}};
            x = First<{t}>::both(x, y);
        }}
        x = along_row<First<{t}>, {size}>(x);
        if (start + team < rows && lane == 0) b[i] = x.index;
    }}
}}
"""
INTERESTING = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("size", [1, 8, 32, 256])
@settings(max_examples=10, derandomize=True)
@given(seed=st.integers(0, 99), rows=st.integers(1, 9), columns=st.integers(1, 300))
def test_argmax_with_nan_and_ties(dtype, size, seed, rows, columns):
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        a = rng.choice(np.array(INTERESTING[: rng.integers(1, 8)], dtype), (rows, columns))
    else:
        a = rng.choice(np.array([np.iinfo(dtype).min, 0, 5][: rng.integers(1, 4)], dtype), (rows, columns))
    kernels = ARGMAX.format(head=HEAD, t=C[dtype], size=size)
    _, found = both_orders(kernels, "first", a, np.full(rows, -1), numbers=[rows, columns])
    np.testing.assert_array_equal(found, np.argmax(a, axis=1))


# --- scalar functions -------------------------------------------------------------------------------------------------

SCALARS = """
{head} scalars(const {t} *__restrict__ a, const {t} *__restrict__ b, {t} *__restrict__ out, bool_t *__restrict__ finite,
        const index_t n) {{
    for (index_t i = threadIdx.x; i < n; i += THREADS) {{
        store(&out[i], larger<{t}>(a[i], b[i]));
        store(&out[n + i], smaller<{t}>(a[i], b[i]));
        store(&out[2 * n + i], sign_of<{t}>(a[i]));
        store(&out[3 * n + i], magnitude<{t}>(a[i]));
        store(&finite[i], is_finite(a[i]));
    }}
}}
"""


@pytest.mark.parametrize(("dtype", "wide"), [*((dtype, False) for dtype in NUMBERS), ("float64", True)])
def test_scalar_functions_are_numpys(dtype, wide):
    if dtype.startswith("float"):
        edges = np.finfo(dtype)
        single = np.array(
            [*INTERESTING, edges.max, edges.min, edges.tiny, -edges.tiny, edges.smallest_subnormal], dtype
        )
    else:
        single = np.array([np.iinfo(dtype).min + 1, -7, -1, 0, 1, 9, np.iinfo(dtype).max], dtype)
    a, b = (x.ravel().copy() for x in np.meshgrid(single, single))
    n = len(a)
    out, finite = np.zeros(4 * n, dtype), np.zeros(n, np.bool_)
    kernels = SCALARS.format(head=HEAD, t=C[dtype])
    _, _, out, finite = both_orders(kernels, "scalars", a, b, out, finite, numbers=[n], wide=wide)
    for found, wanted in zip(
        out.reshape(4, n), [np.maximum(a, b), np.minimum(a, b), np.sign(a), np.abs(a)], strict=True
    ):
        np.testing.assert_array_equal(found, wanted)  # NaN where NaN is
    np.testing.assert_array_equal(finite, np.isfinite(a))
    assert not np.signbit(out[3 * n :][a == 0]).any() if dtype.startswith("float") else True
    zeros = a == 0
    np.testing.assert_array_equal(np.signbit(out[2 * n : 3 * n][zeros]), np.signbit(a[zeros]))  # sign(-0.0) is -0.0


PACKS = """
{head} packed(const {t} *__restrict__ a, {t} *__restrict__ b, const index_t n) {{
    for (index_t e = threadIdx.x * {v}; e + {v} <= n; e += THREADS * {v}) {{
        Pack<{t}, {v}> x = load_pack<{v}>(&a[e]);
        store_pack<{v}>(&b[n - e - {v}], x);
    }}
}}
"""


@pytest.mark.parametrize(
    ("t", "dtype", "v"),
    [
        ("half_t", "uint16", 8),
        ("bfloat_t", "uint16", 4),
        ("bool_t", "uint8", 4),
        ("bool_t", "uint8", 16),
        ("float", "float32", 4),
        ("double", "float64", 2),
        ("float", "float32", 1),
    ],
)
def test_packs_move_all_of_their_entries(t, dtype, v):
    n = 256 * v * 2
    a = np.arange(n).astype(dtype)
    _, found = both_orders(PACKS.format(head=HEAD, t=t, v=v), "packed", a, np.zeros_like(a), numbers=[n])
    np.testing.assert_array_equal(found.reshape(-1, v)[::-1].ravel(), a)


LIMITS = f"""
{HEAD} limits(double *__restrict__ a, long long *__restrict__ b) {{
    if (threadIdx.x != 0) return;
    a[0] = Limits<float>::most(); a[1] = Limits<float>::least(); a[2] = Limits<double>::most();
    a[3] = Limits<double>::least(); a[4] = Limits<float>::most() - Limits<float>::most();
    b[0] = Limits<int>::most(); b[1] = Limits<int>::least(); b[2] = Limits<long long>::most();
    b[3] = Limits<long long>::least(); b[4] = Limits<bool>::most(); b[5] = Limits<bool>::least();
}}
"""


def test_limits():
    a, b = both_orders(LIMITS, "limits", np.zeros(5), np.zeros(6, np.int64))
    np.testing.assert_array_equal(a, [np.inf, -np.inf, np.inf, -np.inf, np.nan])
    i32, i64 = np.iinfo(np.int32), np.iinfo(np.int64)
    np.testing.assert_array_equal(b, [i32.max, i32.min, i64.max, i64.min, 1, 0])
