"""cuBLASLt without a device: what is described is what the library reads back, in the numbers of NVIDIA's header."""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xbp.errors import BackendUnavailable, DTypeError, NameUnknown, NotCompiled, ShapeError, XBPError
from xbp_cupy import libraries, lt, products
from xbp_cupy.products import Matrix, Product

BITS = 2**31 - 1  # sizes that cuBLASLt takes, as the header says


@pytest.fixture(scope="module")
def library():
    try:
        return lt.Library()
    except BackendUnavailable as error:
        pytest.skip(f"CUDA's libraries are needed: {error}")


@pytest.fixture(scope="module")
def header(library):
    """The text of NVIDIA's headers, and the numbers of all their constants."""
    folder = pytest.importorskip("cuda.pathfinder").find_nvidia_header_directory("cublas")
    if folder is None:
        pytest.skip("CUDA's headers are not installed beside its libraries")
    names = ("cublasLt.h", "cublas_api.h", "library_types.h")
    files = [Path(folder) / name for name in names]
    if not all(f.exists() for f in files):
        pytest.skip("CUDA's headers are not all installed: pip install nvidia-cublas nvidia-cuda-runtime")
    text = "\n".join(f.read_text(encoding="utf-8") for f in files)
    constants: dict[str, int] = {}
    for name, value in re.findall(r"^\s*(CU[A-Z]*_\w+)\s*=\s*([^,}/]+?)\s*,?\s*(?:/\*.*)?$", text, re.MULTILINE):
        known = re.sub(r"CU\w+", lambda m: str(constants.get(m[0], "None")), value)
        if re.fullmatch(r"[\d\s|()]+", known):
            constants[name] = eval(known)
    return text, constants


HEADER_DTYPES = {"float32": "32F", "float64": "64F", "float16": "16F", "bfloat16": "16BF"}
HEADER_COMPUTES = {"float32": "32F", "float64": "64F", "tf32": "32F_FAST_TF32"}


