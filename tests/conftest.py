"""Fixtures that every test folder may use."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from mvcore import plugins


class Installer:
    """Installs tiny distributions the way pip leaves them: modules and a `dist-info` folder on `sys.path`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(
        self,
        distribution: str,
        entry_points: Mapping[str, str] | str,
        modules: Mapping[str, str],
        version: str = "1.0",
    ) -> None:
        """Writes a distribution.

        Args:
            entry_points: `{"mine": "mine.plugin"}`, or the raw text of entry_points.txt.
            modules: file names under the folder and their source.
        """
        for name, source in modules.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(source), encoding="utf-8")
        info = self.folder / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "RECORD").write_text("".join(f"{name},,\n" for name in modules))
        if not isinstance(entry_points, str):
            lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
            entry_points = f"[mvcore]\n{lines}"
        (info / "entry_points.txt").write_text(entry_points)

    def plugin(self, name: str, source: str, version: str = "1.0") -> None:
        """A distribution `third-<name>` with one module, which is the plugin `<name>`."""
        module = f"third_{name}"
        self(f"third-{name}", {name: module}, {f"{module}.py": source}, version)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """Installs distributions for one test; the registry is looked up anew within it and after it."""
    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)
    monkeypatch.delenv("MVCORE_PLUGINS", raising=False)
    monkeypatch.delenv("MVCORE_STRICT_PLUGINS", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(folder))
    plugins.reset()
    yield Installer(folder)
    plugins.reset()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]
