"""`core.siglip`: image-text contrast with a sigmoid for every pair."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mvcore.losses.pairs import pairs_of
from mvcore.types import Features, ViewBatch


class SigmoidContrastive(nn.Module):
    """Sigmoid loss (Zhai et al., SigLIP, equation 1): every caption of a view is a positive, every other a negative.

    `-1/V sum_ij log sigmoid(z_ij (s x_i.y_j + b))` over unit vectors x of views and y of captions, with z = 1 for a
    positive pair and -1 for a negative one, s = exp(logit_scale), b = logit_bias and V the number of views with a
    caption. Views without a caption and captions without a view take no part.

    Args:
        same_caption, same_object: see `PairOptions`.
    """

    def __init__(self, same_caption: str = "positive", same_object: str = "negative") -> None:
        super().__init__()
        self.same_caption = same_caption
        self.same_object = same_object

    def forward(self, features: Features, batch: ViewBatch) -> Tensor:
        """() the loss."""
        view, text = features.view, features.text
        if not view.shape[0] or not text.shape[0]:
            return features.zero()
        pairs = pairs_of(batch, same_caption=self.same_caption, same_object=self.same_object)
        cosines = F.normalize(view, dim=1) @ F.normalize(text, dim=1).T
        logits = features.logit_scale.exp() * cosines + features.logit_bias
        sign = 2 * pairs.positive.to(logits.dtype) - 1
        terms = F.logsigmoid(sign * logits) * pairs.counted
        return -terms.sum() / pairs.views.sum().clamp(min=1)
