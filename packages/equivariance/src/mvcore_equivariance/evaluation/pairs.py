"""Pairs of views of an object, the points of the first that the second sees, and where they truly are in it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mvcore_equivariance.evaluation.views import ObjectViews
from mvcore_equivariance.geometry import Camera, lift, look_for


@dataclass(frozen=True)
class Truth:
    """Points of one view and where they are in another.

    Args:
        first, second: rows of the views.
        points: (P, 2) pixel centres in the first.
        truth: (P, 2) in continuous pixels of the second, which sees all of them.
        angles: (P,) degrees between the directions from the surface point to the two cameras.
    """

    first: int
    second: int
    points: Tensor
    truth: Tensor
    angles: Tensor


def draw_pairs(views: int, count: int | None, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Ordered pairs of different views, drawn without repetition; None = all. In order of the second view."""
    total = views * (views - 1)
    chosen = np.arange(total) if count is None or count >= total else rng.choice(total, count, replace=False)
    first, second = np.divmod(chosen, max(views - 1, 1))
    second = second + (second >= first)
    return sorted(zip(first.tolist(), second.tolist(), strict=True), key=lambda pair: pair[::-1])


def true_points(
    views: ObjectViews, first: int, second: int, count: int | None, rng: np.random.Generator
) -> Truth | None:
    """Foreground pixels of one view that another sees, drawn without repetition; None where there is none."""
    row, column = views.foreground[first].nonzero(as_tuple=True)
    centres = torch.stack([column, row], dim=1).double() + 0.5
    (one, camera), (two, other) = (
        (views.depth[k : k + 1].double(), Camera(views.intrinsics[k : k + 1], views.world_to_camera[k : k + 1]))
        for k in (first, second)
    )
    surface = lift(one, camera, centres[None])
    sight = look_for(surface, two, other)
    seen = sight.seen[0].nonzero()[:, 0]
    if count is not None and count < len(seen):
        seen = seen[torch.from_numpy(np.sort(rng.choice(len(seen), count, replace=False)))]
    if not len(seen):
        return None
    angles = _parallax(surface.xyz[0, seen], *views.centres()[[first, second]])
    return Truth(first, second, centres[seen], sight.points[0, seen], angles)


def _parallax(surface: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """(P,) degrees between the directions from surface points (P, 3) to two camera centres (3,)."""
    one, two = first - surface, second - surface
    # atan2 keeps its digits where acos of a cosine near 1 loses them.
    return torch.rad2deg(torch.atan2(torch.linalg.cross(one, two).norm(dim=1), (one * two).sum(1)))
