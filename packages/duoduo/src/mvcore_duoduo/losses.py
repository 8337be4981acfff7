"""Duoduo CLIP's contrast of objects with images and with texts, under one trained scale."""

from __future__ import annotations

import math

import torch
from mvcore.api import DataError, Features, ViewBatch
from torch import Tensor, nn
from torch.nn import functional as F


def contrastive(one: Tensor, other: Tensor, log_scale: Tensor, counted: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE of rows that belong together (Duoduo CLIP, eq. 1).

    `Z = exp(log_scale) a b^T` with unit rows a and b; the loss is `(CE(Z, arange) + CE(Z^T, arange)) / 2`.

    Args:
        one, other: (B, D), of any scale.
        log_scale: ().
        counted: (B,) bool, which rows there are; the others are no negatives either. None = all.

    Returns:
        (); 0 with zero gradient for no rows.

    Raises:
        ValueError: shapes that differ or are not (B, D).
    """
    if one.ndim != 2 or one.shape != other.shape:
        raise ValueError(f"rows to contrast must both be (B, D), not {tuple(one.shape)} and {tuple(other.shape)}")
    logits = log_scale.exp() * F.normalize(one, dim=1) @ F.normalize(other, dim=1).T
    rows: Tensor | int = max(1, len(one))
    if counted is not None:
        # A row that is not there keeps its diagonal alone, so its terms are exactly 0, and no shape depends on data.
        alone = torch.eye(len(one), dtype=torch.bool, device=one.device)
        logits = logits.masked_fill(~(counted[:, None] & counted[None, :] | alone), -math.inf)
        rows = counted.sum().clamp(min=1)
    terms = logits.logsumexp(dim=1) + logits.logsumexp(dim=0) - 2 * logits.diagonal()
    return terms.sum() / (2 * rows)


def shape_contrastive(
    shape: Tensor,
    image: Tensor,
    text: Tensor,
    log_scale: Tensor,
    *,
    image_weight: float = 1.0,
    text_weight: float = 1.0,
) -> Tensor:
    """`image_weight * L(shape, image) + text_weight * L(shape, text)` with one shared scale (Duoduo CLIP, eq. 2).

    Args:
        shape: (B, D) vectors of objects.
        image: (B, D) targets: the mean image embedding of the same views; no gradient flows into them.
        text: (B, D) targets: an embedding of a caption; no gradient flows into them.
        log_scale: ().
        image_weight, text_weight: the terms' weights.

    Returns:
        ().

    Raises:
        ValueError: shapes that differ or are not (B, D).
    """
    by_image = contrastive(shape, image.detach(), log_scale)
    return image_weight * by_image + text_weight * contrastive(shape, text.detach(), log_scale)


class _Contrast(nn.Module):
    """Objects against targets, with the shared scale.

    Args:
        max_scale: the scale counts as at most this; None = without limit. The gradient still reaches it, so that it can
            come down again.
    """

    def __init__(self, max_scale: float | None = None) -> None:
        super().__init__()
        self.max_scale = max_scale

    def _loss(
        self, shape: Tensor, target: Tensor, log_scale: Tensor, counted: Tensor | None = None
    ) -> dict[str, Tensor]:
        if self.max_scale is not None:
            limited = log_scale.clamp(max=math.log(self.max_scale))
            log_scale = log_scale + (limited - log_scale).detach()
        # Kept embeddings are in single precision, whatever the model is in.
        target = target.detach().to(shape.dtype)
        return {
            "loss": contrastive(shape, target, log_scale, counted),
            "accuracy": _accuracy(shape.detach(), target, counted),
        }


class ShapeImage(_Contrast):
    """`duoduo.shape_image`: each object against the mean image embedding of its own views."""

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`loss` and `accuracy` (share of objects whose nearest target is their own), both () tensors."""
        return self._loss(features.object, features["duoduo.image_target"], features["duoduo.log_scale"])


class ShapeText(_Contrast):
    """`duoduo.shape_text`: each object against the mean embedding of its captions in the batch.

    With one caption drawn for each object this is the released loss; where views have captions of their own it is the
    mean over the drawn views', as the released code has it for MVImgNet. Objects without a caption take no part.
    """

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`loss` and `accuracy`, both () tensors.

        Raises:
            DataError: no object of the batch has a caption.
        """
        if not batch.captions:
            raise DataError("duoduo.shape_text: a batch without any caption; give the source captions or drop the loss")
        sums = features.text.new_zeros(batch.n_objects, features.text.shape[1])
        sums = sums.index_add(0, batch.caption_object, features.text)
        ones = torch.ones_like(batch.caption_object)
        counts = torch.zeros_like(batch.view_counts).index_add(0, batch.caption_object, ones)
        targets = sums / counts.clamp(min=1)[:, None]
        return self._loss(features.object, targets, features["duoduo.log_scale"], counts > 0)


def _accuracy(shape: Tensor, target: Tensor, counted: Tensor | None) -> Tensor:
    """Share of the counted objects whose nearest counted target is their own."""
    similar = F.normalize(shape, dim=1) @ F.normalize(target, dim=1).T
    if counted is None:
        counted = torch.ones(len(shape), dtype=torch.bool, device=shape.device)
    nearest = similar.masked_fill(~counted[None, :], -math.inf).argmax(dim=1)
    right = (nearest == torch.arange(len(shape), device=shape.device)) & counted
    return right.sum() / counted.sum().clamp(min=1)
