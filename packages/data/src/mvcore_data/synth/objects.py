"""The procedural objects: a category and a number give the same surfaces and captions on every machine."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import trimesh
from numpy.random import Generator, default_rng

from mvcore_data.render.shading import shade
from mvcore_data.render.surfaces import Surface, normalise
from mvcore_data.synth import household, outdoors
from mvcore_data.synth.captions import describe
from mvcore_data.synth.names import CATEGORIES
from mvcore_data.synth.paint import Paint, draw_paint
from mvcore_data.synth.shapes import Sculpture

_BUILDERS: dict[str, Callable[[Generator], Sculpture]] = {
    name: getattr(module, name) for name in CATEGORIES for module in (household, outdoors) if hasattr(module, name)
}


@dataclass(frozen=True)
class SyntheticObject:
    """One object: its parts (bounding sphere of radius 1 about the origin) and its captions."""

    surfaces: list[Surface]
    captions: tuple[str, ...]


def make_object(category: str, number: int, seed: int) -> SyntheticObject:
    """The object with that number; it depends on nothing but the three arguments."""
    rng = default_rng([seed, zlib.crc32(category.encode()), number])
    sculpture = _BUILDERS[category](rng)
    paint = draw_paint(rng)
    surfaces = normalise([_surface(mesh) for mesh, _ in sculpture.parts], "sphere")
    slots = [slot for _, slot in sculpture.parts]
    painted = [_painted(surface, slot, paint) for surface, slot in zip(surfaces, slots, strict=True)]
    return SyntheticObject(painted, describe(category, sculpture.shape, paint, rng))


def _surface(mesh: trimesh.Trimesh) -> Surface:
    return shade(Surface(np.asarray(mesh.vertices, np.float32), np.asarray(mesh.faces, np.int64)))


def _painted(surface: Surface, slot: str, paint: Paint) -> Surface:
    if slot != "main":
        return Surface(surface.points, surface.faces, surface.normals, colour=paint.slots[slot])
    return Surface(
        surface.points, surface.faces, surface.normals, uv=_box_projection(surface, paint.scale),
        texture=paint.texture, colour=(1.0, 1.0, 1.0),
    )  # fmt: skip


def _box_projection(surface: Surface, scale: float) -> np.ndarray:
    """Texture coordinates (P, 2): each triangle sees the texture along the axis that it faces most."""
    corners = surface.points.reshape(-1, 3, 3)
    facing = np.abs(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])).argmax(axis=1)
    axes = np.array([(2, 1), (0, 2), (0, 1)])[facing]
    uv = np.take_along_axis(corners, axes[:, None, :].repeat(3, axis=1), axis=2) * scale
    return uv.reshape(-1, 2).astype(np.float32)
