"""Scenes of nerfstudio, instant-ngp and NeRF: images with a `transforms.json`, one object a scene.

    SCENE/transforms.json, SCENE/images/*.png     or     SCENE/transforms_{train,val,test}.json

`transform_matrix` is camera to world with OpenGL's axes (x right, y up, z backward). Both programs send a pixel's ray
through its middle, half a pixel beyond its number, so that `cx`, `cy` are as in a store; without them the principal
point is the middle of the image. Depth is z-depth.
Sources: https://docs.nerf.studio/quickstart/data_conventions.html,
https://github.com/NVlabs/instant-ngp/blob/master/docs/nerf_dataset_tips.md and its src/nerf_loader.cu.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mvcore.api import DataError, Options
from pydantic import BaseModel, Field, ValidationError

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView, spread
from mvcore_data.importers.cameras import Matrix, Size, UpAxis, from_opengl, pinhole, y_up
from mvcore_data.importers.scene_files import LazyViews, Root, first_scene, read_json, scene_folders
from mvcore_data.importers.scenes import NO_ROTATION, Camera, Photo, views_of
from mvcore_data.source_images import SUFFIXES, UnusableError

_FILES = ("transforms.json", "transforms_train.json", "transforms_val.json", "transforms_test.json")
_LEVELS = 2
_MAX_FILE_BYTES = 1 << 28
_PERSPECTIVE = {"", "PERSPECTIVE", "SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV"}
_DISTORTIONS = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")


class TransformsOptions(Options):
    """Options of `transforms`.

    Args:
        views: at most so many views of a scene, spread evenly over its frames; default: all.
        depth_unit: what a value of 1 in a depth file means, where the file itself (`depth_unit_scale_factor` or
            `integer_depth_scale`) does not say; nerfstudio's default is a thousandth.
        up: which axis points up in the scene; nerfstudio and Blender have z, and such scenes are turned to y.
        pixel_centre: where `cx`, `cy` count the first pixel's centre: 0.5 as both programs do, or 0 for numbers that
            come straight from an OpenCV calibration.
    """

    views: int | None = Field(default=None, ge=1)
    depth_unit: float = Field(default=0.001, gt=0)
    up: UpAxis = "z"
    pixel_centre: float = Field(default=0.5, ge=0, le=0.5)


class _Optics(BaseModel):
    """Keys that stand at a frame or, for all frames, at the top."""

    fl_x: float | None = None
    fl_y: float | None = None
    cx: float | None = None
    cy: float | None = None
    w: float | None = Field(default=None, ge=1, le=1e6)
    h: float | None = Field(default=None, ge=1, le=1e6)
    camera_angle_x: float | None = Field(default=None, gt=0, lt=np.pi)
    camera_angle_y: float | None = Field(default=None, gt=0, lt=np.pi)
    camera_model: str = ""
    is_fisheye: bool = False
    k1: float = 0
    k2: float = 0
    k3: float = 0
    k4: float = 0
    k5: float = 0
    k6: float = 0
    p1: float = 0
    p2: float = 0
    depth_unit_scale_factor: float | None = Field(default=None, gt=0)
    integer_depth_scale: float | None = Field(default=None, gt=0)


class _Frame(_Optics):
    file_path: str = Field(min_length=1)
    transform_matrix: list[list[float]]
    depth_file_path: str | None = None
    depth_path: str | None = None
    mask_path: str | None = None


def detect(path: Path) -> str | None:
    """Says by which marks a path has this layout."""
    if path.is_file() and path.suffix == ".json":
        return "a file of the name transforms*.json" if path.name.startswith("transforms") else None
    found = first_scene(path, _LEVELS, lambda folder: bool(_files(folder)))
    return None if found is None else f"{_files(found)[0].name} in {found}"


def _files(folder: Path) -> list[Path]:
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    return found[:1] if found and found[0].name == _FILES[0] else found


def open_source(path: Path, options: TransformsOptions) -> Source:
    """Opens a transforms file, a scene, or a folder of scenes."""
    if path.is_file():
        frames = _read(path)
        return Source(lambda skipped: iter([_object(path.parent, path.parent, [(path, frames)], options, skipped)]), 1)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder")
    if files := _files(path):
        read = [(file, _read(file)) for file in files]
        return Source(lambda skipped: iter([_object(path, path, read, options, skipped)]), 1)
    return Source(lambda skipped: _objects(path, options, skipped))


def _objects(path: Path, options: TransformsOptions, skipped: Skipped) -> Iterator[SourceObject]:
    for folder in scene_folders(path, skipped, _LEVELS, lambda folder: bool(_files(folder))):
        try:
            read = [(file, _read(file)) for file in _files(folder)]
        except DataError as error:
            skipped.add("a transforms file that cannot be read", str(error))
            continue
        yield _object(path, folder, read, options, skipped)


def _read(file: Path) -> list[dict[str, Any]]:
    """The frames, each with what the top of the file says for all."""
    top = read_json(file, _MAX_FILE_BYTES)
    frames = top.pop("frames", None)
    if not isinstance(frames, list) or not frames:
        raise DataError(f"{file}: has no list of frames")
    if not all(isinstance(frame, dict) for frame in frames):
        raise DataError(f"{file}: one of its frames is no JSON object")
    shared = {key: top[key] for key in _Optics.model_fields if key in top}
    return [{**_without(shared, frame), **frame} for frame in frames]


def _without(shared: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """What the top says, less what a frame says by another key: its own focal length stands above the file's angle."""
    own = [axis for axis in "xy" if f"fl_{axis}" in frame or f"camera_angle_{axis}" in frame]
    hidden = {key for axis in own for key in (f"fl_{axis}", f"camera_angle_{axis}")}
    return {key: value for key, value in shared.items() if key not in hidden}


