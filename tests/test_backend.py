"""Backends are found by name, say why they cannot run, and carry arrays to their device and back unchanged."""

from __future__ import annotations

import inspect
import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

import xbp.backend
from xbp.backend import Backend, available_backends, get_backend, load_library, register_backend
from xbp.errors import BackendUnavailable, DTypeError, UnknownBackend, XBPError
from xbp.typing import Namespace

NAMES = ("numpy", "cupy", "torch", "jax", "strict")


@pytest.fixture(params=NAMES)
def backend(request):
    try:
        return get_backend(request.param)
    except BackendUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(xbp.backend, "_registered", {})


def info(name):
    (found,) = [i for i in available_backends() if i.name == name]
    return found


def test_every_backend_has_an_entry_point_and_a_line():
    assert set(NAMES) <= {e.name for e in metadata.entry_points(group="xbp.backends")}
    assert set(NAMES) <= {i.name for i in available_backends()}
    for i in available_backends():
        assert i.available == (i.reason == "")
        assert not i.available or (i.device and i.version and "eager" in i.engines)


def test_unknown_names_get_the_nearest_and_the_list():
    with pytest.raises(
        UnknownBackend, match=r"'torhc'\. Did you mean 'torch'\? Known: auto, cupy, jax, numpy"
    ) as error:
        get_backend("torhc")
    assert isinstance(error.value, BackendUnavailable)
    assert isinstance(error.value, ValueError)


def test_the_name_may_hold_the_device():
    assert get_backend("numpy:cpu").device == "cpu"
    strict = pytest.importorskip("array_api_strict", reason="needs array-api-strict")
    assert get_backend("strict:device1").device == strict.Device("device1")
    assert get_backend("strict", "device1").device == strict.Device("device1")
    assert get_backend("strict:device1", "device1").device == strict.Device("device1")
    with pytest.raises(BackendUnavailable, match=r"names a device, and device='device2' another"):
        get_backend("strict:device1", "device2")


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("numpy:gpu", "it has no device 'gpu'"),
        ("strict:device9", "Known: CPU_DEVICE, device1, device2, no_float64"),
        ("torch:nonsense", "no device 'nonsense'"),
        ("torch:meta", "cannot compute on 'meta'"),
        ("jax:cpu:99", "it sees cpu:0"),
        ("jax:nonsense", "it sees"),
        ("auto:nonsense", r"No backend can run here\. cupy: .* numpy: "),
    ],
)
def test_a_device_that_is_not_there(name, match):
    library = {"torch": "torch", "jax": "jax", "strict": "array_api_strict"}.get(name.partition(":")[0], "numpy")
    pytest.importorskip(library, reason=f"needs {library}")
    with pytest.raises(BackendUnavailable, match=match):
        get_backend(name)


def test_torch_without_cuda_says_so():
    torch = pytest.importorskip("torch", reason="needs torch")
    if torch.cuda.is_available():
        pytest.skip("torch finds a CUDA device here")
    with pytest.raises(BackendUnavailable, match=r"finds no CUDA.*Install the NVIDIA driver"):
        get_backend("torch", "cuda")


def test_a_backend_passes_through_and_anything_else_is_refused():
    b = get_backend("numpy")
    assert get_backend(b) is b
    with pytest.raises(BackendUnavailable, match="has its device already"):
        get_backend(b, "cpu")
    with pytest.raises(DTypeError, match="takes a name or a Backend, not int"):
        get_backend(3)


def test_auto_is_cupy_where_a_cuda_device_answers_else_numpy():
    assert get_backend().name == get_backend("auto").name == ("cupy" if info("cupy").available else "numpy")


@pytest.mark.parametrize(
    ("name", "library", "install"),
    [
        ("cupy", "cupy", r"pip install 'xbp\[cuda12\]' or pip install 'xbp\[cuda13\]'"),
        ("torch", "torch", r"pip install 'xbp\[torch\]'"),
        ("jax", "jax", r"pip install 'xbp\[jax\]'"),
        ("strict", "array_api_strict", "pip install array-api-strict"),
    ],
)
def test_a_missing_library_is_named_with_what_installs_it(name, library, install, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)  # what Python does for a module that must not be found
    with pytest.raises(BackendUnavailable, match=rf"{library} is not installed.*{install}") as error:
        get_backend(name)
    assert isinstance(error.value, ImportError)
    assert not info(name).available
    assert f"{library} is not installed" in info(name).reason


def test_cupy_without_a_device_says_so():
    cupy = pytest.importorskip("cupy", reason="cupy is not installed; the case without it is tested by itself")
    if cupy.cuda.is_available():
        pytest.skip("a CUDA device answers here")
    with pytest.raises(BackendUnavailable, match=r"is installed, but no CUDA device answers|finds no CUDA device"):
        get_backend("cupy")


