"""Where a camera stands around an object.

Objects stand Y-up, as in glTF. Azimuth 0 is a camera on +Z that looks at the origin (the frontal view); a positive
azimuth turns the camera towards +X, a positive elevation lifts it:
`position = r * (cos(el) * sin(az), sin(el), cos(el) * cos(az))`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

TOLERANCE = 1e-2
"""Degrees by which a viewpoint may miss a range: cameras are stored in float32."""


def azimuth_elevation(world_to_camera: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Viewpoints of cameras, in degrees.

    Args:
        world_to_camera: (..., 4, 4), rotation and translation.

    Returns:
        Azimuth (...) in (-180, 180] and elevation (...) in [-90, 90]. A camera straight above or below has azimuth 0.

    Raises:
        ValueError: another shape.
    """
    matrix = np.asarray(world_to_camera, np.float64)
    if matrix.shape[-2:] != (4, 4):
        raise ValueError(f"world_to_camera must be (..., 4, 4), not {matrix.shape}")
    x, y, z = np.moveaxis(-np.einsum("...ji,...j->...i", matrix[..., :3, :3], matrix[..., :3, 3]), -1, 0)
    level = np.hypot(x, z)
    above = level <= 1e-7 * np.abs(y)
    azimuth = np.where(above, 0.0, np.degrees(np.arctan2(x, z)))
    return np.where(azimuth <= -180, 180.0, azimuth), np.degrees(np.arctan2(y, level))


def within(angles: ArrayLike, ranges: list[tuple[float, float]]) -> NDArray[np.bool_]:
    """Which angles in degrees lie in one of the ranges [lowest, highest], round the circle: [170, -170] is 20 wide."""
    angles = np.asarray(angles, np.float64)
    inside = np.zeros(angles.shape, np.bool_)
    for low, high in ranges:
        width = 360.0 if high - low >= 360 else (high - low) % 360
        inside |= (angles - low + TOLERANCE) % 360 <= width + 2 * TOLERANCE
    return inside
