"""The viewpoint-consistency loss of Omniview-Tuning: outlier views are drawn to their object's anchor."""

from __future__ import annotations

import math

import torch
from mvcore.api import Features, ViewBatch
from torch import Tensor, nn
from torch.nn import functional as F


def viewpoint_consistency(views: Tensor, anchors: Tensor, *, margin: float) -> Tensor:
    """Mean over the active terms of relu(1 - cos(view, anchor) + margin) (Omniview-Tuning, eq. of L_VC).

    Cosine distance is never negative, so a margin of 0 or more (the paper's 0.3) only adds a constant: each term is
    active and the gradient is that of the mean distance. A negative margin is a real tolerance: views within
    `-margin` of their anchor are left alone.

    Args:
        views: (M, D), of any scale.
        anchors: (M, D), of any scale; no gradient flows into them. A row whose anchor is zero is left out.
        margin: in cosine distance.

    Returns:
        () in the views' type; 0 with zero gradient where no term is active.

    Raises:
        ValueError: shapes that differ or are not (M, D), views that are not floating, or a margin that is not finite.
    """
    if not math.isfinite(margin):
        raise ValueError(f"margin must be a finite number, not {margin}")
    if views.ndim != 2 or views.shape != anchors.shape:
        raise ValueError(f"views and anchors must both be (M, D), not {tuple(views.shape)} and {tuple(anchors.shape)}")
    if not views.is_floating_point():
        raise ValueError(f"views must be floating, not {views.dtype}")
    return _mean_of_active(views, anchors, margin, selected=None)


def _mean_of_active(views: Tensor, anchors: Tensor, margin: float, selected: Tensor | None) -> Tensor:
    """The loss over the rows in `selected`, (M,) bool, by masks: no shape depends on data, so no step waits."""
    anchors = anchors.detach().to(views.dtype)
    cosine = (F.normalize(views, dim=-1) * F.normalize(anchors, dim=-1)).sum(dim=-1)
    counted = (anchors != 0).any(dim=-1)
    if selected is not None:
        counted = counted & selected
    terms = torch.where(counted, F.relu(1 - cosine + margin), 0)
    return terms.sum() / torch.count_nonzero(terms).clamp_min(1)


class ViewpointConsistency(nn.Module):
    """`ovt.vc`: viewpoint consistency over the batch's outlier views, as `ovt.outlier_mining` published them.

    Args:
        margin: see `viewpoint_consistency`.
    """

    def __init__(self, margin: float = 0.3) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """() loss; 0 with zero gradient where the batch holds no outlier. Views are not encoded a second time."""
        anchors = batch.state["ovt.anchors"][batch.object_of_view]
        return _mean_of_active(features.view, anchors, self.margin, selected=batch.state["ovt.outliers"])
