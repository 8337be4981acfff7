"""A loss that reads what a trainer publishes."""

from __future__ import annotations

from mvcore.api import Features, ViewBatch
from torch import Tensor, nn
from torch.nn import functional as F


class Remember(nn.Module):
    """`mymethod.remember`: mean cosine distance of views to what `mymethod.memory` remembers of their object."""

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """() loss; an object that is not remembered yet takes no part."""
        memory = batch.state["mymethod.memory"][batch.object_of_view]
        known = (memory != 0).any(dim=1)
        distance = 1 - F.cosine_similarity(features.view, memory, dim=1)
        return (distance * known).sum() / known.sum().clamp(min=1)
