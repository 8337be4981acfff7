"""Named camera rigs: where the cameras of a render stand, and the matrices that follow from it.

Convention: objects are Y-up and face +Z. Azimuth 0 is a camera on +Z, a positive azimuth turns it towards +X, a
positive elevation lifts it: ``position = r * (cos(el) sin(az), sin(el), cos(el) cos(az))``. Camera axes are OpenCV's
(x right, y down, z forward) and pixel centres lie at +0.5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from mvcore.api import ConfigError
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

FRONTAL_AZIMUTH = (-20.0, 20.0)
FRONTAL_ELEVATION = (0.0, 20.0)

# The field of view of the rigs that are ours; the distance lets a sphere of radius 1 just fit into the picture.
_FIELD_OF_VIEW = 30.0
_DISTANCE = float(1.02 / np.sin(np.deg2rad(_FIELD_OF_VIEW / 2)))
# A 35 mm lens on a 32 mm sensor, which Objaverse's rendering script and its many descendants have.
_OBJAVERSE_FIELD_OF_VIEW = float(np.rad2deg(2 * np.arctan(16 / 35)))


@dataclass(frozen=True)
class Viewpoints:
    """Where the cameras of one object stand.

    Attributes:
        angles: (V, 2) azimuth and elevation in degrees.
        distances: (V,) from the camera to the object's centre, in object units.
    """

    angles: FloatArray
    distances: FloatArray

    def positions(self) -> FloatArray:
        """(V, 3) camera positions in world axes."""
        azimuth, elevation = np.deg2rad(self.angles).T
        level = np.cos(elevation)
        direction = np.stack([level * np.sin(azimuth), np.sin(elevation), level * np.cos(azimuth)], axis=1)
        return self.distances[:, None] * direction


@dataclass(frozen=True)
class Rig:
    """Cameras around an object that is normalised in a given way; made by `make_rig`.

    Attributes:
        name: The rig's name.
        views: Views an object.
        field_of_view: Full vertical and horizontal angle, degrees.
        unit: What the object's size of one means: the radius of its bounding ``sphere`` or its ``longest_side``.
        seed: Of a random rig: its viewpoints follow from this and the object's id; None where all objects share them.
    """

    name: str
    views: int
    field_of_view: float
    unit: str
    seed: int | None = None

    def viewpoints(self, object_id: str = "") -> Viewpoints:
        """Where the cameras stand around the object of that id."""
        digest = hashlib.sha256(f"{self.name}\0{self.seed}\0{object_id}".encode()).digest()
        return _RIGS[self.name].place(self.views, np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big"))))

    def cameras(self, size: int, object_id: str = "") -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Intrinsics (V, 3, 3) of square pictures of ``size`` pixels and ``world_to_camera`` (V, 4, 4), float32."""
        extrinsics = np.stack([look_at(position) for position in self.viewpoints(object_id).positions()])
        return (
            np.repeat(intrinsics(size, self.field_of_view)[None], len(extrinsics), axis=0).astype(np.float32),
            extrinsics.astype(np.float32),
        )


