"""`mvcore.api.build`: a part from its id and options, as plugins make parts within their own."""

from __future__ import annotations

import pytest
import torch
from mvcore.api import build
from mvcore.errors import ConfigError, PluginError
from mvcore.plugins import load_plugins

SOURCE = """
from mvcore.api import *
import torch
MVCORE_API = 1

class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor
    def forward(self, features, batch):
        return self.factor * features.zero()

class ScaledOptions(Options):
    factor: float = 2.0

@hookimpl
def mvcore_register_losses():
    names = ("scaled", "both")
    return [LossSpec(name=n, summary="s", factory="third_mine:Scaled", config=ScaledOptions) for n in names]

@hookimpl
def mvcore_register_encoders():
    return [EncoderSpec(name="both", summary="s", kind="adapter", factory=Scaled, config=ScaledOptions)]
"""


@pytest.fixture
def mine(install, monkeypatch):
    install.plugin("mine", SOURCE)
    install.plugin("bad", "import a_module_that_is_not_there")
    monkeypatch.setenv("MVCORE_PLUGINS", "mine,bad")


def test_build_makes_a_part_from_its_id(mine):
    assert build({"id": "mine.scaled"}).factor == 2.0
    assert build({"id": "mine.scaled", "args": {"factor": 3}}).factor == 3.0
    assert build({"id": "mine.both"}, kind="loss").factor == 2.0
    assert type(build({"id": "mine.both"}, kind="encoder")).__name__ == "Scaled"


@pytest.mark.parametrize(
    ("part", "kind", "error", "text"),
    [
        ({"id": "mine.both"}, None, ConfigError, "is the id of several parts (encoder, loss); say which with kind="),
        ({"id": "mine.both"}, "los", ConfigError, "unknown kind 'los', did you mean 'loss'?"),
        ({"id": "mine.scaledd"}, None, PluginError, "unknown part 'mine.scaledd', did you mean 'mine.scaled'?"),
        ({"id": "bad.x"}, None, PluginError, "plugin 'bad' (third-bad 1.0) is broken"),
        ({"id": "mine.scaled", "arg": {}}, None, ConfigError, "unknown key 'arg', did you mean 'args'?"),
        ({"args": {}}, None, ConfigError, "id must be a text like 'ovt.lora', got None"),
        (
            {"id": "mine.scaled", "args": {"facto": 1}},
            None,
            ConfigError,
            "mine.scaled.facto: unknown key, did you mean",
        ),
    ],
)
def test_build_says_what_is_wrong(mine, part, kind, error, text):
    with pytest.raises(error) as caught:
        build(part, kind)
    assert text in str(caught.value)


def test_a_built_loss_runs(mine):
    from mvcore.types import Features

    view = torch.ones(2, 3, requires_grad=True)
    value = build({"id": "mine.scaled"})(Features({"view": view}), None)
    value.backward()
    assert value.item() == 0
    assert view.grad is not None
    assert torch.equal(view.grad, torch.zeros(2, 3))
    assert "mine.scaled" in load_plugins().specs("loss")
