"""What a checkpoint must also hold, and what a control run is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mvcore.config_layers import Layers, to_yaml
from mvcore.loading import load
from mvcore.run_folder import read_config
from mvcore.running import run
from mvcore.types import ViewBatch
from rich.console import Console

VIEW = frozenset({"view"})


@pytest.fixture
def resnet(tmp_path: Path) -> Path:
    """A small RN50-like CLIP, whose tower normalises by running statistics."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    path = tmp_path / "resnet.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


def plain(lab: Any, **changes: Any) -> dict[str, Any]:
    values = lab.values(**changes)
    return {**values, "adapters": {}, "trainers": {}, "losses": {"core.itc": {}}}


def test_running_statistics_are_saved_with_what_trains(lab: Any, resnet: Path, tmp_path: Path) -> None:
    values = plain(lab, encoder={"model": str(resnet), "train": "all"}, run={"max_steps": 3})
    session = lab.session(values)
    folder = tmp_path / "run"
    run(session, folder, to_yaml(Layers(), session.config), Console(quiet=True))
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    batch = ViewBatch.make([1, 1, 1], images=images)
    first = load(folder).features(batch, VIEW).view
    moved = load(folder, 0.0).features(batch, VIEW).view
    statistics = {
        name: value for name, value in load(folder).pipeline.backbone.model.named_buffers() if "running" in name
    }
    assert statistics
    assert not any(torch.equal(value, torch.zeros_like(value)) for name, value in statistics.items() if "mean" in name)
    assert not torch.equal(first, moved)
    assert torch.equal(first, load(folder).features(batch, VIEW).view)


def two_sources(lab: Any, **changes: Any) -> dict[str, Any]:
    """Captions on one source, viewpoint consistency alone on the other, which a control then does not read."""
    values = lab.values(**changes)
    other = {**values["data"]["objects"], "captions": "all"}
    values["data"] = {"objects": {**values["data"]["objects"], "captions": "none"}, "captioned": other}
    values["losses"] = {"core.itc": {"on": ["captioned"]}, "ovt.vc": {"on": ["objects"]}}
    values["trainers"]["ovt.outlier_mining"]["on"] = ["objects"]
    return values


@pytest.mark.parametrize("micro_batch", ["auto", 4])
def test_a_control_trains_with_a_source_that_nobody_reads(lab: Any, tmp_path: Path, micro_batch: int | str) -> None:
    values = two_sources(lab, control=True, run={"max_steps": 2, "micro_batch": micro_batch})
    session = lab.session(values)
    control = session.control()
    assert control is not None
    assert control.plan.keys["objects"] == frozenset()
    folder = tmp_path / "run"
    run(session, folder, to_yaml(Layers(), session.config), Console(quiet=True))
    own = read_config(folder / "control")
    assert own == control.config
    assert own.losses["ovt.vc"].weight == 0
    assert not own.control
    assert load(folder / "control").encode_text(["a cup"]).shape == (1, 16)


def test_a_control_without_any_loss_is_the_model_at_step_0(lab: Any, tmp_path: Path) -> None:
    adapters = {"ovt.viformer": {"alpha": 0.5, "init": "released", "layers": 1, "heads": 2, "feedforward": 16}}
    values = lab.values(control=True, run={"max_steps": 2})
    values |= {
        "adapters": adapters,
        "losses": {"ovt.vc": {}},
        "validate": {"data": {"all": values["data"]["objects"]}, "on": {"core.consistency": {}}},
    }
    session = lab.session(values)
    assert session.control() is None
    folder = tmp_path / "run"
    rows = run(session, folder, to_yaml(Layers(), session.config), Console(quiet=True))
    assert not (folder / "control").exists()
    found = {
        row: {figure.name: figure.value for result in results.values() for figure in result.figures}
        for row, results in rows.items()
    }
    # A VIFormer drawn at random turns every vector before it has learnt anything.
    assert found["control"] != found["untouched"]
    assert found["control"] != found["tuned"]
