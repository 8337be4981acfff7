"""A camera's pose from matches of points of space and of an image, some of which are wrong."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from mvcore.api import ConfigError
from numpy.typing import NDArray

_FEWEST = 4
_SCALE = 1000.0
"""EPnP runs on millimetres, as the authors have it."""


class Found(NamedTuple):
    """What RANSAC found.

    Args:
        pose: (4, 4) world to camera, or None where there is none.
        inliers: matches that agree with it.
    """

    pose: NDArray[np.float64] | None
    inliers: int


def solve_pnp(
    points: NDArray[np.float64],
    places: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    *,
    reprojection: float = 8.0,
    iterations: int = 10_000,
    confidence: float = 0.99,
    more_than: int = 5,
) -> Found:
    """EPnP in RANSAC (OpenCV).

    Args:
        points: (M, 3) in metres.
        places: (M, 2) in pixels.
        intrinsics: (3, 3).
        reprojection: pixels up to which a match is an inlier.
        iterations: of RANSAC, at most.
        confidence: at which it stops.
        more_than: a pose needs more inliers than these.

    Returns:
        No pose for fewer than 4 matches, or with too few inliers.

    Raises:
        ConfigError: OpenCV is not installed.
        ValueError: other shapes.
    """
    if points.shape != (len(points), 3) or places.shape != (len(points), 2) or intrinsics.shape != (3, 3):
        raise ValueError(
            f"needs points (M, 3), places (M, 2) and intrinsics (3, 3), not {points.shape}, {places.shape} and "
            f"{intrinsics.shape}"
        )
    try:
        import cv2
    except ImportError:
        raise ConfigError(
            "poses are solved by OpenCV, which is not installed: pip install 'mvcore-equivariance[eval]'"
        ) from None
    if len(points) < _FEWEST:
        return Found(None, 0)
    try:
        good, turn, shift, inliers = cv2.solvePnPRansac(
            points * _SCALE,
            places,
            intrinsics,
            None,
            reprojectionError=reprojection,
            iterationsCount=iterations,
            confidence=confidence,
            flags=cv2.SOLVEPNP_EPNP,
        )
    except cv2.error:  # what it throws for points that all lie in one place
        return Found(None, 0)
    count = 0 if inliers is None or not good else len(inliers)
    if count <= more_than or not (np.isfinite(turn).all() and np.isfinite(shift).all()):
        return Found(None, count)
    pose = np.eye(4)
    pose[:3, :3] = cv2.Rodrigues(turn)[0]
    pose[:3, 3] = shift[:, 0] / _SCALE
    return Found(pose, count)