def intrinsics(size: int, field_of_view: float) -> FloatArray:
    """The (3, 3) pinhole matrix of a square picture; the axis meets it in its middle, ``(size / 2, size / 2)``."""
    focal = size / 2 / np.tan(np.deg2rad(field_of_view) / 2)
    return np.array([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def look_at(position: FloatArray, target: FloatArray | None = None) -> FloatArray:
    """The (4, 4) ``world_to_camera`` of a camera at ``position`` (3,) that looks at ``target`` with +Y up."""
    forward = (np.zeros(3) if target is None else target) - position
    forward = forward / np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    if np.linalg.norm(right) < 1e-6:  # straight above or below: keep the picture's right on +X
        right = np.array([1.0, 0.0, 0.0]) - forward[0] * forward
    right = right / np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ position
    return matrix


def _ring(views: int) -> FloatArray:
    azimuth = np.arange(views) * 360.0 / views
    return np.stack([azimuth, np.full(views, 15.0)], axis=1)


def _upper(views: int) -> FloatArray:
    """A Fibonacci spiral over the upper half sphere, elevations evenly spaced in their sine from 0 to 80 degrees."""
    steps = (np.arange(views) + 0.5) / views
    elevation = np.rad2deg(np.arcsin(steps * np.sin(np.deg2rad(80))))
    azimuth = np.arange(views) * 180.0 * (3 - np.sqrt(5))
    return np.stack([azimuth % 360, elevation], axis=1)


def _icosphere42(views: int) -> FloatArray:
    """The 12 vertices of an icosahedron and the 30 middles of its edges, on the sphere."""
    golden = (1 + np.sqrt(5)) / 2
    corners = np.array([(0, a, b * golden) for a in (-1.0, 1.0) for b in (-1.0, 1.0)])
    corners = np.concatenate([np.roll(corners, turn, axis=1) for turn in range(3)])
    first, second = np.nonzero(np.triu(np.isclose(np.linalg.norm(corners[:, None] - corners, axis=2), 2.0)))
    points = np.concatenate([corners, (corners[first] + corners[second]) / 2])
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    angles = _angles(points)
    return angles[np.lexsort((angles[:, 0].round(6), -angles[:, 1].round(6)))]


def _mvc36(views: int) -> FloatArray:
    """Three elevations of twelve azimuths (or every second one), view 0 on +X, view ``j * azimuths + i``."""
    step = 360.0 * 3 / views
    azimuth = (90.0 + np.arange(views // 3) * step) % 360
    return np.array([(a, e) for e in (70.0, 40.0, 10.0) for a in azimuth])


def _demo24(views: int) -> FloatArray:
    """Views 0 to 3 are frontal (four views: these alone); the other 20 go once round, elevations -30 to 70 mixed."""
    frontal = np.array([(0.0, 10.0), (-16.0, 4.0), (16.0, 7.0), (-5.0, 18.0)])
    turn = np.arange(20.0)
    elevation = -30.0 + 100.0 * ((turn * 7 + 4) % 20) / 19
    return np.concatenate([frontal, np.stack([turn * 18.0, elevation], axis=1)])[:views]


def _zero123(views: int, rng: np.random.Generator) -> Viewpoints:
    """All round: a point of a cube, brought to a distance of 1.5 to 2.2, so directions crowd towards its corners.

    As ``sample_spherical`` and ``set_camera_location`` do in objaverse-rendering/scripts/blender_script.py of
    github.com/cvlab-columbia/zero123 (Liu et al., Zero-1-to-3, ICCV 2023), which rendered 12 views an object.
    """
    drawn = rng.random((views, 4))
    direction = drawn[:, :3] * 2 - 1
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return Viewpoints(_angles(direction), 1.5 + 0.7 * drawn[:, 3])


def _random_upper(views: int, rng: np.random.Generator) -> Viewpoints:
    """Uniform over the upper half sphere, as Omniview-Tuning's MVCap has 100 views of each Objaverse object."""
    drawn = rng.random((views, 2))
    angles = np.stack([360 * drawn[:, 0], np.rad2deg(np.arcsin(drawn[:, 1]))], axis=1)
    return Viewpoints(angles, np.full(views, _DISTANCE))


def _angles(direction: FloatArray) -> FloatArray:
    """Azimuth in [0, 360) and elevation (V, 2), in degrees, of unit vectors (V, 3)."""
    azimuth = np.rad2deg(np.arctan2(direction[:, 0], direction[:, 2])) % 360
    return np.stack([azimuth, np.rad2deg(np.arcsin(direction[:, 1].clip(-1, 1)))], axis=1)


_Place = Callable[[int, np.random.Generator], Viewpoints]


def _fixed(angles: Callable[[int], FloatArray], distance: float = _DISTANCE) -> _Place:
    """The same viewpoints for every object."""
    return lambda views, _: Viewpoints(angles(views), np.full(views, distance))


@dataclass(frozen=True)
class _RigSpec:
    place: _Place
    default: int
    numbers: tuple[int, ...] = ()  # of views that it has; empty = any
    field_of_view: float = _FIELD_OF_VIEW
    unit: str = "sphere"
    random: bool = False


_RIGS = {
    "ring": _RigSpec(_fixed(_ring), 12),
    "upper": _RigSpec(_fixed(_upper), 24),
    "random-upper-100": _RigSpec(_random_upper, 100, random=True),
    "icosphere42": _RigSpec(_fixed(_icosphere42), 42, (42,)),
    "mvc36": _RigSpec(_fixed(_mvc36, 1.5), 36, (36, 18), _OBJAVERSE_FIELD_OF_VIEW, "longest_side"),
    "mvc18": _RigSpec(_fixed(_mvc36, 1.5), 18, (18,), _OBJAVERSE_FIELD_OF_VIEW, "longest_side"),
    "zero123-12": _RigSpec(_zero123, 12, (), _OBJAVERSE_FIELD_OF_VIEW, "longest_side", random=True),
    "demo24": _RigSpec(_fixed(_demo24), 24, (24, 4)),
}

RIG_NAMES = tuple(_RIGS)


def make_rig(name: str, views: int | None = None, seed: int = 0) -> Rig:
    """The rig of that name.

    Args:
        name: One of `RIG_NAMES`.
        views: How many viewpoints; None for the rig's own number.
        seed: Of the viewpoints of a random rig.

    Raises:
        ConfigError: The name is unknown or the rig has no such number of views.
    """
    if name not in _RIGS:
        raise ConfigError(f"unknown camera rig {name!r}; choose one of {', '.join(RIG_NAMES)}")
    spec = _RIGS[name]
    count = spec.default if views is None else views
    if spec.numbers and count not in spec.numbers:
        known = " or ".join(str(number) for number in spec.numbers)
        raise ConfigError(
            f"camera rig {name!r} has {known} views, not {count}; use --views {spec.numbers[0]} or another rig"
        )
    if not 1 <= count <= 4096:
        raise ConfigError(f"camera rig {name!r} with {count} views: the number of views must be from 1 to 4096")
    return Rig(name, count, spec.field_of_view, spec.unit, seed if spec.random else None)
