"""NVRTC without a device: machine code comes out, its resources are read, and failures show the lines at fault."""

from __future__ import annotations

import subprocess
import sys

import pytest

from xbp.errors import BackendUnavailable, NotCompiled
from xbp_cupy import nvrtc

pytestmark = pytest.mark.nvrtc

COPY = """
extern "C" __global__ void copy(const float* a, float* b, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) b[i] = a[i];
}
"""
TURN = """
extern "C" __global__ void turn(float* a) {
    __shared__ float s[32];
    s[threadIdx.x] = a[threadIdx.x];
    __syncthreads();
    a[threadIdx.x] = s[31 - threadIdx.x];
}
"""
PICK = """
extern "C" __global__ void pick(double* a, int n) {
    double v[64];
    for (int i = 0; i < n; i++) v[i] = a[i];
    for (int i = 0; i < n; i++) a[i] = v[a[i] > 0 ? i : n - i];
}
"""
# 64 values are alive at once, in registers of which there are 24.
SPILL = """
extern "C" __global__ void spill(const float* a, float* b) {
    float v[64];
    #pragma unroll
    for (int i = 0; i < 64; i++) v[i] = a[threadIdx.x + i * 1024];
    __syncthreads();
    #pragma unroll
    for (int i = 0; i < 64; i++) b[threadIdx.x + i * 1024] = v[63 - i] * v[(i * 7) % 64];
}
"""


@pytest.fixture(autouse=True)
def _compiler():
    try:
        nvrtc.version()
    except BackendUnavailable as error:
        pytest.skip(f"CUDA's compiler is needed: {error}")


def test_a_kernel_becomes_machine_code():
    found = nvrtc.compiled(COPY)
    assert found.code.startswith(b"\x7fELF")
    assert b"copy" in found.code
    assert list(found.kernels) == ["copy"]
    copy = found.kernels["copy"]
    assert 0 < copy.registers <= 32
    assert copy == nvrtc.Resources(copy.registers, 0, 0, 0, 0, 0)
    assert found.spilled == 0


def test_each_kernel_has_its_own_resources():
    found = nvrtc.compiled(COPY + TURN + PICK).kernels
    assert set(found) == {"copy", "turn", "pick"}
    assert [found[n].shared for n in ("copy", "turn", "pick")] == [0, 128, 0]
    assert [found[n].barriers for n in ("copy", "turn", "pick")] == [0, 1, 0]
    assert [found[n].stack for n in ("copy", "turn", "pick")] == [0, 0, 512]
    assert found["turn"] == nvrtc.compiled(TURN).kernels["turn"]


def test_spills_are_told():
    roomy, tight = nvrtc.compiled(SPILL + COPY), nvrtc.compiled(SPILL + COPY, options=["--maxrregcount=24"])
    assert roomy.spilled == 0
    spill = tight.kernels["spill"]
    assert spill.spill_stores > 0
    assert spill.spill_loads > 0
    assert tight.spilled == spill.spill_stores + spill.spill_loads
    assert tight.kernels["copy"].spill_stores == 0


def test_spills_of_functions_that_are_called_count_too():
    called = SPILL.replace('extern "C" __global__', "__device__ __noinline__")
    caller = 'extern "C" __global__ void caller(const float* a, float* b) { spill(a, b); }'
    found = nvrtc.compiled(called + caller, options=["--maxrregcount=24"])
    assert list(found.kernels) == ["caller"]
    assert found.spilled > found.kernels["caller"].spill_stores + found.kernels["caller"].spill_loads


@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_90a", "sm_100"])
def test_code_is_for_the_kind_that_was_asked_for(arch):
    assert f"for '{arch}'" in nvrtc.compiled(COPY, arch).log


def test_code_is_the_same_each_time():
    assert nvrtc.compiled(COPY + TURN).code == nvrtc.compiled(COPY + TURN).code


@pytest.mark.parametrize(("header", "kind"), [("cuda_fp16.h", "__half"), ("cuda_bf16.h", "__nv_bfloat16")])
def test_half_precision_has_its_headers(header, kind):
    if not nvrtc.include_options():
        pytest.skip("CUDA's headers are not installed: pip install nvidia-cuda-runtime")
    source = f"#include <{header}>\n{COPY.replace('float', kind)}"
    assert nvrtc.compiled(source, options=nvrtc.include_options()).spilled == 0


def test_errors_show_the_lines_they_are_about():
    source = "\n".join([*(f"// line {i}" for i in range(1, 11)), COPY.strip(), "// end"]).replace("a[i]", "q[i]")
    with pytest.raises(NotCompiled) as caught:
        nvrtc.compiled(source)
    text = str(caught.value)
    assert 'identifier "q" is undefined' in text
    assert "--gpu-architecture=sm_90" in text
    assert ">   13     if (i < n) b[i] = q[i];" in text
    assert "    11 extern" in text
    assert "    15 // end" in text
    assert "// line 10" not in text


def test_errors_far_from_each_other_are_shown_apart():
    source = "\n".join(["int a = b;", *(f"// line {i}" for i in range(2, 30)), "int c = d;"])
    with pytest.raises(NotCompiled) as caught:
        nvrtc.compiled(source)
    shown = str(caught.value).splitlines()[-7:]
    assert [line[:6] for line in shown] == [">    1", "     2", "     3", "      ", "    28", "    29", ">   30"]
    assert shown[3].strip() == "..."


@pytest.mark.parametrize(
    ("source", "arch", "options", "words"),
    [
        (COPY, "sm_9999", (), "gpu-architecture"),
        (COPY, "sm_90", ("--no-such-option",), "no-such-option"),
        (COPY, "compute_90", (), "no kind of device"),
        ("", "sm_90", (), "holds no kernel"),
        ("__device__ float f(float x) { return x; }", "sm_90", (), "holds no kernel"),
        (TURN.replace("[32]", "[65536]"), "sm_90", (), "too much shared data"),
        ("#include <no_such_header.h>", "sm_90", (), "no_such_header.h"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_words(source, arch, options, words):
    with pytest.raises(NotCompiled, match=words):
        nvrtc.compiled(source, arch, options)


def test_text_that_is_not_ascii_is_no_matter():
    with pytest.raises(NotCompiled, match="größe"):
        nvrtc.compiled("// größe\nint a = b;")


def test_the_log_is_read_in_either_order():
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'f' for 'sm_90'
    16 bytes stack frame, 8 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 10 registers, used 2 barriers, 96 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_Z1gPf' for 'sm_90'
ptxas info    : Function properties for _Z1gPf
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers
"""
    assert nvrtc._resources(log) == {
        "f": nvrtc.Resources(10, 16, 8, 4, 96, 2),
        "_Z1gPf": nvrtc.Resources(255, 0, 0, 0, 0, 0),
    }
    with pytest.raises(nvrtc.LibraryError, match="cannot read"):
        nvrtc._resources(log.replace("Used 255 registers", "All is well"))


def test_importing_asks_for_no_library():
    code = "import sys, xbp_cupy.nvrtc, xbp_cupy.lt, xbp_cupy.tuning; print(*{m.split('.')[0] for m in sys.modules})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "xbp_cupy" in out
    assert {"cupy", "cuda"} & set(out) == set()
