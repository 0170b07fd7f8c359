"""The processor in the place of a device: it reports divergent barriers, shows races and unwritten memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graph_engine_helpers import device, run_kernel, text_of
from processor import HostMemory

ROOT = Path(__file__).resolve().parent.parent
HEAD = 'extern "C" __global__ void __launch_bounds__(THREADS, 4)'
DIVERGENT = {
    "a barrier in half of the threads": "if (threadIdx.x < 100) { while (a[0] < 0) {} __syncthreads(); a[0] = 1; } "
    "else { a[threadIdx.x] = along_row<Sum<float>, 32>(1.0f); }",
    "a barrier one thread leaves out, twice": "if (threadIdx.x != 7) __syncthreads(); else exchanged(1.0f, 1);",
    "an exchange without its neighbour": "if (threadIdx.x != 7) exchanged(1.0f, 1); else __syncthreads();",
}
ALONE = """
import sys
sys.path.insert(0, "tests")
import numpy as np
from graph_engine_helpers import device, run_kernel
a = np.zeros(256, np.float32)
run_kernel(device(), sys.argv[1], "k", [a])
print("finished")
"""


@pytest.mark.parametrize("what", DIVERGENT)
def test_threads_that_wait_in_vain_are_reported(what):
    device()  # skips where there is no compiler
    code = f"{HEAD} k(float *__restrict__ a) {{ {DIVERGENT[what]} }}"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, code], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode < 0, done.stderr  # aborted
    assert "waits for threads that never come" in done.stderr
    assert "finished" not in done.stdout


def in_both_orders(code, size=256, blocks=1, dtype=np.float32):
    results = []
    for backwards in (False, True):
        a = np.zeros(size, dtype)
        run_kernel(device(backwards=backwards), code, "k", [a], blocks=blocks)
        results.append(a)
    return results


def test_a_race_shows_in_the_two_orders():
    race = f"{HEAD} k(float *__restrict__ a) {{ a[0] = (float)threadIdx.x; }}"
    one, other = in_both_orders(race)
    assert (one[0], other[0]) == (255.0, 0.0)
    unguarded = (
        f"{HEAD} k(float *__restrict__ a) {{ float *s = (float *)scratch(); s[threadIdx.x] = (float)threadIdx.x; "
        "a[threadIdx.x] = s[(threadIdx.x + 1) % THREADS]; }"
    )
    one, other = in_both_orders(unguarded)
    assert not np.array_equal(one, other)
    guarded = unguarded.replace("a[threadIdx.x] =", "__syncthreads(); a[threadIdx.x] =")
    one, other = in_both_orders(guarded)
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, (np.arange(256) + 1) % 256)


def test_a_race_between_blocks_shows_too():
    race = f"{HEAD} k(float *__restrict__ a) {{ if (threadIdx.x == 0) a[0] = (float)blockIdx.x; }}"
    one, other = in_both_orders(race, blocks=5)
    assert (one[0], other[0]) == (4.0, 0.0)


def test_threads_that_end_early_are_not_waited_for():
    code = f"{HEAD} k(float *__restrict__ a) {{ if (threadIdx.x >= 96) return; a[threadIdx.x] = "
    code += "along_row<Sum<float>, 32>(1.0f); __syncthreads(); a[threadIdx.x] += a[(threadIdx.x + 32) % 96]; }"
    one, _ = in_both_orders(code)
    assert (one[:32] >= 64).all()
    assert not one[96:].any()


def test_threads_are_fresh_in_every_block_and_launch():
    code = f"{HEAD} k(int *__restrict__ a) {{ const int at = blockIdx.x * THREADS + threadIdx.x; __syncthreads(); "
    code += "a[at] += at; }"
    a = np.zeros(3 * 256, np.int32)
    processor = device()
    for _ in range(3):
        run_kernel(processor, code, "k", [a], blocks=3)
    np.testing.assert_array_equal(a, 3 * np.arange(3 * 256))
    assert processor.launches == 3


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_memory_is_nan_before_it_is_written(dtype):
    processor = device()
    memory = processor.memory(1000)
    assert memory.address % 256 == 0
    assert np.isnan(processor.view(memory, 64, (5, 3), dtype, (3, 1))).all()
    assert not processor.view(processor.memory(1000, zeroed=True), 0, (5,), dtype, (1,)).any()
    assert np.isnan(processor.empty((3,), dtype)).all()


def test_what_reads_unwritten_memory_gives_nan():
    memory = HostMemory(1024, zeroed=False)
    a, b = memory.bytes[:512].view(np.float32), np.zeros(1, np.float32)
    a[:100] = 1.0
    code = f"{HEAD} k(const float *__restrict__ a, float *__restrict__ b, const int n) {{ float x = 0.0f; "
    code += "for (int i = threadIdx.x; i < n; i += THREADS) x += a[i]; x = along_row<Sum<float>, THREADS>(x); "
    code += "if (threadIdx.x == 0) *b = x; }"
    for n, wanted in ((100, 100.0), (101, np.nan)):
        run_kernel(device(), code, "k", [a, b], [n])
        np.testing.assert_array_equal(b, [np.float32(wanted)])


def test_a_graph_is_launched_and_not_run_while_it_is_captured():
    processor = device()
    a = np.zeros(1, np.float32)
    code = f"{HEAD} k(float *__restrict__ a) {{ if (threadIdx.x == 0) *a += 1.0f; }}"
    run_kernel(processor, code, "k", [a])
    kernel = processor.compiled(processor.texts[0])("k")

    def twice():
        for _ in range(2):
            processor.launch(kernel, 1, [a.ctypes.data])

    graph = processor.captured(twice)
    assert (a[0], processor.launches) == (1.0, 1)
    for _ in range(3):
        graph()
    assert (a[0], processor.launches, processor.graphs, processor.replays) == (7.0, 7, 1, 3)


def test_arguments_of_another_size_than_the_kernels_are_refused():
    processor = device()
    code = f"{HEAD} k(float *__restrict__ a, const index_t n) {{ a[n] = 1.0f; }}"
    a = np.zeros(4, np.float32)
    for wide, right, wrong in ((False, np.int32(1), np.int64(1)), (True, np.int64(2), np.int32(2))):
        kernel = processor.compiled(text_of(code, wide))("k")
        processor.launch(kernel, 1, [a.ctypes.data, right])
        with pytest.raises(AssertionError, match="arguments of k"):
            processor.launch(kernel, 1, [a.ctypes.data, wrong])
    np.testing.assert_array_equal(a, [0, 1, 1, 0])


@pytest.mark.parametrize("what", ["memory", "empty", "compiled", "synchronize"])
def test_nothing_but_launches_is_allowed_during_a_capture(what):
    processor = device()
    arguments = {"memory": (8,), "empty": ((), "float32"), "compiled": ("",), "synchronize": ()}[what]
    with pytest.raises(AssertionError, match="during a capture"):
        processor.captured(lambda: getattr(processor, what)(*arguments))
    processor.memory(8)  # the capture has ended


def test_compiled_kernels_are_kept():
    folder = Path(os.environ["XBP_CACHE_DIR"]) / "cuda_on_host"
    code = f"{HEAD} kept(float *__restrict__ a) {{ a[threadIdx.x] = 2.0f; }}"
    run_kernel(device(), code, "kept", [np.zeros(256, np.float32)])
    before = set(folder.iterdir())
    run_kernel(device(), code, "kept", [np.zeros(256, np.float32)])
    assert {p for p in before if p.suffix == ".so"} <= set(folder.iterdir())
    assert not [p for p in before if p.name.endswith(f"{os.getpid()}.so")]
