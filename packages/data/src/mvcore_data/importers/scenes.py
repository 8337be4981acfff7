"""Photographs with cameras as views: what every layout of images, poses, depth and masks has in common.

An image whose camera, depth or mask is of no use keeps its place as a view without them, and the reason is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvcore_data.importers.base import Image, Skipped, SourceView, file_reader
from mvcore_data.importers.cameras import Matrix, Size, resized, usable
from mvcore_data.importers.lens import PINHOLE, Lens
from mvcore_data.importers.scene_files import Header, deep_values, mask_values, npy_size, peek, raw_pixels, read_npy
from mvcore_data.source_images import UnusableError
from mvcore_data.tracks import Tracks


class Observed(NamedTuple):
    """What a reconstruction observed in an image.

    Args:
        points: (M, 2) in pixels, centres at +0.5; they may be outside of the image.
        ids: (M,) of the reconstruction's points, rising.
        xyz: (M, 3) where they are, in the frame of its cameras.
    """

    points: NDArray[np.float64]
    ids: NDArray[np.int64]
    xyz: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A camera as its file gives it.

    Args:
        world_to_camera: (4, 4), OpenCV axes.
        intrinsics: (3, 3) in pixels, centres at +0.5; or what makes them from the image's (height, width).
        made_for: (height, width) of the image that they are for; None where it is the image at hand.
        lens: what it does to straight lines; None where the model is not known here.
        model: name of the lens's model.
        observed: the reconstruction's points in the image that it is made for.
    """

    world_to_camera: Matrix
    intrinsics: Matrix | Callable[[Size], Matrix]
    made_for: Size | None = None
    lens: Lens | None = PINHOLE
    model: str = "PINHOLE"
    observed: Observed | None = None


@dataclass(frozen=True, kw_only=True)
class Photo:
    """One image and what its source says of it.

    Args:
        path: of the image, resolved.
        name: how messages name it.
        camera: its camera, or why it has none (empty: its source speaks of none).
        depth: a file of 16-bit grey values or a .npy, resolved, and what makes z-depth in object units of its values.
        mask: a grey image file, resolved, and from which value on it means the object.
        captions: of this view.
    """

    path: Path
    name: str
    camera: Camera | str = ""
    depth: tuple[Path, Callable[[NDArray], ArrayLike]] | None = None
    mask: tuple[Path, int] | None = None
    captions: tuple[str, ...] = ()


NO_ROTATION = "no camera: its pose is not a rotation and a translation, or it is not finite"
OTHER_SHAPE = "no camera: it is for an image of another shape"


def views_of(photos: Iterable[Photo], skipped: Skipped, *, undistort: bool = False) -> list[SourceView]:
    """Views of photographs; their headers are read, their pixels not.

    Args:
        photos: them, in order.
        skipped: counts cameras, depth maps and masks that are of no use.
        undistort: make images of bent lenses straight, instead of leaving out their cameras.
    """
    return [_view(photo, skipped, undistort) for photo in photos]


def _view(photo: Photo, skipped: Skipped, undistort: bool) -> SourceView:
    try:
        header = peek(photo.path)
    except UnusableError:  # the packer reads the file too, and counts the view as left out
        return SourceView(name=photo.name, read=file_reader(photo.path), captions=photo.captions)
    camera = _camera(photo, header.size, skipped, undistort)
    depth = _checked(photo, "depth", photo.depth and photo.depth[0], header.size, skipped)
    mask = _checked(photo, "mask", photo.mask and photo.mask[0], header.size, skipped)
    intrinsics, world_to_camera, lens = camera or (None, None, PINHOLE)
    bend = None if lens.straight or intrinsics is None else partial(lens.straighten, intrinsics=intrinsics)
    tracks = _tracks(photo, header.size, None if bend is None else intrinsics)
    bound = any(part is not None for part in (camera, depth, mask, tracks))
    return SourceView(
        name=photo.name,
        read=partial(_pixels, photo.path, bend) if bend or (bound and header.rotated) else file_reader(photo.path),
        captions=photo.captions,
        camera=None if intrinsics is None or world_to_camera is None else (intrinsics, world_to_camera),
        depth=None if depth is None or photo.depth is None else partial(_depth, depth, photo.depth[1], bend),
        mask=None if mask is None or photo.mask is None else partial(_mask, mask, photo.mask[1], bend),
        tracks=tracks,
    )


def _camera(photo: Photo, size: Size, skipped: Skipped, undistort: bool) -> tuple[Matrix, Matrix, Lens] | None:
    camera = photo.camera
    if isinstance(camera, str):
        if camera:
            skipped.add(f"no camera: {camera}", photo.name)
        return None
    if camera.lens is None or not (camera.lens.straight or undistort):
        hint = "" if camera.lens is None else " (the option undistort makes the images straight)"
        skipped.add(f"no camera: the lens of a {camera.model} camera is no pinhole{hint}", photo.name)
        return None
    made_for = camera.made_for or size
    intrinsics = camera.intrinsics(made_for) if callable(camera.intrinsics) else camera.intrinsics
    fitting = resized(intrinsics, made_for, size)
    if fitting is None:
        skipped.add(OTHER_SHAPE, photo.name)
        return None
    if not usable(fitting, camera.world_to_camera):
        skipped.add(NO_ROTATION, photo.name)
        return None
    return fitting, camera.world_to_camera, camera.lens


def _tracks(photo: Photo, size: Size, straightened: Matrix | None) -> Tracks | None:
    """What was observed in the image at hand; `straightened` are the intrinsics where its lens is made straight.

    They need no camera: a bent image that stays as it is keeps its points where they are.
    """
    camera = photo.camera
    if isinstance(camera, str) or camera.observed is None:
        return None
    stretch = resized(np.eye(3), camera.made_for or size, size)
    if stretch is None:
        return None
    points, ids, xyz = camera.observed
    points = points * np.diag(stretch)[:2]
    if straightened is not None and camera.lens is not None:
        points = camera.lens.straight_points(points, straightened)
    inside = ((points >= 0) & (points <= size[::-1])).all(1)  # NaN is not
    return Tracks(points[inside].astype(np.float32), ids[inside], xyz[inside].astype(np.float32))


def _checked(photo: Photo, what: str, path: Path | None, size: Size, skipped: Skipped) -> Path | None:
    """The path of a depth map or mask whose header says that it can be used."""
    if path is None:
        return None
    try:
        found = npy_size(path)[0] if path.suffix == ".npy" else _grey_size(peek(path), what)
    except UnusableError as error:
        skipped.add(f"no {what}: {error}", photo.name)
        return None
    if found != size:
        skipped.add(f"no {what}: not of the image's size", photo.name)
        return None
    return path


def _grey_size(header: Header, what: str) -> Size:
    if what == "depth" and not header.mode.startswith("I"):
        raise UnusableError("not a 16-bit grey PNG")
    return header.size


def _pixels(path: Path, bend: Callable[..., NDArray] | None) -> Image:
    pixels = raw_pixels(path)
    return bend(pixels, nearest=False) if bend else pixels


def _depth(path: Path, convert: Callable[[NDArray], ArrayLike], bend: Callable[..., NDArray] | None) -> ArrayLike:
    values = read_npy(path) if path.suffix == ".npy" else deep_values(path)
    depth = np.asarray(convert(values), np.float64)
    depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0)
    return bend(depth, nearest=True) if bend else depth


def _mask(path: Path, threshold: int, bend: Callable[..., NDArray] | None) -> ArrayLike:
    mask = mask_values(path) >= threshold
    return bend(mask, nearest=True) if bend else mask
