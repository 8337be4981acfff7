"""What objects are drawn to: the mean image embedding of the very views that were drawn, by a frozen CLIP."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from mvcore.api import Adapter, Backbone, ConfigError, Features, ViewBatch, ViewSegments, stages_of
from torch import Tensor, nn


class ImageTargetAdapter(Adapter):
    """`duoduo.image_target`: (B, D), the mean of an object's raw view embeddings before any training.

    Args:
        embeddings: the tag of stored embeddings, which are those of the views as they lie in the store; None = a frozen
            copy of the vision tower, which sees the batch's images as they are, augmented or not.
    """

    def __init__(self, embeddings: str | None = None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.tower: nn.Module | None = None
        self._normalise: Callable[[Tensor], Tensor] | None = None

    def attach(self, backbone: Backbone) -> None:
        """Copies the vision tower, unless embeddings are stored; so it stands before what changes the tower in place.

        Raises:
            ConfigError: a backbone without a vision tower of its own.
        """
        if self.embeddings is not None:
            return
        visual: Any = getattr(backbone.model, "visual", None)
        normalise: Any = getattr(backbone, "normalise", None)
        if visual is None or normalise is None:
            raise ConfigError(
                f"duoduo.image_target: {type(backbone).__name__} has no vision tower to copy; name stored embeddings"
            )
        self.tower = copy.deepcopy(visual).requires_grad_(False)
        self._normalise = normalise

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`duoduo.image_target`, (B, D), without gradient."""
        with torch.no_grad():
            views = self._views(batch).float()
            return {"duoduo.image_target": ViewSegments(batch.counts, views.device).mean(views)}

    def _views(self, batch: ViewBatch) -> Tensor:
        if self.tower is None or self._normalise is None or batch.images is None:
            return batch.embeddings[f"{self.embeddings}/image"]
        self.tower.eval()
        stages = stages_of(self.tower, "duoduo.image_target")
        return stages.finish(stages.run(stages.embed(self._normalise(batch.images)), 0, len(stages.blocks)))

    def set_strength(self, strength: float) -> None:
        """Nothing to do: no vector depends on it."""
