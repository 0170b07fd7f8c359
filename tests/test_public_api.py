"""What a module lists in `__all__` is what it defines, and `xbp` offers every name that its documentation promises."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
from pathlib import Path
from types import ModuleType

import pytest

import xbp

ROOT = Path(__file__).resolve().parent.parent
# fmt: off
PROMISED = {
    "Network", "Graph", "Trainer", "available_backends", "get_backend", "numerical_gradient", "check_gradients",
    "softmax", "log_softmax", "sigmoid", "relu",
    "Affine", "ReLU", "LeakyReLU", "ELU", "GELU", "SiLU", "Softplus", "Sigmoid", "Tanh", "Softmax", "Identity",
    "Dropout", "LayerNorm", "BatchNorm", "Add", "Mul",
    "SoftmaxCrossEntropy", "SigmoidCrossEntropy", "MeanSquaredError", "MeanAbsoluteError", "Huber", "Quantile",
    "PoissonNLL", "GaussianNLL",
    "SGD", "AdaGrad", "RMSProp", "Adam", "AdamW",
    "XBPError", "ShapeError", "DTypeError", "LabelError", "BackendUnavailable", "CheckpointError", "NonFiniteLoss",
}
# fmt: on


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p not in ("backends", "__init__"))


FILES = {dotted(p): p for p in sorted([*ROOT.glob("xbp/**/*.py"), *ROOT.glob("backends/**/*.py")])}
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}


def defined(tree: ast.Module) -> tuple[set[str], set[str]]:
    """What the module itself defines at its top level: (functions and classes, constants and type aliases)."""
    behaviour, values = set(), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            behaviour.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [n for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            values.update(n.id for n in names if isinstance(n.ctx, ast.Store))
    return behaviour, values


WITH_ALL = sorted(
    m
    for m, tree in TREES.items()
    if "__all__" in {t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)}
)


def load(module: str) -> ModuleType:
    if module.startswith(("xbp.cli", "xbp.__main__")):
        pytest.importorskip("typer", reason="the command line needs typer: pip install 'xbp[cli]'")
    if module.startswith("xbp.estimators"):
        pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")
    return importlib.import_module(module)


def offered(module: str) -> tuple[set[str], set[str]]:
    """(What has to be listed, what may be): a package also offers what it takes from inside itself to pass on."""
    must, may = defined(TREES[module])
    if FILES[module].name == "__init__.py":
        for node in ast.walk(TREES[module]):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                must.update(alias.asname or alias.name for alias in node.names)
    return {n for n in must if not n.startswith("_") and f"{module}.{n}" not in FILES}, may


@pytest.mark.parametrize("module", WITH_ALL)
def test_all_lists_exactly_the_public_names(module):
    names = load(module).__all__
    must, may = offered(module)
    assert len(names) == len(set(names)), f"{module}.__all__ names something twice"
    assert {n for n in names if not hasattr(load(module), n)} == set(), "listed, but not there"
    assert {n for n in names if f"{module}.{n}" not in FILES} - must - may == set(), "listed, but made elsewhere"
    assert must - set(names) == set(), "public, but not listed: list it or give it a leading underscore"


def test_the_package_offers_what_its_documentation_promises():
    assert PROMISED - set(xbp.__all__) == set()


def test_the_package_offers_nothing_by_accident():
    modules = {m.removeprefix("xbp.") for m in FILES if m.count(".") == 1}
    public = {n for n in vars(xbp) if not n.startswith("_")} - modules - {"annotations"}
    assert public - set(xbp.__all__) == set()


def test_star_import_brings_what_all_says():
    scope: dict[str, object] = {}
    exec("from xbp import *", scope)
    assert set(scope) - {"__builtins__"} == set(xbp.__all__)


def test_version_is_the_installed_one():
    assert xbp.__version__ == importlib.metadata.version("xbp")


def test_every_backend_is_registered():
    entry_points = importlib.metadata.entry_points(group="xbp.backends")
    ours = {e.name: e.value for e in entry_points if e.value.startswith("xbp_")}
    folders = sorted(p.parent.name for p in ROOT.glob("backends/*/__init__.py"))
    assert ours == {f.removeprefix("xbp_"): f"{f}:backend" for f in folders}
