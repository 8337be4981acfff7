"""Paths in configurations: the home folder, a base, a package, and one line for what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest
from mvcore.errors import DataError, WeightsError
from mvcore.paths import resolve_path


def test_home_base_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.txt"
    file.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/a.txt") == file
    assert resolve_path("a.txt", base=tmp_path) == file
    assert resolve_path(file, base=Path("elsewhere")) == file
    monkeypatch.chdir(tmp_path)
    assert resolve_path("a.txt").samefile(file)


def test_a_file_of_a_package_needs_no_import() -> None:
    path = resolve_path("package:mvcore/py.typed")
    assert path.is_file()
    assert path.parent.name == "mvcore"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere/file.txt", "store 'nowhere/file.txt' does not exist"),
        ("package:mvcore/nothing.json", "the package 'mvcore' has no 'nothing.json'"),
        ("package:mvcore/../../x", "leads outside the package 'mvcore'"),
        ("package:no_such_package_at_all/x", "no package 'no_such_package_at_all' is installed"),
        ("package:", "no package '' is installed"),
        ("package:../x", "no package '..' is installed"),
    ],
)
def test_what_is_not_there_is_one_line(text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        resolve_path(text, what="store")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(WeightsError):
        resolve_path(text, error=WeightsError)
