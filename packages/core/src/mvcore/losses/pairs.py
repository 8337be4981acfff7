"""Which captions describe which views of a batch, and which pairs say nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mvcore.types import ViewBatch


@dataclass(frozen=True)
class Pairs:
    """The pairs of N views and T captions.

    A view without a caption and a caption without a view take no part: they are neither anchors nor negatives.

    Args:
        positive: (N, T) bool, the caption describes the view.
        counted: (N, T) bool, positive or negative; the others say nothing.
        views: (N,) bool, views with a caption.
        texts: (T,) bool, captions with a view.
    """

    positive: Tensor
    counted: Tensor
    views: Tensor
    texts: Tensor


def pairs_of(batch: ViewBatch, *, same_caption: str = "positive", same_object: str = "negative") -> Pairs:
    """The pairs of a batch; see `PairOptions` for the options. No device sync."""
    positive = batch.positives()
    counted = torch.ones_like(positive)
    number = {caption: i for i, caption in enumerate(dict.fromkeys(batch.captions))}
    if same_caption != "negative" and len(number) < len(batch.captions):
        same = _same_words(positive, batch.captions, number)
        if same_caption == "positive":
            positive = same
        else:
            counted = counted & (positive | ~same)
    if same_object == "mask":
        counted = counted & (positive | ~_same_object(batch))
    views, texts = positive.any(dim=1), positive.any(dim=0)
    return Pairs(positive, counted & views[:, None] & texts[None, :], views, texts)


def _same_words(positive: Tensor, captions: tuple[str, ...], number: dict[str, int]) -> Tensor:
    """(N, T): the caption has the words of one that describes the view."""
    host = torch.tensor([number[caption] for caption in captions])
    if positive.is_cuda:
        host = host.pin_memory()
    words = host.to(positive.device, non_blocking=True)
    has = torch.zeros(positive.shape[0], len(number), device=positive.device)
    has = has.index_add(1, words, positive.to(has.dtype))
    return has.index_select(1, words) > 0


def _same_object(batch: ViewBatch) -> Tensor:
    """(N, T): the caption belongs to the view's object, which a batch may hold more than once."""
    view, text = batch.object_of_view, batch.caption_object
    view_id, text_id = batch.object_ids[view], batch.object_ids[text]
    by_id = (view_id[:, None] == text_id[None, :]) & (view_id[:, None] >= 0)
    return by_id | (view[:, None] == text[None, :])
