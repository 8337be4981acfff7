"""How much of an object's surface two of its views share, by depth and cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_POINTS = 512
"""Foreground pixels of a view that are looked for in the others, evenly spread: a share is then good to about 0.02."""

TOLERANCE = 4.0
"""Pixel footprints (z / f) by which a point's depth may differ from what the other view has in that pixel.

The pixel's centre is up to 0.7 pixels away, where a surface that is turned away by 80 degrees has changed its depth by
4 footprints.
"""


@dataclass(frozen=True)
class ViewGeometry:
    """A view's depth and camera.

    Args:
        depth: (H, W) z-depth, 0 = background.
        intrinsics: (3, 3) in pixels, pixel centres at +0.5.
        world_to_camera: (4, 4), OpenCV axes.
    """

    depth: NDArray[np.floating]
    intrinsics: NDArray[np.floating]
    world_to_camera: NDArray[np.floating]


def covisibility(views: Sequence[ViewGeometry | None]) -> NDArray[np.float64]:
    """(V, V) share, 0 to 1, of the foreground points of the row's view that the column's view sees.

    A point is seen where it falls into the image, before the camera, and the depth there is its own to within
    `TOLERANCE`. Of a view with more than `MAX_POINTS` foreground pixels, that many stand for all. Rows and columns of a
    view that is None, or whose matrices are no camera's, are 0, and so is the row of a view without foreground.
    """
    views = [view if view is not None and _is_camera(view) else None for view in views]
    points = [np.empty((0, 3)) if view is None else _surface(view) for view in views]
    numbers = [len(part) for part in points]
    owners = np.repeat(np.arange(len(views)), numbers)
    world = np.concatenate([np.empty((0, 3)), *points])
    shares = np.zeros((len(views), len(views)))
    for column, view in enumerate(views):
        if view is not None:
            seen = _sees(view, world)
            shares[:, column] = np.bincount(owners, seen, len(views)) / np.maximum(numbers, 1)
    return shares


def _is_camera(view: ViewGeometry) -> bool:
    focal = np.diagonal(view.intrinsics)[:2]
    return bool((focal > 0).all() and np.linalg.det(view.intrinsics) and np.linalg.det(view.world_to_camera))


def _surface(view: ViewGeometry) -> NDArray[np.float64]:
    """(P, 3) world coordinates of evenly spread foreground pixels."""
    pixels = np.flatnonzero(view.depth > 0)
    if len(pixels) > MAX_POINTS:
        pixels = pixels[np.linspace(0, len(pixels) - 1, MAX_POINTS).round().astype(np.int64)]
    rows, columns = np.divmod(pixels, view.depth.shape[1])
    z = view.depth.reshape(-1)[pixels].astype(np.float64)
    image = np.stack([columns + 0.5, rows + 0.5, np.ones(len(pixels))])
    camera: NDArray[np.float64] = np.linalg.solve(view.intrinsics.astype(np.float64), image) * z
    turn, shift = _motion(view)
    return np.linalg.solve(turn, camera - shift[:, None]).T.astype(np.float64)


def _sees(view: ViewGeometry, world: NDArray[np.float64]) -> NDArray[np.float64]:
    """(P,) 1 for the points that a view sees, else 0."""
    turn, shift = _motion(view)
    camera = world @ turn.T + shift
    z = camera[:, 2]
    before = z > 0
    image = camera @ view.intrinsics.astype(np.float64).T
    at = np.floor(image[:, :2] / np.where(before, z, 1.0)[:, None])
    height, width = view.depth.shape
    inside = before & (at >= 0).all(1) & (at < (width, height)).all(1)
    columns, rows = np.where(inside[:, None], at, 0).astype(np.int64).T
    there = view.depth[rows, columns]
    footprint = z / min(view.intrinsics[0, 0], view.intrinsics[1, 1])
    return (inside & (there > 0) & (np.abs(there - z) <= TOLERANCE * footprint)).astype(np.float64)


def _motion(view: ViewGeometry) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    matrix = view.world_to_camera.astype(np.float64)
    return matrix[:3, :3], matrix[:3, 3]
