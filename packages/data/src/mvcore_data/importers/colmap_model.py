"""A COLMAP sparse model: cameras and images, binary or text, read with bounds.

Format: https://colmap.github.io/format.html. Points are not read. Newer files `rigs` and `frames` are not needed, since
`cameras` and `images` stayed as they were. The quaternion is Hamilton's (w, x, y, z) and turns world to camera; axes
are x right, y down, z forward; the upper left corner of an image has the coordinate (0, 0) and its first pixel's centre
(0.5, 0.5) (https://github.com/colmap/colmap/blob/main/src/colmap/sensor/models.h): all as in a store.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from mvcore.api import DataError

from mvcore_data.importers.cameras import Size, from_quaternion, pinhole
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
_COUNT = struct.Struct("<Q")
_POINT_BYTES = 24
_MAX_NAME_BYTES = 4096
_MAX_LINE = 1 << 16
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


def read_model(folder: Path) -> dict[str, Camera]:
    """The cameras of a sparse model by the names of their images.

    Raises:
        DataError: no model, or a file of it is damaged or contradicts itself.
    """
    suffix = model_suffix(folder)
    if suffix is None:
        raise DataError(f"{folder}: holds no COLMAP model (cameras and images, .bin or .txt)")
    readers = (_cameras_binary, _images_binary) if suffix == ".bin" else (_cameras_text, _images_text)
    cameras_file, images_file = (folder / f"{name}{suffix}" for name in MODEL_FILES)
    try:
        lenses = dict(readers[0](cameras_file))
        found: dict[str, Camera] = {}
        for name, camera_id, pose in readers[1](images_file):
            if camera_id not in lenses:
                raise DataError(f"{images_file}: image {name!r} has camera {camera_id}, which is not in the model")
            if name in found:
                raise DataError(f"{images_file}: image {name!r} stands there twice")
            found[name] = _camera(lenses[camera_id], pose)
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


class _Binary:
    """A binary file whose every length is checked against what is left of it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._left = path.stat().st_size

    def count(self, what: str, least: int) -> int:
        """A number of records, of which each has at least so many bytes."""
        number = int(self.unpack(_COUNT, what)[0])
        if number * least > self._left:
            raise DataError(f"{self._path}: announces {number} {what}, more than the {self._left} bytes left can hold")
        return number

    def unpack(self, form: struct.Struct, what: str) -> tuple[float, ...]:
        return form.unpack(self.read(form.size, what))

    def read(self, size: int, what: str) -> bytes:
        data = self._file.read(size) if size <= self._left else b""
        if len(data) != size:
            raise DataError(f"{self._path}: ends within its {what}")
        self._left -= size
        return data

    def skip(self, size: int) -> None:
        self._file.seek(size, 1)
        self._left -= size

    def name(self, what: str) -> str:
        begin = self._file.tell()
        end = (data := self._file.read(min(_MAX_NAME_BYTES, self._left))).find(b"\0")
        if end < 0:
            raise DataError(f"{self._path}: the name of one of its {what} has no end")
        self._file.seek(begin + end + 1)
        self._left -= end + 1
        return _text(data[:end], self._path)

    def finish(self) -> None:
        if self._left:
            raise DataError(f"{self._path}: {self._left} bytes too long")


def _cameras_binary(path: Path) -> Iterator[tuple[int, Lenses]]:
    with path.open("rb") as file:
        data = _Binary(file, path)
        for _ in range(data.count("cameras", _CAMERA.size)):
            camera_id, model, width, height = (int(value) for value in data.unpack(_CAMERA, "cameras"))
            if model not in _MODELS:
                raise DataError(f"{path}: camera {camera_id} has the model {model}, which is not known")
            name, number = _MODELS[model]
            parameters = data.unpack(struct.Struct(f"<{number}d"), "cameras")
            yield camera_id, Lenses(name, (height, width), parameters)
        data.finish()


def _images_binary(path: Path) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    with path.open("rb") as file:
        data = _Binary(file, path)
        for _ in range(data.count("images", _IMAGE.size + 1 + _COUNT.size)):
            _, *pose, camera_id = data.unpack(_IMAGE, "images")
            name = data.name("images")
            data.skip(_POINT_BYTES * data.count("points", _POINT_BYTES))
            yield name, int(camera_id), tuple(pose)
        data.finish()


def _cameras_text(path: Path) -> Iterator[tuple[int, Lenses]]:
    with path.open("rb") as file:
        while line := _line(file, path):
            words = line.split()
            try:
                camera_id, width, height = int(words[0]), int(words[2]), int(words[3])
                parameters = tuple(float(word) for word in words[4:])
            except (ValueError, IndexError):
                raise DataError(f"{path}: {line[:60]!r} is no camera") from None
            if len(parameters) != _PARAMETERS.get(words[1], len(parameters)):
                raise DataError(f"{path}: a {words[1]} camera does not have {len(parameters)} parameters")
            yield camera_id, Lenses(words[1], (height, width), parameters)


def _images_text(path: Path) -> Iterator[tuple[str, int, tuple[float, ...]]]:
    with path.open("rb") as file:
        while line := _line(file, path):
            words = line.split(maxsplit=9)
            try:
                pose, camera_id = tuple(float(word) for word in words[1:8]), int(words[8])
                name = words[9]
            except (ValueError, IndexError):
                raise DataError(f"{path}: {line[:60]!r} is no image") from None
            _skip_points(file)
            yield name, camera_id, pose


def _line(file: BinaryIO, path: Path) -> str:
    """The next line that is neither empty nor a comment; empty at the end."""
    while data := file.readline(_MAX_LINE):
        if len(data) == _MAX_LINE:
            raise DataError(f"{path}: a line of more than {_MAX_LINE} bytes")
        if (text := _text(data, path).strip()) and not text.startswith("#"):
            return text
    return ""


def _skip_points(file: BinaryIO) -> None:
    """The second line of an image, of any length; it may be empty."""
    while (part := file.readline(_MAX_LINE)) and not part.endswith(b"\n"):
        pass


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: {data[:40]!r} is not UTF-8") from None
