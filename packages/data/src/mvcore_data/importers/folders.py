"""`folders`: a folder of images for each object, perhaps in folders of categories."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from mvcore.api import DataError, Options
from numpy.typing import NDArray

from mvcore_data.folder_metadata import (
    CAMERAS_FILE,
    CAPTION_FILES,
    METADATA_FILE,
    Matrices,
    ObjectMetadata,
    is_card,
    read_cameras,
    read_captions,
    read_metadata,
)
from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView, file_reader
from mvcore_data.importers.listing import is_image, list_folder
from mvcore_data.importers.numbered import folder_names
from mvcore_data.importers.scene_files import LEAVES, deep_values, mask_values
from mvcore_data.tracks_file import read_tracks_file

_BESIDE = frozenset({*CAPTION_FILES, METADATA_FILE, CAMERAS_FILE})
_LOOKED_AT = 50


def _detect(src: Path) -> str | None:
    if not src.is_dir():
        return None
    for first in list_folder(src, src)[1][:_LOOKED_AT]:
        files, folders, _ = list_folder(first, src)
        if any(map(is_image, files)):
            return "folders with images"
        if any(is_image(file) for folder in folders[:_LOOKED_AT] for file in list_folder(folder, src)[0]):
            return "folders of folders with images"
    return None


def _open(src: Path, options: Options) -> Source:
    if not src.is_dir():
        raise DataError(f"{src}: no such folder")
    total = sum(max(1, len(folder_names(src / first))) for first in folder_names(src))
    return Source(lambda skipped: _objects(src, skipped), total)


def _objects(src: Path, skipped: Skipped) -> Iterator[SourceObject]:
    files, folders, outside = list_folder(src, src)
    _skip([file for file in files if not is_card(file)], "not in the folder of an object", skipped)
    _skip(outside, LEAVES, skipped)
    for first in folders:
        files, inner, outside = list_folder(first, src)
        if not any(is_image(file) for folder in inner for file in list_folder(folder, src)[0]):
            _skip(inner, "no images in the folder", skipped)
            yield from _object(first, first.name, None, files, outside, skipped)
            continue
        _skip(files, "beside the folders of objects", skipped)
        _skip(outside, LEAVES, skipped)
        for folder in inner:
            files, deeper, outside = list_folder(folder, src)
            _skip(deeper, "deeper than CATEGORY/OBJECT", skipped)
            yield from _object(folder, f"{first.name}/{folder.name}", first.name, files, outside, skipped)


def _object(
    path: Path, name: str, category: str | None, files: list[Path], outside: list[Path], skipped: Skipped
) -> Iterator[SourceObject]:
    images = [file for file in files if is_image(file)]
    others = {file.name for file in files} - {image.name for image in images}
    metadata = read_metadata(path, {image.name for image in images}, others) if images else ObjectMetadata()
    others -= _BESIDE | set(metadata.tracks.values())
    for file in files:
        if file.name in others:
            skipped.add(f"not a JPEG, PNG or WebP file ({file.suffix or 'no suffix'})", file)
    _skip(outside, LEAVES, skipped)
    if not images:
        skipped.add("no images in the folder", path)
        return
    images = [image for image in images if image.name not in metadata.beside]
    cameras = read_cameras(path, {image.name for image in images})
    yield SourceObject(
        id=metadata.id or name,
        name=str(path),
        views=[_view(image, metadata, cameras.get(image.name)) for image in images],
        captions=metadata.captions + read_captions(path),
        category=metadata.category or category,
        licence=metadata.licence,
        source=metadata.source,
        creator=metadata.creator,
    )


def _view(image: Path, metadata: ObjectMetadata, camera: Matrices | None) -> SourceView:
    mask, depth = metadata.masks.get(image.name), metadata.depth.get(image.name)
    tracks = metadata.tracks.get(image.name)
    return SourceView(
        name=str(image),
        read=file_reader(image),
        captions=metadata.view_captions.get(image.name, ()),
        camera=camera,
        depth=None if depth is None else partial(_depth, image.with_name(depth.file), depth.scale),
        mask=None if mask is None else partial(mask_values, image.with_name(mask)),
        tracks=None if tracks is None else read_tracks_file(image.with_name(tracks)),
    )


def _depth(path: Path, scale: float) -> NDArray[np.float32]:
    return deep_values(path).astype(np.float32) * np.float32(scale)


def _skip(paths: Sequence[Path], why: str, skipped: Skipped) -> None:
    for path in paths:
        skipped.add(why, path)


FORMAT = Format(
    name="folders",
    summary="OBJECT/* or CATEGORY/OBJECT/* with images, and captions.txt, metadata.json, cameras.json beside them",
    detect=_detect,
    open=_open,
    strict_marks=False,
)
