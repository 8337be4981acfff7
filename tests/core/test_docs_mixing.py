"""docs/mixing.md: its commands and its Python are runs, and what it says of refusals and notes is what is said."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mvcore.cli.main import run
from mvcore.config import RunConfig
from mvcore.config_layers import Layers, parse_yaml
from mvcore.errors import ConfigError
from mvcore.plugins import load_plugins
from mvcore.resolution import Request, Resolved, resolve
from mvcore.training.planner import Plan, choose, plan

PAGE = (Path(__file__).parents[2] / "docs/mixing.md").read_text(encoding="utf-8")
ALL = frozenset({"images", "captions", "object_ids", "view_ids", "cameras", "depth"})


def fenced(language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return [text for found, text in blocks if found == language]


def resolved(**request: Any) -> Resolved:
    return resolve(Request(**request), load_plugins())


def planned(layers: Layers) -> Plan:
    registry = load_plugins()
    blueprint = choose(layers.config(), registry, layers.written)
    return plan(blueprint, {name: SimpleNamespace(provides=ALL) for name in blueprint.sources}, registry)


def test_every_command_is_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    commands = [shlex.split(text) for text in fenced("") if text.startswith("mvcore train")]
    assert len(commands) == 4
    for command in commands:
        assert run([*command[1:], "--print-config"]) == 0, command
        layers = Layers()
        layers.merge(*parse_yaml(capsys.readouterr().out, "printed"))
        planned(layers)


def test_the_python_is_the_first_command(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = fenced("python")
    asked: list[RunConfig] = []
    monkeypatch.setattr("mvcore.stages.start", lambda config, *_: asked.append(config))  # 50 steps take minutes
    exec(block.partition("model = ")[0], {})
    command = next(shlex.split(text) for text in fenced("") if text.startswith("mvcore train"))
    losses = [word for word in command if "=" in word]
    expected = resolved(plugins=["ovt"], losses=losses, assignments=["run.max_steps=50"]).layers.config()
    assert asked == [expected]


def test_its_weights_are_valid() -> None:
    (text,) = fenced("yaml")
    layers = resolved(plugins=["ovt"], losses=["mvc_heads.contrastive=0.1"]).layers
    layers.merge(*parse_yaml(text, "page"))
    assert set(layers.config().losses) == {"core.itc", "ovt.vc", "mvc_heads.contrastive"}


@pytest.mark.parametrize(
    "request_", [{"plugins": ["ovt", "duoduo"]}, {"plugins": ["ovt"], "losses": ["mvc_heads.autoencoder=0.1"]}]
)
def test_every_refusal_is_what_is_said(request_: dict[str, Any]) -> None:
    shown = [" ".join(text.split()).removeprefix("error: ") for text in fenced("") if text.startswith("error: ")]
    with pytest.raises(ConfigError) as caught:
        planned(resolved(**request_).layers)
    assert str(caught.value) in shown


def test_what_is_taken_is_said_as_on_the_page() -> None:
    said = resolved(plugins=["ovt"], losses=["mvc_heads.contrastive=0.1"]).notes
    page = " ".join(PAGE.split())
    assert said[0] == "recipe ovt.demo"
    assert all(note in page for note in said)