@pytest.mark.cuda
def test_cupy_devices_are_numbers():
    if not info("cupy").available:
        pytest.skip(info("cupy").reason)
    b = get_backend("cupy:0")
    assert (b.device.id, get_backend("cupy:cuda:0").device.id) == (0, 0)
    assert b.xp.zeros((2,), dtype=b.xp.float32, device=None).device.id == 0
    assert set(b.memory()) == {"used", "reserved", "free", "total"}
    with pytest.raises(BackendUnavailable, match=r"no device '99'"):
        get_backend("cupy:99")


def test_a_library_that_fails_to_import_is_not_called_missing(tmp_path, monkeypatch):
    (tmp_path / "halfway.py").write_text("import needed_by_halfway\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BackendUnavailable, match="importing halfway failed: No module named 'needed_by_halfway'"):
        load_library("halfway", "mine", "pip install halfway")


def test_a_broken_plug_in_is_a_line_in_the_list_and_an_error_when_asked_for(registry):
    def broken(device):
        raise RuntimeError("the magic smoke is out")

    register_backend("broken", broken)
    register_backend("no-backend", lambda device: 3)
    assert "RuntimeError: the magic smoke is out" in info("broken").reason
    assert "returned a int, not an xbp.backend.Backend" in info("no-backend").reason
    assert info("numpy").available
    with pytest.raises(BackendUnavailable, match=r"'broken' failed to start: RuntimeError: the magic smoke is out"):
        get_backend("broken")


def test_a_registered_backend_is_found_and_shown_its_device(registry):
    register_backend("mine", lambda device: Backend("mine", np, device=device, version="1"))
    assert get_backend("mine:cpu").device == "cpu"
    assert info("mine") == xbp.backend.BackendInfo(
        "mine", True, device="None", engines=("eager",), version="1", precisions=("float32",)
    )


def members(cls):
    return {
        name: inspect.signature(value) if inspect.isfunction(value) else None
        for name, value in vars(cls).items()
        if not name.startswith("_") and name != "library_of"
    }


def test_all_backends_have_the_names_and_signatures_of_the_base(backend):
    base = members(Backend)
    for cls in type(backend).__mro__[:-1]:
        for name, signature in members(cls).items():
            assert name in base, f"{cls.__name__}.{name} is in no other backend"
            if signature is not None:
                assert [str(p) for p in signature.parameters.values()] == [
                    str(p) for p in base[name].parameters.values()
                ], f"{cls.__name__}.{name}"
    for attribute in ("name", "xp", "device", "version", "transfers"):
        assert hasattr(backend, attribute)


def test_every_namespace_has_all_that_xbp_calls(space):
    for name in vars(Namespace):
        if not name.startswith("_"):
            assert hasattr(space.xp, name), name


def test_creation_functions_of_cupy_obey_their_device():
    """By itself, without CuPy: array-api-compat's take `device=` and create on the current device all the same."""
    package = pytest.importorskip("xbp_cupy")
    entered = []

    class Device:
        def __init__(self, number):
            self.number = number

        def __enter__(self):
            entered.append(self.number)

        def __exit__(self, *error):
            entered.append(None)

    def create(*args, **options):
        return entered[-1], args, options

    compat = SimpleNamespace(matmul=create, **dict.fromkeys(package.CREATION, create))
    xp = package._on_device(compat, Device(0))
    assert xp.zeros((2,), dtype="float32", device=None) == (0, ((2,),), {"dtype": "float32"})
    assert xp.asarray([1.0], device=Device(1)) == (1, ([1.0],), {})
    assert entered == [0, None, 1, None]
    assert xp.matmul is create


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int32", "int64", "float32", "float64"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3)])
def test_a_round_trip_changes_nothing(space, dtype, shape):
    host = np.asarray(np.random.default_rng(0).integers(0, 2, shape)).astype(dtype)
    expected = host
    if dtype == "float64" and "float64" not in space.dtypes:
        with pytest.raises(DTypeError, match="float64"):
            space.backend.asarray(host)
        return
    if dtype == "int64" and space.name == "jax":
        expected = host.astype(np.int32)  # see xbp_jax
    array = space.backend.asarray(host)
    back = space.backend.to_host(array)
    assert space.backend.owns(array)
    assert array.dtype == space.backend.dtype(expected.dtype.name)
    assert tuple(array.shape) == shape
    assert type(back) is np.ndarray
    assert back.dtype == expected.dtype
    np.testing.assert_array_equal(back, expected)


def test_odd_host_arrays_arrive_whole(space):
    for host in (
        np.arange(6, dtype=np.float32)[::-1],
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(6, dtype=">f4"),
        np.broadcast_to(np.float32(3), (2, 2)),  # read-only, with strides of 0
        [[1.0, 2.0], [3.0, 4.0]],
        7,
    ):
        array = space.backend.asarray(host, "float32")
        assert array.dtype == space.xp.float32
        np.testing.assert_array_equal(space.backend.to_host(array), host)


def test_what_goes_in_and_comes_out_is_a_copy(space):
    host = np.zeros(3, dtype=np.float32)
    array = space.backend.asarray(host)
    host[:] = 1
    back = space.backend.to_host(array)
    np.testing.assert_array_equal(back, 0)
    back[:] = 2
    np.testing.assert_array_equal(space.backend.to_host(array), 0)


def test_transfers_are_counted(backend):
    host = np.zeros((5, 2), dtype=np.float32)
    array = backend.asarray(host)
    backend.asarray(host[0])
    backend.to_host(array)
    backend.synchronize()
    t = backend.transfers
    counted = (0, 0, 0, 0) if backend.on_host else (2, 48, 1, 40)
    assert (t.to_device, t.to_device_bytes, t.to_host, t.to_host_bytes) == counted
    assert backend.on_host == (backend.name == "numpy")


def test_dtypes_that_are_none_are_refused(backend):
    for name in ("float33", "abs", "__name__", "longdouble"):
        with pytest.raises(DTypeError, match=f"no dtype '{name}'"):
            backend.dtype(name)
        with pytest.raises(DTypeError, match=f"no dtype '{name}'"):
            backend.asarray([1.0], name)


@pytest.mark.parametrize(
    ("host", "match"),
    [(["a", "b"], "dtype <U1"), ([[1.0], [1.0, 2.0]], "none of them"), ([object()], "dtype object")],
)
def test_host_data_that_is_not_numbers_is_refused(host, match):
    with pytest.raises(DTypeError, match=match):
        get_backend("numpy").asarray(host)


def test_arrays_of_another_device_are_not_host_data():
    pytest.importorskip("array_api_strict", reason="needs array-api-strict")
    away = get_backend("strict:device1").asarray([1.0])
    with pytest.raises(DTypeError, match=r"'numpy' reads host data.*array_api_strict.*backend="):
        get_backend("numpy").asarray(away)


def test_owns_tells_libraries_apart(space):
    array = space.put(np.zeros(3, dtype=np.float32))
    for name in NAMES:
        if info(name).available:
            other = get_backend(name)
            mine = Backend.library_of(other.asarray(np.zeros(1, dtype=np.float32)))
            assert other.owns(array) == (Backend.library_of(array) == mine)
    assert not space.backend.owns([1.0, 2.0])
    assert not space.backend.owns(3.0)


def test_an_engine_that_is_not_there_is_named(backend):
    with pytest.raises(XBPError, match="has no engine 'warp'"):
        backend.compile(None, "warp")


def test_jax_without_x64_names_the_line_that_turns_it_on():
    jax = pytest.importorskip("jax", reason="needs jax")
    b = get_backend("jax")
    if jax.config.jax_enable_x64:
        pytest.skip("x64 is on in this process")
    line = r'jax\.config\.update\("jax_enable_x64", True\)'
    for refused in (lambda: b.dtype("float64"), lambda: b.asarray([0.5]), lambda: b.asarray([1], "int64")):
        with pytest.raises(DTypeError, match=line):
            refused()
    assert b.asarray(np.arange(3)).dtype == np.int32
    with pytest.raises(DTypeError, match=r"from 0 to 2147483648, do not fit into its int32"):
        b.asarray(np.asarray([0, 2**31]))


def test_jax_multiplies_off_the_cpu_in_the_precision_of_the_dtype():
    jax = pytest.importorskip("jax", reason="needs jax")
    package = pytest.importorskip("xbp_jax")
    xp = package._namespace(jax, "gpu")
    a = xp.ones((2, 3), dtype=xp.float32)
    assert "HIGHEST" in str(jax.make_jaxpr(lambda a, b: xp.matmul(a, b))(a, a.T))
    np.testing.assert_array_equal(np.asarray(xp.matmul(a, a.T)), np.full((2, 2), 3, dtype=np.float32))
    assert package._namespace(jax, "cpu") is jax.numpy


@pytest.mark.cuda
def test_torch_on_cuda():
    torch = pytest.importorskip("torch", reason="needs torch")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device here")
    b = get_backend("torch:cuda")
    x = b.asarray(np.arange(3, dtype=np.float32))
    assert x.device == b.device == torch.device("cuda", torch.cuda.current_device())
    np.testing.assert_array_equal(b.to_host(x * 2.0), [0, 2, 4])
    b.synchronize()
    assert b.memory()["used"] > 0
