"""What the tests' own backbones have in common: a dense map of known values and one weight."""

from __future__ import annotations

import torch
from mvcore.api import Backbone
from torch import nn


class KnownBackbone(Backbone):
    """A backbone whose map is `scale`, which is 1, times something known."""

    image_size: int | None = None
    library = "known"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    @property
    def model(self) -> nn.Module:
        return self

    def set_trainable(self, mode: str) -> None:
        """Nothing of it trains."""
