"""Acceptance A28: attention across views learns what no mean over views can tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from mvcore.api import ViewBatch
from mvcore.encoders.open_clip import OpenClip
from mvcore.model import Link, Pipeline, evaluating
from mvcore_duoduo.attention import CrossViewAdapter
from mvcore_duoduo.losses import ShapeText
from mvcore_duoduo.scale import LogScaleAdapter
from torch import Tensor
from torch.nn.functional import interpolate

CLASSES, VIEWS, BLOCKS = 8, 4, 3
STEPS, HELD_OUT = 120, 30
KEYS = frozenset({"object", "text", "duoduo.log_scale"})
SCALE = frozenset({"duoduo.log_scale"})


def batch_of(seed: int) -> ViewBatch:
    """An object of each class: one view, at a random place, shows it, and the other three show one other class."""
    rng = torch.Generator().manual_seed(seed)
    patterns = torch.randn(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    other = (torch.arange(CLASSES) + torch.randint(1, CLASSES, (CLASSES,), generator=rng)) % CLASSES
    views = patterns[other][:, None].repeat(1, VIEWS, 1, 1, 1)
    views[torch.arange(CLASSES), torch.randint(VIEWS, (CLASSES,), generator=rng)] = patterns
    views = views + 0.2 * torch.randn(views.shape, generator=rng)
    pixels = (128 + 40 * interpolate(views.flatten(0, 1), size=32)).clamp(0, 255).to(torch.uint8)
    return ViewBatch.make(
        [VIEWS] * CLASSES,
        images=pixels,
        captions=[f"thing number {i}" for i in range(CLASSES)],
        caption_object=torch.arange(CLASSES),
        caption_view=torch.full((CLASSES,), -1),
    )


def model_of(path: Path, cross_view_from: int) -> Pipeline:
    """The same weights train, from block 1 on, wherever attention crosses views."""
    torch.manual_seed(0)
    backbone = OpenClip(model=str(path), pretrained=None)
    crossing, scale = CrossViewAdapter(cross_view_from, train_from=1), LogScaleAdapter()
    crossing.attach(backbone)
    axes = {"duoduo.log_scale": "none"}
    return Pipeline(
        backbone,
        [Link("duoduo.cross_view", crossing), Link("duoduo.log_scale", scale, provides=SCALE, axes=axes)],  # pyright: ignore[reportArgumentType]
    )


def trained(pipeline: Pipeline) -> list[float]:
    """The loss of each step."""
    loss, losses = ShapeText(max_scale=100.0), list[float]()
    optimizer = torch.optim.AdamW([p for p in pipeline.parameters() if p.requires_grad], lr=0.01)
    for step in range(STEPS):
        batch = batch_of(100 + step)
        value: Tensor = loss(pipeline(batch, KEYS), batch)["loss"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def accuracy(pipeline: Pipeline) -> float:
    """Share of held-out objects whose own class has the nearest text."""
    right: list[float] = []
    for seed in range(HELD_OUT):
        batch = batch_of(10_000 + seed)
        with evaluating(pipeline):
            right.append(float(ShapeText()(pipeline(batch, KEYS), batch)["accuracy"]))
    return sum(right) / HELD_OUT


@pytest.mark.slow
def test_a28_crossing_views_beats_the_mean_where_one_view_tells(tmp_path: Path) -> None:
    vision = {"image_size": 32, "layers": BLOCKS, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    path = tmp_path / "clip.json"
    path.write_text(json.dumps({"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}))
    crossing, pooling = model_of(path, 1), model_of(path, BLOCKS)
    untrained = accuracy(crossing)
    losses = trained(crossing)
    trained(pooling)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    assert accuracy(crossing) > untrained + 0.1
    assert accuracy(crossing) > accuracy(pooling) + 0.05
