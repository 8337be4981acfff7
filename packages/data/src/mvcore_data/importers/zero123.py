"""`zero123`: the renders of Zero-1-to-3, `views_release/<uid>/000.png` to `011.png` with their cameras in `.npy` files.

The renders are RGBA of 512 x 512 with a lens of 35 mm on a sensor of 32 mm. A camera file holds `[R | t]` (3, 4), world
to camera, with Blender's axes on both sides: the camera looks along -z with y up, and the world has z up. So writes
`objaverse-rendering/scripts/blender_script.py` of https://github.com/cvlab-columbia/zero123, where the step to OpenCV
axes is commented out, and so reads `zero123/ldm/data/simple.py` (camera centre `-R^T t`, elevation from z). Here the
axes become OpenCV's and the world has y up, as in the meshes' glTF files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from mvcore.api import DataError, Options
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView, file_reader
from mvcore_data.importers.numbered import first_folder, folder_names, numbered_images
from mvcore_data.importers.scene_files import LazyViews, peek, read_npy
from mvcore_data.rigs import intrinsics
from mvcore_data.source_images import UnusableError

_VALID = "valid_paths.json"
_FIELD_OF_VIEW = float(np.rad2deg(2 * np.arctan(16 / 35)))
_TO_OPENCV = np.diag([1.0, -1.0, -1.0])
_TO_Z_UP = np.array([[1.0, 0, 0, 0], [0, 0, -1.0, 0], [0, 1.0, 0, 0], [0, 0, 0, 1.0]])


class Zero123Options(Options):
    """Options of `zero123`.

    Args:
        field_of_view: of the renders, in degrees.
        valid_paths: take only the objects that valid_paths.json lists, where it is there.
    """

    field_of_view: float = Field(default=_FIELD_OF_VIEW, gt=0, lt=180)
    valid_paths: bool = True


def _detect(src: Path) -> str | None:
    folder = first_folder(src, lambda folder: (folder / "000.npy").is_file() and (folder / "000.png").is_file())
    return None if folder is None else f"{folder.name}/000.png with 000.npy"


def _open(src: Path, options: Zero123Options) -> Source:
    names = folder_names(src)
    return Source(lambda skipped: _objects(src, names, options, skipped), len(names))


def _objects(src: Path, names: list[str], options: Zero123Options, skipped: Skipped) -> Iterator[SourceObject]:
    valid = _valid(src / _VALID) if options.valid_paths else None
    for name in names:
        folder = src / name
        if valid is not None and name not in valid:
            skipped.add(f"not in {_VALID}", folder)
            continue
        images = numbered_images(folder, src, skipped)
        if not images:
            skipped.add("no numbered PNG in the folder", folder)
            continue
        views = LazyViews(partial(_views, list(images.values()), options, skipped))
        yield SourceObject(id=name, name=str(folder), views=views)


def _valid(path: Path) -> frozenset[str] | None:
    if not path.is_file():
        return None
    try:
        names = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path}: cannot be read as JSON") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: holds no list of object ids")
    return frozenset(names)


def _views(images: list[Path], options: Zero123Options, skipped: Skipped) -> list[SourceView]:
    views: list[SourceView] = []
    for path in images:
        camera: tuple[ArrayLike, ArrayLike] | None = None
        try:
            camera = _camera(path, options.field_of_view)
        except UnusableError as error:
            skipped.add(f"a camera ({error}); its view is kept without", path.with_suffix(".npy"))
        views.append(SourceView(name=str(path), read=file_reader(path), camera=camera))
    return views


def _camera(image: Path, field_of_view: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    matrix = read_npy(image.with_suffix(".npy"))
    if matrix.shape != (3, 4):
        raise UnusableError(f"of shape {matrix.shape}, not (3, 4)")
    rotation = matrix[:, :3]
    if not (np.isfinite(matrix).all() and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3)):
        raise UnusableError("no rotation and translation")
    height, width = peek(image).size
    if height != width:
        raise UnusableError("of an image that is not square")
    world_to_camera = np.eye(4)
    world_to_camera[:3] = _TO_OPENCV @ matrix @ _TO_Z_UP
    return intrinsics(width, field_of_view), world_to_camera


FORMAT = Format(
    name="zero123",
    summary="views_release/<uid>/000.png to 011.png with 000.npy to 011.npy, as Zero-1-to-3 renders Objaverse",
    detect=_detect,
    open=_open,
    options=Zero123Options,
)
