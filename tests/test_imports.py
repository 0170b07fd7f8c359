"""The structure of the source, held by tests: what `import xbp` may pull in, who imports whom, how long things are."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("xbp/**/*.py"), *ROOT.glob("backends/**/*.py")])
PYTHON = sorted([*SOURCES, *ROOT.glob("tests/**/*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob(".ci/*.py")])
KERNELS = sorted(ROOT.glob("xbp/kernels/*.py"))

# fmt: off
OPTIONAL = (
    "cupy", "hypothesis", "jax", "joblib", "llvmlite", "matplotlib", "ml_dtypes", "onnx", "onnxruntime", "pandas",
    "pytest", "rich", "scipy", "skops", "sklearn", "sphinx", "tensorboard", "tensorboardX", "threadpoolctl", "torch",
    "typer",
)
# fmt: on
WATCHING = ("xbp.plots", "xbp.journal", "xbp.progress", "xbp.interchange", "xbp.doctor")  # each finds its library late
MAX_LINES = 400
MAX_KERNEL_CODE = 60


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter at the repository's root."""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)


def imports_of_ours(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """The import statements in `tree` that name xbp, one of its backends, or a neighbour by a relative path."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules = [node.module or ""]
            relative = node.level > 0
        elif isinstance(node, ast.Import):
            modules, relative = [alias.name for alias in node.names], False
        else:
            continue
        if relative or any(m.partition(".")[0] == "xbp" or m.startswith("xbp_") for m in modules):
            yield node


def hidden_imports(tree: ast.AST) -> list[int]:
    """Lines of imports of our own modules that stand inside a function."""
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]
    return sorted({node.lineno for f in functions for node in imports_of_ours(f)})


def lines_of_code(path: Path) -> int:
    """Lines that hold code: not blank, no comment, no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    text: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            text.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    with tokenize.open(path) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type not in silent]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - text)


@pytest.mark.parametrize("then", ["", "xbp.get_backend('numpy')"], ids=["import", "numpy-backend"])
def test_import_brings_no_optional_library(then):
    code = f"import sys, xbp; {then}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert "numpy" in result.stdout.split()
    assert set(OPTIONAL) & set(result.stdout.split()) == set()


@pytest.mark.parametrize("module", WATCHING)
def test_what_needs_a_library_waits_until_it_is_asked(module):
    result = run_python(f"import sys, {module}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))")
    assert result.returncode == 0, result.stderr
    assert set(OPTIONAL) & set(result.stdout.split()) == set()


@pytest.mark.parametrize("module", ["xbp.estimators", "xbp.estimators.classifier"])
def test_estimators_bring_scikit_learn_and_no_more(module):
    pytest.importorskip("sklearn", reason="the estimators need scikit-learn: pip install 'xbp[sklearn]'")
    result = run_python(f"import sys, {module}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))")
    assert result.returncode == 0, result.stderr
    brought = {"joblib", "pandas", "rich", "scipy", "sklearn", "threadpoolctl"}  # what scikit-learn itself imports
    assert set(OPTIONAL) & set(result.stdout.split()) - brought == set()


def test_import_contracts_hold():
    if importlib.util.find_spec("importlinter") is None:
        pytest.skip("import-linter is not installed: pip install 'xbp[dev]'")
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    result = run_python(code)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_no_import_of_ours_hides_in_a_function(path):
    lines = hidden_imports(ast.parse(path.read_text(encoding="utf-8")))
    assert lines == [], f"{name(path)}, lines {lines}: an import contract cannot be kept by hiding the import"


def test_hidden_imports_are_found():
    code = (
        "import xbp\n"
        "def f():\n    import numpy\n    from . import a\n    import numpy, xbp_torch.engine\n"
        "class C:\n    def g(self):\n        if self:\n            from xbp.errors import ShapeError\n"
        "import xbpress\n"
    )
    assert hidden_imports(ast.parse(code)) == [4, 5, 9]


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_no_file_is_too_long(path):
    count = len(path.read_text(encoding="utf-8").splitlines())
    assert count <= MAX_LINES, f"{name(path)} has {count} lines; {MAX_LINES} are as many as a reader keeps in mind"


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_every_module_says_why_it_exists(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{name(path)} has no docstring"


@pytest.mark.parametrize("path", KERNELS, ids=name)
def test_kernels_are_small(path):
    assert lines_of_code(path) < MAX_KERNEL_CODE


def test_lines_of_code_are_counted_right(tmp_path):
    file = tmp_path / "module.py"
    file.write_text('"""Two\nlines."""\n\n# a comment\nx = (\n    1,  # one\n)\n\n\ndef f():\n    """No code."""\n')
    assert lines_of_code(file) == 4
