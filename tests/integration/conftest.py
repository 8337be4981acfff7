"""What the tests of the whole program share: its tree of commands, and a tiny store and model to call it with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from mvcore.cli import main
from mvcore.cli.main import run
from mvcore_data import ViewStoreWriter

OBJECTS, VIEWS, SIZE = 6, 4, 32
WORDS = ("cup", "chair", "boat")


class Program:
    """Every command with its parameters, and a parser that runs nothing."""

    def __init__(self) -> None:
        self.root: Any = typer.main.get_command(main.app)

    def commands(self) -> dict[tuple[str, ...], Any]:
        """Commands by their words, groups left out."""
        context = self.root.make_context("mvcore", [], resilient_parsing=True)
        return dict(self._below(self.root, context, ()))

    def _below(self, group: Any, context: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name in group.list_commands(context):
            _, command, _ = group.resolve_command(context, [name])
            here = (*words, name)
            if hasattr(command, "list_commands"):
                yield from self._below(command, command.make_context(name, [], context, resilient_parsing=True), here)
            else:
                yield here, command

    def fault(self, arguments: Sequence[str], *, complete: bool = True) -> str:
        """What is wrong with a command line, or nothing; what it would do is not done.

        Args:
            complete: whether missing arguments are a fault.
        """
        command, context, rest, name = self.root, None, list(arguments), "mvcore"
        try:
            while True:
                if hasattr(command, "list_commands") and (not rest or rest == ["--help"]):
                    return ""
                context = command.make_context(name, rest, context)
                if not hasattr(command, "list_commands"):
                    return ""
                rest = [*context._protected_args, *context.args]
                name, command, rest = command.resolve_command(context, rest)
        except typer.Exit:  # --help, --version
            return ""
        except Exception as error:
            if not complete and type(error).__name__ == "MissingParameter":
                return ""
            told = getattr(error, "format_message", None)
            return told() if told else f"{type(error).__name__}: {error}"


@pytest.fixture(scope="session")
def program() -> Program:
    return Program()


@dataclass(frozen=True)
class Workshop:
    """Where the store, the store without captions and the model config are."""

    store: Path
    silent: Path
    clip: Path

    def yaml(self, **replaced: str) -> str:
        """A run that trains in a second; `replaced` gives other lines for its sections."""
        sections = {
            "encoder": f"{{id: core.open_clip, model: {self.clip}, pretrained: null, train: none}}",
            "adapters": "{ovt.lora: {rank: 2}, ovt.viformer: {feedforward: 16}, ovt.logit_scale: {}}",
            "data": f"{{mine: {{id: data.views, path: {self.store}, sampling: views, batch_size: 12}}}}",
            "losses": "{core.itc: {}, ovt.vc: {margin: 0.1}}",
            "trainers": "{ovt.outlier_mining: {k: 1, neighbours: 2}}",
            "run": "{max_steps: 3, accelerator: cpu, log_every: 1, workers: 0}",
            "validate": f"{{data: {{seen: {{id: data.views, path: {self.store}}}}}, on: [core.consistency]}}",
        }
        return "".join(f"{key}: {text}\n" for key, text in {**sections, **replaced}.items() if text)


def _write_store(path: Path, *, captions: bool) -> Path:
    rng = np.random.default_rng(0)
    with ViewStoreWriter(path, codec="png") as store:
        for i in range(OBJECTS):
            word = WORDS[i % len(WORDS)]
            patches = rng.integers(0, 256, (VIEWS, 4, 4, 3), dtype=np.uint8)
            views = patches.repeat(SIZE // 4, axis=1).repeat(SIZE // 4, axis=2)
            store.add_object(f"{word}-{i}", views, captions=[f"a {word}"] if captions else (), category=word)
    return path


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Six objects of four views, with captions and without, and an open_clip model of two narrow blocks."""
    folder = tmp_path_factory.mktemp("workshop")
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    (folder / "clip.json").write_text(json.dumps(config), encoding="utf-8")
    store = _write_store(folder / "store", captions=True)
    return Workshop(store, _write_store(folder / "silent", captions=False), folder / "clip.json")


@pytest.fixture
def fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Calls the program where it must fail: exit 2, one line on stderr, no run folder; returns the line."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> str:
        before = {path for path in tmp_path.rglob("*") if "site" not in path.parts}
        assert run([str(argument) for argument in arguments]) == 2
        err = capsys.readouterr().err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert {path for path in tmp_path.rglob("*") if "site" not in path.parts} == before
        return line.removeprefix("error: ")

    return call


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors go faster on one thread."""
    torch.set_num_threads(1)
