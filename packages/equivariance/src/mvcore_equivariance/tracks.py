"""Points of two views of an object that show the same place, drawn from tracks of a reconstruction.

Tracks know which of their points are one in space, so depth is not needed. Shapes hang on the options and on the room
that the batch has for tracks; what was drawn and is not there is marked. Draws come from torch's default generator of
the device, as in `correspondences`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mvcore.api import Tracks, ViewBatch
from torch import Tensor

from mvcore_equivariance.correspondences import Correspondences, Spots
from mvcore_equivariance.geometry import Camera, footprints

_NOBODY = -1


class TrackedView(NamedTuple):
    """Tracks of one view of each of B objects.

    Args:
        spots: M points.
        ids: (B, M) which point of the object each is; -1 where there is none.
    """

    spots: Spots
    ids: Tensor


def tracked_pairs_of(
    batch: ViewBatch, *, masks: bool, cameras: bool
) -> tuple[TrackedView, TrackedView, tuple[int, int]]:
    """Tracks of the first and second views of a batch that has two of each object, and the (W, H) of its images.

    Args:
        batch: with tracks and images.
        masks: only points in the mask.
        cameras: find footprints, for which only points before a known camera count; else they are 1.

    Raises:
        ValueError: an object with another number of views, no tracks at all, or no cameras where they are wanted.
    """
    if any(count != 2 for count in batch.counts):
        raise ValueError(
            f"needs two views of each object, got {list(batch.counts)}; set the source's sampling to pairs"
        )
    tracks = batch.tracks
    if tracks is None or batch.images is None:
        raise ValueError("needs a batch with tracks and images")
    if not tracks.ids.shape[1]:  # room for one, of which an extent and a maximum can be asked
        tracks = Tracks.none(batch.n_views, 1, batch.device)
    height, width = batch.images.shape[-2:]
    valid = (tracks.ids >= 0) & tracks.points.isfinite().all(-1) & tracks.xyz.isfinite().all(-1)
    if masks and batch.masks is not None:
        valid &= _in_mask(batch.masks, tracks.points)
    footprint = torch.ones_like(tracks.xyz[..., 0])
    if cameras:
        if batch.cameras is None:
            raise ValueError("needs a batch with cameras for unit: footprint")
        footprint, before = footprints(tracks.xyz, Camera(batch.cameras.intrinsics, batch.cameras.world_to_camera))
        valid &= before if batch.camera_valid is None else before & batch.camera_valid[:, None]
    ids = torch.where(valid, tracks.ids, _NOBODY)
    spots = Spots(tracks.points, tracks.xyz, footprint, valid)
    first, second = (TrackedView(Spots(*(part[k::2] for part in spots)), ids[k::2].contiguous()) for k in (0, 1))
    return first, second, (width, height)


def shared(first: TrackedView, second: TrackedView, points: int, further: int) -> Correspondences:
    """Points that both views show, and others of the second view.

    Args:
        first, second: of the same objects.
        points: how many of those that both show are drawn.
        further: how many more are drawn in the second view, as targets that are nobody's own.
    """
    where, there = _look_up(first.ids, second.ids)
    source, own = _drawn(there, points)
    taken = torch.where(own, first.ids.gather(1, source), _NOBODY)
    others, found = _drawn((second.ids >= 0) & ~_look_up(second.ids, taken)[1], further)
    target = _picked(second.spots, torch.cat([where.gather(1, source), others], 1), torch.cat([own, found], 1))
    return Correspondences(_picked(first.spots, source, own), target, own)


def _look_up(ids: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M) place of each id in `among` (B, K), and whether it is there."""
    ordered, order = among.sort(dim=1)
    place = torch.searchsorted(ordered, ids).clamp(max=among.shape[1] - 1)
    return order.gather(1, place), (ordered.gather(1, place) == ids) & (ids >= 0)


def _drawn(among: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Index (B, K) of different ones of those marked (B, M), uniform over them, and (B, K) whether they are."""
    keys = torch.where(among, torch.rand(among.shape, device=among.device), -1)
    keys, index = keys.topk(min(count, among.shape[1]), dim=1)
    return index, keys >= 0


def _picked(spots: Spots, index: Tensor, valid: Tensor) -> Spots:
    def at(values: Tensor) -> Tensor:
        return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))

    return Spots(at(spots.points), at(spots.xyz), spots.footprint.gather(1, index), valid)


def _in_mask(masks: Tensor, points: Tensor) -> Tensor:
    """(N, M) bool, whether points (N, M, 2) lie in a pixel of (N, H, W) masks."""
    height, width = masks.shape[1:]
    x, y = points.floor().long().unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    index = torch.where(inside, y * width + x, 0)
    return inside & masks.flatten(1).gather(1, index)
