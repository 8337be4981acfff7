"""What may stand beside an object's images in a folder to pack: captions, metadata and cameras."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

from mvcore.api import DataError, Options
from pydantic import Field, ValidationError

CAPTION_FILES = ("captions.txt", "caption.txt")
METADATA_FILE = "metadata.json"
CAMERAS_FILE = "cameras.json"

LICENCES_FILE = "LICENCES.csv"
README_FILE = "README.md"
SPLIT_FILE = "split-{}.txt"

Matrices: TypeAlias = tuple[list[list[float]], list[list[float]]]


class DepthFile(Options):
    """A 16-bit grey PNG in the object's folder; depth = value * scale, 0 = none."""

    file: str
    scale: float = Field(gt=0, allow_inf_nan=False)


class ObjectMetadata(Options):
    """What an object's `metadata.json` may hold.

    `view_captions`, `masks` (a grey image file, non-zero = object), `depth` and `tracks` (a `.npy` file of records) go
    by an image's file name; `id` stands in the place of the folder's name.
    """

    id: str | None = None
    captions: list[str] = Field(default=[])
    view_captions: dict[str, list[str]] = Field(default={})
    category: str | None = None
    licence: str | None = None
    source: str | None = None
    creator: str | None = None
    masks: dict[str, str] = Field(default={})
    depth: dict[str, DepthFile] = Field(default={})
    tracks: dict[str, str] = Field(default={})

    @property
    def beside(self) -> set[str]:
        """Names of the files that hold masks and depth."""
        return {*self.masks.values(), *(depth.file for depth in self.depth.values())}


class ViewCamera(Options):
    """A file's entry in `cameras.json`: intrinsics (3, 3) in pixels, world_to_camera (4, 4), OpenCV axes."""

    intrinsics: list[list[float]]
    world_to_camera: list[list[float]]


def read_captions(folder: Path) -> list[str]:
    """The lines of the folder's caption files.

    Raises:
        DataError: a file is not UTF-8.
    """
    texts: list[str] = []
    for path in (folder / name for name in CAPTION_FILES):
        if path.is_file():
            try:
                texts += [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError):
                raise DataError(f"{path}: cannot be read as UTF-8 text") from None
    return texts


def read_metadata(folder: Path, images: Collection[str], others: Collection[str] = ()) -> ObjectMetadata:
    """The folder's metadata; empty where there is none.

    Args:
        folder: of the object.
        images: the image files in it, those of masks and depth among them.
        others: the other files in it.

    Raises:
        DataError: not JSON, an unknown or wrong key, or what it says is of an image, or in a file, that is not there.
    """
    path = folder / METADATA_FILE
    metadata: ObjectMetadata = _validated(ObjectMetadata, _read_json(path), path, images, _named)
    if missing := next((name for name in metadata.tracks.values() if name not in others), None):
        raise DataError(f"{path}: names the tracks {missing!r}, which are not in the folder")
    return metadata


def is_card(path: Path) -> bool:
    """Whether a file at the root tells about an export as a whole."""
    return path.name in (LICENCES_FILE, README_FILE) or fnmatchcase(path.name, SPLIT_FILE.format("*"))


def read_cameras(folder: Path, images: Collection[str]) -> dict[str, Matrices]:
    """(intrinsics, world_to_camera) by file name.

    Raises:
        DataError: not JSON, an unknown or wrong key, or the camera of an image that is not there.
    """
    path = folder / CAMERAS_FILE
    found: dict[str, Matrices] = {}
    for name, value in _read_json(path).items():
        camera = _validated(ViewCamera, value, path, images, lambda _, name=name: [name])
        found[name] = (camera.intrinsics, camera.world_to_camera)
    return found


def _named(metadata: ObjectMetadata) -> list[str]:
    return [*metadata.view_captions, *metadata.masks, *metadata.depth, *metadata.tracks, *sorted(metadata.beside)]


def _validated(model: Any, value: Any, path: Path, images: Collection[str], named: Callable[[Any], Any]) -> Any:
    try:
        checked = model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: {where + ': ' if where else ''}{first['msg'].lower()}") from None
    if unknown := next((name for name in named(checked) if name not in images), None):
        raise DataError(f"{path}: names the image {unknown!r}, which is not in the folder")
    return checked


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path}: cannot be read as JSON") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: holds no JSON object")
    return value
