"""The logit scale that the authors train beside LoRA and VIFormer, while CLIP's own stays frozen with the rest."""

from __future__ import annotations

import math

import torch
from mvcore.api import Adapter, Backbone, ConfigError, Features, ViewBatch
from torch import Tensor, nn


class LogitScaleAdapter(Adapter):
    """`ovt.logit_scale`: replaces `logit_scale` by a trained one.

    Args:
        start: the scale (not its logarithm) to start from; None = the model's own.
    """

    def __init__(self, start: float | None = None) -> None:
        super().__init__()
        self.start = start
        self.strength = 1.0
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self._models: list[Tensor] = []

    def attach(self, backbone: Backbone) -> None:
        """Takes the model's own scale as the start, unless another was given.

        Raises:
            ConfigError: the model has no scale.
        """
        own = getattr(backbone.model, "logit_scale", None)
        if not isinstance(own, Tensor):
            raise ConfigError(f"ovt.logit_scale: {type(backbone).__name__} has no logit scale to train")
        # In a list, so that the model's parameter is not registered as this adapter's.
        self._models = [own]
        with torch.no_grad():
            self.logit_scale.copy_(own.reshape(()) if self.start is None else torch.tensor(math.log(self.start)))

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`logit_scale` (), a logarithm."""
        if self.strength == 1:
            return {"logit_scale": self.logit_scale}
        own = self._models[0].detach().reshape(())
        return {"logit_scale": own + self.strength * (self.logit_scale - own)}

    def set_strength(self, strength: float) -> None:
        """Goes from the model's own scale (0) to the trained one (1), in logarithms."""
        self.strength = strength

    def merge(self) -> bool:
        """Writes the scale into the model."""
        with torch.no_grad():
            own = self._models[0]
            own.copy_(self.logit_scale.reshape(own.shape))
        return True
