"""The maximisation step of Omniview-Tuning: an anchor for each object, and the views that lie farthest from it.

Everything is batched over objects of equal view count; no loop runs over objects or views. Blocks of bounded size keep
the memory at the embeddings themselves plus a few megabytes and the anchors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

AnchorRule = Literal["inverse_distance", "inverse_similarity", "mean"]

EPS = 1e-8
"""Added to distances and similarities before they are inverted, as in the authors' code."""

_BLOCK = 1 << 19
"""Elements of one block: 2 MB in float32, which stays in a CPU's cache."""

_CUDA_BLOCKS = 128

_CLOSE = 1e-2
"""Squared distances below this share of the largest squared norm lose digits when they come from a Gram matrix."""


class _Scratch:
    """Memory that every block uses again: fresh pages cost more than the arithmetic on them."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._held = torch.empty(0, dtype=dtype, device=device)

    def __call__(self, *shape: int) -> Tensor:
        """An uninitialised tensor, good until the next call."""
        size = math.prod(shape)
        if len(self._held) < size:
            self._held = self._held.new_empty(size)
        return self._held[:size].view(shape)


@torch.no_grad()
def viewpoint_anchors(
    embeddings: Tensor, object_index: Tensor, *, rule: AnchorRule = "inverse_distance", neighbours: int = 5
) -> Tensor:
    """The viewpoint anchor of each object: a weighted mean of its views (Omniview-Tuning, section 3.2).

    Rules, with weights that are scaled to sum 1:

    - `inverse_distance`: 1 / (sum of Euclidean distances to the `neighbours` nearest views + 1e-8), where the view
      itself counts as one of them (the paper's intent and the authors' older code): isolated views weigh less.
    - `inverse_similarity`: 1 / (mean cosine to the `neighbours` nearest other views + 1e-8), and 0 where that mean is
      exactly 0 (the released code): isolated views weigh more. Weights are negative where the mean cosine is.
    - `mean`: all equal.

    Where an object has fewer views, all of them are neighbours; the anchor of a single view is that view.

    Args:
        embeddings: (N, D), floating; halves are computed in float32. Views are taken as given: normalise them first for
            anchors of directions.
        object_index: (N,) integers in [0, O), in any order.
        rule: how views are weighted.
        neighbours: at least 1.

    Returns:
        (O, D) with O = largest index + 1, not normalised; zero rows for indices without a view. float32, or float64 for
        float64 embeddings.

    Raises:
        ValueError: a wrong shape, type, rule or number, or a view that is zero or not finite.
    """
    return anchors_of(embeddings, object_index, rule=rule, neighbours=neighbours)


@torch.no_grad()
def anchors_of(
    embeddings: Tensor,
    object_index: Tensor,
    *,
    rule: AnchorRule,
    neighbours: int,
    unit: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """`viewpoint_anchors`, block by block on `device` and optionally of the views' directions (`unit`)."""
    if rule not in get_args(AnchorRule):
        raise ValueError(f"rule must be one of {', '.join(get_args(AnchorRule))}, not {rule!r}")
    _check_count("neighbours", neighbours)
    counts = _checked_counts(embeddings, object_index)
    device = device or embeddings.device
    dtype = _computed_in(embeddings)
    anchors = torch.zeros(len(counts), embeddings.shape[1], dtype=dtype, device=device)
    block = _BLOCK * (_CUDA_BLOCKS if device.type == "cuda" else 1)
    gathered, table = _Scratch(dtype, device), _Scratch(dtype, device)
    for objects, rows in _buckets(object_index, counts, embeddings.shape[1], block):
        views = _gather(embeddings, rows.flatten(), gathered).view(*rows.shape, -1)
        norms = _checked_norms(views, rows)
        if unit:
            views /= norms
            norms = torch.ones_like(norms)
        if rule == "inverse_distance":
            found = _inverse_distance(views, neighbours, block, table)
        elif rule == "inverse_similarity":
            found = _inverse_similarity(views, norms, neighbours, block, table)
        else:
            found = views.mean(dim=1)
        anchors[objects.to(device)] = found
    return anchors


