"""Solid primitives that the objects are put together from, all as trimesh meshes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import trimesh
from numpy.typing import ArrayLike, NDArray

Point = Sequence[float]
_ROUND = 28  # sides of everything round
_AXES = {"x": (1.0, 0.0, 0.0), "y": (0.0, 1.0, 0.0), "z": (0.0, 0.0, 1.0)}


@dataclass
class Sculpture:
    """An object under construction: parts in one frame (Y up, front +Z), each painted by the name of a slot.

    Attributes:
        shape: The word for its shape in captions.
        parts: Meshes and slots.
    """

    shape: str
    parts: list[tuple[trimesh.Trimesh, str]] = field(default_factory=list)

    def add(
        self, mesh: trimesh.Trimesh, slot: str, at: Point = (0, 0, 0), turn: tuple[str, float] | None = None
    ) -> None:
        """Put a part in place: turned by degrees about an axis through its own origin, then moved."""
        matrix = np.eye(4)
        if turn is not None:
            matrix = trimesh.transformations.rotation_matrix(np.deg2rad(turn[1]), _AXES[turn[0]])
        matrix[:3, 3] = at
        self.parts.append((mesh.copy().apply_transform(matrix), slot))


def box(x: float, y: float, z: float) -> trimesh.Trimesh:
    """A box about the origin."""
    return trimesh.creation.box((x, y, z))


def ball(x: float, y: float | None = None, z: float | None = None) -> trimesh.Trimesh:
    """An ellipsoid with these half axes about the origin."""
    mesh = trimesh.creation.icosphere(subdivisions=3)
    mesh.apply_scale([x, x if y is None else y, x if z is None else z])
    return mesh


def lathe(profile: Sequence[tuple[float, float]]) -> trimesh.Trimesh:
    """The (radius, height) profile turned about Y; bottom to top for an outward surface."""
    mesh = trimesh.creation.revolve(np.array(profile, dtype=np.float64), sections=_ROUND)
    mesh.apply_transform(trimesh.transformations.rotation_matrix(-np.pi / 2, (1, 0, 0)))
    return mesh


def rod(radius: float, height: float, top: float | None = None) -> trimesh.Trimesh:
    """A cylinder, or a cone frustum with radius ``top`` above, standing on the origin along +Y."""
    above = radius if top is None else top
    profile = [(0.0, 0.0), (radius, 0.0), (above, height)]
    return lathe([*profile, (0.0, height)] if above > 0 else profile)


def disc(radius: float, depth: float) -> trimesh.Trimesh:
    """A round plate about the origin whose axis is Z."""
    mesh = trimesh.creation.cylinder(radius=radius, height=depth, sections=_ROUND)
    return mesh


def ring(radius: float, thickness: float) -> trimesh.Trimesh:
    """A torus about the origin whose axis is Z."""
    return trimesh.creation.torus(radius, thickness, major_sections=32, minor_sections=10)


def plate(outline: ArrayLike, depth: float) -> trimesh.Trimesh:
    """A polygon (N, 2) in the XY plane, counter-clockwise, made ``depth`` thick about z = 0."""
    flat = np.asarray(outline, dtype=np.float64)
    count = len(flat)
    front = np.column_stack([flat, np.full(count, depth / 2)])
    back = front * [1, 1, -1]
    caps = _triangulate(flat)
    here, after = np.arange(count), np.roll(np.arange(count), -1)
    sides = np.concatenate(
        [np.stack([here, here + count, after], axis=1), np.stack([after, here + count, after + count], axis=1)]
    )
    faces = np.concatenate([caps, caps[:, ::-1] + count, sides])
    return trimesh.Trimesh(np.concatenate([front, back]), faces, process=False)


def tube(path: ArrayLike, radius: float | Sequence[float]) -> trimesh.Trimesh:
    """A round tube with closed ends along a path (N, 3), with one radius or one per point."""
    points = np.asarray(path, dtype=np.float64)
    tangents = np.gradient(points, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    normal = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)[:, None]
    rings = []
    for point, tangent, size in zip(points, tangents, np.broadcast_to(radius, len(points)), strict=True):
        normal = normal - tangent * (normal @ tangent)  # carried along the path, so the tube does not twist
        normal = normal / np.linalg.norm(normal)
        rings.append(point + size * (np.cos(angles) * normal + np.sin(angles) * np.cross(tangent, normal)))
    sides, count = len(angles), len(points)
    here = (np.arange(count - 1)[:, None] * sides + np.arange(sides)).ravel()
    after = (np.arange(count - 1)[:, None] * sides + np.roll(np.arange(sides), -1)).ravel()
    walls = [np.stack([here, after, here + sides], axis=1), np.stack([after, after + sides, here + sides], axis=1)]
    first, last = count * sides, count * sides + 1
    edge, beyond = np.arange(sides), np.roll(np.arange(sides), -1)
    lids = [np.stack([np.full(sides, first), beyond, edge], axis=1)]
    offset = (count - 1) * sides
    lids.append(np.stack([np.full(sides, last), edge + offset, beyond + offset], axis=1))
    vertices = np.concatenate([*rings, points[:1], points[-1:]])
    return trimesh.Trimesh(vertices, np.concatenate([*walls, *lids]), process=False)


def line(start: Point, end: Point, radius: float) -> trimesh.Trimesh:
    """A straight tube."""
    return tube([start, end], radius)


def arc(centre: Point, radius: tuple[float, float], start: float, end: float, points: int = 16) -> NDArray[np.float64]:
    """Points (N, 3) of an elliptic arc in the XY plane, angles in degrees from +X."""
    angle = np.deg2rad(np.linspace(start, end, points))
    return np.array(centre) + np.stack([radius[0] * np.cos(angle), radius[1] * np.sin(angle), 0 * angle], axis=1)


def smooth(points: ArrayLike, steps: int = 3) -> NDArray[np.float64]:
    """A closed outline with its corners cut off again and again (Chaikin 1974)."""
    outline = np.asarray(points, dtype=np.float64)
    for _ in range(steps):
        after = np.roll(outline, -1, axis=0)
        outline = np.stack([0.75 * outline + 0.25 * after, 0.25 * outline + 0.75 * after], axis=1).reshape(-1, 2)
    return outline


def _triangulate(outline: NDArray[np.float64]) -> NDArray[np.int64]:
    """Ear clipping of a simple counter-clockwise polygon (N, 2) to (N - 2, 3) indices."""
    remaining = list(range(len(outline)))
    faces: list[tuple[int, int, int]] = []
    while len(remaining) > 3:
        place = next((k for k in range(len(remaining)) if _is_ear(outline, remaining, k)), None)
        if place is None:
            raise ValueError("the outline crosses itself or runs clockwise")
        faces.append((remaining[place - 1], remaining[place], remaining[(place + 1) % len(remaining)]))
        del remaining[place]
    return np.array([*faces, tuple(remaining)], dtype=np.int64)


def _is_ear(outline: NDArray[np.float64], remaining: list[int], k: int) -> bool:
    triple = [remaining[k - 1], remaining[k], remaining[(k + 1) % len(remaining)]]
    a, b, c = outline[triple]
    if _cross(a, b, c) <= 1e-12:
        return False
    others = outline[[index for index in remaining if index not in triple]]
    inside = (_cross(a, b, others) >= 0) & (_cross(b, c, others) >= 0) & (_cross(c, a, others) >= 0)
    return not bool(inside.any())


def _cross(a: NDArray[np.float64], b: NDArray[np.float64], p: NDArray[np.float64]) -> NDArray[np.float64]:
    return (b[0] - a[0]) * (p[..., 1] - a[1]) - (b[1] - a[1]) * (p[..., 0] - a[0])
