"""What the renderer draws: triangles with one kind of colouring."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Surface:
    """A triangle mesh as plain arrays.

    Attributes:
        points: (P, 3) float32.
        faces: (F, 3) int64 rows of points.
        normals: (P, 3) float32, or None to shade each triangle flat.
        colours: (P, 3) uint8 sRGB per point, or None.
        uv: (P, 2) float32 texture coordinates, origin at the lower left, repeating; or None.
        texture: (H, W, 3 or 4) uint8 sRGB, top row first; alpha below a half is cut away; None with no ``uv``.
        colour: sRGB of the whole surface in [0, 1]; multiplies ``texture``, and is unused with ``colours``.
    """

    points: NDArray[np.float32]
    faces: NDArray[np.int64]
    normals: NDArray[np.float32] | None = None
    colours: NDArray[np.uint8] | None = None
    uv: NDArray[np.float32] | None = None
    texture: NDArray[np.uint8] | None = None
    colour: tuple[float, float, float] = (0.8, 0.8, 0.8)


def normalise(surfaces: list[Surface], unit: str) -> list[Surface]:
    """Centre an object and bring its size to one.

    Args:
        surfaces: The object's parts, together in one frame.
        unit: ``sphere`` (the farthest point from the bounding box's centre is at distance 1) or ``longest_side`` (of
            the bounding box).

    Raises:
        ValueError: The object has no finite extent.
    """
    points = np.concatenate([surface.points[np.unique(surface.faces)] for surface in surfaces]).astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = (low + high) / 2
    size = (high - low).max() if unit == "longest_side" else np.linalg.norm(points - centre, axis=1).max()
    if not np.isfinite(size) or size <= 0:
        raise ValueError("it has no extent (all points coincide, or a coordinate is not finite)")
    return [
        replace(surface, points=((surface.points - centre) / size).astype(np.float32, copy=False))
        for surface in surfaces
    ]