@torch.no_grad()
def outlier_views(embeddings: Tensor, object_index: Tensor, anchors: Tensor, k: int) -> Tensor:
    """The `k` views of each object with the smallest cosine to its anchor; all of them where it has no more than `k`.

    Cosines are computed in float64, so the choice does not depend on order or blocks; equal ones go by index.

    Args:
        embeddings: (N, D), floating.
        object_index: (N,) integers in [0, O), in any order.
        anchors: (O, D), on the same device.
        k: at least 1.

    Returns:
        (N,) bool.

    Raises:
        ValueError: a wrong shape, type or number, or a view or anchor in use that is zero or not finite.
    """
    _check_count("k", k)
    cosines = anchor_cosines(embeddings, object_index, anchors)
    counts = torch.bincount(object_index)
    by_cosine = torch.argsort(cosines, stable=True)
    order = by_cosine[torch.argsort(object_index[by_cosine], stable=True)]
    starts = torch.cumsum(counts, 0) - counts
    rank = torch.arange(len(order), device=order.device) - torch.repeat_interleave(starts, counts)
    outliers = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    outliers[order] = rank < k
    return outliers


@torch.no_grad()
def anchor_cosines(embeddings: Tensor, object_index: Tensor, anchors: Tensor) -> Tensor:
    """(N,) float64 cosine of each view to the anchor of its object; arguments and errors as for `outlier_views`."""
    counts = _checked_counts(embeddings, object_index)
    if anchors.ndim != 2 or anchors.shape[1] != embeddings.shape[1] or anchors.shape[0] < len(counts):
        wanted = (len(counts), embeddings.shape[1])
        raise ValueError(f"anchors must have a row for each object, {wanted}, not {tuple(anchors.shape)}")
    size = max(1, _BLOCK // 2 // max(1, embeddings.shape[1]))
    device = embeddings.device
    wide, centred = _Scratch(torch.float64, device), _Scratch(torch.float64, device)
    gathered = _Scratch(anchors.dtype, device)
    cosines = torch.empty(len(embeddings), dtype=torch.float64, device=device)
    for start in range(0, len(embeddings), size):
        owners = object_index[start : start + size].long()  # index_select takes no smaller integers
        shape = (len(owners), embeddings.shape[1])
        views = wide(*shape).copy_(embeddings[start : start + size])
        centres = centred(*shape).copy_(_gather(anchors, owners, gathered))
        norms = torch.linalg.vector_norm(views, dim=-1) * torch.linalg.vector_norm(centres, dim=-1)
        usable = torch.isfinite(norms) & (norms > 0)
        if not bool(usable.all()):
            row = start + int((~usable).nonzero()[0])
            raise ValueError(f"view {row} (object {int(object_index[row])}) or its anchor is zero or not finite")
        # A sum over each row alone: equal views get equal cosines wherever they stand.
        cosines[start : start + size] = views.mul_(centres).sum(dim=-1) / norms
    return cosines


def _gather(table: Tensor, rows: Tensor, into: _Scratch) -> Tensor:
    """`table[rows]`, (M, D), in the type and on the device of the scratch memory."""
    found = into(len(rows), table.shape[1])
    if (found.dtype, found.device) == (table.dtype, table.device):
        return torch.index_select(table, 0, rows, out=found)
    return found.copy_(table[rows])


def _check_count(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")


def _checked_counts(embeddings: Tensor, object_index: Tensor) -> Tensor:
    """(O,) number of views of each object."""
    for name, value in (("embeddings", embeddings), ("object_index", object_index)):
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} must be a torch tensor, not {type(value).__name__}")
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(f"embeddings must be (N, D) floating, not {tuple(embeddings.shape)} {embeddings.dtype}")
    if object_index.shape != embeddings.shape[:1]:
        raise ValueError(f"object_index must be ({len(embeddings)},), not {tuple(object_index.shape)}")
    if object_index.is_floating_point() or object_index.is_complex() or object_index.dtype == torch.bool:
        raise ValueError(f"object_index must hold integers, not {object_index.dtype}")
    if len(object_index) and int(object_index.min()) < 0:
        raise ValueError(f"object_index must not be negative, found {int(object_index.min())}")
    return torch.bincount(object_index)


def _computed_in(embeddings: Tensor) -> torch.dtype:
    return torch.float64 if embeddings.dtype == torch.float64 else torch.float32


def _checked_norms(views: Tensor, rows: Tensor) -> Tensor:
    """(G, V, 1) norms of (G, V, D) views."""
    norms = torch.linalg.vector_norm(views, dim=-1, keepdim=True)
    usable = torch.isfinite(norms) & (norms > 0)
    if not bool(usable.all()):
        row = int(rows[(~usable[..., 0]).to(rows.device)][0])
        raise ValueError(f"view {row} is zero or not finite, so it has no direction")
    return norms


def _buckets(object_index: Tensor, counts: Tensor, width: int, block: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Objects of equal view count, (G,), and the rows of their views, (G, V), in blocks."""
    order = torch.argsort(object_index, stable=True)
    starts = torch.cumsum(counts, 0) - counts
    for views in torch.unique(counts[counts > 0]).tolist():
        objects = (counts == views).nonzero()[:, 0]
        offsets = torch.arange(views, device=order.device)
        for part in objects.split(max(1, block // (views * (width + views)))):
            yield part, order[starts[part][:, None] + offsets]


def _inverse_distance(views: Tensor, neighbours: int, block: int, table: _Scratch) -> Tensor:
    """(G, D) anchors of (G, V, D) views, which are overwritten."""
    # Distances do not change when the mean is taken off, and far fewer digits are lost in the Gram matrix.
    mean = views.mean(dim=1, keepdim=True)
    views -= mean
    weights = 1 / (_distance_sums(views, min(neighbours, views.shape[1]), block, table) + EPS)
    weights /= weights.sum(dim=1, keepdim=True)
    return (mean + weights[:, None] @ views)[:, 0]


def _distance_sums(views: Tensor, nearest: int, block: int, table: _Scratch) -> Tensor:
    """(G, V) sum of distances from each view to its `nearest` nearest, itself among them."""
    objects, count, _ = views.shape
    sums = views.new_zeros(objects, count)
    if nearest == 1:
        return sums
    squares = torch.linalg.vector_norm(views, dim=-1).square()
    close = _CLOSE * squares.amax(dim=1, keepdim=True)
    for start, stop in _row_blocks(objects, count, block):
        part = views[:, start:stop]
        squared = torch.bmm(part, views.transpose(1, 2), out=table(objects, stop - start, count))
        squared.mul_(-2).add_(squares[:, start:stop, None]).add_(squares[:, None])
        squared.diagonal(offset=start, dim1=1, dim2=2).zero_()
        found = squared.topk(nearest, largest=False).values.clamp_min_(0).sqrt_()
        inexact = (found[..., 1].square() < close).any(dim=1)
        if bool(inexact.any()):
            chosen = slice(None) if bool(inexact.all()) else inexact
            exact = torch.cdist(part[chosen], views[chosen], compute_mode="donot_use_mm_for_euclid_dist")
            found[chosen] = exact.topk(nearest, largest=False).values
        sums[:, start:stop] = found.sum(dim=-1)
    return sums


def _inverse_similarity(views: Tensor, norms: Tensor, neighbours: int, block: int, table: _Scratch) -> Tensor:
    """(G, D) anchors of (G, V, D) views with (G, V, 1) norms; the views are overwritten."""
    objects, count, _ = views.shape
    if count == 1:
        return views[:, 0].clone()
    views /= norms
    nearest = min(neighbours, count - 1)
    weights = views.new_empty(objects, count)
    for start, stop in _row_blocks(objects, count, block):
        shape = (objects, stop - start, count)
        cosines = torch.bmm(views[:, start:stop], views.transpose(1, 2), out=table(*shape))
        cosines.diagonal(offset=start, dim1=1, dim2=2).fill_(-torch.inf)
        mean = cosines.topk(nearest).values.mean(dim=-1)
        weights[:, start:stop] = torch.where(mean == 0, 0, 1 / (mean + EPS))
    total = weights.sum(dim=1, keepdim=True)
    weights = torch.where(total == 0, 1 / count, weights / total)
    return ((weights * norms[..., 0])[:, None] @ views)[:, 0]


def _row_blocks(objects: int, count: int, block: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows whose (objects, rows, count) tables fit a block."""
    size = max(1, block // (objects * count))
    for start in range(0, count, size):
        yield start, min(start + size, count)
