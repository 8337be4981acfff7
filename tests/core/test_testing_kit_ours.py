"""Every part of every plugin of ours keeps its contract, by the checks that authors of other plugins use."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.plugins import Registered, load_plugins
from mvcore.specs import SPEC_TYPES
from mvcore.testing import check_dataset, check_encoder, check_evaluator, check_loss, check_trainer
from mvcore.testing.findings import Finding, settled
from mvcore.testing.plugins import plugin_record, registration, specification
from PIL import Image

REGISTRY = load_plugins(check_strict=False)
PLUGINS = [record for record in REGISTRY.records if record.distribution.startswith("mvcore")]
PARTS = [
    part
    for spec in SPEC_TYPES
    for part in REGISTRY.specs(spec.part).values()
    if part.plugin in {record.name for record in PLUGINS}
]
CHECKS: dict[str, Callable[..., tuple[Finding, ...]]] = {
    "encoder": check_encoder,
    "loss": check_loss,
    "dataset": check_dataset,
    "trainer": check_trainer,
    "evaluator": check_evaluator,
}
TOY_CLASSES = {"ball": "cabinet", "globe": "chair", "marble": "desk"}
ARGS: dict[str, dict[str, Any]] = {
    "data.views": {"limit_objects": 3},
    "duoduo.scanobjectnn": {"classes": TOY_CLASSES},
}
"""Options where neither the defaults nor the fields' examples suit the small data."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors go faster on one thread."""
    torch.set_num_threads(1)


@pytest.fixture
def image_list(tmp_path: Path) -> Path:
    """A JSON list of three images with captions."""
    entries: list[dict[str, str]] = []
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        entries.append({"path": f"{i}.png", "caption": f"picture {i}"})
    (tmp_path / "images.json").write_text(json.dumps(entries), encoding="utf-8")
    return tmp_path / "images.json"


def name_of(part: Registered) -> str:
    return f"{part.part}:{part.id}"


@pytest.mark.process
@pytest.mark.parametrize("plugin", [record.name for record in PLUGINS])
def test_it_registers_purely_quietly_and_quickly(plugin: str):
    settled(registration(plugin_record(plugin)))


@pytest.mark.parametrize("part", [part for part in PARTS if part.part != "check"], ids=name_of)
def test_its_specification_holds(part: Registered):
    assert settled(specification(part))[0].status == "ok"


@pytest.mark.parametrize("part", [part for part in PARTS if part.part in CHECKS], ids=name_of)
def test_it_keeps_its_contract(part: Registered, image_list: Path):
    args = ARGS.get(part.id, {})
    if part.id == "data.image_text":
        args = {"path": str(image_list), "image_size": 16}
    findings = CHECKS[part.part](part, args=args)
    if all(finding.status == "skipped" for finding in findings[1:]) or len(findings) < 3:
        pytest.skip("; ".join(finding.line for finding in findings if finding.status == "skipped"))
