"""The plugin of one file in docs/tutorials/your-own-plugin.md is checked and trains; what the page names is there."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mvcore.cli.main import run
from mvcore.config import RunConfig
from mvcore.plugins import load_plugins, reset
from mvcore.training.planner import choose

if TYPE_CHECKING:
    from conftest import Program, Workshop

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorials/your-own-plugin.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_its_loss_is_checked_and_trains(workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    source = BLOCKS[0]
    Path("my_loss.py").write_text(source)
    Path("run.yaml").write_text(workshop.yaml(validate=""))
    reset()
    try:
        assert run(["plugins", "check", "./my_loss.py"]) == 0
        loss = "my_loss.triplet=0.5"
        assert run(["train", "run.yaml", "--plugin", "./my_loss.py", "--loss", loss, "-o", "run"]) == 0
    finally:
        reset()
    assert "train/my_loss.triplet" in Path("run/metrics.csv").read_text().splitlines()[0].split(",")


def test_its_cells_of_a_notebook_are_a_run(monkeypatch: pytest.MonkeyPatch):
    notebook = types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)
    asked: list[RunConfig] = []
    monkeypatch.setattr("mvcore.stages.start", lambda config, *_: asked.append(config))  # 20 steps take a minute
    try:
        for block in BLOCKS:
            exec(block, vars(notebook))
        (config,) = asked
        assert choose(config, load_plugins()).losses[-1].id == "my_loss.triplet"
    finally:
        reset()
    assert (config.losses["my_loss.triplet"].weight, config.run.max_steps) == (0.5, 20)


def test_its_commands_are_ones_that_the_program_takes(program: Program):
    commands = [line for line in PAGE.splitlines() if line.startswith("mvcore ")]
    assert len(commands) == 5
    for line in commands:
        assert program.fault(line.split()[1:]) == "", line


def test_the_files_that_it_names_are_there():
    package = ROOT / "examples/plugin-template"
    for name in re.findall(r"`(src/mymethod/[\w./]+|tests/[\w.]+|pyproject\.toml)`", PAGE):
        assert (package / name).is_file(), name
    for name in re.findall(r"`(examples/\w+\.py)`", PAGE):
        assert (ROOT / name).is_file(), name
