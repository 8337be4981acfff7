"""Acceptance S2: tuning a tiny CLIP draws outliers to their anchors and keeps what it can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from mvcore.api import ViewBatch
from mvcore.encoders.open_clip import OpenClip
from mvcore.losses.itc import ImageTextContrastive
from mvcore.model import Link, Pipeline, evaluating
from mvcore_ovt import outlier_views, viewpoint_anchors
from mvcore_ovt.anchors import anchor_cosines
from mvcore_ovt.consistency import ViewpointConsistency
from mvcore_ovt.lora import LoraAdapter
from mvcore_ovt.scale import LogitScaleAdapter
from mvcore_ovt.viformer import ViformerAdapter
from torch import Tensor
from torch.nn.functional import interpolate, normalize

CLASSES = ("cup", "chair", "boat", "lamp")
OBJECTS, VIEWS = 16, 6
FEATURES = frozenset({"view", "text", "logit_scale"})


def images(seed: int, views: int) -> Tensor:
    """(OBJECTS * views, 3, 32, 32) uint8: the class's pattern, the object's own, and a viewpoint's that is strong."""
    classes = torch.randn(len(CLASSES), 3, 4, 4, generator=torch.Generator().manual_seed(0)).repeat(4, 1, 1, 1)
    own = torch.randn(OBJECTS, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    rng = torch.Generator().manual_seed(seed)
    pose = torch.randn(OBJECTS, views, 3, 4, 4, generator=rng) * (
        0.3 + torch.rand(OBJECTS, views, 1, 1, 1, generator=rng)
    )
    small = (classes[:, None] + 0.3 * own[:, None] + pose).flatten(0, 1)
    return (128 + 40 * interpolate(small, size=32, mode="bilinear")).clamp(0, 255).to(torch.uint8)


def batch_of(pixels: Tensor, views: int) -> ViewBatch:
    captions = [f"a {CLASSES[i % len(CLASSES)]}" for i in range(OBJECTS)]
    return ViewBatch.make(
        [views] * OBJECTS,
        images=pixels,
        captions=captions,
        caption_object=torch.arange(OBJECTS),
        caption_view=torch.full((OBJECTS,), -1),
    )


def tuned_model(backbone: OpenClip) -> Pipeline:
    torch.manual_seed(5)
    view, scale = frozenset({"view"}), frozenset({"logit_scale"})
    links: Sequence[Link] = (
        Link("ovt.lora", LoraAdapter(rank=4)),
        Link("ovt.viformer", ViformerAdapter(feedforward=64, init="identity", alpha=0.3), view, view),
        Link("ovt.logit_scale", LogitScaleAdapter(), frozenset(), scale),
    )
    for link in links:
        link.module.attach(backbone)  # pyright: ignore[reportCallIssue]
    return Pipeline(backbone, links)


def mined(pipeline: Pipeline, batch: ViewBatch) -> tuple[Tensor, Tensor, float]:
    """Anchors, outliers and the outliers' mean cosine distance to their anchors."""
    with evaluating(pipeline):
        views = normalize(pipeline(batch, frozenset({"view"})).view, dim=-1)
    anchors = viewpoint_anchors(views, batch.object_of_view)
    outliers = outlier_views(views, batch.object_of_view, anchors, 2)
    distance = 1 - anchor_cosines(views, batch.object_of_view, anchors)[outliers].mean()
    return anchors, outliers, float(distance)


def accuracy(pipeline: Pipeline, batch: ViewBatch) -> float:
    """Share of views whose class has the most similar text."""
    with evaluating(pipeline):
        features = pipeline(batch, frozenset({"view", "text"}))
    predicted = (normalize(features.view, dim=-1) @ normalize(features.text[: len(CLASSES)], dim=-1).T).argmax(dim=1)
    return float((predicted == batch.object_of_view % len(CLASSES)).float().mean())


def trained(pipeline: Pipeline, batch: ViewBatch, weight: float, steps: int = 40, every: int = 10) -> None:
    """Image-text contrast and viewpoint consistency, with anchors found anew every few steps."""
    parameters = [p for p in pipeline.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=5e-3)
    contrast, consistency = ImageTextContrastive(), ViewpointConsistency(margin=0.3)
    for step in range(steps):
        if step % every == 0:
            anchors, outliers, _ = mined(pipeline, batch)
        published = batch.with_state({"ovt.anchors": anchors, "ovt.outliers": outliers})  # pyright: ignore[reportPossiblyUnboundVariable]
        features = pipeline(published, FEATURES)
        loss = contrast(features, published)["loss"] + weight * consistency(features, published)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def test_s2_outliers_come_closer_and_accuracy_does_not_fall(small_clip: Callable[[], OpenClip]) -> None:
    training, held_out = batch_of(images(2, VIEWS), VIEWS), batch_of(images(3, 4), 4)
    tuned = tuned_model(small_clip())
    # The start is a model that tells the classes apart, as a pretrained CLIP does.
    trained(tuned, training, weight=0.0, steps=60)
    control = tuned_model(small_clip())
    control.load_state_dict(tuned.state_dict())
    *_, distance = mined(tuned, training)
    before = accuracy(tuned, held_out)
    trained(tuned, training, weight=1.0)
    trained(control, training, weight=0.0)
    *_, after = mined(tuned, training)
    *_, without = mined(control, training)
    assert after <= 0.7 * distance
    assert after < without
    assert accuracy(tuned, held_out) >= before
