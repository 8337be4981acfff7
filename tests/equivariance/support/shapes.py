"""Spheres seen by pinhole cameras, ray by ray in float64: depth, which sphere, and what is painted on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from mvcore_data.rigs import look_at
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sphere:
    centre: tuple[float, float, float] = (0.0, 0.0, 0.0)
    radius: float = 0.5


@dataclass(frozen=True)
class Seen:
    """A view: `depth` (H, W) with 0 for none, `which` (H, W) sphere with -1 for none, `pixels` (H, W, 3) uint8."""

    depth: Array
    which: NDArray[np.int64]
    pixels: NDArray[np.uint8]
    intrinsics: Array
    world_to_camera: Array


def camera_at(azimuth: float, elevation: float = 0.0, distance: float = 2.0) -> Array:
    """The (4, 4) matrix of a camera that looks at the origin; angles in degrees."""
    a, e = np.radians(azimuth), np.radians(elevation)
    return look_at(distance * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)]))


def pinhole(size: int, focal: float = 560 / 512) -> Array:
    """(3, 3) of a square image; the focal length in sides, by default the authors' lens."""
    return np.array([[focal * size, 0, size / 2], [0, focal * size, size / 2], [0, 0, 1.0]])


def hit(spheres: list[Sphere], origin: Array, rays: Array) -> tuple[Array, NDArray[np.int64]]:
    """How far along each ray (..., 3) the first sphere is, infinite for none, and which."""
    nearest, which = np.full(rays.shape[:-1], np.inf), np.full(rays.shape[:-1], -1)
    for number, sphere in enumerate(spheres):
        apart = np.array(sphere.centre) - origin
        a, b, c = (rays**2).sum(-1), rays @ apart, apart @ apart - sphere.radius**2
        root = b**2 - a * c
        along = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)
        closer = (along > 0) & (along < nearest)
        nearest, which = np.where(closer, along, nearest), np.where(closer, number, which)
    return nearest, which


def paint(x: Array) -> NDArray[np.uint8]:
    """A colour for each place in space, the same from everywhere: smooth, and no two places near each other alike."""
    waves = [np.sin(x @ np.array(w) * 7 + k) for k, w in enumerate([(1, 2, 0.5), (-1.5, 1, 1), (0.3, -1, 2.2)])]
    return np.round(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def see(spheres: list[Sphere], world_to_camera: Array, size: int) -> Seen:
    """What a camera shows of spheres, at its pixels' centres."""
    intrinsics = pinhole(size)
    turn, shift = world_to_camera[:3, :3], world_to_camera[:3, 3]
    grid = np.arange(size) + 0.5
    image = np.stack([*np.meshgrid(grid, grid), np.ones((size, size))], -1)
    local = image @ np.linalg.inv(intrinsics).T  # of z-depth 1
    depth, which = hit(spheres, -turn.T @ shift, local @ turn)
    there = which >= 0
    depth = np.where(there, depth, 0)
    world = (local * depth[..., None] - shift) @ turn
    pixels = np.where(there[..., None], paint(world), 0).astype(np.uint8)
    return Seen(depth, which, pixels, intrinsics, world_to_camera)


def truly_sees(spheres: list[Sphere], x: Array, world_to_camera: Array, size: int) -> NDArray[np.bool_]:
    """(P,) whether a camera sees points (P, 3) of the spheres' surfaces: inside the image and hidden by nothing."""
    turn, shift = world_to_camera[:3, :3], world_to_camera[:3, 3]
    local = x @ turn.T + shift
    image = local @ pinhole(size).T
    at = image[:, :2] / image[:, 2:]
    inside = (local[:, 2] > 0) & (at >= 0).all(1) & (at < size).all(1)
    origin = -turn.T @ shift
    along, _ = hit(spheres, origin, x - origin)
    return inside & (along > 1 - 1e-6)
