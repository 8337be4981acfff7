"""constraints.txt, the set of versions that were resolved together: complete, readable by pip, and free of places."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECTS = [ROOT / "pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
PINS = [Requirement(line) for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
OWN = {tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"] for path in PROJECTS}
CONFLICTS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["uv"]["conflicts"]


def direct(path: Path) -> Iterator[Requirement]:
    """The dependencies of a package, its extras and its groups, without our own packages.

    An extra that conflicts with the rest (`[tool.uv] conflicts`) is resolved by itself and has no place in one list.
    """
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    project = values["project"]
    extras = project.get("optional-dependencies", {})
    apart = {side["extra"] for sides in CONFLICTS for side in sides if side.get("package") == project["name"]}
    lists = [project.get("dependencies", []), *(texts for name, texts in extras.items() if name not in apart)]
    for texts in [*lists, *values.get("dependency-groups", {}).values()]:
        yield from (found for found in map(Requirement, texts) if found.name not in OWN)


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.parent.name)
def test_every_direct_dependency_has_a_version_that_it_allows(path: Path):
    pinned: dict[str, list[Requirement]] = {}
    for pin in PINS:
        pinned.setdefault(canonicalize_name(pin.name), []).append(pin)
    for requirement in direct(path):
        pins = pinned.get(canonicalize_name(requirement.name), [])
        assert pins, f"{requirement.name} is not in constraints.txt; CONTRIBUTING.md says how to make it anew"
        for pin in pins:
            (version,) = pin.specifier
            assert version.operator == "=="
            assert requirement.specifier.contains(version.version), f"{pin} does not satisfy {requirement}"


def test_it_names_versions_only():
    for pin in PINS:
        assert pin.url is None
        assert not pin.extras, f"{pin}: pip takes no extras in constraints"
        assert pin.name not in OWN
