"""A frozen teacher as a plugin of one file: a second encoder, its features under a key of their own, and a loss.

    adapters: {distillation.teacher: {id_of_teacher: core.open_clip, teacher: {model: ViT-L-14, pretrained: openai}}}
    losses: {distillation.match: {weight: 1.0}}

Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019: the student's views shall be as similar to each
other as the teacher's are, which asks nothing of the widths of the two. The teacher sees the same images, resized to
its own size; it never trains, stays out of checkpoints, and is made again from its options when a run is loaded.
"""

from __future__ import annotations

from typing import Any

import torch
from mvcore.api import (
    Adapter,
    Backbone,
    ConfigError,
    EncoderSpec,
    Features,
    LossSpec,
    Options,
    ViewBatch,
    build,
    hookimpl,
)
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

MVCORE_API = 1
TEACHER = "distillation.teacher"
TINY = {"model": "package:mvcore/testing/clip.json", "pretrained": None}


@hookimpl
def mvcore_register_encoders() -> list[EncoderSpec]:
    return [
        EncoderSpec(
            name="teacher",
            summary="The view vectors of another encoder that does not train",
            kind="adapter",
            factory=Teacher,
            config=TeacherOptions,
            needs={"images"},
            provides={TEACHER},
            axes={TEACHER: "view"},
        )
    ]


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="match",
            summary="Views shall be as similar to each other as the teacher's are",
            factory=Match,
            needs={"view", TEACHER},
            citation="Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019",
        )
    ]


class TeacherOptions(Options):
    """Options of `distillation.teacher`."""

    id_of_teacher: str = Field("core.open_clip", description="the backbone that teaches")
    teacher: dict[str, Any] = Field(examples=[TINY], description="its options")


class Teacher(Adapter):
    """Gives `distillation.teacher` (N, D_t)."""

    def __init__(self, id_of_teacher: str, teacher: dict[str, Any]) -> None:
        super().__init__()
        if teacher.get("train", "none") != "none":
            raise ConfigError("distillation.teacher: a teacher does not train; leave out teacher.train")
        self.teacher: Backbone = build({"id": id_of_teacher, "args": teacher}, "encoder")
        self.teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> Teacher:
        """The teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """The teacher's vectors, without gradient."""
        size = self.teacher.image_size
        resized = batch
        if size is not None and batch.images is not None and batch.images.shape[-1] != size:
            images = F.interpolate(batch.images.float(), size=(size, size), mode="bilinear", antialias=True)
            resized = ViewBatch.make(list(batch.counts), images=images.round().clamp(0, 255).to(torch.uint8))
        with torch.no_grad():
            return {TEACHER: self.teacher.encode(resized, frozenset({"view"}))["view"]}

    def set_strength(self, strength: float) -> None:
        """Nothing to scale: no other vector depends on the teacher."""


def match(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of the two (N, N) matrices of cosines.

    Args:
        student: (N, D), of any scale.
        teacher: (N, D_t), of any scale; no gradient flows into it.

    Returns:
        ().
    """
    one, two = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    return (one @ one.T - two @ two.T).square().mean()


class Match(nn.Module):
    """The loss `distillation.match`."""

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """() over all views of the batch, of every process."""
        return match(features.view, features[TEACHER])
