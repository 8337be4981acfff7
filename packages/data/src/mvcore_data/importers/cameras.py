"""Cameras of other programs as ours: OpenCV axes, pixels, and the first pixel's centre at (0.5, 0.5)."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Matrix: TypeAlias = NDArray[np.float64]
Size: TypeAlias = tuple[int, int]
"""(height, width)."""

_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_PYTORCH3D = np.diag([-1.0, -1.0, 1.0, 1.0])
# (x, y, z) with z up and the front towards -y, as in Blender, becomes (x, z, -y) with y up and the front towards z.
_FROM_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
_RIGID_TOLERANCE = 1e-3
_MAX_VALUE = 1e30  # stores hold single precision

UpAxis: TypeAlias = Literal["y", "z"]
"""Which axis points up in a source's world; in a store it is y, and objects face z."""


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Matrix:
    """Intrinsics (3, 3) in pixels."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def resized(intrinsics: Matrix, made_for: Size, image: Size) -> Matrix | None:
    """Intrinsics for an image that was resized, or None where its shape says that it was cut or turned.

    Args:
        intrinsics: (3, 3).
        made_for: (height, width) of the image that they are for.
        image: (height, width) of the image at hand.
    """
    if made_for == image:
        return intrinsics
    (height, width), (new_height, new_width) = made_for, image
    if min(height, width) < 1:
        return None
    # Whoever resizes rounds a side to whole pixels; more than that is another shape.
    if abs(new_width - width * new_height / height) > 1 and abs(new_height - height * new_width / width) > 1:
        return None
    return np.diag([new_width / width, new_height / height, 1.0]) @ intrinsics


def usable(intrinsics: Matrix, world_to_camera: Matrix) -> bool:
    """Whether a camera is finite, looks with positive focal lengths, and is a rotation and a translation."""
    # In plain numbers: for matrices this small each call of numpy costs more than all of this.
    (fx, skew, cx), (_, fy, cy), _ = intrinsics.tolist()
    (*a, x), (*b, y), (*c, z), last = world_to_camera.tolist()
    if not all(abs(value) < _MAX_VALUE for value in (fx, skew, cx, fy, cy, *a, *b, *c, x, y, z)):  # NaN is not either
        return False
    lengths = (sum(p * p for p in row) for row in (a, b, c))
    angles = (sum(p * q for p, q in zip(*pair, strict=True)) for pair in ((a, b), (a, c), (b, c)))
    orthonormal = all(abs(length - 1) < _RIGID_TOLERANCE for length in lengths) and all(
        abs(angle) < _RIGID_TOLERANCE for angle in angles
    )
    across = (a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0])
    affine = all(abs(value - k) <= 1e-8 for value, k in zip(last, (0, 0, 0, 1), strict=True))
    return fx > 0 and fy > 0 and affine and orthonormal and sum(p * q for p, q in zip(across, c, strict=True)) > 0


def rigid(rotation: ArrayLike, translation: ArrayLike) -> Matrix:
    """(4, 4) from a rotation (3, 3) and a translation (3,)."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = translation
    return matrix


def from_quaternion(quaternion: ArrayLike, translation: ArrayLike) -> Matrix:
    """(4, 4) from a Hamilton quaternion (w, x, y, z) of any length and a translation; not finite where it has none."""
    q = np.asarray(quaternion, np.float64)
    with np.errstate(all="ignore"):
        w, x, y, z = q / np.linalg.norm(q)
    rotation = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return rigid(rotation, translation)


def y_up(world_to_camera: Matrix, up: UpAxis) -> Matrix:
    """World-to-camera for the same world turned so that y points up."""
    return world_to_camera @ _FROM_Z_UP if up == "z" else world_to_camera


def from_opengl(camera_to_world: Matrix) -> Matrix | None:
    """World-to-camera with OpenCV axes from camera-to-world with OpenGL's (x right, y up, z backward).

    None where it cannot be inverted.
    """
    try:
        return np.linalg.inv(camera_to_world @ _OPENGL).astype(np.float64)
    except np.linalg.LinAlgError:
        return None


def from_pytorch3d(rotation: Matrix, translation: Matrix) -> Matrix:
    """World-to-camera with OpenCV axes from PyTorch3D's: rows `x_camera = x_world @ R + T`, x left, y up, z forward."""
    return _PYTORCH3D @ rigid(rotation.T, translation)


def from_ndc(focal: ArrayLike, principal: ArrayLike, size: Size, *, isotropic: bool) -> Matrix:
    """Intrinsics from PyTorch3D's normalised device coordinates.

    The borders of the image, not the centres of its outer pixels, lie at -1 and 1, so half the size is added without
    a half pixel more.

    Args:
        focal: (fx, fy).
        principal: (px, py), positive to the left and up.
        size: of the image.
        isotropic: the shorter side spans -1 to 1 and the longer one more (PyTorch3D 0.5 and later); else each does.
    """
    half = np.array(size[::-1], np.float64) / 2
    scale = np.full(2, half.min()) if isotropic else half
    fx, fy = np.asarray(focal, np.float64) * scale
    cx, cy = half - np.asarray(principal, np.float64) * scale
    return pinhole(fx, fy, cx, cy)
