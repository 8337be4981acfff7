"""Points of two views of an object that show the same place, drawn from depth and cameras.

Shapes hang on the options alone and nothing waits for the device: what was drawn and is not there is marked. Draws come
from torch's default generator of the device, which a run seeds in every step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from mvcore.api import ViewBatch
from torch import Tensor

from mvcore_equivariance.geometry import Camera, Surface, between_centres, lift, look_for

_INSIDE = 0.99
"""Part of a pixel, about its centre, in which a point is drawn: at its edge, rounding decides which pixel it is in."""


class View(NamedTuple):
    """One view of each of B objects.

    Args:
        depth: (B, H, W) of the foreground; 0 elsewhere.
        camera: of the B views.
    """

    depth: Tensor
    camera: Camera


class Spots(NamedTuple):
    """P points of one view of each of B objects.

    Args:
        points: (B, P, 2) in continuous pixels.
        xyz: (B, P, 3) in world units.
        footprint: (B, P) what a pixel covers there, in world units.
        valid: (B, P) bool, which points there are.
    """

    points: Tensor
    xyz: Tensor
    footprint: Tensor
    valid: Tensor


class Correspondences(NamedTuple):
    """Points of the first and of the second view of B objects.

    Args:
        source: S points of the first view.
        target: T points of the second.
        own: (B, S) bool: target k shows the very place of source k, to within what depth tells; None where points were
            drawn in both views by themselves.
    """

    source: Spots
    target: Spots
    own: Tensor | None


def pairs_of(batch: ViewBatch, *, masks: bool) -> tuple[View, View]:
    """First and second views of a batch that has two of each object.

    Foreground is what has depth and, with `masks`, lies in the mask; a view without depth or camera has none.

    Raises:
        ValueError: an object with another number of views, or no depth or no cameras at all.
    """
    if any(count != 2 for count in batch.counts):
        raise ValueError(
            f"needs two views of each object, got {list(batch.counts)}; set the source's sampling to pairs"
        )
    cameras, depth = batch.cameras, batch.depth
    if cameras is None or depth is None:
        raise ValueError("needs a batch with depth and cameras")
    there = torch.ones_like(depth, dtype=torch.bool)
    for known in (batch.camera_valid, batch.depth_valid):
        if known is not None:
            there &= known[:, None, None]
    if masks and batch.masks is not None:
        there &= batch.masks
    depth = torch.where(there & depth.isfinite() & (depth > 0), depth, 0)
    first, second = (View(depth[k::2], Camera(cameras.intrinsics[k::2], cameras.world_to_camera[k::2])) for k in (0, 1))
    return first, second


def draw_pixels(foreground: Tensor, count: int, *, centres: bool = False) -> tuple[Tensor, Tensor]:
    """Points of different foreground pixels, uniform over them.

    Args:
        foreground: (B, H, W) bool.
        count: how many; at most H W are drawn.
        centres: at the pixels' centres; else anywhere in them.

    Returns:
        (B, P, 2) points and (B, P) bool whether they are: an image with fewer foreground pixels gives each of them.
    """
    width = foreground.shape[2]
    shown = foreground.flatten(1)
    keys = torch.where(shown, torch.rand(shown.shape, device=shown.device), -1)
    keys, index = keys.topk(min(count, shown.shape[1]), dim=1)
    corner = torch.stack([index % width, index // width], dim=-1)
    within = torch.zeros(corner.shape, device=shown.device)
    if not centres:
        within = (torch.rand(corner.shape, device=shown.device) - 0.5) * _INSIDE
    return corner + 0.5 + within, keys >= 0


def projected(first: View, second: View, points: int, further: int) -> Correspondences:
    """Points of the first view, each with its place in the second: exact to a part of a pixel where it is seen there.

    The authors draw in both views by themselves (`released`), so that most points find no partner.

    Args:
        points: how many are drawn in the first view.
        further: how many more are drawn in the second view, as targets that are nobody's own.
    """
    drawn, surface = _draw(first, points)
    sight = look_for(surface, second.depth, second.camera)
    others = _spots(*_draw(second, further))
    found = Spots(sight.points, surface.xyz, sight.footprint, sight.seen)
    target = Spots(*(torch.cat(parts, dim=1) for parts in zip(found, others, strict=True)))
    return Correspondences(_spots(drawn, surface), target, sight.seen)


def released(first: View, second: View, points: int) -> Correspondences:
    """As the authors draw: pixels' centres in each view by itself, to be matched by distance, whether seen or not.

    They draw with repetition from a mask of fewer pixels than points; here each of its pixels is drawn once.
    """
    source, target = (_spots(*_draw(view, points, centres=True)) for view in (first, second))
    return Correspondences(source, target, None)


def extent(correspondences: Correspondences) -> Tensor:
    """(B, 1) the longest side of the box, along the world's axes, about all points of both views; 0 without any."""
    xyz, valid = (
        torch.cat([getattr(spots, name) for spots in correspondences[:2]], dim=1) for name in ("xyz", "valid")
    )
    low, high = (torch.where(valid[..., None], xyz, far) for far in (torch.inf, -torch.inf))
    return (high.amax(1) - low.amin(1)).amax(1, keepdim=True).clamp(min=0)


def _draw(view: View, count: int, *, centres: bool = False) -> tuple[Tensor, Surface]:
    """Points of the foreground and what they show."""
    points, valid = draw_pixels(view.depth > 0, count, centres=centres)
    if not centres:
        exact = between_centres(view.depth, view.camera, points)[..., None]
        points = torch.where(exact, points, points.floor() + 0.5)
    surface = lift(view.depth, view.camera, points)
    return points, surface._replace(valid=surface.valid & valid)


def _spots(points: Tensor, surface: Surface) -> Spots:
    return Spots(points, surface.xyz, surface.footprint, surface.valid)
