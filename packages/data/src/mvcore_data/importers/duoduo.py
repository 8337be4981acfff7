"""`duoduo`: the raw views of Duoduo CLIP, `imgs (N, V, 3, H, W)` uint8 in HDF5, with `model_to_idx.json`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mvcore.api import ConfigError, DataError, Options
from numpy.typing import NDArray
from pydantic import Field

from mvcore_data import decode
from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView
from mvcore_data.importers.duoduo_files import (
    arrays_in,
    index_of,
    read_categories,
    read_dictionary,
    read_rows,
    texts_in,
)
from mvcore_data.importers.h5_arrays import RowArray
from mvcore_data.source_images import UnusableError

_DATASET = "imgs"


class DuoduoOptions(Options):
    """Options of `duoduo`; files are named from the folder of the images.

    Args:
        images: the HDF5 file, where the folder holds several.
        index: the JSON of rows by object id; by default `lvis_model_to_idx.json` for `lvis_images.h5`, else
            `model_to_idx.json`.
        texts: a dictionary of texts by object id: .json, .json.gz, or a pickled .npy with `allow_pickle`.
        texts_of: `objects`: an entry's texts describe the object; `views`: an entry is a list with one text a view.
        allow_pickle: read a pickled dictionary. A pickle can run any code: only from people whom you trust.
        categories: a CSV of `uid, class_name` or `id, name`, as `lvis.csv`.
        codec: how the pixels are encoded: `jpeg` (4:4:4), `png` or `webp`.
        quality: of JPEG and WebP, 1 to 100; WebP at 100 is lossless, as PNG is.
    """

    images: str | None = None
    index: str | None = None
    texts: str | None = None
    texts_of: Literal["objects", "views"] = "objects"
    allow_pickle: bool = False
    categories: str | None = None
    codec: Literal["jpeg", "png", "webp"] = "jpeg"
    quality: int = Field(default=95, ge=1, le=100)


def _detect(path: Path) -> str | None:
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.suffix != ".h5":
        return None
    arrays = arrays_in(folder, embeddings=False)
    index = next(iter(sorted(folder.glob("*model_to_idx.json"))), None)
    if index is None or not arrays or (path.is_file() and path not in arrays):
        return None
    return f"{(path if path.is_file() else arrays[0]).name} with {index.name}"


def _open(path: Path, options: DuoduoOptions) -> Source:
    file = _array_file(path, options.images)
    array = RowArray(file, _DATASET, ("|u1",), 5)
    _, views, channels, height, width = array.shape
    if channels != 3:
        raise DataError(f"{file}: /{_DATASET} has shape {array.shape}, not (objects, views, 3, height, width)")
    decode.check_size(height, width, f"{file}: /{_DATASET}")
    folder = file.parent
    ids = read_rows(index_of(file, options.index), array.shape[0])
    texts = _texts(folder, options)
    categories = {} if options.categories is None else read_categories(folder / options.categories)

    def objects(skipped: Skipped) -> Iterator[SourceObject]:
        for row in sorted(set(range(array.shape[0])) - ids.keys()):
            skipped.add("a row that the index does not name", f"{file}: {_DATASET}[{row}]")
        for row, name in ids.items():
            entry, own = texts.get(name), None
            if options.texts_of == "views" and entry is not None:
                entry, own = None, _texts_of_views(entry, views, name, skipped)
            pixels = _Row(array, row, options)
            yield SourceObject(
                id=name,
                name=f"{file}: {_DATASET}[{row}]",
                views=[pixels.view(k, () if own is None else own[k]) for k in range(views)],
                captions=texts_in(entry),
                category=categories.get(name),
            )

    return Source(objects, len(ids))


class _Row:
    """The views of one object, read together when the first of them is asked for."""

    def __init__(self, array: RowArray, row: int, options: DuoduoOptions) -> None:
        self._array, self._row, self._options = array, row, options
        self._lock = threading.Lock()
        self._pixels: NDArray[np.uint8] | None = None

    def view(self, k: int, captions: list[str] | tuple[()]) -> SourceView:
        name = f"{self._array.path}: {_DATASET}[{self._row}, {k}]"
        return SourceView(name=name, read=lambda: self._read(k), captions=captions)

    def _read(self, k: int) -> bytes:
        with self._lock:
            if self._pixels is None:
                self._pixels = self._array.row(self._row)
            if not self._pixels.any():
                raise UnusableError("never written: all pixels of the object are zero")
        image = np.ascontiguousarray(self._pixels[k].transpose(1, 2, 0))
        return decode.encode_image(image, self._options.codec, self._options.quality)


def _array_file(path: Path, given: str | None) -> Path:
    if path.is_file() or not path.is_dir():
        if given is not None:
            raise ConfigError(f"{path}: is no folder, so there is no file images={given!r} in it")
        return path
    if given is not None:
        return path / given
    found = arrays_in(path, embeddings=False)
    if len(found) == 1:
        return found[0]
    if not found:
        raise DataError(f"{path}: holds no HDF5 file (.h5) of images")
    names = ", ".join(file.name for file in found)
    raise ConfigError(f"{path}: holds {len(found)} HDF5 files ({names}); choose one with --option images=FILE")


def _texts(folder: Path, options: DuoduoOptions) -> dict[str, Any]:
    if options.texts is None:
        return {}
    path = folder / options.texts
    found = read_dictionary(path, allow_pickle=options.allow_pickle)
    kept = {name: entry for name, entry in found.items() if texts_in(entry)}
    if not kept:
        raise DataError(f"{path}: holds no texts; features of texts go to the embedding cache, not into a store")
    return kept


def _texts_of_views(entry: object, views: int, name: str, skipped: Skipped) -> list[list[str]] | None:
    parts = entry.tolist() if isinstance(entry, np.ndarray) else entry
    if not isinstance(parts, (list, tuple)) or len(parts) != views:
        skipped.add(f"texts that are not one for each of the {views} views", name)
        return None
    return [texts_in(part) for part in parts]


FORMAT = Format(
    name="duoduo",
    summary="Duoduo CLIP's raw images: imgs (N, V, 3, H, W) uint8 in HDF5, with model_to_idx.json",
    detect=_detect,
    open=_open,
    options=DuoduoOptions,
)