@st.composite
def any_product(draw, size=BITS):
    """Everything that a product may be: sizes, dtypes, layouts, precision, epilogue."""
    n = st.integers(1, size)
    m, n, k = draw(n), draw(n), draw(n)
    operands = draw(st.sampled_from(sorted(products.DTYPES)))
    result = draw(st.sampled_from(sorted({operands, operands if operands == "float64" else "float32"})))
    compute = {"float64": ["float64"], "float32": ["float32", "tf32"]}.get(operands, ["float32"])
    turned_a, turned_b = draw(st.booleans()), draw(st.booleans())
    pad = st.integers(0, 64)
    epilogue = draw(st.sampled_from(sorted(products.EPILOGUES)))
    kept = products.EPILOGUES[epilogue][1]
    unit = {"": 0, "bits": 128, "entries": 8}[kept]
    return Product(
        m, n, k,
        Matrix(operands, (k if turned_a else m) + draw(pad), turned_a),
        Matrix(operands, (n if turned_b else k) + draw(pad), turned_b),
        Matrix(result, m + draw(pad)),
        draw(st.sampled_from(compute)),
        epilogue,
        (-(-m // unit) + draw(st.integers(0, 3))) * unit if unit else 0,
    )  # fmt: skip


def expected(product, constants, bias, aux):
    """The attributes in the header's numbers."""
    scale = "64F" if product.compute == "float64" else "32F"
    name = {"": "DEFAULT"}.get(product.epilogue, product.epilogue.upper())
    a, b = (product.m, product.k), (product.k, product.n)
    sizes = {
        "a": a[::-1] if product.a.transposed else a,
        "b": b[::-1] if product.b.transposed else b,
        "d": (product.m, product.n),
    }
    layouts = {
        which: {
            "type": constants[f"CUDA_R_{HEADER_DTYPES[getattr(product, which).dtype]}"],
            "order": constants["CUBLASLT_ORDER_COL"],
            "rows": rows,
            "cols": columns,
            "ld": getattr(product, which).ld,
        }
        for which, (rows, columns) in sizes.items()
    }
    return {
        "compute": constants[f"CUBLAS_COMPUTE_{HEADER_COMPUTES[product.compute]}"],
        "scale": constants[f"CUDA_R_{scale}"],
        "transa": constants["CUBLAS_OP_T" if product.a.transposed else "CUBLAS_OP_N"],
        "transb": constants["CUBLAS_OP_T" if product.b.transposed else "CUBLAS_OP_N"],
        "epilogue": constants[f"CUBLASLT_EPILOGUE_{name}"],
        "bias": bias,
        "aux": aux,
        "aux_ld": product.aux_ld,
        **layouts,
    }


@pytest.mark.nvrtc
@given(any_product(), st.integers(1, 2**48), st.integers(1, 2**48))
def test_what_is_described_is_what_the_library_has(library, header, product, bias, aux):
    bias = bias if product.bias_length else 0
    aux = aux if product.aux else 0
    descriptor = library.descriptor(product)
    needed = [name for name, address in (("bias", bias), ("aux", aux)) if address]
    assert descriptor.missing() == needed
    descriptor.set_pointers(bias=bias or None, aux=aux or None)
    assert descriptor.missing() == []
    assert descriptor.attributes() == expected(product, header[1], bias, aux)
    descriptor.close()


@pytest.mark.nvrtc
def test_the_numbers_of_attributes_are_the_headers(header):
    names = {
        "compute": "COMPUTE_TYPE", "scale": "SCALE_TYPE", "transa": "TRANSA", "transb": "TRANSB",
        "epilogue": "EPILOGUE", "bias": "BIAS_POINTER", "aux": "EPILOGUE_AUX_POINTER", "aux_ld": "EPILOGUE_AUX_LD",
    }  # fmt: skip
    _, constants = header
    assert {n: number for n, (number, _) in lt._DESC.items()} == {
        n: constants[f"CUBLASLT_MATMUL_DESC_{words}"] for n, words in names.items()
    }
    assert {n: number for n, (number, _) in lt._LAYOUT.items()} == {
        n: constants[f"CUBLASLT_MATRIX_LAYOUT_{n.upper()}"] for n in lt._LAYOUT
    }
    prefix = "CUBLASLT_MATMUL_PREF_"
    assert constants[f"{prefix}MAX_WORKSPACE_BYTES"] == lt._WORKSPACE
    ours = {"A": lt._ALIGNMENT_A, "B": lt._ALIGNMENT_B, "C": lt._ALIGNMENT_C, "D": lt._ALIGNMENT_D}
    assert {n: constants[f"{prefix}MIN_ALIGNMENT_{n}_BYTES"] for n in ours} == ours
    assert {constants[f"CUBLAS_STATUS_{n}"]: n for n in lt._DECLINES.values()} == lt._DECLINES
    assert constants["CUBLAS_STATUS_NOT_INITIALIZED"] == lt._NOT_INITIALIZED


@pytest.mark.nvrtc
def test_structures_and_functions_are_the_headers(header):
    text, _ = header
    words = re.search(r"typedef struct \{\s*uint64_t data\[(\d+)\];\s*\} cublasLtMatmulAlgo_t;", text)
    assert words is not None
    assert ctypes.sizeof(lt._Opaque) == 8 * int(words[1]) == 64
    plain = re.sub(r"/\*.*?\*/|///?<.*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    body = re.search(r"typedef struct \{([^}]*)\} cublasLtMatmulHeuristicResult_t;", plain)
    assert body is not None
    fields = [" ".join(line.split()) for line in body[1].split(";") if line.strip()]
    assert fields == [
        "cublasLtMatmulAlgo_t algo", "size_t workspaceSize", "cublasStatus_t state", "float wavesCount",
        "int reserved[4]",
    ]  # fmt: skip
    assert ctypes.sizeof(lt._Answer) == 64 + 8 + 4 + 4 + 16
    for name, types in lt._FUNCTIONS.items():
        declared = re.search(rf"cublasStatus_t CUBLASWINAPI cublasLt{name}\(([^)]*)\);", plain)
        assert declared is not None, name
        assert len(declared[1].split(",")) == len(types), name


@pytest.mark.nvrtc
def test_the_library_tells_its_version(library):
    assert library.version >= 120000


@pytest.mark.nvrtc
def test_a_failure_is_told_in_the_librarys_words(library):
    with pytest.raises(lt.LibraryError, match=r"cublasLtMatmulDescSetAttribute failed: CUBLAS_STATUS_INVALID_VALUE"):
        library.call("MatmulDescSetAttribute", library.descriptor(plain()).operation, 7, None, 4)


@pytest.mark.nvrtc
def test_a_descriptor_gives_back_what_it_took(library, monkeypatch):
    freed = []
    status = library.status
    monkeypatch.setattr(library, "status", lambda f, *a: (freed.append(f), status(f, *a))[1])
    descriptor = library.descriptor(plain())
    made = [f for f in freed if f.endswith("Create")]
    del descriptor
    gc.collect()
    assert len(made) == 4
    assert freed[-4:] == ["MatrixLayoutDestroy"] * 3 + ["MatmulDescDestroy"]


@pytest.mark.nvrtc
def test_pointers_that_an_epilogue_does_not_have_are_refused(library):
    with pytest.raises(NotCompiled, match=r"Epilogue 'bias' has no aux"):
        library.descriptor(plain(epilogue="bias")).set_pointers(bias=256, aux=512)
    with pytest.raises(NotCompiled, match="has no bias"):
        library.descriptor(plain()).set_pointers(bias=256)


@pytest.mark.nvrtc
def test_pointers_can_be_set_one_by_one(library):
    descriptor = library.descriptor(plain(epilogue="relu_aux_bias", aux_ld=128))
    descriptor.set_pointers(aux=512)
    assert descriptor.missing() == ["bias"]
    descriptor.set_pointers(bias=256)
    found = descriptor.attributes()
    assert (found["bias"], found["aux"]) == (256, 512)


@pytest.mark.nvrtc
def test_without_a_device_a_handle_says_so(library):
    cupy = pytest.importorskip("cupy", reason="CUDA: without CuPy nothing tells whether there is a device")
    if cupy.cuda.is_available():
        pytest.skip("a CUDA device answers here")
    with pytest.raises(BackendUnavailable, match=r"no CUDA device answers .*CUBLAS_STATUS_NOT_INITIALIZED"):
        lt.Handle(library)


def test_without_the_finder_of_libraries_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.pathfinder", None)
    with pytest.raises(
        BackendUnavailable, match=r"library cublasLt cannot be used: cuda.pathfinder is not.*xbp\[cuda13\]"
    ):
        libraries.load.__wrapped__("cublasLt")


@pytest.mark.nvrtc
def test_a_library_that_is_not_there_is_named_with_what_to_install(library):
    with pytest.raises(BackendUnavailable, match=r"library cuNothing cannot be used: .*xbp\[cuda13\]"):
        libraries.load("cuNothing")


def plain(m=10, n=128, k=256, dtype="float32", **rest):
    return Product(m, n, k, Matrix(dtype, m), Matrix(dtype, k), Matrix(dtype, m), **rest)


@pytest.mark.parametrize(
    ("rest", "error", "words"),
    [
        ({"m": 0}, ShapeError, r"\(0, 256\).*empty"),
        ({"epilogue": "relu_bais"}, NameUnknown, "Did you mean 'relu_bias'"),
        ({"compute": "float16"}, NameUnknown, "Known: float32, float64, tf32"),
        ({"dtype": "int8"}, NameUnknown, "'int8'"),
        ({"a": Matrix("float16", 10)}, DTypeError, "float16 and float32"),
        ({"d": Matrix("float16", 10)}, DTypeError, "of float32 cannot be stored as float16"),
        ({"d": Matrix("float64", 10)}, DTypeError, "cannot be stored as float64"),
        ({"dtype": "float64", "compute": "float32"}, DTypeError, "not computed in 'float32', but in float64"),
        ({"dtype": "bfloat16", "compute": "tf32"}, DTypeError, "bfloat16 is not computed in 'tf32'"),
        ({"a": Matrix("float32", 9)}, ShapeError, "dimension of A is 9, less than its 10 rows"),
        ({"b": Matrix("float32", 127, True)}, ShapeError, "dimension of B is 127, less than its 128 rows"),
        ({"d": Matrix("float32", 128, True)}, ShapeError, "cannot be transposed"),
        ({"aux_ld": 128}, ShapeError, "no mask"),
        ({"epilogue": "drelu", "aux_ld": 64}, ShapeError, "in bits, to be a multiple of 128 and at least m = 10"),
        ({"epilogue": "drelu", "m": 130, "aux_ld": 128}, ShapeError, "at least m = 130"),
        ({"epilogue": "dgelu", "aux_ld": 12}, ShapeError, "in entries, to be a multiple of 8"),
    ],
)
def test_products_that_cannot_be_are_refused(rest, error, words):
    sizes = {k: rest.pop(k) for k in ("m", "dtype") if k in rest}
    right = {"m": 10, "n": 128, "k": 256, "dtype": "float32", **sizes}
    m, n, k, dtype = (right[x] for x in ("m", "n", "k", "dtype"))
    matrices = {"a": Matrix(dtype, max(m, 1)), "b": Matrix(dtype, k), "d": Matrix(dtype, max(m, 1))}
    with pytest.raises(error, match=words) as caught:
        Product(m, n, k, **{**matrices, **rest})
    assert isinstance(caught.value, XBPError)


@settings(max_examples=50)
@given(any_product(size=5000))
def test_sizes_of_what_an_epilogue_reads_or_writes(product):
    entries = {"bgradb": product.n}.get(product.epilogue, product.m)
    has_bias = any(word in product.epilogue for word in ("bias", "bgrad"))
    assert product.bias_length == (entries if has_bias else 0)
    if "aux" in product.epilogue or product.epilogue.startswith("d"):
        width = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}[product.d.dtype]
        bits = 1 if "relu" in product.epilogue else 8 * width
        assert product.aux_bytes == product.aux_ld * bits * product.n // 8
        assert product.aux_bytes * 8 >= product.m * product.n * bits
    else:
        assert product.aux_bytes == 0


def test_a_product_is_told_in_words():
    text = str(plain(epilogue="relu_aux", aux_ld=256, dtype="bfloat16"))
    assert text == (
        "relu_aux product A (10, 256) B (256, 128) of bfloat16, computed in float32, ld 10, 256, 10, aux_ld 256"
    )


def test_algorithms_go_to_text_and_back():
    algorithm = lt.Algorithm(bytes(range(64)), 1024, 0.5)
    assert lt.Algorithm.from_hex(algorithm.to_hex(), 1024, 0.5) == algorithm
    with pytest.raises(ShapeError, match="64 bytes, not 3"):
        lt.Algorithm.from_hex("010203")


@given(st.integers(1, 2**48))
def test_alignment_divides_the_address(address):
    found = lt.alignment(address)
    assert address % found == 0
    assert found == 256 or (found < 256 and address % (2 * found))


def test_nothing_to_point_at_is_aligned_to_anything():
    assert lt.alignment(0) == 256
