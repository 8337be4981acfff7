"""What the renderer draws: triangles with one kind of colouring."""

from __future__ import annotations

from collections.abc import Sequence
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

    def without_material(self) -> Surface:
        """The same shape in plain grey, nothing of it cut away."""
        return Surface(self.points, self.faces, self.normals)


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


def without_doubles(surfaces: Sequence[Surface]) -> list[Surface]:
    """Only the last of triangles that lie on the same three points, whichever way round.

    Meshes for the Web often have each triangle of a thin part twice, once for each side.
    """
    corners = np.concatenate([surface.points[surface.faces] for surface in surfaces])
    corners = np.ascontiguousarray(corners + np.float32(0))  # minus zero is zero
    order = np.lexsort(corners.transpose(2, 0, 1)[::-1], axis=1)
    ordered = np.take_along_axis(corners, order[..., None], axis=1).reshape(len(corners), 9)
    _, last = np.unique(ordered[::-1], axis=0, return_index=True)
    kept = np.zeros(len(corners), np.bool_)
    kept[len(corners) - 1 - last] = True
    ends = np.cumsum([len(surface.faces) for surface in surfaces])[:-1]
    parts = zip(surfaces, np.split(kept, ends), strict=True)
    return [replace(surface, faces=surface.faces[keep]) for surface, keep in parts if keep.any()]


def to_srgb(linear: NDArray[np.floating]) -> NDArray[np.floating]:
    """Colours in linear light, 0 to 1, as sRGB (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def to_linear(srgb: NDArray[np.floating]) -> NDArray[np.floating]:
    """sRGB colours, 0 to 1, in linear light."""
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
