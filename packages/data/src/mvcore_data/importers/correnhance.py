"""Renders of 3DCorrEnhance: colour, mask and depth of each object from the same viewpoints.

    data/obj_poses.npy, data/objaverse_renderings/000-093/UID/{color,mask,depth}_000000.png ... 000041.png

`obj_poses.npy` holds (V, 4, 4) object-to-camera matrices with OpenCV axes, which is world to camera, the object being
the world. Depth is z-depth in thousandths of the object's longest side, 16 bits, 0 = none. The images were rendered by
BlenderProc with the intrinsics (560, 0, 256; 0, 560, 256; 0, 0, 1), and BlenderProc counts pixel centres as whole
numbers (its `set_intrinsics_from_K_matrix` puts the middle of the image at (width - 1) / 2), as do the method's own
correspondences: half a pixel is added to the principal point.
Sources: https://github.com/qq456cvb/3DCorrEnhance (data_utils/blenderproc.py, data_utils/dataset.py),
https://github.com/DLR-RM/BlenderProc (blenderproc/python/camera/CameraUtility.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from mvcore.api import DataError, Options
from numpy.typing import NDArray
from pydantic import Field

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView, spread
from mvcore_data.importers.cameras import Matrix, UpAxis, pinhole, y_up
from mvcore_data.importers.scene_files import LazyViews, Root, first_scene, read_npy, scene_folders
from mvcore_data.importers.scenes import Camera, Photo, views_of
from mvcore_data.source_images import UnusableError

POSES_FILE = "obj_poses.npy"
_COLOUR = re.compile(r"color_(\d{6})\.png")
_LEVELS = 3


class CorrEnhanceOptions(Options):
    """Options of `correnhance`.

    Args:
        poses: the file of poses; default: `obj_poses.npy` in the source or beside it.
        intrinsics: [fx, fy, cx, cy] in pixels of an image of `width` x `height`; other sizes get them scaled.
        width, height: of the images that the intrinsics are for.
        pixel_centre: where the intrinsics count the first pixel's centre: 0 as BlenderProc does, or 0.5.
        depth_unit: what a depth value of 1 means, in object units.
        up: which axis points up in the objects' frame. Blender, which rendered them, has z; they are turned to y.
        views: at most so many views of an object, spread evenly over the viewpoints; default: all.
    """

    poses: str | None = None
    intrinsics: tuple[float, float, float, float] = (560.0, 560.0, 256.0, 256.0)
    width: int = Field(default=512, ge=1)
    height: int = Field(default=512, ge=1)
    pixel_centre: float = Field(default=0.0, ge=0, le=0.5)
    depth_unit: float = Field(default=0.001, gt=0)
    up: UpAxis = "z"
    views: int | None = Field(default=None, ge=1)


def _is_object(folder: Path) -> bool:
    return (folder / "color_000000.png").is_file() and (folder / "depth_000000.png").is_file()


def detect(path: Path) -> str | None:
    """Says by which marks a folder has this layout."""
    found = first_scene(path, _LEVELS, _is_object)
    return None if found is None else f"color_000000.png and depth_000000.png in {found}"


def open_source(path: Path, options: CorrEnhanceOptions) -> Source:
    """Opens a folder of renders; the poses are read now."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    poses = _read_poses(_poses_file(path, options))
    return Source(lambda skipped: _objects(path, options, poses, skipped))


def _poses_file(path: Path, options: CorrEnhanceOptions) -> Path:
    if options.poses is not None:
        return Path(options.poses)
    beside = [path / POSES_FILE, path.resolve().parent / POSES_FILE]
    found = next((file for file in beside if file.is_file()), None)
    if found is None:
        raise DataError(f"{path}: has no {POSES_FILE} in it or beside it; name it with the option poses")
    return found


def _read_poses(file: Path) -> NDArray[np.float64]:
    try:
        poses = read_npy(file)
    except UnusableError as error:
        raise DataError(f"{file}: {error}") from None
    if poses.ndim != 3 or poses.shape[1:] != (4, 4) or len(poses) == 0:
        raise DataError(f"{file}: holds {poses.shape}, not (views, 4, 4) object-to-camera matrices")
    return poses


def _objects(
    path: Path, options: CorrEnhanceOptions, poses: NDArray[np.float64], skipped: Skipped
) -> Iterator[SourceObject]:
    root = Root(path)
    for folder in scene_folders(path, skipped, _LEVELS, _is_object):
        name = root.path.name if folder == path else folder.relative_to(path).as_posix()
        views = LazyViews(partial(_views, root, folder, options, poses, skipped))
        yield SourceObject(id=name, name=str(folder), views=views)


def _views(
    root: Root, folder: Path, options: CorrEnhanceOptions, poses: NDArray[np.float64], skipped: Skipped
) -> list[SourceView]:
    indices = _indices(folder, len(poses), skipped)
    fx, fy, cx, cy = options.intrinsics
    shift = 0.5 - options.pixel_centre
    intrinsics = pinhole(fx, fy, cx + shift, cy + shift)
    photos: list[Photo] = []
    for k in spread(indices, options.views):
        try:
            photos.append(_photo(root, folder, k, options, intrinsics, poses[k]))
        except UnusableError as error:
            skipped.add(str(error), folder / f"color_{k:06d}.png")
    return views_of(photos, skipped)


def _indices(folder: Path, number: int, skipped: Skipped) -> list[int]:
    """The viewpoints of an object that have an image."""
    found = sorted(int(match[1]) for path in folder.iterdir() if (match := _COLOUR.fullmatch(path.name)))
    for k in found:
        if k >= number:
            skipped.add(f"an image beyond the {number} poses", folder / f"color_{k:06d}.png")
    usable = [k for k in found if k < number]
    for k in sorted(set(range(number)) - set(usable)):
        skipped.add("no such file", folder / f"color_{k:06d}.png")
    return usable


def _photo(root: Root, folder: Path, k: int, options: CorrEnhanceOptions, intrinsics: Matrix, pose: Matrix) -> Photo:
    colour, mask, depth = (root.inside(folder, f"{what}_{k:06d}.png") for what in ("color", "mask", "depth"))
    camera = Camera(
        world_to_camera=y_up(pose, options.up), intrinsics=intrinsics, made_for=(options.height, options.width)
    )
    unit = options.depth_unit
    return Photo(
        path=colour,
        name=str(folder / colour.name),
        camera=camera,
        depth=(depth, lambda values: values * unit),
        mask=(mask, 1),
    )


FORMAT = Format(
    name="correnhance",
    summary="3DCorrEnhance: color, mask and depth PNGs with obj_poses.npy",
    detect=detect,
    open=open_source,
    options=CorrEnhanceOptions,
)
