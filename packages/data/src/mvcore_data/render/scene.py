"""What every renderer draws alike: the lights, and the range of depth around an object.

Lights are directional. They are fixed to the world, or to the camera: then they stand around each camera as they stand
in the world around a level camera on +Z, so that pictures from there are the same either way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvcore_data.render.surfaces import Surface

# Strength of the light that comes from everywhere: what a white surface shows where no other light falls.
AMBIENT = 0.22


@dataclass(frozen=True)
class Light:
    """A light from far away.

    Attributes:
        towards: (x, y, z) of the direction from the object to the light, of any length.
        strength: What it adds to a white surface that faces it; 1 is white.
    """

    towards: tuple[float, float, float]
    strength: float


# Key from the upper front right, fill from the left, rim from behind, a weak one from below so that no side is black.
LIGHTS = (
    Light((2.0, 3.0, 4.0), 0.62),
    Light((-4.0, 1.0, 2.0), 0.30),
    Light((0.5, 2.0, -4.0), 0.38),
    Light((0.0, -4.0, 0.5), 0.18),
)

_LEVEL_CAMERA = np.diag([1.0, -1.0, -1.0])  # world to camera, on +Z, in OpenCV's axes


def light_directions(fixed_to: str, world_to_camera: NDArray[np.float64]) -> NDArray[np.float64]:
    """Unit vectors (L, 3) in world axes from the object to each of `LIGHTS`, as one camera sees them.

    Args:
        fixed_to: ``world`` or ``camera``.
        world_to_camera: (4, 4).
    """
    towards = np.array([light.towards for light in LIGHTS])
    towards /= np.linalg.norm(towards, axis=1, keepdims=True)
    if fixed_to == "world":
        return towards
    return towards @ _LEVEL_CAMERA.T @ world_to_camera[:3, :3]


def reach_of(surfaces: Sequence[Surface]) -> float:
    """The distance of the farthest point from the origin."""
    return max(float(np.linalg.norm(surface.points, axis=1).max()) for surface in surfaces)


def depth_range(world_to_camera: NDArray[np.float64], reach: float) -> tuple[float, float]:
    """The nearest and the farthest z-depth that a camera need see of an object."""
    distance = float(world_to_camera[2, 3])
    return max(distance - reach * 1.01, distance * 1e-3), distance + reach * 1.01
