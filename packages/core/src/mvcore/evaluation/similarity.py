"""How alike the views of an object are, how alike different objects are, and how well texts fit their views.

All similarities are cosines. Pairs are ordered and pooled: `same_object` is over all pairs of two views of one object
(a view is not paired with itself), `different_object` over all pairs of views of two objects, `text_to_image` over each
text and each view of its object. The standard deviation is over those pairs with ddof 1.

Nothing of size N x N is ever held: sums of cosines are products of sums of unit vectors, and sums of squared cosines
over all pairs are the squared Frobenius norm of the D x D second moment. Everything is accumulated in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mvcore.evaluation.moments import AcrossObjects, Moments, WithinObjects, object_blocks, unit_rows
from mvcore.evaluation.statistics import ratio_samples

_ROWS = 4096
"""Views held in float64 at once."""


@dataclass(frozen=True)
class Similarity:
    """Cosines of a set of pairs.

    Args:
        mean: over all pairs; NaN where there is none.
        std: over all pairs, ddof 1; NaN below two pairs.
        n: number of (ordered) pairs.
        samples: (O,) per-object values whose mean is `mean`; see `mvcore.evaluation.statistics.ratio_samples`.
    """

    mean: float
    std: float
    n: int
    samples: np.ndarray = field(compare=False, repr=False)


@dataclass(frozen=True)
class ConsistencyResult:
    """What `consistency` found.

    Args:
        same_object, different_object, text_to_image: cosines of the three sets of pairs.
        center_mean, center_min: (O,) mean and smallest cosine of an object's views to the direction of their mean.
    """

    same_object: Similarity
    different_object: Similarity
    text_to_image: Similarity
    center_mean: np.ndarray = field(compare=False, repr=False)
    center_min: np.ndarray = field(compare=False, repr=False)

    @property
    def inter_object_similarity(self) -> Similarity:
        """`same_object` under the name of Korth (2024), whose `inter` and `intra` stand the other way round."""
        return self.same_object

    @property
    def intra_object_similarity(self) -> Similarity:
        """`different_object` under the name of Korth (2024), whose `inter` and `intra` stand the other way round."""
        return self.different_object


def consistency(text: Tensor | None, views: Tensor, view_counts: Tensor | None = None) -> ConsistencyResult:
    """The three similarities of O objects.

    Args:
        text: (O, D) one text vector per object, or None.
        views: (O, V, D), or packed (N, D) with the views of an object adjacent.
        view_counts: (O,) views of each object where `views` is packed.

    Raises:
        ValueError: shapes that do not fit, or a vector without a direction (zero or not finite).
    """
    packed, counts = packed_views(views, view_counts)
    object_of_view = torch.repeat_interleave(torch.arange(len(counts), device=packed.device), counts)
    if text is not None and (text.ndim != 2 or text.shape != (len(counts), packed.shape[1])):
        raise ValueError(f"text must be (O, D) = {(len(counts), packed.shape[1])}, not {tuple(text.shape)}")
    within, across = similarity_passes(packed, counts)
    if text is None:
        pairs = no_pairs(len(counts))
    else:
        rows = torch.arange(len(packed), device=packed.device)
        pairs = pair_similarity(packed, text, rows, object_of_view, object_of_view, len(counts))
    return ConsistencyResult(
        same_object=same_object(within),
        different_object=different_object(within, across),
        text_to_image=pairs,
        center_mean=within.center_mean.cpu().numpy(),
        center_min=within.center_min.cpu().numpy(),
    )


def similarity_passes(views: Tensor, counts: Tensor) -> tuple[WithinObjects, AcrossObjects]:
    """Both passes over packed (N, D) views with (O,) view counts."""
    within = WithinObjects(len(counts), views.shape[1], views.device, rows_at_once=_ROWS)
    for block in object_blocks(views, counts, _ROWS):
        within.add(block)
    across = AcrossObjects(within)
    for block in object_blocks(views, counts, _ROWS):
        across.add(block)
    return within, across


def pair_similarity(
    views: Tensor, texts: Tensor, view_index: Tensor, text_index: Tensor, object_of_view: Tensor, n_objects: int
) -> Similarity:
    """Cosines of P given pairs of a view and a text.

    Args:
        views: (N, D).
        texts: (T, D).
        view_index, text_index: (P,) rows of `views` and `texts`.
        object_of_view: (N,) the object of each view, below `n_objects`.
        n_objects: O.

    Raises:
        ValueError: a vector without a direction.
    """
    moments = Moments()
    sums = torch.zeros(n_objects, dtype=torch.float64, device=views.device)
    counts = torch.zeros_like(sums)
    texts = texts.to(views.device)
    for view_rows, text_rows in zip(view_index.split(_ROWS), text_index.split(_ROWS), strict=True):
        cosines = (unit_rows(views, view_rows, "views") * unit_rows(texts, text_rows, "text")).sum(-1)
        moments.add(cosines)
        owners = object_of_view[view_rows]
        sums.index_add_(0, owners, cosines)
        counts.index_add_(0, owners, torch.ones_like(cosines))
    return Similarity(moments.mean, moments.std, moments.n, ratio_samples(sums.cpu().numpy(), counts.cpu().numpy()))


def view_similarity_map(views: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over objects of the cosine of view i and view j.

    Args:
        views: (O, V, D), view i the same viewpoint in every object.

    Returns:
        (V, V) mean with a unit diagonal, whose off-diagonal mean is the `same_object` mean; and (V, V) deviation over
        objects with ddof 1, NaN with one object.

    Raises:
        ValueError: another shape, or a vector without a direction.
    """
    if views.ndim != 3 or 0 in views.shape:
        raise ValueError(f"views must be (O, V, D) and not empty, not {tuple(views.shape)}")
    objects, count, dim = views.shape
    mean = torch.zeros(count, count, dtype=torch.float64, device=views.device)
    squares, seen = torch.zeros_like(mean), 0
    per_block = max(1, _ROWS // count)
    for block in views.split(per_block):
        unit = unit_rows(block.reshape(-1, dim), slice(None), "views").view(-1, count, dim)
        cosines = unit @ unit.mT
        # Chan, Golub & LeVeque 1983: merges means and squared deviations without cancellation.
        size, block_mean = len(block), cosines.mean(0)
        gap = block_mean - mean
        squares += (cosines - block_mean).square().sum(0) + gap.square() * (seen * size / (seen + size))
        mean += gap * (size / (seen + size))
        seen += size
    std = (squares / (objects - 1)).sqrt() if objects > 1 else torch.full_like(mean, math.nan)
    mean.fill_diagonal_(1.0)
    if objects > 1:
        std.fill_diagonal_(0.0)
    return mean.cpu().numpy(), std.cpu().numpy()


def same_object(within: WithinObjects) -> Similarity:
    """Cosines of all ordered pairs of two views of one object."""
    pairs = within.counts * (within.counts - 1)
    samples = ratio_samples(within.same_sums.cpu().numpy(), pairs.cpu().numpy())
    return Similarity(within.same.mean, within.same.std, within.same.n, samples)


def different_object(within: WithinObjects, across: AcrossObjects) -> Similarity:
    """Cosines of all ordered pairs of views of two objects."""
    pairs = within.counts * (within.counts.sum() - within.counts)
    n = int(pairs.sum())
    if n == 0:
        return no_pairs(len(pairs))
    mean = float(across.different_sums.sum()) / n
    # All pairs of views together have the squared Frobenius norm of the second moment as their sum of squares.
    squares = float(within.second_moment.square().sum()) - within.own_squares
    variance = (squares - n * mean * mean) / (n - 1)
    samples = ratio_samples(across.different_sums.cpu().numpy(), pairs.cpu().numpy(), order=2)
    return Similarity(mean, math.sqrt(max(variance, 0.0)), n, samples)


def no_pairs(n_objects: int) -> Similarity:
    """Of an empty set of pairs."""
    return Similarity(math.nan, math.nan, 0, np.full(n_objects, math.nan))


def packed_views(views: Tensor, view_counts: Tensor | None) -> tuple[Tensor, Tensor]:
    """(N, D) views and (O,) counts on the device of `views`, or on the CPU where that has no float64."""
    if views.device.type == "mps":
        views = views.cpu()
    if view_counts is None:
        if views.ndim != 3 or 0 in views.shape:
            raise ValueError(f"views must be (O, V, D), or (N, D) with view_counts, not {tuple(views.shape)}")
        counts = torch.full((views.shape[0],), views.shape[1], device=views.device)
        return views.reshape(-1, views.shape[2]), counts
    counts = torch.as_tensor(view_counts, device=views.device)
    if views.ndim != 2 or counts.ndim != 1 or counts.is_floating_point():
        raise ValueError(
            f"packed views must be (N, D) with integer view_counts (O,), not {tuple(views.shape)} and"
            f" {tuple(counts.shape)} {counts.dtype}"
        )
    if len(counts) == 0 or int(counts.min()) < 1 or int(counts.sum()) != len(views):
        raise ValueError(f"view_counts must be at least 1 each and sum to {len(views)} views, not {counts.tolist()}")
    return views, counts.to(torch.int64)
