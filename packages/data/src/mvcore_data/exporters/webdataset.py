"""`webdataset`: tar shards, one object or one view a sample, as the `webdataset` library reads them.

The files of a sample share a key and differ by what follows its first dot. An object: `KEY.000.jpg`,
`KEY.000.mask.png`, `KEY.000.depth.png`, `KEY.001.jpg`, ..., `KEY.json`. A view: `KEY/000.jpg`, `.mask.png`,
`.depth.png`, `.json`, and `.txt` with one caption, as loaders of image-text pairs want it.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from mvcore_data.exporters.base import ExportObject, ExportView, number, safe_name

Sample = Literal["object", "view"]
File: TypeAlias = tuple[str, bytes]

SHARD_NAME = "shard-{:06d}.tar"


class WebDatasetExporter:
    """Shards of at most so many bytes; a sample is never cut, so a larger one has a shard of its own.

    Args:
        folder: where to write; exists.
        sample: what one is.
        shard_bytes: a shard's largest size.
    """

    def __init__(self, folder: Path, sample: Sample, shard_bytes: int) -> None:
        self._folder = folder
        self._sample = sample
        self._shard_bytes = shard_bytes
        self._shards = 0
        self._tar: tarfile.TarFile | None = None

    def add(self, item: ExportObject) -> None:
        """Writes one object."""
        key = safe_name(item.id).replace(".", "%2E")
        if self._sample == "object":
            self._write(list(_object_files(item, key)))
            return
        for k, view in enumerate(item.views):
            self._write(list(_view_files(item, k, view, f"{key}/{number(k, len(item.views))}")))

    def __enter__(self) -> WebDatasetExporter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tar is not None:
            self._tar.close()

    def _write(self, files: list[File]) -> None:
        entries = [(_header(name, len(data)), data) for name, data in files]
        size = sum(len(info.tobuf(tarfile.PAX_FORMAT)) + _blocks(info.size) for info, _ in entries)
        if self._tar is not None and self._tar.offset and _closed_size(self._tar.offset + size) > self._shard_bytes:
            self._tar.close()
            self._tar = None
        if self._tar is None:
            path = self._folder / SHARD_NAME.format(self._shards)
            self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - open until the next
            self._shards += 1
        for info, data in entries:
            self._tar.addfile(info, io.BytesIO(data))


def _object_files(item: ExportObject, key: str) -> Iterator[File]:
    views: list[dict[str, Any]] = []
    for k, view in enumerate(item.views):
        digits = number(k, len(item.views))
        record: dict[str, Any] = {"image": f"{digits}.{view.suffix}", "captions": view.captions, "camera": view.camera}
        yield f"{key}.{digits}.{view.suffix}", view.image
        if view.mask is not None:
            record["mask"] = f"{digits}.mask.png"
            yield f"{key}.{digits}.mask.png", view.mask
        if view.depth is not None:
            record |= {"depth": f"{digits}.depth.png", "depth_scale": view.depth[1]}
            yield f"{key}.{digits}.depth.png", view.depth[0]
        if view.tracks is not None:
            record["tracks"] = f"{digits}.tracks.npy"
            yield f"{key}.{digits}.tracks.npy", view.tracks
        views.append(record)
    yield f"{key}.json", _json({"id": item.id, **item.names, "captions": item.captions, "views": views})


def _view_files(item: ExportObject, k: int, view: ExportView, key: str) -> Iterator[File]:
    record: dict[str, Any] = {
        "id": item.id,
        **item.names,
        "captions": item.captions,
        "view": k,
        "views": len(item.views),
        "view_captions": view.captions,
        "camera": view.camera,
    }
    yield f"{key}.{view.suffix}", view.image
    if view.mask is not None:
        yield f"{key}.mask.png", view.mask
    if view.depth is not None:
        record["depth_scale"] = view.depth[1]
        yield f"{key}.depth.png", view.depth[0]
    if view.tracks is not None:
        yield f"{key}.tracks.npy", view.tracks
    if texts := [*view.captions, *item.captions]:
        yield f"{key}.txt", texts[0].encode()
    yield f"{key}.json", _json(record)


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _header(name: str, size: int) -> tarfile.TarInfo:
    """The same for the same file whenever and by whomever it is made."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info


def _blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _closed_size(offset: int) -> int:
    """A tar file's size once it is closed: two empty blocks, and all of it in whole records."""
    return -(-(offset + 2 * tarfile.BLOCKSIZE) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
