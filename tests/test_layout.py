"""The shape of the project: imports go one way, the face is what the README says, and importing it is light."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import chromseek

ROOT = Path(__file__).parents[1]
ORDER = ("data", "encoder", "indexer", "search", "service")
FILES = [file for part in ORDER for file in sorted((ROOT / part).glob("*.py"))]


def imports(file: Path) -> set[str]:
    """All modules that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_parts_import_only_from_those_above(file: Path) -> None:
    below = tuple(f"chromseek.{part}" for part in ORDER[ORDER.index(file.parent.name) + 1 :])
    assert not [name for name in imports(file) if name.startswith(below)]


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_files_stay_readable(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "a file says where it stands in the flow"
    assert len(file.read_text().splitlines()) <= 400
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [f.name for f in functions if (f.end_lineno or 0) - f.body[0].lineno > 60]
    assert not long


def test_the_face_is_whole() -> None:
    assert chromseek.__all__ == sorted(chromseek.__all__)
    for name in chromseek.__all__:
        assert getattr(chromseek, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = chromseek.nothing  # type: ignore[attr-defined]


@pytest.mark.parametrize("module", ["chromseek", "chromseek.service.cli"])
def test_importing_is_light(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'faiss', 'fastapi', 'anndata') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT / "src", timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_no_part_is_loaded_under_two_names() -> None:
    import chromseek.search.atlas

    homes = [str(ROOT / part) for part in ORDER]
    names: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if file and any(str(Path(file).resolve()).startswith(home) for home in homes):
            assert names.setdefault(str(Path(file).resolve()), name) == name
    assert chromseek.search.atlas.__file__ is not None
    assert len(names) > 20


def test_versions_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == chromseek.__version__
    assert f"## {chromseek.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_wheel_holds_the_parts_and_nothing_else() -> None:
    wheels = sorted((ROOT / "dist").glob("*.whl"))
    if not wheels:
        pytest.skip("no wheel in dist/ (make wheel)")
    names = {name for name in zipfile.ZipFile(wheels[-1]).namelist() if ".dist-info/" not in name}
    expected = {f"chromseek/{file.parent.name}/{file.name}" for file in FILES}
    assert names == expected | {"chromseek/__init__.py", "chromseek/py.typed", "chromseek/encoder/attention.cpp"}
