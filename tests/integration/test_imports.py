"""The shape of the source: which package may import which, what stays light, and how long modules and functions are."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PACKAGES = {path.parent.parent.name: path for path in sorted(ROOT.glob("packages/*/src/*/")) if path.is_dir()}
SOURCES = {name: folder for name, folder in PACKAGES.items() if folder.name.startswith("mvcore")}
METHODS = sorted(SOURCES.keys() - {"core", "data"})
OURS = {folder.name: name for name, folder in SOURCES.items()}

MODULE_LINES = 420
FUNCTION_LINES = 60


def modules(package: str) -> list[Path]:
    found = sorted(SOURCES[package].rglob("*.py"))
    assert found, f"packages/{package} holds no module"
    return found


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Each imported module of a file and its line, at any depth: an import inside a function counts too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield node.lineno, node.module or ""


def ours(path: Path) -> Iterator[tuple[int, str, str]]:
    """Imports of this project's packages: line, package, module."""
    for line, module in imported(path):
        top = module.partition(".")[0]
        if top in OURS:
            yield line, OURS[top], module


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_all_packages_are_looked_at():
    assert set(SOURCES) == {path.parent.name for path in ROOT.glob("packages/*/pyproject.toml")}
    assert set(SOURCES) == {"core", "data", "ovt", "duoduo", "equivariance", "mvc_heads"}


def test_core_imports_no_plugin():
    wrong = [
        f"{place(path, line)} imports {module}"
        for path in modules("core")
        for line, package, module in ours(path)
        if package != "core"
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["data", *METHODS])
def test_a_plugin_imports_only_itself_and_the_public_names_of_core(package: str):
    wrong = [
        f"{place(path, line)} imports {module}"
        for path in modules(package)
        for line, other, module in ours(path)
        if other != package and module != "mvcore.api"
    ]
    assert not wrong


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_every_library_that_is_imported_is_declared(package: str):
    project = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    declared = {canonicalize_name(Requirement(text).name) for texts in lists for text in texts}
    owners = packages_distributions()
    for path in modules(package):
        for line, module in imported(path):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in OURS:
                # What is not installed here, as Blender beside a numpy of today, is named as it is imported.
                names = {canonicalize_name(name) for name in owners.get(top, [top])}
                assert names & declared, f"{place(path, line)} imports {module} of {names}, which is not declared"


@pytest.mark.process
@pytest.mark.parametrize("package", sorted(SOURCES))
def test_a_plugin_module_loads_nothing_heavy(package: str):
    module = f"{SOURCES[package].name}.plugin"
    code = (
        f"import sys, {module}\n"
        "heavy = {'torch', 'lightning', 'torchvision', 'open_clip', 'timm', 'numpy', 'h5py', 'pydantic', 'typer'}\n"
        "print(' '.join(sorted(heavy & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.process
def test_what_runs_before_a_run_starts_loads_no_torch():
    """The registry with every plugin, the configuration, every command of the program, and the template."""
    # A dry run is a run; `mvcore train` imports it when it is asked for.
    modules = sorted((SOURCES["core"] / "cli").glob("[a-z]*.py"))
    commands = [f"mvcore.cli.{path.stem}" for path in modules if path.stem != "dry_run"]
    light = ["mvcore", "mvcore.api", "mvcore.config", "mvcore.config_layers", "mvcore.resolution", "mvcore.new_plugin"]
    code = (
        f"import importlib, sys\nfor name in {[*light, *commands]!r}:\n    importlib.import_module(name)\n"
        "from mvcore.plugins import load_plugins\nload_plugins(check_strict=False).commands()\n"
        "print(' '.join(sorted({'torch', 'lightning', 'torchvision', 'open_clip', 'timm'} & set(sys.modules))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_modules_are_short(package: str):
    lengths = {place(path, 1): len(path.read_text(encoding="utf-8").splitlines()) for path in modules(package)}
    assert not {path: length for path, length in lengths.items() if length > MODULE_LINES}


@pytest.mark.parametrize("package", sorted(SOURCES))
def test_functions_are_short(package: str):
    long: dict[str, int] = {}
    for path in modules(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_lines(node) > FUNCTION_LINES:
                long[f"{place(path, node.lineno)} {node.name}"] = body_lines(node)
    assert not long


def body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """From the first statement behind the docstring to the end; the options of a command are declarations, not code."""
    first, last = node.body[0], node.body[-1]
    if ast.get_docstring(node) is not None and len(node.body) > 1:
        first = node.body[1]
    assert last.end_lineno is not None
    return last.end_lineno - first.lineno + 1
