"""The scale that both losses share; it trains beside the attention weights while CLIP's own stays frozen."""

from __future__ import annotations

import math

import torch
from mvcore.api import Adapter, Features, ViewBatch
from torch import Tensor, nn


class LogScaleAdapter(Adapter):
    """`duoduo.log_scale`: the feature of that name, a trained logarithm that both losses share.

    Args:
        start: the scale, not its logarithm, to start from.
    """

    def __init__(self, start: float = 14.28) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(start)))

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`duoduo.log_scale`, ()."""
        return {"duoduo.log_scale": self.log_scale}

    def set_strength(self, strength: float) -> None:
        """Nothing to do: no vector depends on it."""
