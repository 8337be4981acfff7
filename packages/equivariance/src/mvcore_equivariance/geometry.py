"""Points of a view's depth in space, their place in another view, and whether it sees them.

Cameras are OpenCV's (x right, y down, z forward), points (x, y) in continuous pixels with pixel centres at +0.5, depth
is z-depth with 0 where there is none. A pixel's footprint is z / f: what it covers, across the line of sight, at depth
z. NaN and infinite depth count as none. A point that is not there is NaN in `lift_depth` and `project`; in the batched
functions for training it is 0 beside a False, so that no NaN ever reaches a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_STEEPEST = 8.0
"""Change of depth from a pixel to the next, in footprints, up to which both may lie on one surface: one that is turned
away by 83 degrees."""

_CENTRE = 0.5


class Camera(NamedTuple):
    """Cameras of B views.

    Args:
        intrinsics: (B, 3, 3) in pixels.
        world_to_camera: (B, 4, 4).
    """

    intrinsics: Tensor
    world_to_camera: Tensor

    def sound(self) -> Tensor:
        """(B,) bool: all numbers are finite, focal lengths are positive and both matrices have an inverse."""
        matrices = (self.intrinsics, self.world_to_camera[:, :3, :3])
        focal = torch.diagonal(self.intrinsics, dim1=1, dim2=2)[:, :2]
        good = (focal > 0).all(1) & self.world_to_camera.isfinite().flatten(1).all(1)
        for matrix in matrices:
            volume = torch.linalg.det(matrix).abs()
            good &= matrix.isfinite().flatten(1).all(1) & (volume > torch.finfo(matrix.dtype).tiny)
        return good

    def made_sound(self) -> Camera:
        """The same, with identities in the place of what is no camera."""
        sound = self.sound()[:, None, None]
        own = (torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device) for matrix in self)
        return Camera(*(torch.where(sound, matrix, eye) for matrix, eye in zip(self, own, strict=True)))


class Surface(NamedTuple):
    """What P points of each of B images show.

    Args:
        xyz: (B, P, 3) in world units; 0 where nothing is shown.
        normal: (B, P, 3) of length 1, towards the camera; 0 where the neighbouring pixels do not tell.
        footprint: (B, P) what a pixel covers there, in world units.
        valid: (B, P) bool, whether something is shown.
    """

    xyz: Tensor
    normal: Tensor
    footprint: Tensor
    valid: Tensor


class Sight(NamedTuple):
    """P points of space as B views see them.

    Args:
        points: (B, P, 2) in continuous pixels; 0 for a point that is not before the camera.
        footprint: (B, P) what a pixel covers there, in world units.
        seen: (B, P) bool, whether the view shows them.
    """

    points: Tensor
    footprint: Tensor
    seen: Tensor


def lift_depth(depth: Tensor, intrinsics: Tensor, world_to_camera: Tensor, points: Tensor) -> Tensor:
    """The points of space that points of an image show: `inv(T) (z inv(K) (x, y, 1))`.

    At a pixel's centre z is that pixel's depth. Between centres 1 / z is interpolated bilinearly, which is exact on a
    plane, where the four pixels around are of one surface; else z is that of the pixel that the point lies in.

    Args:
        depth: (H, W), or (..., H, W).
        intrinsics: (3, 3), or (..., 3, 3).
        world_to_camera: (4, 4), or (..., 4, 4).
        points: (P, 2), or (..., P, 2).

    Returns:
        (P, 3), or (..., P, 3); NaN for a point outside of the image or without depth.

    Raises:
        ValueError: wrong shapes, or matrices that are no camera's.
    """
    lead = depth.shape[:-2]
    shapes = (intrinsics.shape, world_to_camera.shape, points.shape[:-2] + points.shape[-1:])
    if depth.ndim < 2 or points.ndim < 2 or shapes != ((*lead, 3, 3), (*lead, 4, 4), (*lead, 2)):
        found = ", ".join(str(tuple(value.shape)) for value in (depth, intrinsics, world_to_camera, points))
        raise ValueError(f"needs depth (H, W), matrices (3, 3) and (4, 4) and points (P, 2), got {found}")
    camera = _checked(intrinsics, world_to_camera)
    local, valid = _lift(depth.reshape(-1, *depth.shape[-2:]), camera, points.reshape(-1, *points.shape[-2:]))
    world = _to_world(local, camera)
    return torch.where(valid[..., None], world, torch.nan).reshape(*points.shape[:-1], 3)


def project(x: Tensor, intrinsics: Tensor, world_to_camera: Tensor) -> tuple[Tensor, Tensor]:
    """Where a camera sees points of space.

    Args:
        x: (P, 3), or (..., P, 3).
        intrinsics: (3, 3), or (..., 3, 3).
        world_to_camera: (4, 4), or (..., 4, 4).

    Returns:
        Points (P, 2) in continuous pixels, NaN for what is not before the camera; and z-depth (P,), negative behind it.

    Raises:
        ValueError: wrong shapes, or matrices that are no camera's.
    """
    lead = x.shape[:-2]
    if x.ndim < 2 or (x.shape[-1:], intrinsics.shape, world_to_camera.shape) != ((3,), (*lead, 3, 3), (*lead, 4, 4)):
        found = ", ".join(str(tuple(value.shape)) for value in (x, intrinsics, world_to_camera))
        raise ValueError(f"needs points (P, 3) and matrices (3, 3) and (4, 4), got {found}")
    camera = _checked(intrinsics, world_to_camera)
    local = _to_camera(x.reshape(-1, *x.shape[-2:]), camera)
    points, before = _project(local, camera)
    points = torch.where(before[..., None], points, torch.nan)
    return points.reshape(*x.shape[:-1], 2), local[..., 2].reshape(x.shape[:-1])


def relative_rotation(first: Tensor, second: Tensor) -> Tensor:
    """Angle in degrees of the rotation between cameras, with the roll about the optical axis.

    Core filters pairs by the same angle (`pair_angle: [0, 120]`, the authors' filter) when it draws them.

    Args:
        first, second: world-to-camera (..., 4, 4) or (..., 3, 3).

    Returns:
        (...) from 0 to 180.
    """
    one, other = (matrix[..., :3, :3].flatten(-2) for matrix in (first, second))
    # |R - S|^2 = 8 sin^2(t / 2) and tr(R S^T) = 4 cos^2(t / 2) - 1: the arc cosine would lose half of the digits.
    sine = torch.linalg.vector_norm(one - other, dim=-1) / 8**0.5
    cosine = (1 + (one * other).sum(-1)).clamp(min=0).sqrt() / 2
    return torch.rad2deg(2 * torch.atan2(sine, cosine))


def lift(depth: Tensor, camera: Camera, points: Tensor) -> Surface:
    """What points of images show, without NaN and without waiting for the device; see `lift_depth`.

    Args:
        depth: (B, H, W).
        camera: of the B views; what is no camera shows nothing.
        points: (B, P, 2).
    """
    sound, camera = camera.sound(), camera.made_sound()
    local, valid = _lift(depth, camera, points)
    valid = valid & sound[:, None]
    normal = _normals(depth, camera, points.floor())
    turn = camera.world_to_camera[:, :3, :3]
    world_normal = torch.nn.functional.normalize(_turned(normal, turn.mT), dim=-1)
    shown = valid[..., None]
    return Surface(
        torch.where(shown, _to_world(local, camera), 0),
        torch.where(shown, world_normal, 0),
        torch.where(valid, local[..., 2] / _focal(camera), 0),
        valid,
    )


def between_centres(depth: Tensor, camera: Camera, points: Tensor) -> Tensor:
    """(B, P) bool, whether depth at points is interpolated between pixels' centres that are of one surface.

    Elsewhere, as at an outline, only a pixel's centre has a depth that is good to less than a pixel.
    """
    return _depth(depth, camera.made_sound(), points)[2]


def look_for(surface: Surface, depth: Tensor, camera: Camera) -> Sight:
    """Where other views see the points of a surface, and whether they do.

    A point is seen where it falls into the image, before the camera, its normal is turned to the camera, and its depth
    is that of the pixel it falls into to within 2 footprints times 1 + tan(t), t being the angle between line of sight
    and normal there: the point may be 0.7 pixels from that pixel's centre, over which depth changes by tan(t)
    footprints. At an outline, where that pixel's centre is background, the next pixel on the point's side stands for
    it.

    Args:
        surface: P points of each of B views.
        depth: (B, H, W) of the other views.
        camera: theirs.
    """
    sound, camera = camera.sound(), camera.made_sound()
    local = _to_camera(surface.xyz, camera)
    points, before = _project(local, camera)
    pixels, shown = _shown_nearby(depth, points)
    there, _ = _read(depth, pixels)
    footprint = local[..., 2] / _focal(camera)
    ray = torch.nn.functional.normalize(local, dim=-1)
    cosine = -(_normals(depth, camera, pixels) * ray).sum(-1)
    tangent = ((1 - cosine.square()).clamp(min=0).sqrt() / cosine.clamp(min=1e-6)).clamp(max=_STEEPEST)
    close = (there - local[..., 2]).abs() <= 2 * footprint * (1 + tangent)
    turn = camera.world_to_camera[:, :3, :3]
    towards = (_turned(surface.normal, turn) * ray).sum(-1) <= 0
    seen = surface.valid & sound[:, None] & before & shown & close & towards
    return Sight(torch.where(before[..., None], points, 0), torch.where(before, footprint, 0), seen)


def footprints(xyz: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    """What a pixel covers at points of space, z / f.

    Args:
        xyz: (B, P, 3).
        camera: of the B views.

    Returns:
        (B, P) in world units, 0 for a point that is not before its camera; and (B, P) bool, which are.
    """
    sound, camera = camera.sound(), camera.made_sound()
    z = _to_camera(xyz, camera)[..., 2]
    before = sound[:, None] & (z > torch.finfo(z.dtype).eps)
    return torch.where(before, z / _focal(camera), 0), before


def sees_face(points: Tensor, faces: Tensor, face: Tensor) -> Tensor:
    """Whether views show given faces of a mesh at given points, or in a pixel beside them.

    It is exact where depth is not: two sheets that are closer than a footprint have different faces. A face that
    is too small to fill a pixel's centre may be missed.

    Args:
        points: (B, P, 2) where the faces would be.
        faces: (B, H, W) integer, the face that each pixel shows, negative = none.
        face: (B, P) integer, the faces; negative = none.

    Returns:
        (B, P) bool.
    """
    height, width = faces.shape[1:]
    pixels = points.floor()
    found = torch.zeros_like(face, dtype=torch.bool)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            index, inside = _index(pixels + pixels.new_tensor([right, down]), height, width)
            found |= inside & (faces.flatten(1).gather(1, index) == face)
    return found & _index(pixels, height, width)[1] & (face >= 0)


def _checked(intrinsics: Tensor, world_to_camera: Tensor) -> Camera:
    camera = Camera(intrinsics.reshape(-1, 3, 3), world_to_camera.reshape(-1, 4, 4))
    sound = camera.sound()
    if not bool(sound.all()):
        bad = int((~sound).nonzero()[0])
        raise ValueError(
            f"camera {bad} is none: needs finite matrices with an inverse and positive focal lengths, got intrinsics "
            f"{camera.intrinsics[bad].tolist()} and world_to_camera {camera.world_to_camera[bad].tolist()}"
        )
    return camera


def _focal(camera: Camera) -> Tensor:
    """(B, 1) the focal length that a footprint is counted by, the shorter one."""
    return torch.diagonal(camera.intrinsics, dim1=1, dim2=2)[:, :2].amin(1, keepdim=True)


def _turned(x: Tensor, matrix: Tensor) -> Tensor:
    """(B, P, 3) vectors times (B, 3, 3), without the matrix products that autocast and TF32 round."""
    return (x[..., None, :] * matrix[:, None]).sum(-1)


def _rays(camera: Camera, points: Tensor) -> Tensor:
    """(B, P, 3) inv(K) (x, y, 1)."""
    homogeneous = torch.cat([points, torch.ones_like(points[..., :1])], dim=-1).to(camera.intrinsics.dtype)
    return _turned(homogeneous, torch.linalg.inv_ex(camera.intrinsics).inverse)


def _to_world(local: Tensor, camera: Camera) -> Tensor:
    turn, shift = camera.world_to_camera[:, :3, :3], camera.world_to_camera[:, None, :3, 3]
    return _turned(local - shift, torch.linalg.inv_ex(turn).inverse)


def _to_camera(world: Tensor, camera: Camera) -> Tensor:
    return _turned(world, camera.world_to_camera[:, :3, :3]) + camera.world_to_camera[:, None, :3, 3]


def _project(local: Tensor, camera: Camera) -> tuple[Tensor, Tensor]:
    image = _turned(local, camera.intrinsics)
    before = image[..., 2] > torch.finfo(image.dtype).eps
    return image[..., :2] / torch.where(before, image[..., 2], 1)[..., None], before


def _index(pixels: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Index of pixels (x, y) in a flattened image, and whether they are in it."""
    x, y = pixels.unbind(-1)
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    # A point at infinity has no integer.
    x, y = torch.where(inside, x, 0).long(), torch.where(inside, y, 0).long()
    return y * width + x, inside


def _read(depth: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Depth of pixels (x, y), and whether there is any."""
    index, inside = _index(pixels, *depth.shape[1:])
    z = depth.flatten(1).gather(1, index)
    there = inside & z.isfinite() & (z > 0)
    return torch.where(there, z, 1), there


def _nearest(depth: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Depth of the pixels that points lie in, and whether there is any."""
    return _read(depth, points.floor())


def _depth(depth: Tensor, camera: Camera, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth at points, whether there is any, and whether it is interpolated: the four pixels around are of one surface.

    Else it is that of the pixel.
    """
    z, valid = _nearest(depth, points)
    limit = _STEEPEST * z / _focal(camera)
    last = points.new_tensor([depth.shape[2] - 1, depth.shape[1] - 1])
    corner = (points - _CENTRE).floor()
    part = points - _CENTRE - corner
    inverse, one_surface = torch.zeros_like(z), torch.ones_like(valid)
    for right in (0, 1):
        for down in (0, 1):
            # Beyond the outermost centres depth is that of the border, as bilinear sampling has it.
            pixels = torch.minimum((corner + corner.new_tensor([right, down])).clamp(min=0), last)
            there, given = _read(depth, pixels)
            one_surface &= given & ((there - z).abs() <= limit)
            weight = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1])
            inverse += weight / there
    return torch.where(one_surface, 1 / inverse, z), valid, one_surface


def _lift(depth: Tensor, camera: Camera, points: Tensor) -> tuple[Tensor, Tensor]:
    """(B, P, 3) points in the camera's frame, and whether there are any."""
    z, valid, _ = _depth(depth, camera, points.to(depth.dtype))
    return _rays(camera, points) * z[..., None], valid


def _shown_nearby(depth: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The pixel (x, y) that each point lies in or, where that has no depth, the next that has; and whether any has."""
    pixels = points.floor()
    side = torch.where(points - pixels < _CENTRE, -1, 1)
    found, shown = pixels, _read(depth, pixels)[1] | ~_index(pixels, *depth.shape[1:])[1]
    for way in ([1, 0], [0, 1], [1, 1]):
        moved = pixels + side * side.new_tensor(way)
        there = _read(depth, moved)[1] & ~shown
        found = torch.where(there[..., None], moved, found)
        shown = shown | there
    return found, shown & _index(pixels, *depth.shape[1:])[1]


def _normals(depth: Tensor, camera: Camera, pixels: Tensor) -> Tensor:
    """(B, P, 3) normals, in the camera's frame and towards it, of pixels (x, y); 0 = not known."""

    def shown(right: int, down: int) -> tuple[Tensor, Tensor]:
        moved = pixels + pixels.new_tensor([right, down])
        z, there = _read(depth, moved)
        return _rays(camera, moved + _CENTRE) * z[..., None], there

    centre, known = shown(0, 0)
    limit = _STEEPEST * centre[..., 2] / _focal(camera)
    along = list[Tensor]()
    for right, down in ((1, 0), (0, 1)):
        # Across an edge of the surface, or where a neighbour is background, the other side alone tells.
        ahead, behind = shown(right, down), shown(-right, -down)
        use = [near & ((at[..., 2] - centre[..., 2]).abs() <= limit) for at, near in (ahead, behind)]
        known = known & (use[0] | use[1])
        end, begin = (
            torch.where(used[..., None], at, centre) for used, (at, _) in zip(use, (ahead, behind), strict=True)
        )
        along.append(end - begin)
    normal = torch.nn.functional.normalize(torch.linalg.cross(along[1], along[0], dim=-1), dim=-1)
    return torch.where(known[..., None], normal, 0)
