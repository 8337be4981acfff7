"""The commands that made the embedded demo, as its README gives them, still run: small, and in their order."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from mvcore.cli.main import run
from mvcore_data import ViewStore, demo
from mvcore_data.synth.names import CATEGORIES
from safetensors.torch import load_file

DEMO = demo.store_path().parent


def documented() -> list[list[str]]:
    text = (DEMO / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```\n(.*?)```", text, flags=re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.strip().splitlines()]


def smaller(command: list[str]) -> list[str]:
    """The command with fewer objects and steps, into the present folder; nothing else is changed."""
    command = ["views" if word.endswith("demo/views") else word for word in command[1:]]
    if command[1] == "synth":
        where = command.index("--objects-per-category")
        command[where + 1] = "1"
        command += ["--categories", ",".join(CATEGORIES[:2]), "--workers", "1"]
        command = [
            "0" if before == "--depth-objects" else word for before, word in zip(["", *command], command, strict=False)
        ]
    if command[0] == "train":
        command += ["--set", "run.max_steps=2", "--set", "data[views].batch_size=4"]
    return command


def test_the_documented_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gl: str) -> None:
    monkeypatch.chdir(tmp_path)
    commands = documented()
    assert [command[1:3] for command in commands] == [
        ["data", "synth"],
        ["data", "synth"],
        ["train", "--recipe"],
        ["export", "clip-run"],
    ]
    for command in commands:
        assert run(smaller(command)) == 0, command
    with ViewStore(tmp_path / "views") as store, ViewStore(tmp_path / "frontal") as frontal:
        assert [len(store.views_of(i)) for i in range(len(store))] == [24, 24]
        assert [len(frontal.views_of(i)) for i in range(len(frontal))] == [4, 4]
    made = load_file(tmp_path / "clip-export" / "open_clip_model.safetensors")
    embedded = load_file(DEMO / "clip.safetensors")
    assert {name: (value.shape, value.dtype) for name, value in made.items()} == {
        name: (value.shape, value.dtype) for name, value in embedded.items()
    }
    assert all(torch.isfinite(value).all() for value in embedded.values() if value.is_floating_point())


def test_the_embedded_files_stay_small() -> None:
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 20_000_000


def test_the_demo_holds_out_enough_objects() -> None:
    with ViewStore(demo.store_path()) as store:
        splits = store.splits()
        assert len(splits["test"]) >= 64
        assert not set(splits["test"]) & set(splits["train"])
        assert len({store.category(i) for i in range(len(store))}) >= 16
