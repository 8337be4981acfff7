"""An adapter: another feature, from one that the backbone gives."""

from __future__ import annotations

from mvcore.api import Adapter, Backbone, Features, ViewBatch
from torch import Tensor, nn

KEY = "mymethod.projected"


class Projection(Adapter):
    """`mymethod.projection`: gives `mymethod.projected` (N, width).

    Args:
        width: dimensions of the projected vectors.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def attach(self, backbone: Backbone) -> None:
        """Makes the map, now that the width of `view` is known."""
        self.map = nn.Linear(backbone.dims["view"], self.width)

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """Exactly what the spec provides."""
        return {KEY: self.map(features.view)}