def _object(
    root: Path,
    folder: Path,
    read: list[tuple[Path, list[dict[str, Any]]]],
    options: TransformsOptions,
    skipped: Skipped,
) -> SourceObject:
    parts = folder.relative_to(root).parts
    return SourceObject(
        id="/".join(parts) or folder.resolve().name,
        name=str(folder),
        category=parts[0] if len(parts) > 1 else None,
        views=LazyViews(partial(_views, Root(root), read, options, skipped)),
    )


def _views(
    root: Root, read: list[tuple[Path, list[dict[str, Any]]]], options: TransformsOptions, skipped: Skipped
) -> list[SourceView]:
    entries = [(file, k, frame) for file, frames in read for k, frame in enumerate(frames)]
    photos: list[Photo] = []
    for file, k, values in spread(entries, options.views):
        try:
            frame = _Frame.model_validate(values)
            photos.append(_photo(root, file.parent, frame, options, skipped))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            skipped.add(f"a frame with a wrong or missing {where or 'value'}", f"{file}: frames[{k}]")
        except UnusableError as error:
            skipped.add(str(error), f"{file}: frames[{k}]")
    return views_of(photos, skipped)


def _photo(root: Root, base: Path, frame: _Frame, options: TransformsOptions, skipped: Skipped) -> Photo:
    path = _image_path(root, base, frame.file_path)
    name = str(base / frame.file_path)
    unit = frame.depth_unit_scale_factor or frame.integer_depth_scale or options.depth_unit
    depth = _beside(root, base, frame.depth_file_path or frame.depth_path, "depth", name, skipped)
    mask = _beside(root, base, frame.mask_path, "mask", name, skipped)
    return Photo(
        path=path,
        name=name,
        camera=_camera(frame, options),
        depth=None if depth is None else (depth, lambda values: values * unit),
        mask=None if mask is None else (mask, 1),
    )


def _image_path(root: Root, base: Path, name: str) -> Path:
    """The image that a frame names, as NeRF's own scenes do, without its suffix."""
    path = root.inside(base, name.replace("\\", "/"))
    if path.suffix.lower() in SUFFIXES or path.is_file():
        return path
    candidates = (path.with_name(path.name + suffix) for suffix in (".png", ".jpg", ".jpeg", ".webp"))
    found = next((file for file in candidates if file.is_file()), path)
    return root.inside(base, str(found))


def _beside(root: Root, base: Path, name: str | None, what: str, owner: str, skipped: Skipped) -> Path | None:
    if name is None:
        return None
    try:
        return root.inside(base, name.replace("\\", "/"))
    except UnusableError as error:
        skipped.add(f"no {what}: {error}", owner)
        return None


def _camera(frame: _Frame, options: TransformsOptions) -> Camera | str:
    if frame.camera_model.upper() not in _PERSPECTIVE or frame.is_fisheye:
        return f"the lens of a {frame.camera_model or 'fisheye'} camera is no pinhole"
    if any(getattr(frame, key) for key in _DISTORTIONS):
        return "its lens is no pinhole (coefficients of distortion other than 0)"
    if frame.fl_x is None and frame.camera_angle_x is None and frame.fl_y is None and frame.camera_angle_y is None:
        return "neither a focal length (fl_x) nor an angle (camera_angle_x)"
    rows = frame.transform_matrix
    if len(rows) not in (3, 4) or any(len(row) != 4 for row in rows):
        return "its transform_matrix is not 4 x 4"
    pose = np.eye(4)
    pose[: len(rows)] = rows
    world_to_camera = from_opengl(pose)
    if world_to_camera is None or not np.allclose(pose[3], (0, 0, 0, 1)):
        return NO_ROTATION.removeprefix("no camera: ")
    made_for = (int(frame.h), int(frame.w)) if frame.w and frame.h else None
    return Camera(
        world_to_camera=y_up(world_to_camera, options.up),
        intrinsics=partial(_intrinsics, frame, 0.5 - options.pixel_centre),
        made_for=made_for,
    )


def _intrinsics(frame: _Frame, shift: float, size: Size) -> Matrix:
    height, width = size
    x = _focal(frame.fl_x, frame.camera_angle_x, width)
    y = _focal(frame.fl_y, frame.camera_angle_y, height)
    cx = width / 2 if frame.cx is None else frame.cx + shift
    cy = height / 2 if frame.cy is None else frame.cy + shift
    return pinhole(x or y or np.nan, y or x or np.nan, cx, cy)


def _focal(focal: float | None, angle: float | None, side: int) -> float | None:
    if focal is not None:
        return focal
    return None if angle is None else side / 2 / float(np.tan(angle / 2))


FORMAT = Format(
    name="transforms",
    summary="nerfstudio, instant-ngp and NeRF scenes: images with a transforms.json",
    detect=detect,
    open=open_source,
    options=TransformsOptions,
)
