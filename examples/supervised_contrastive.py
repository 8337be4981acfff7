"""A loss from another paper as a plugin of one file: supervised contrastive learning over the views of objects.

    mvcore train --plugin ovt --plugin ./supervised_contrastive.py --loss supervised_contrastive.supcon=0.5

Khosla et al., Supervised Contrastive Learning, NeurIPS 2020, equation 2 (`L_out`), with the object as the label: every
other view of the same object is a positive, and every view of another object a negative.
"""

from __future__ import annotations

import math

import torch
from mvcore.api import Features, LossSpec, Options, ViewBatch, hookimpl
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

MVCORE_API = 1


@hookimpl
def mvcore_register_losses() -> list[LossSpec]:
    return [
        LossSpec(
            name="supcon",
            summary="Supervised contrastive learning with the object as the label",
            factory=SupCon,
            config=SupConOptions,
            needs={"view"},
            citation="Khosla et al., Supervised Contrastive Learning, NeurIPS 2020",
        )
    ]


class SupConOptions(Options):
    """Options of `supervised_contrastive.supcon`."""

    temperature: float = Field(0.1, gt=0, description="tau; the paper's is 0.1")


def supcon(views: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Mean over views i with positives P(i) of `-1/|P(i)| sum_p log(exp(z_i.z_p/t) / sum_{a != i} exp(z_i.z_a/t))`.

    Args:
        views: (N, D), of any scale; z are the unit vectors.
        labels: (N,) int64, equal for views of one object.
        temperature: t.

    Returns:
        (); 0 with zero gradient where no view has a positive.
    """
    unit = F.normalize(views, dim=1)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    logits = unit @ unit.T / temperature
    # A view without any other keeps itself: a sum over nothing would turn its zero gradient into NaN.
    others = logits.masked_fill(itself & (len(unit) > 1), -math.inf).logsumexp(dim=1)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    counts = positive.sum(dim=1)
    matched = (logits * positive).sum(dim=1) / counts.clamp(min=1)
    terms = torch.where(counts > 0, others - matched, 0)
    return terms.sum() / (counts > 0).sum().clamp(min=1)


class SupCon(nn.Module):
    """The loss `supervised_contrastive.supcon`."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """() over all views of the batch, of every process."""
        return supcon(features.view, batch.object_of_view, self.temperature)
