"""From Python, as in a notebook: a plugin that a cell registers, and a run that mixes its loss with a method's."""

from __future__ import annotations

import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvcore
import pytest
import torch
from mvcore.api import LossSpec, hookimpl
from mvcore.errors import ConfigError
from mvcore.plugins import reset
from mvcore.report.figures import read_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Workshop


class Short(torch.nn.Module):
    def forward(self, features: Any, batch: Any) -> torch.Tensor:
        return features.view.square().mean()


@pytest.fixture
def cell() -> Iterator[types.ModuleType]:
    """What a cell of a notebook holds, which may be run again."""
    module = types.ModuleType("__main__")
    module.MVCORE_API = 1  # pyright: ignore[reportAttributeAccessIssue]
    spec = LossSpec(name="short", summary="Keeps vectors short", factory=Short, needs={"view"})
    hook = hookimpl(specname="mvcore_register_losses")(lambda: [spec])
    module.mvcore_register_losses = hook  # pyright: ignore[reportAttributeAccessIssue]
    yield module
    reset()


def test_a_registered_loss_trains_beside_a_methods(workshop: Workshop, cell: types.ModuleType, tmp_path: Path) -> None:
    for _ in range(2):
        mvcore.register(cell, "note")
    (tmp_path / "run.yaml").write_text(workshop.yaml(validate=""))
    folder = mvcore.train(
        tmp_path / "run.yaml",
        plugins=["note"],
        losses={"note.short": 0.25, "core.itc": 0},
        settings={"run.output": str(tmp_path / "run"), "losses[ovt.vc].weight": {"warmup": 2}},
    )
    assert folder == tmp_path / "run"
    found = read_metrics(folder / "metrics.csv")
    assert {name for name in found if name.endswith(".weighted")} == {
        "train/note.short.weighted",
        "train/ovt.vc.weighted",
    }
    raw, weighted = (found[f"train/note.short{end}"][1] for end in ("", ".weighted"))
    assert weighted == pytest.approx(0.25 * raw)
    assert "weight: 0.25  # --loss" in (folder / "config.yaml").read_text()
    # The loss is not needed to use the model, and is asked for where the notebook is gone.
    reset()
    assert mvcore.load(folder).encode_images([torch.zeros(8, 8, 3, dtype=torch.uint8).numpy()]).shape == (1, 16)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"plugins": "ovt"}, "mvcore.train: plugins must be a list; write ['ovt']"),
        ({"plugin": ["ovt"]}, "mvcore.train: unknown 'plugin', did you mean 'plugins'?"),
        ({"plugins": ["ovt"], "losses": ["a.b=1"]}, "mvcore.train: losses must be a dict of keys and values"),
        ({"plugins": ["ovt"], "losses": {"ovt.vc": -1}}, "--loss 'ovt.vc=-1': the weight must not be negative"),
        ({"config": {"losses": {}}, "data": "x"}, "mvcore.train: flags (data) go with a file or alone"),
        ({}, "nothing to run: name a plugin"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        mvcore.train(**arguments)
    assert str(caught.value).startswith(text)
    assert "\n" not in str(caught.value)
