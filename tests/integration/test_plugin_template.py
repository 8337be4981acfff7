"""`mvcore plugins new`: what it writes, what it refuses, that it builds, installs, tests itself and trains."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from mvcore.cli.main import run
from mvcore.new_plugin import KINDS, rendered, write_plugin
from mvcore.plugins import load_plugins

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/plugin-template"


def files(folder: Path) -> dict[str, str]:
    """All files below a folder, without what Python and ruff leave there."""
    left = {"__pycache__", ".ruff_cache"}
    found = (path for path in folder.rglob("*") if path.is_file() and left.isdisjoint(path.parts))
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in found}


def test_the_example_is_what_the_command_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["plugins", "new", "mymethod", "--output", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith(f"wrote {tmp_path / 'out'}; go on with: pip install -e ")
    assert files(tmp_path / "out") == files(EXAMPLE)


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["My-Method"], "'My-Method' is no plugin name: lower-case letters"),
        (["../up"], "is no plugin name"),
        (["a b"], "is no plugin name"),
        ([""], "is no plugin name"),
        (["data"], "the name 'data' is reserved for mvcore-data"),
        (["train"], "'train' is a command of mvcore's own"),
        (["json"], "a module 'json' is there already"),
        (["class"], "'class' is a word of Python's"),
        (["torch"], "a module 'torch' is there already"),
        (["duoduo"], "a plugin 'duoduo' is there already (mvcore-duoduo 0.1.0)"),
        (["mine", "--kinds", "loss,datasets"], "unknown kind 'datasets', did you mean 'dataset'?"),
        (["mine", "--kinds", " , "], "name at least one of"),
    ],
)
def test_what_cannot_be_a_plugin_is_refused(fault, arguments: list[str], text: str):
    assert text in fault("plugins", "new", *arguments)


def test_what_is_there_is_left_as_it_is(fault, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    (tmp_path / "file").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    assert (
        fault("plugins", "new", "mine")
        == "mine exists already, and is left as it is; choose another place with --output"
    )
    for name in ("file", "link"):
        assert "exists already" in fault("plugins", "new", "mine", "--output", name)
    assert "cannot be written" in fault("plugins", "new", "mine", "--output", "file/below")
    assert (tmp_path / "file").read_text() == (tmp_path / "mine" / "notes.txt").read_text() == "kept"


# --- parts of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), ("loss", "trainer"), ("recipe", "loss", "evaluator")])
def test_any_choice_of_kinds_registers_just_these(install, kinds: tuple[str, ...]):
    module = "mine_" + "_".join(kinds)
    for path, text in rendered(module.replace("_", "-"), kinds):
        assert not re.search(r"@NAME@|@MODULE@|^#[?.]", text, re.MULTILINE), path
        if path.startswith("src/"):
            target = install.folder / path.removeprefix("src/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
        if path.endswith(".py"):
            compile(text, path, "exec")
    install(f"third-{module}", {module.replace("_", "-"): f"{module}.plugin"}, {})
    record = load_plugins().plugin(module.replace("_", "-"))
    assert {spec.part for spec in record.specs} == set(kinds)


@pytest.fixture(scope="module")
def each_kind(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package for each kind alone, and one for all of them, side by side."""
    folder = tmp_path_factory.mktemp("kinds")
    for kind in KINDS:
        write_plugin(f"only-{kind}", folder / kind, [kind])
    for name in ("a", "mymethod", "a-very-long-name-of-a-method"):
        write_plugin(name, folder / name)
    return folder


def tool(*command: str, cwd: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_written_is_clean_and_formatted(each_kind: Path):
    for folder in each_kind.iterdir():
        tool("ruff", "check", "--no-cache", ".", cwd=folder)
        tool("ruff", "format", "--no-cache", "--check", ".", cwd=folder)


@pytest.mark.slow
@pytest.mark.process
def test_the_types_of_what_is_written_hold(each_kind: Path):
    roots = [{"root": folder.name, "extraPaths": [f"{folder.name}/src"]} for folder in sorted(each_kind.iterdir())]
    (each_kind / "pyrightconfig.json").write_text(json.dumps({"executionEnvironments": roots}), encoding="utf-8")
    tool("pyright", "--pythonpath", sys.executable, cwd=each_kind)


# --- all of it, installed -----------------------------------------------------------------------------------


def built(folder: Path, out: Path) -> Path:
    """The wheel of a project."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not there to build with")
    command = [uv, "build", "--quiet", "--wheel", "--out-dir", str(out), str(folder)]
    done = subprocess.run([*command, "--offline"], capture_output=True, text=True, check=False)
    if done.returncode != 0:  # what is in uv's cache needs no network
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 and re.search(
        r"[Ff]ailed to fetch|error sending request|resolve requirements", done.stderr
    ):
        pytest.skip(f"hatchling is neither in uv's cache nor to be had: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return max(out.glob("*.whl"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this environment's other libraries and the wheels of core and data, as an installer leaves them."""
    site, out = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("dist")
    for kind in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(kind).iterdir():
            if "mvcore" not in entry.name and entry.suffix != ".pth":
                (site / entry.name).symlink_to(entry)
    for package in ("core", "data"):
        with zipfile.ZipFile(built(ROOT / "packages" / package, out)) as archive:
            archive.extractall(site)
    return site


def python(site: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python that sees the libraries in `site` alone: no `.pth` file, so no editable install."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MVCORE_", "PYTHON"))}
    environment["PYTHONPATH"] = str(site)
    command = [sys.executable, "-S", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("kinds", [KINDS, ("loss", "dataset")], ids=["all", "loss,dataset"])
def test_it_is_built_installed_and_passes_its_own_tests(clean: Path, tmp_path: Path, kinds: tuple[str, ...]):
    name = f"fresh{len(kinds)}"
    project = write_plugin(name, tmp_path / name, kinds)
    with zipfile.ZipFile(built(project, tmp_path / "dist")) as archive:
        archive.extractall(clean)
    own = python(clean, project, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")
    assert own.returncode == 0, own.stdout[-3000:] + own.stderr[-1000:]
    passed = re.search(r"(\d+) passed", own.stdout)
    assert passed is not None, own.stdout
    assert int(passed[1]) == (
        7 if kinds == KINDS else 4
    )  # with its recipe, training through the program is one of them
