"""`core.itc`: image-text contrast with a softmax over the batch, for any number of captions and views an object."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvcore.losses.pairs import pairs_of
from mvcore.types import Features, ViewBatch


class ImageTextContrastive(nn.Module):
    """Symmetric InfoNCE (Radford et al., CLIP, figure 3), with a view's target spread evenly over its captions.

    With unit vectors x of views and y of captions, s = exp(logit_scale) and P(i) the captions of view i:
    `views = mean_i [ logsumexp_j s x_i.y_j - mean_{j in P(i)} s x_i.y_j ]`, `texts` the same with rows and columns
    exchanged, and the loss is (views + texts) / 2. For one caption a view this is CLIP's (CE + CE) / 2. Views without a
    caption and captions without a view take no part.

    Args:
        max_scale: s counts as at most this; None = without limit. The gradient still reaches the scale, so that it can
            come down again.
        same_caption, same_object: see `PairOptions`.
    """

    def __init__(
        self, max_scale: float | None = 100.0, same_caption: str = "positive", same_object: str = "negative"
    ) -> None:
        super().__init__()
        self.max_scale = max_scale
        self.same_caption = same_caption
        self.same_object = same_object

    def forward(self, features: Features, batch: ViewBatch) -> dict[str, Tensor]:
        """`loss` and `accuracy` (share of views whose nearest caption describes them), both () tensors."""
        view, text = features.view, features.text
        if not view.shape[0] or not text.shape[0]:
            return {"loss": features.zero()}
        pairs = pairs_of(batch, same_caption=self.same_caption, same_object=self.same_object)
        logits = self._scale(features.logit_scale) * F.normalize(view, dim=1) @ F.normalize(text, dim=1).T
        by_view = _spread_cross_entropy(logits, pairs.positive, pairs.counted, pairs.views)
        by_text = _spread_cross_entropy(logits.T, pairs.positive.T, pairs.counted.T, pairs.texts)
        with torch.no_grad():
            nearest = logits.masked_fill(~pairs.counted, -math.inf).argmax(dim=1, keepdim=True)
            right = pairs.positive.gather(1, nearest).sum() / pairs.views.sum().clamp(min=1)
        return {"loss": (by_view + by_text) / 2, "accuracy": right}

    def _scale(self, logit_scale: Tensor) -> Tensor:
        if self.max_scale is None:
            return logit_scale.exp()
        limited = logit_scale.clamp(max=math.log(self.max_scale))
        return (logit_scale + (limited - logit_scale).detach()).exp()


def _spread_cross_entropy(logits: Tensor, positive: Tensor, counted: Tensor, rows: Tensor) -> Tensor:
    """() mean over `rows` of the cross entropy to a target spread evenly over the row's positives."""
    # A row that takes no part stays finite: a row of -inf would turn its zero gradient into NaN.
    considered = counted | ~rows[:, None]
    partition = logits.masked_fill(~considered, -math.inf).logsumexp(dim=1)
    target = positive.to(logits.dtype)
    matched = (target * logits).sum(dim=1) / target.sum(dim=1).clamp(min=1)
    return ((partition - matched) * rows).sum() / rows.sum().clamp(min=1)
