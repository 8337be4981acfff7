"""Sums of cosines over all pairs of a batch from one sum of unit vectors an object, never from the pairs themselves.

The cosines of two groups of vectors add up to the dot product of the groups' sums of unit vectors. So what a loss over
all pairs of N views needs is a (B, D) block of sums, in O(N D) instead of an N x N matrix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


@dataclass(frozen=True)
class Blocks:
    """What pair sums are made of.

    Args:
        views: (B, D) sum of each object's unit view vectors.
        counts: (B,) views of each object.
        known: (B,) those of them that have a direction; a zero vector has none.
        texts: (B, D) mean of the unit vectors of each object's captions; zero without one.
        has_text: (B,) 1 where an object has a caption, else 0.
    """

    views: Tensor
    counts: Tensor
    known: Tensor
    texts: Tensor
    has_text: Tensor

    def without_texts(self) -> Blocks:
        """The same views alone."""
        return Blocks(
            self.views, self.counts, self.known, torch.zeros_like(self.texts), torch.zeros_like(self.has_text)
        )


@dataclass(frozen=True)
class PairSum:
    """The cosines of a set of unordered pairs: their sum, and how many they are."""

    total: Tensor
    count: Tensor

    def mean(self, count: Tensor | None = None) -> Tensor:
        """() the mean, by another count where one is given; 0 without a pair."""
        return self.total / (self.count if count is None else count).clamp(min=1)

    def __add__(self, other: PairSum) -> PairSum:
        return PairSum(self.total + other.total, self.count + other.count)


def blocks_of(
    views: Tensor, object_of_view: Tensor, counts: Tensor, texts: Tensor | None = None, caption_object: Any = None
) -> Blocks:
    """The blocks of packed views; no device sync.

    Args:
        views: (N, D) of any scale, those of an object adjacent. The cosine of a zero vector with any other counts as 0,
            and it gets no gradient.
        object_of_view: (N,) int64, ascending.
        counts: (B,) int64 views of each object.
        texts: (T, D) captions' vectors; no gradient flows into them. None = without texts.
        caption_object: (T,) int64, the object of each caption.
    """
    objects = len(counts)
    sums, known = _DirectionSums.apply(views, object_of_view, counts)
    text_sums, text_counts = views.new_zeros(objects, views.shape[1]), views.new_zeros(objects)
    if texts is not None:
        unit = directions(texts.detach().to(views.dtype))
        text_sums = text_sums.index_add(0, caption_object, unit)
        text_counts = text_counts.index_add(0, caption_object, unit.new_ones(len(unit)))
    means = text_sums / text_counts.clamp(min=1)[:, None]
    return Blocks(sums, counts.to(views.dtype), known, means, (text_counts > 0).to(views.dtype))


def directions(vectors: Tensor) -> Tensor:
    """(N, D) unit vectors; a zero vector stays zero and gets no gradient."""
    norms = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    there = norms != 0
    return vectors / torch.where(there, norms, 1) * there


def same_views(blocks: Blocks) -> PairSum:
    """Two views of one object."""
    total = (blocks.views.square().sum(dim=1) - blocks.known).sum() / 2
    return PairSum(total, (blocks.counts * (blocks.counts - 1)).sum() / 2)


def own_texts(blocks: Blocks) -> PairSum:
    """A view and its object's text."""
    return PairSum((blocks.texts * blocks.views).sum(), (blocks.has_text * blocks.counts).sum())


def other_views(blocks: Blocks) -> PairSum:
    """Views of two objects."""
    return _across(blocks.views, blocks.counts)


def other_texts(blocks: Blocks) -> PairSum:
    """A view of one object and the text of another."""
    total = (blocks.texts.sum(dim=0) * blocks.views.sum(dim=0)).sum() - (blocks.texts * blocks.views).sum()
    count = blocks.has_text.sum() * blocks.counts.sum() - (blocks.has_text * blocks.counts).sum()
    return PairSum(total, count)


def two_texts(blocks: Blocks) -> PairSum:
    """Texts of two objects: a constant."""
    return _across(blocks.texts, blocks.has_text)


def texts_before(blocks: Blocks) -> PairSum:
    """A text and the views of the objects after its own, in the batch's order."""
    texts = blocks.texts.cumsum(dim=0) - blocks.texts
    counted = blocks.has_text.cumsum(dim=0) - blocks.has_text
    return PairSum((texts * blocks.views).sum(), (counted * blocks.counts).sum())


def _across(sums: Tensor, counts: Tensor) -> PairSum:
    total = (sums.sum(dim=0).square().sum() - sums.square().sum()) / 2
    return PairSum(total, (counts.sum().square() - counts.square().sum()) / 2)


class _DirectionSums(torch.autograd.Function):
    """(B, D) sums of unit vectors by object, and (B,) how many have a direction.

    Backward makes the unit vectors again, so that nothing of the size of the input is kept but the input itself.
    """

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, owner: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        norms = torch.linalg.vector_norm(vectors, dim=1)
        known = (norms != 0).to(vectors.dtype)
        inverse = torch.where(norms != 0, 1 / norms, 0)
        ctx.save_for_backward(vectors, owner, inverse)
        # Bags of adjacent rows are weighed and added up in one kernel, without a copy of all rows.
        rows, starts = torch.arange(len(vectors), device=vectors.device), counts.cumsum(dim=0) - counts
        sums = F.embedding_bag(rows, vectors, starts, mode="sum", per_sample_weights=inverse)
        count = torch.zeros_like(sums[:, 0]).index_add_(0, owner, known)
        ctx.mark_non_differentiable(count)
        return sums, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        vectors, owner, inverse = ctx.saved_tensors
        # With u = x / |x|: dx = (g - (g . u) u) / |x|, in place in the one tensor that is given back.
        found = grads[0].index_select(0, owner)
        along = torch.bmm(found[:, None], vectors[:, :, None])[:, 0, 0] * inverse.square()
        found.addcmul_(vectors, along[:, None], value=-1).mul_(inverse[:, None])
        return found, None, None
