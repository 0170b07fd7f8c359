"""What the wheel must do where only NumPy, array-api-compat and safetensors are installed.

It imports, finds its NumPy backend and trains a step without any optional library, and the command line, which needs
an extra, says so in one line. Run by `.ci/run` in an environment of its own, outside the source tree.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

import xbp

OPTIONAL = {"torch", "jax", "cupy", "scipy", "sklearn", "matplotlib", "rich", "typer", "hypothesis", "pytest"}

assert "site-packages" in Path(xbp.__file__).parts, f"not the wheel: {xbp.__file__}"

backend = xbp.get_backend("numpy")
net = xbp.Network([xbp.Affine(4, 8), xbp.ReLU(), xbp.Affine(8, 3)], backend=backend, seed=0)
trainer = xbp.Trainer(net, loss=xbp.SoftmaxCrossEntropy(), optimizer=xbp.SGD(0.1))
loss = float(trainer.step(np.ones((5, 4), np.float32), np.array([0, 1, 2, 0, 1])))
assert np.isfinite(loss), loss

got = OPTIONAL & {name.partition(".")[0] for name in sys.modules}
assert not got, f"import xbp and one step of training imported {sorted(got)}"

names = {info.name: info for info in xbp.available_backends()}
assert set(names) == {"numpy", "cupy", "torch", "jax", "strict"}, names
for name in ("cupy", "torch", "jax", "strict"):
    assert not names[name].available, f"{name} is available, but this environment has the core dependencies alone"
    assert "pip install" in names[name].reason, f"{name}: the reason names no install line: {names[name].reason}"

run = subprocess.run([sys.executable, "-m", "xbp", "train", "digits"], capture_output=True, text=True, check=False)
assert run.returncode == 1, run
assert "pip install 'xbp[cli]'" in run.stderr, run
assert "Traceback" not in run.stderr, run

print(f"xbp {xbp.__version__} from the wheel: one step on NumPy, loss {loss:.4f}; no optional library was imported.")
