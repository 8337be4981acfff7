"""Fixtures that every test folder may use."""

from __future__ import annotations

import json
import signal
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mvcore import plugins

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a shell, this process and those that tests start would not notice Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The tests leave the user's cache folder alone."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "MVCORE_CACHE"):
            patch.setenv(name, str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.fixture
def tiny_clip_config() -> dict[str, Any]:
    """An open_clip config: a ViT of 2 blocks, width 32, patch 8, image 32; the stock tokenizer; a joint space of 16."""
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
    }


@pytest.fixture
def tiny_clip_json(tmp_path: Path, tiny_clip_config: dict[str, Any]) -> Path:
    """The path of a JSON file with `tiny_clip_config`, for `core.open_clip`'s option `model`."""
    path = tmp_path / "tiny_clip.json"
    path.write_text(json.dumps(tiny_clip_config), encoding="utf-8")
    return path
