"""A COLMAP sparse model: cameras and images, binary or text, read with bounds.

Format: https://colmap.github.io/format.html. Points are read where tracks are asked for
(`colmap_points.py`). Newer files `rigs` and `frames` are not needed, since `cameras` and `images` stayed as they were.
The quaternion is Hamilton's (w, x, y, z) and turns world to camera; axes are x right, y down, z forward; the upper left
corner of an image has the coordinate (0, 0) and its first pixel's centre (0.5, 0.5)
(https://github.com/colmap/colmap/blob/main/src/colmap/sensor/models.h): all as in a store.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.importers.cameras import Size, from_quaternion, pinhole
from mvcore_data.importers.colmap_files import COUNT, BinaryFile, skip_line, text_line
from mvcore_data.importers.colmap_points import OBSERVATION, observations_of_text, read_points, tracks_of
from mvcore_data.importers.lens import FOCAL_LENGTHS, lens_of
from mvcore_data.importers.scenes import Camera

_MODELS = {  # number in binary files: name, number of parameters
    0: ("SIMPLE_PINHOLE", 3),
    1: ("PINHOLE", 4),
    2: ("SIMPLE_RADIAL", 4),
    3: ("RADIAL", 5),
    4: ("OPENCV", 8),
    5: ("OPENCV_FISHEYE", 8),
    6: ("FULL_OPENCV", 12),
    7: ("FOV", 5),
    8: ("SIMPLE_RADIAL_FISHEYE", 4),
    9: ("RADIAL_FISHEYE", 5),
    10: ("THIN_PRISM_FISHEYE", 12),
    11: ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    12: ("SIMPLE_DIVISION", 4),
    13: ("DIVISION", 5),
    14: ("SIMPLE_FISHEYE", 3),
    15: ("FISHEYE", 4),
    16: ("EUCM", 6),
    17: ("EQUIRECTANGULAR", 2),
}
_PARAMETERS = dict(_MODELS.values())
_CAMERA = struct.Struct("<iiQQ")
_IMAGE = struct.Struct("<i4d3di")
MODEL_FILES = ("cameras", "images")


@dataclass(frozen=True)
class Lenses:
    """A camera of `cameras`: size and parameters."""

    model: str
    size: Size
    parameters: tuple[float, ...]


def model_suffix(folder: Path) -> str | None:
    """`.bin` or `.txt` for a folder with a sparse model, binary before text as in COLMAP; None for others."""
    for suffix in (".bin", ".txt"):
        if all((folder / f"{name}{suffix}").is_file() for name in MODEL_FILES):
            return suffix
    return None


class _Image(NamedTuple):
    """An image of `images`; None in the place of observations that nobody asked for."""

    name: str
    camera_id: int
    pose: tuple[float, ...]
    observations: NDArray[Any] | None


def read_model(folder: Path, *, tracks: bool = False) -> dict[str, Camera]:
    """The cameras of a sparse model by the names of their images.

    Args:
        folder: of the model.
        tracks: read which of the model's points each image observed, too.

    Raises:
        DataError: no model, or a file of it is damaged or contradicts itself.
    """
    suffix = model_suffix(folder)
    if suffix is None:
        raise DataError(f"{folder}: holds no COLMAP model (cameras and images, .bin or .txt)")
    cameras, images = (_cameras_binary, _images_binary) if suffix == ".bin" else (_cameras_text, _images_text)
    cameras_file, images_file = (folder / f"{name}{suffix}" for name in MODEL_FILES)
    try:
        lenses = dict(cameras(cameras_file))
        found: dict[str, Camera] = {}
        places = read_points(folder, suffix) if tracks else {}
        for name, camera_id, pose, observations in images(images_file, tracks):
            owner = f"{images_file}: image {name!r}"
            if camera_id not in lenses:
                raise DataError(f"{owner} has camera {camera_id}, which is not in the model")
            if name in found:
                raise DataError(f"{owner} stands there twice")
            camera = found[name] = _camera(lenses[camera_id], pose)
            if observations is not None:
                found[name] = replace(camera, observed=tracks_of(observations, places, owner))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return found


def _camera(lens: Lenses, pose: tuple[float, ...]) -> Camera:
    known, numbers = lens_of(lens.model, lens.parameters), lens.parameters
    if FOCAL_LENGTHS.get(lens.model, 2) == 1:
        numbers = (numbers[0], *numbers)
    return Camera(
        world_to_camera=from_quaternion(pose[:4], pose[4:]),
        intrinsics=pinhole(*numbers[:4]) if known else np.eye(3),
        made_for=lens.size,
        lens=known,
        model=lens.model,
    )


def _cameras_binary(path: Path) -> Iterator[tuple[int, Lenses]]:
    with path.open("rb") as file:
        data = BinaryFile(file, path)
        for _ in range(data.count("cameras", _CAMERA.size)):
            camera_id, model, width, height = (int(value) for value in data.unpack(_CAMERA, "cameras"))
            if model not in _MODELS:
                raise DataError(f"{path}: camera {camera_id} has the model {model}, which is not known")
            name, number = _MODELS[model]
            parameters = data.unpack(struct.Struct(f"<{number}d"), "cameras")
            yield camera_id, Lenses(name, (height, width), parameters)
        data.finish()


def _images_binary(path: Path, observed: bool) -> Iterator[_Image]:
    with path.open("rb") as file:
        data = BinaryFile(file, path)
        for _ in range(data.count("images", _IMAGE.size + 1 + COUNT.size)):
            _, *pose, camera_id = data.unpack(_IMAGE, "images")
            name = data.name("images")
            size = OBSERVATION.itemsize * data.count("points", OBSERVATION.itemsize)
            found = np.frombuffer(data.read(size, "points"), OBSERVATION) if observed else data.skip(size)
            yield _Image(name, int(camera_id), tuple(pose), found)
        data.finish()


def _cameras_text(path: Path) -> Iterator[tuple[int, Lenses]]:
    with path.open("rb") as file:
        while line := text_line(file, path):
            words = line.split()
            try:
                camera_id, width, height = int(words[0]), int(words[2]), int(words[3])
                parameters = tuple(float(word) for word in words[4:])
            except (ValueError, IndexError):
                raise DataError(f"{path}: {line[:60]!r} is no camera") from None
            if len(parameters) != _PARAMETERS.get(words[1], len(parameters)):
                raise DataError(f"{path}: a {words[1]} camera does not have {len(parameters)} parameters")
            yield camera_id, Lenses(words[1], (height, width), parameters)


def _images_text(path: Path, observed: bool) -> Iterator[_Image]:
    with path.open("rb") as file:
        while line := text_line(file, path):
            words = line.split(maxsplit=9)
            try:
                pose, camera_id = tuple(float(word) for word in words[1:8]), int(words[8])
                name = words[9]
            except (ValueError, IndexError):
                raise DataError(f"{path}: {line[:60]!r} is no image") from None
            found = observations_of_text(file.readline(), path) if observed else skip_line(file)
            yield _Image(name, camera_id, pose, found)
