"""Packed batches joined and split: many objects into one batch, and a batch into chunks of whole objects."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mvcore.types import Cameras, Tracks, ViewBatch, embedding_axis


def concatenate(batches: Sequence[ViewBatch]) -> ViewBatch:
    """One batch of all objects of `batches`, in order; captions, cameras, depth, masks, tracks stay with their views.

    A field that only some batches have is kept where an absent value can be marked (cameras, depth, tracks), and is
    None otherwise. Images of unequal sizes, and embeddings and state that not all share in equal widths, are left out.

    Raises:
        ValueError: no batch.
    """
    if not batches:
        raise ValueError("nothing to concatenate")
    if len(batches) == 1:
        return batches[0]
    objects = views = 0
    caption_object: list[Tensor] = []
    caption_view: list[Tensor] = []
    object_of_view: list[Tensor] = []
    cu_views: list[Tensor] = [batches[0].cu_views[:1]]
    for batch in batches:
        caption_object.append(batch.caption_object + objects)
        caption_view.append(torch.where(batch.caption_view >= 0, batch.caption_view + views, batch.caption_view))
        object_of_view.append(batch.object_of_view + objects)
        cu_views.append(batch.cu_views[1:] + views)
        objects += batch.n_objects
        views += batch.n_views
    return ViewBatch(
        view_counts=torch.cat([batch.view_counts for batch in batches]),
        images=_cat_if_equal([batch.images for batch in batches]),
        source=torch.cat([batch.source for batch in batches]),
        object_ids=torch.cat([batch.object_ids for batch in batches]),
        view_ids=torch.cat([batch.view_ids for batch in batches]),
        captions=tuple(text for batch in batches for text in batch.captions),
        caption_object=torch.cat(caption_object),
        caption_view=torch.cat(caption_view),
        masks=_cat_if_equal([batch.masks for batch in batches]),
        embeddings=_cat_shared([batch.embeddings for batch in batches]),
        state=_cat_shared([batch.state for batch in batches]),
        object_of_view=torch.cat(object_of_view),
        cu_views=torch.cat(cu_views),
        max_views=max(batch.max_views for batch in batches),
        n_views=views,
        counts=tuple(count for batch in batches for count in batch.counts),
        **_cat_cameras(batches),
        **_cat_depth(batches),
        tracks=_cat_tracks(batches),
    )


def split_objects(batch: ViewBatch, max_views: int) -> list[ViewBatch]:
    """Consecutive batches of whole objects with at most `max_views` views each (one object may have more), on the host.

    Published state is left out: a batch does not know whether its rows are objects or views.

    Raises:
        ValueError: a batch on a device, whose counts could only be read by waiting for it.
    """
    if batch.device.type != "cpu":
        raise ValueError("a batch is split on the host, before it is moved to a device")
    counts = [int(count) for count in batch.view_counts]
    bounds, views = [0], 0
    for i, count in enumerate(counts):
        if i > bounds[-1] and views + count > max_views:
            bounds.append(i)
            views = 0
        views += count
    bounds.append(len(counts))
    return [_objects(batch, first, last) for first, last in itertools.pairwise(bounds)]


def _objects(batch: ViewBatch, first: int, last: int) -> ViewBatch:
    begin, end = int(batch.cu_views[first]), int(batch.cu_views[last])
    mine = ((batch.caption_object >= first) & (batch.caption_object < last)).nonzero().flatten()
    caption_view = batch.caption_view[mine]

    def views(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[begin:end]

    def aligned(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: value[mine] if embedding_axis(key) == "caption" else value[begin:end] for key, value in values.items()
        }

    cameras = batch.cameras
    return ViewBatch.make(
        batch.view_counts[first:last],
        images=views(batch.images),
        source=batch.source[first:last],
        object_ids=batch.object_ids[first:last],
        view_ids=batch.view_ids[begin:end],
        captions=tuple(batch.captions[int(row)] for row in mine),
        caption_object=batch.caption_object[mine] - first,
        caption_view=torch.where(caption_view >= 0, caption_view - begin, caption_view),
        cameras=None if cameras is None else Cameras(cameras.intrinsics[begin:end], cameras.world_to_camera[begin:end]),
        camera_valid=views(batch.camera_valid),
        depth=views(batch.depth),
        masks=views(batch.masks),
        depth_valid=views(batch.depth_valid),
        tracks=None if batch.tracks is None else batch.tracks.map_tensors(lambda part: part[begin:end]),
        embeddings=aligned(batch.embeddings),
    )


def _cat_if_equal(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if len(present) < len(tensors) or len({tensor.shape[1:] for tensor in present}) > 1:
        return None
    return torch.cat(present)


def _cat_shared(mappings: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    shared = sorted(set(mappings[0]).intersection(*mappings[1:]))
    joined = {key: _cat_if_equal([mapping[key] for mapping in mappings]) for key in shared}
    return {key: tensor for key, tensor in joined.items() if tensor is not None}


def _cat_cameras(batches: Sequence[ViewBatch]) -> dict[str, Any]:
    if all(batch.cameras is None for batch in batches):
        return {}
    intrinsics: list[Tensor] = []
    world_to_camera: list[Tensor] = []
    valid: list[Tensor] = []
    for batch in batches:
        n, device = batch.n_views, batch.device
        if batch.cameras is None:
            intrinsics.append(torch.eye(3, device=device).expand(n, 3, 3))
            world_to_camera.append(torch.eye(4, device=device).expand(n, 4, 4))
            valid.append(torch.zeros(n, dtype=torch.bool, device=device))
        else:
            known = batch.camera_valid
            intrinsics.append(batch.cameras.intrinsics)
            world_to_camera.append(batch.cameras.world_to_camera)
            valid.append(torch.ones(n, dtype=torch.bool, device=device) if known is None else known)
    return {"cameras": Cameras(torch.cat(intrinsics), torch.cat(world_to_camera)), "camera_valid": torch.cat(valid)}


def _cat_depth(batches: Sequence[ViewBatch]) -> dict[str, Any]:
    sizes = {batch.depth.shape[1:] for batch in batches if batch.depth is not None}
    if len(sizes) != 1:
        return {}
    size = next(iter(sizes))
    depth: list[Tensor] = []
    valid: list[Tensor] = []
    for batch in batches:
        n, device = batch.n_views, batch.device
        if batch.depth is None:
            depth.append(torch.zeros((n, *size), device=device))
            valid.append(torch.zeros(n, dtype=torch.bool, device=device))
        else:
            known = batch.depth_valid
            depth.append(batch.depth)
            valid.append(torch.ones(n, dtype=torch.bool, device=device) if known is None else known)
    return {"depth": torch.cat(depth), "depth_valid": torch.cat(valid)}


def _cat_tracks(batches: Sequence[ViewBatch]) -> Tracks | None:
    if all(batch.tracks is None for batch in batches):
        return None
    most = max(batch.tracks.ids.shape[1] for batch in batches if batch.tracks is not None)
    parts: list[Tracks] = []
    for batch in batches:
        found = Tracks.none(batch.n_views, 0, batch.device) if batch.tracks is None else batch.tracks
        room = Tracks.none(batch.n_views, most - found.ids.shape[1], batch.device)
        parts.append(Tracks(*(torch.cat(pair, dim=1) for pair in zip(_parts(found), _parts(room), strict=True))))
    return Tracks(*(torch.cat(same) for same in zip(*map(_parts, parts), strict=True)))


def _parts(tracks: Tracks) -> tuple[Tensor, Tensor, Tensor]:
    return tracks.points, tracks.ids, tracks.xyz
