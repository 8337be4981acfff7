"""Wheels of core, data and ovt: what is in them, and that they run with nothing of the source tree in sight."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = [pytest.mark.slow, pytest.mark.process]

ROOT = Path(__file__).parents[2]
PACKAGES = {"core": "mvcore", "data": "mvcore_data", "ovt": "mvcore_ovt"}
"""Folder under packages/ and import name."""

DEMO_LIMIT = 20_000_000
"""Bytes that the demonstration set may take."""


def project(folder: str) -> dict[str, Any]:
    return tomllib.loads((ROOT / "packages" / folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def sources(folder: str) -> set[str]:
    """All files of the package in the source tree."""
    base = ROOT / "packages" / folder / "src"
    found = (path.relative_to(base) for path in base.rglob("*") if path.is_file())
    return {str(path) for path in found if "__pycache__" not in path.parts and path.suffix not in (".tmp", ".lock")}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a source distribution of each package and the wheel that was built from it."""
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not there to build with")
    out = tmp_path_factory.mktemp("dist")
    for name in PACKAGES.values():
        command = [uv, "build", "--quiet", "--package", name.replace("_", "-"), "--out-dir", str(out)]
        # What is in uv's cache needs no network.
        offline = subprocess.run([*command, "--offline"], cwd=ROOT, capture_output=True, text=True, check=False)
        done = offline
        if offline.returncode != 0:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0 and re.search(
            r"[Ff]ailed to fetch|error sending request|resolve requirements", done.stderr
        ):
            pytest.skip(f"hatchling is neither in uv's cache nor to be had: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stderr
    return out


def wheel_of(dist: Path, folder: str) -> Path:
    (wheel,) = dist.glob(f"{PACKAGES[folder]}-*.whl")
    return wheel


# --- what is in them ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_wheel_holds_the_whole_package_and_nothing_else(dist: Path, folder: str):
    with zipfile.ZipFile(wheel_of(dist, folder)) as archive:
        names = set(archive.namelist())
    info = {name for name in names if ".dist-info/" in name}
    assert names - info == sources(folder)
    assert f"{PACKAGES[folder]}/py.typed" in names
    (licence,) = [name for name in info if name.endswith("licenses/LICENSE")]
    with zipfile.ZipFile(wheel_of(dist, folder)) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.parametrize("folder", PACKAGES)
def test_a_source_distribution_holds_the_whole_package(dist: Path, folder: str):
    (path,) = dist.glob(f"{PACKAGES[folder]}-*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in sources(folder)} <= names
    assert {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.parametrize("folder", PACKAGES)
def test_its_metadata_says_what_the_project_file_says(dist: Path, folder: str):
    values = project(folder)
    with zipfile.ZipFile(wheel_of(dist, folder)) as archive:
        names = archive.namelist()
        metadata = Parser().parsestr(_text(archive, names, "METADATA"))
        points = configparser.ConfigParser()
        points.optionxform = str  # pyright: ignore[reportAttributeAccessIssue]
        points.read_string(_text(archive, names, "entry_points.txt"))
    assert (metadata["Name"], metadata["Version"]) == (values["name"], values["version"])
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload() == (ROOT / "packages" / folder / "README.md").read_text(encoding="utf-8")
    assert _requirements(metadata, extra=None) == {_plain(text) for text in values["dependencies"]}
    extras = values.get("optional-dependencies", {})
    for extra in extras:
        assert _requirements(metadata, extra) == _spelled_out(extra, extras, values["name"])
    assert dict(points["mvcore"]) == values["entry-points"]["mvcore"]
    if folder == "core":
        assert dict(points["console_scripts"]) == {"mvcore": "mvcore.cli.main:main"}


def _text(archive: zipfile.ZipFile, names: list[str], file: str) -> str:
    (name,) = [name for name in names if name.endswith(f".dist-info/{file}")]
    return archive.read(name).decode()


def _spelled_out(extra: str, extras: dict[str, list[str]], name: str) -> set[tuple[str, str]]:
    """An extra's requirements, with those of the package's other extras that it names."""
    found: set[tuple[str, str]] = set()
    for text in extras[extra]:
        requirement = Requirement(text)
        if canonicalize_name(requirement.name) == canonicalize_name(name):
            found |= {entry for other in requirement.extras for entry in _spelled_out(other, extras, name)}
        else:
            found.add(_plain(text))
    return found


def _plain(text: str) -> tuple[str, str]:
    requirement = Requirement(text)
    return canonicalize_name(requirement.name), str(requirement.specifier)


def _requirements(metadata: Message, extra: str | None) -> set[tuple[str, str]]:
    found = (Requirement(text) for text in metadata.get_all("Requires-Dist", []))
    return {
        (canonicalize_name(requirement.name), str(requirement.specifier))
        for requirement in found
        if (requirement.marker is None) == (extra is None)
        and (requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""}))
    }


def test_the_wheel_of_data_brings_the_demonstration_set(dist: Path):
    with zipfile.ZipFile(wheel_of(dist, "data")) as archive:
        sizes = {item.filename: item.file_size for item in archive.infolist() if "/demo/" in item.filename}
    assert "mvcore_data/demo/views/index.json" in sizes
    assert any(name.endswith(".h5") for name in sizes)
    assert sum(sizes.values()) <= DEMO_LIMIT


# --- that they run ------------------------------------------------------------------------------------------

RUN = """
import sys
sys.path[:0] = [{site!r}, {third_party!r}]
from mvcore.cli.main import run
sys.exit(run(sys.argv[1:]))
"""
"""Stands in for the installed program in a Python that reads no `.pth` file, so that no editable install is found."""

IMPORT_ALL = """
import importlib, json, pkgutil, sys
sys.path[:0] = [{site!r}, {third_party!r}]
for module in pkgutil.walk_packages(importlib.import_module({package!r}).__path__, {package!r} + "."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        if error.name not in ("bpy", "OpenEXR"):  # an extra that needs an environment of its own
            raise
ours = {{name: module.__file__ for name, module in sys.modules.items() if name.partition(".")[0].startswith("mvcore")}}
print(json.dumps(ours))
"""


@pytest.fixture(scope="module")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This environment's other libraries, without our own packages, their metadata and their `.pth` files."""
    folder = tmp_path_factory.mktemp("third-party")
    for kind in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        for entry in Path(kind).iterdir():
            if "mvcore" not in entry.name and entry.suffix != ".pth":
                (folder / entry.name).symlink_to(entry)
    return folder


@pytest.fixture(params=[("core",), ("core", "data"), ("core", "data", "ovt")], ids="+".join)
def installed(request: pytest.FixtureRequest, dist: Path, tmp_path: Path) -> tuple[tuple[str, ...], Path]:
    """Some of the wheels, unpacked into a folder of their own as an installer does."""
    site = tmp_path / "site"
    for folder in request.param:
        with zipfile.ZipFile(wheel_of(dist, folder)) as archive:
            archive.extractall(site)
    return request.param, site


def python(code: str, folder: Path, *argv: str) -> str:
    """The output of a Python that sees neither the source tree nor this environment's own packages."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MVCORE_", "PYTHON"))}
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *argv],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_imports_with_only_the_packages_that_it_declares(installed, third_party: Path, tmp_path: Path):
    folders, site = installed
    package = PACKAGES[folders[-1]]  # those before it were tried with fewer around them
    code = IMPORT_ALL.format(site=str(site), third_party=str(third_party), package=package)
    ours = json.loads(python(code, tmp_path).splitlines()[-1])
    assert package in ours
    assert {name.partition(".")[0] for name in ours} <= {PACKAGES[folder] for folder in folders}
    for name, path in ours.items():
        assert Path(path).is_relative_to(site), name


def test_the_program_runs(installed, third_party: Path, tmp_path: Path):
    folders, site = installed
    code = RUN.format(site=str(site), third_party=str(third_party))
    rows = json.loads(python(code, tmp_path, "plugins", "list", "--json"))
    assert {(row["name"], row["status"]) for row in rows} == {(folder, "ok") for folder in folders}
    assert "core.pretrain" in python(code, tmp_path, "recipes", "list")
    if "data" in folders:
        store = site / "mvcore_data/demo/views"
        index = json.loads((store / "index.json").read_text())
        found = json.loads(python(code, tmp_path, "data", "info", str(store), "--json"))
        assert found["objects"] == sum(shard["objects"] for shard in index["shards"])
        assert found["views"] > found["objects"] > 0
    if "ovt" in folders:
        assert "ovt.outlier_mining" in python(code, tmp_path, "recipes", "show", "ovt.demo")


CLIP = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


@pytest.mark.parametrize("installed", [("core", "data", "ovt")], indirect=True, ids="+".join)
def test_a_run_on_the_demonstration_set_trains_and_loads(installed, third_party: Path, tmp_path: Path):
    _, site = installed
    (tmp_path / "clip.json").write_text(json.dumps(CLIP))
    assignments = [
        "encoder.model=clip.json",
        "encoder.pretrained=null",
        "run.max_steps=2",
        "data[objects].limit_objects=12",
    ]
    settings = [word for assignment in assignments for word in ("--set", assignment)]
    code = RUN.format(site=str(site), third_party=str(third_party))
    python(code, tmp_path, "train", "--plugin", "ovt", "--no-control", "--output", "run", *settings)
    table = (tmp_path / "run/report/comparison.md").read_text()
    rows = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")]
    assert {"untouched", "tuned", "tuned, as exported"} <= set(rows)
    assert "ovt.vc" in (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
    assert "same" in python(code, tmp_path, "eval", "run", "--on", "core.consistency")
