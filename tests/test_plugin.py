"""A third party's backend is found by its entry point alone, and xbp computes on it and checks it as on ours.

The plug-in is a real distribution, a package with its metadata beside it, seen by a Python process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PACKAGE = '''
from types import SimpleNamespace

import array_api_compat.numpy as library
from xbp.backend import Backend


class TinyBackend(Backend):
    """NumPy in disguise, with a maximum of its own."""


def backend(device=None):
    xp = SimpleNamespace(**vars(library))
    xp.calls = 0

    def maximum(a, b, /):
        xp.calls += 1
        return library.maximum(a, b)

    xp.maximum = maximum
    return TinyBackend("tiny", xp, device=device, version="0.1")
'''

BROKEN = "raise RuntimeError('half installed')\n"

METADATA = "Metadata-Version: 2.1\nName: tiny-arrays\nVersion: 0.1\n"

ENTRY_POINTS = "[xbp.backends]\ntiny = tiny_arrays:backend\nbroken = tiny_arrays.broken:backend\n"


@pytest.fixture
def site(tmp_path):
    """A folder on the path, as an installer leaves it."""
    package, info = tmp_path / "tiny_arrays", tmp_path / "tiny_arrays-0.1.dist-info"
    package.mkdir()
    info.mkdir()
    (package / "__init__.py").write_text(PACKAGE)
    (package / "broken.py").write_text(BROKEN)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return tmp_path


def run(script, *paths):
    """What the script prints, as JSON, in a fresh process that has `paths` on its path."""
    places = [*map(str, paths), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LIST = """
import json
from xbp.backend import available_backends
print(json.dumps({i.name: [i.available, i.reason, i.version] for i in available_backends()}))
"""


UNKNOWN = """
import json
from xbp.backend import get_backend
from xbp.errors import UnknownBackend
try:
    get_backend("tiny")
except UnknownBackend as error:
    print(json.dumps(str(error)))
"""


def test_a_plug_in_is_found_by_its_entry_point_alone(site):
    assert "Unknown backend 'tiny'" in run(UNKNOWN)
    found = run(LIST, site)
    assert found["tiny"] == [True, "", "0.1"]
    assert found["numpy"][0] is True
    available, reason, _ = found["broken"]  # which spoils nothing for the others
    assert not available
    assert "RuntimeError: half installed" in reason


def test_nothing_of_a_plug_in_is_imported_before_it_is_asked_for(site):
    script = """
import json, sys
from xbp.backend import get_backend
get_backend("numpy")
before = "tiny_arrays" in sys.modules
get_backend("tiny:somewhere")
print(json.dumps([before, "tiny_arrays" in sys.modules, get_backend("tiny:somewhere").device]))
"""
    assert run(script, site) == [False, True, "somewhere"]


def test_kernels_compute_on_a_plug_in(site):
    script = """
import json
import numpy as np
from xbp.backend import get_backend
from xbp.kernels import relu

b = get_backend("tiny", "cpu")
x, dy = b.asarray(np.asarray([[-1.0, 0.0, 2.0]])), b.asarray(np.asarray([[5.0, 6.0, 7.0]]))
y, cache = relu.forward(x, xp=b.xp)
dx = relu.backward(dy, cache, xp=b.xp)
t = b.transfers
print(json.dumps([b.to_host(y).tolist(), b.to_host(dx).tolist(), b.xp.calls, t.to_device, t.to_host]))
"""
    assert run(script, site) == [[[0.0, 0.0, 2.0]], [[0.0, 0.0, 7.0]], 1, 2, 2]


def test_a_plug_in_is_checked_with_the_checks_of_xbp(site):
    script = """
import json
import numpy as np
from xbp.backend import get_backend
from xbp.errors import GradientError
from xbp.kernels import affine
from xbp.testing import Space, check_backward

rng = np.random.default_rng(0)
args = [rng.standard_normal(s) for s in [(4, 3), (3, 2), (2,)]]
space = Space("tiny", lambda: get_backend("tiny"))
with space.active():
    errors = check_backward(affine.forward, affine.backward, args, (0, 1, 2), space, rng)
    space.xp.matmul = lambda a, b: np.matmul(a, b) * 1.001
    try:
        check_backward(affine.forward, affine.backward, args, (0, 1, 2), space, rng)
        failure = ""
    except GradientError as error:
        failure = str(error)
print(json.dumps([max(errors.values()), failure]))
"""
    error, failure = run(script, site)
    assert error < 1e-9
    assert "xbp.kernels.affine in space 'tiny', float32: the gradient of 'W' is wrong" in failure


TRAIN = """
import json
import numpy as np
import xbp
rng = np.random.default_rng(0)
x = rng.normal(size=(64, 4)).astype("float32")
t = (x[:, 0] > 0).astype(int)
losses = {}
for name in ("tiny", "numpy"):
    net = xbp.Network([xbp.Affine(4, 8), xbp.ReLU(), xbp.Dropout(0.1), xbp.Affine(8, 2)], backend=name)
    trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.Adam(0.01))
    losses[name] = trainer.fit(x, t, epochs=5, batch_size=10)["loss"]
print(json.dumps(losses))
"""


def test_a_network_trains_on_a_plug_in(site):
    losses = run(TRAIN, site)
    assert losses["tiny"][-1] < losses["tiny"][0]
    assert losses["tiny"] == pytest.approx(losses["numpy"], rel=1e-6)
