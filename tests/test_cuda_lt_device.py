"""cuBLASLt on a device: every epilogue in every dtype against NumPy's float64, every algorithm, and under capture.

The operands are small whole numbers, whose products are exact in each dtype, so that most results have to be equal.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from xbp.errors import BackendUnavailable, NotCompiled
from xbp_cupy import lt
from xbp_cupy.products import DTYPES, EPILOGUES, Matrix, Product
from xbp_cupy.tuning import Tuning

pytestmark = pytest.mark.cuda

M, N, K = 24, 40, 32
WORKSPACE = 32 << 20
KINDS = [  # dtype, and what is computed in
    ("float32", "float32"),
    ("float32", "tf32"),
    ("float64", "float64"),
    ("float16", "float32"),
    ("bfloat16", "float32"),
]


class Bench:
    """A device with a stream of its own, and memory that is filled from the host and read back as bytes."""

    def __init__(self, cupy):
        self.cupy = cupy
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self.handle = lt.Handle()
        self.workspace = cupy.empty(WORKSPACE, dtype=cupy.uint8)
        self.library = self.handle.library

    def put(self, host: np.ndarray):
        memory = self.cupy.asarray(np.frombuffer(host.tobytes(), np.uint8))
        self.cupy.cuda.Device().synchronize()
        return memory

    def get(self, memory, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        self.stream.synchronize()
        return np.frombuffer(self.cupy.asnumpy(memory).tobytes(), dtype).reshape(shape)

    def run(self, descriptor, algorithm, a, b, d) -> None:
        where = self.workspace.data.ptr
        self.handle.run(
            descriptor, algorithm, a.data.ptr, b.data.ptr, d.data.ptr, where, WORKSPACE, self.stream.ptr
        )  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    cupy = pytest.importorskip("cupy", reason="CUDA: CuPy is not installed: pip install 'xbp[cuda13]'")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device answers here")
    try:
        return Bench(cupy)
    except BackendUnavailable as error:
        pytest.skip(str(error))


def host_dtype(name: str) -> np.dtype:
    if name == "bfloat16":
        ml_dtypes = pytest.importorskip("ml_dtypes", reason="bfloat16 on the host needs ml_dtypes")
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


class Case:
    """A product with its operands, in host memory as cuBLASLt sees it: columns one after the other, with gaps."""

    def __init__(self, dtype, compute, epilogue="", turned=(False, False), seed=0, aux=None):
        rng = np.random.default_rng(seed)
        self.dtype = host_dtype(dtype)
        self.a = rng.integers(-2, 3, (M, K)).astype(np.float64)
        self.b = rng.integers(-2, 3, (K, N)).astype(np.float64)
        ta, tb = turned
        kept = EPILOGUES[epilogue][1]
        aux_ld = {"": 0, "bits": 128, "entries": 32}[kept]
        a = Matrix(dtype, (K if ta else M) + 8, ta)
        b = Matrix(dtype, (N if tb else K) + 8, tb)
        self.product = Product(M, N, K, a, b, Matrix(dtype, M + 8), compute, epilogue, aux_ld)
        self.stored_a = self.columns(self.a.T if ta else self.a, a.ld)
        self.stored_b = self.columns(self.b.T if tb else self.b, b.ld)
        self.stored_d = np.full((N, M + 8), np.nan, dtype=self.dtype)  # what was there must not be read
        # Halves, so that no value before an activation is 0, where a slope is a matter of taste.
        self.bias = (rng.integers(-4, 4, max(self.product.bias_length, 1)) + 0.5).astype(self.dtype)
        self.aux = np.zeros(max(self.product.aux_bytes, 1), np.uint8) if aux is None else aux

    def columns(self, matrix: np.ndarray, ld: int) -> np.ndarray:
        stored = np.full((matrix.shape[1], ld), np.nan, dtype=self.dtype)
        stored[:, : matrix.shape[0]] = matrix.T
        return stored

    @property
    def sum(self) -> np.ndarray:
        return self.a @ self.b

    def computed(self, bench, algorithm=None):
        """(D, bias, aux) after a run of the first algorithm, or of the one given."""
        a, b, d, bias, aux = map(bench.put, (self.stored_a, self.stored_b, self.stored_d, self.bias, self.aux))
        descriptor = bench.library.descriptor(self.product)
        descriptor.set_pointers(
            bias=bias.data.ptr if self.product.bias_length else None, aux=aux.data.ptr if self.product.aux else None
        )
        algorithm = algorithm or bench.handle.candidates(descriptor, WORKSPACE, 1)[0]
        bench.run(descriptor, algorithm, a, b, d)
        return self.read(bench, d), bench.get(bias, self.dtype, self.bias.shape), bench.get(aux, np.uint8, (-1,))

    def read(self, bench, d) -> np.ndarray:
        stored = bench.get(d, self.dtype, (N, M + 8)).astype(np.float64)
        assert np.isnan(stored[:, M:]).all(), "the gap between two columns was written"
        return stored[:, :M].T


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x):
    t = np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t**2) * math.sqrt(2 / math.pi) * (1 + 3 * 0.044715 * x**2)


def close(found, right, dtype):
    tolerance = {"float16": 2e-3, "bfloat16": 1.6e-2}.get(np.dtype(dtype).name, 1e-5)
    np.testing.assert_allclose(found.astype(np.float64), right, rtol=tolerance, atol=tolerance * np.abs(right).max())


def or_skip(work):
    """An epilogue is a request: where the library declines it, xbp computes the same in two launches."""
    try:
        return work()
    except lt.Declined as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_plain_products_in_all_layouts(bench, kind, turned):
    case = Case(*kind, turned=turned)
    np.testing.assert_array_equal(case.computed(bench)[0], case.sum)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("epilogue", ["bias", "relu", "relu_bias", "bgrada", "bgradb"])
def test_epilogues_that_keep_nothing(bench, kind, epilogue):
    case = Case(*kind, epilogue)
    d, bias, _ = or_skip(lambda: case.computed(bench))
    right = case.sum
    if epilogue.endswith("bias"):
        right = right + case.bias.astype(np.float64)[:, None]
    np.testing.assert_array_equal(d, np.maximum(right, 0) if "relu" in epilogue else right)
    sums = {"bgrada": case.a.sum(axis=1), "bgradb": case.b.sum(axis=0)}
    np.testing.assert_array_equal(bias.astype(np.float64), sums.get(epilogue, case.bias.astype(np.float64)))


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("backward", ["drelu", "drelu_bgrad"])
def test_the_mask_of_a_relu_is_its_gradients(bench, kind, backward):
    forward = Case(*kind, "relu_aux_bias")
    y, _, mask = or_skip(lambda: forward.computed(bench))
    before = forward.sum + forward.bias.astype(np.float64)[:, None]
    np.testing.assert_array_equal(y, np.maximum(before, 0))
    gradient = Case(*kind, backward, seed=1, aux=mask)
    d, sums, _ = or_skip(lambda: gradient.computed(bench))
    right = np.where(before > 0, gradient.sum, 0)
    np.testing.assert_array_equal(d, right)
    if backward == "drelu_bgrad":
        close(sums, right.sum(axis=1), gradient.dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_relu_keeps_a_mask_without_a_bias_too(bench, kind):
    case = Case(*kind, "relu_aux")
    y, _, mask = or_skip(lambda: case.computed(bench))
    np.testing.assert_array_equal(y, np.maximum(case.sum, 0))
    assert mask.any()


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("backward", ["dgelu", "dgelu_bgrad"])
def test_gelu_and_its_gradient(bench, kind, backward):
    forward = Case(*kind, "gelu_aux_bias")
    y, _, kept = or_skip(lambda: forward.computed(bench))
    before = forward.sum + forward.bias.astype(np.float64)[:, None]
    close(y, gelu(before), forward.dtype)
    values = np.frombuffer(kept.tobytes(), forward.dtype).reshape(N, 32)[:, :M].T
    np.testing.assert_array_equal(values.astype(np.float64), before)
    gradient = Case(*kind, backward, seed=1, aux=kept)
    d, sums, _ = or_skip(lambda: gradient.computed(bench))
    right = gradient.sum * gelu_slope(before)
    close(d, right, gradient.dtype)
    if backward == "dgelu_bgrad":
        close(sums, right.sum(axis=1), gradient.dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_gelu_that_keeps_nothing(bench, kind):
    case = Case(*kind, "gelu_bias")
    y, _, _ = or_skip(lambda: case.computed(bench))
    close(y, gelu(case.sum + case.bias.astype(np.float64)[:, None]), case.dtype)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_algorithm_gives_the_same_and_survives_being_stored(bench, kind):
    case = Case(*kind)
    descriptor = bench.library.descriptor(case.product)
    algorithms = bench.handle.candidates(descriptor, WORKSPACE, 16)
    assert len({x.data for x in algorithms}) == len(algorithms)
    for algorithm in algorithms:
        stored = lt.Algorithm.from_hex(algorithm.to_hex())
        again = bench.handle.accepted(descriptor, stored)
        assert again is not None
        assert again.workspace <= WORKSPACE
        np.testing.assert_array_equal(case.computed(bench, again)[0], case.sum)


def test_the_best_algorithm_is_one_of_those_that_were_timed(bench, tmp_path):
    case = Case("float32", "float32")
    descriptor = bench.library.descriptor(case.product)
    a, b, d = map(bench.put, (case.stored_a, case.stored_b, case.stored_d))
    offered = bench.handle.candidates(descriptor, WORKSPACE, 8)

    def seconds(algorithm):
        start, stop = bench.cupy.cuda.Event(), bench.cupy.cuda.Event()
        start.record(bench.stream)
        bench.run(descriptor, algorithm, a, b, d)
        stop.record(bench.stream)
        stop.synchronize()
        return bench.cupy.cuda.get_elapsed_time(start, stop)

    best = Tuning(tmp_path).best("a product", lambda: offered, seconds)
    assert best in offered

    def nothing():
        raise AssertionError("it was stored")

    again = Tuning(tmp_path).best("a product", nothing, seconds, lambda x: bench.handle.accepted(descriptor, x))
    assert again.data == best.data


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_captured_product_is_the_launched_one(bench, kind):
    case = Case(*kind)
    a, b, d = map(bench.put, (case.stored_a, case.stored_b, case.stored_d))
    descriptor = bench.library.descriptor(case.product)
    algorithm = bench.handle.candidates(descriptor, WORKSPACE, 1)[0]
    bench.run(descriptor, algorithm, a, b, d)
    launched = case.read(bench, d)
    with bench.stream:
        bench.stream.begin_capture()
        bench.run(descriptor, algorithm, a, b, d)
        graph = bench.stream.end_capture()
    for _ in range(3):
        d[:] = bench.put(case.stored_d)
        bench.cupy.cuda.Device().synchronize()
        graph.launch(bench.stream)
        np.testing.assert_array_equal(case.read(bench, d), launched)
    np.testing.assert_array_equal(launched, case.sum)


@pytest.mark.parametrize("epilogue", sorted(e for e, (bias, aux) in EPILOGUES.items() if bias or aux))
def test_a_pointer_that_was_forgotten_is_told(bench, epilogue):
    case = Case("float32", "float32", epilogue)
    descriptor = bench.library.descriptor(case.product)
    with pytest.raises(NotCompiled, match="no address for"):
        bench.handle.run(descriptor, lt.Algorithm(bytes(64)), 256, 256, 256, 0, 0, bench.stream.ptr)


def test_too_small_a_workspace_is_told(bench):
    case = Case("float32", "float32")
    with pytest.raises(NotCompiled, match="works in 2048 bytes; 1024 were given"):
        bench.handle.run(
            bench.library.descriptor(case.product), lt.Algorithm(bytes(64), 2048), 256, 256, 256, 256, 1024, 0
        )


def test_unaligned_operands_get_algorithms_that_take_them(bench):
    """A view of an arena may begin anywhere: what its address divides by is said, and the product is right."""
    case = Case("bfloat16", "float32")
    size = DTYPES["bfloat16"]
    stored = [case.stored_a, case.stored_b, case.stored_d]
    moved = [bench.put(np.concatenate([np.zeros(1, case.dtype), s.ravel()])) for s in stored]
    a, b, d = (m.data.ptr + size for m in moved)
    descriptor = bench.library.descriptor(case.product)
    aligned = tuple(map(lt.alignment, (a, b, d)))
    assert aligned == (size,) * 3
    algorithm = bench.handle.candidates(descriptor, WORKSPACE, 1, aligned)[0]
    bench.handle.run(
        descriptor, algorithm, a, b, d, bench.workspace.data.ptr, WORKSPACE, bench.stream.ptr
    )  # fmt: skip
    found = bench.get(moved[2], case.dtype, (-1,))[1:].reshape(N, M + 8).astype(np.float64)
    np.testing.assert_array_equal(found[:, :M].T, case.sum)
