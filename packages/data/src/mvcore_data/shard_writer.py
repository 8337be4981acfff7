"""Writes one shard: encoded bytes stream into files beside it; at the end all goes into one HDF5 file.

A contiguous dataset can neither grow nor be trimmed, so the blobs' sizes must be known before the file is made.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mvcore_data import seal
from mvcore_data.index import ShardEntry
from mvcore_data.objects import EncodedObject, EncodedView
from mvcore_data.schema import CODECS, SCHEMA, TABLES, VERSION
from mvcore_data.shard import Shard

_COPY = 1 << 24


class _Sidecar:
    """A blob that grows in a file of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = [0]
        self.crc32: list[int] = []
        self.sha256 = hashlib.sha256()
        self._file = path.open("wb")

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self.offset.append(self.offset[-1] + len(data))
        self.crc32.append(zlib.crc32(data))
        self.sha256.update(data)

    def copy_into(self, group: h5py.Group) -> tuple[int, int]:
        """Makes the group's blob, offsets and checksums; gives the blob's place in the file."""
        self._file.flush()
        group["offset"] = np.asarray(self.offset, "i8")
        group["crc32"] = np.asarray(self.crc32, "u4")
        blob = group.create_dataset("blob", (self.offset[-1],), "u1")
        with self.path.open("rb") as file:
            start = 0
            while part := file.read(_COPY):
                blob[start : start + len(part)] = np.frombuffer(part, "u1")
                start += len(part)
        return blob.id.get_offset(), self.offset[-1]

    def discard(self) -> None:
        with suppress(OSError):  # what is still buffered may not fit on the disk
            self._file.close()
        self.path.unlink(missing_ok=True)


class _HDF5File(io.FileIO):
    """A file for HDF5 to write, which crashes the process when a write of its own fails (seen on a full disk).

    So no write fails while HDF5 is at work: the first error is kept, what follows goes nowhere, and leaving raises it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        part = memoryview(data).cast("B")
        try:
            while part and self._error is None:
                part = part[super().write(part) :]
        except OSError as error:
            self._error = error
        return len(data)

    def truncate(self, size: int | None = None) -> int:
        try:
            if self._error is None:
                return super().truncate(size)
        except OSError as error:
            self._error = error
        return size or 0

    def __exit__(self, *exception: object) -> None:
        self.close()
        if self._error is not None:
            raise self._error from None


class ShardWriter:
    """Collects objects for one shard.

    Args:
        path: the shard's final path; nothing appears there before `publish`.
        number: its number in the store.
    """

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.temporary = path.with_name(f"{path.name}.tmp")
        self._number = number
        self._blobs: dict[str, _Sidecar] = {}
        self._objects: list[tuple[str, int]] = []
        self._names: dict[str, dict[str, int]] = {table: {} for table in TABLES}
        self._rows: dict[str, list[int]] = {table: [] for table in TABLES}
        self._codec: list[int] = []
        self._size: list[tuple[int, int]] = []
        self._cameras: list[Any] = []
        self._depth_scale: list[float] = []
        self._captions: list[tuple[bytes, int]] = []
        self._open_blob("views")

    @property
    def n_bytes(self) -> int:
        """Bytes of all blobs so far."""
        return sum(blob.offset[-1] for blob in self._blobs.values())

    def add(self, item: EncodedObject) -> None:
        """Adds an object.

        Raises:
            OSError: it cannot be written; the shard must then be discarded.
        """
        self._captions += [(text, -1 - len(self._objects)) for text in item.captions]
        for table, value in item.names.items():
            names = self._names[table]
            self._rows[table].append(-1 if value is None else names.setdefault(value, len(names)))
        for view in item.views:
            self._add_view(view)
        self._objects.append((item.id, len(item.views)))

    def _add_view(self, view: EncodedView) -> None:
        v = len(self._codec)
        self._blobs["views"].add(view.data)
        self._codec.append(CODECS.index(view.codec))
        self._size.append(view.size)
        self._captions += [(text, v) for text in view.captions]
        self._cameras.append(view.camera)
        self._depth_scale.append(1.0 if view.depth is None else view.depth[1])
        for name, data in (("depth", view.depth and view.depth[0]), ("masks", view.mask), ("tracks", view.tracks)):
            if data and name not in self._blobs:
                self._open_blob(name)
                for _ in range(v):
                    self._blobs[name].add(b"")
            if name in self._blobs:
                self._blobs[name].add(data or b"")

    def finish(self) -> ShardEntry:
        """Makes the file under its temporary name, reads it back whole, and flushes it to disk.

        Raises:
            OSError: it cannot be written.
            DataError: what was read back is not what was written.
        """
        with _HDF5File(self.temporary) as raw, h5py.File(raw, "w", userblock_size=seal.USER_BLOCK) as file:
            places = self._write(file)
        written = seal.write(self.temporary, places)
        for blob in self._blobs.values():
            blob.discard()
        shard = Shard(self.temporary, written, trusted=True)
        for v in range(shard.n_views):
            for read in (shard.encoded, shard.encoded_depth, shard.encoded_mask, shard.encoded_tracks):
                read(v)  # against its CRC
        shard.remember()
        shard.close()
        return ShardEntry(self.path.name, shard.n_objects, shard.n_views, written)

    def publish(self) -> None:
        """Gives the finished file its name."""
        self.temporary.replace(self.path)

    def discard(self) -> None:
        """Removes everything that was not published."""
        for blob in self._blobs.values():
            blob.discard()
        self.temporary.unlink(missing_ok=True)

    def _open_blob(self, name: str) -> None:
        self._blobs[name] = _Sidecar(self.path.with_name(f"{self.path.name}.{name}.tmp"))

    def _write(self, file: h5py.File) -> tuple[tuple[int, int], ...]:
        file.attrs.update(
            schema=SCHEMA,
            version=VERSION,
            shard=self._number,
            n_objects=len(self._objects),
            n_views=len(self._codec),
            creator=f"mvcore-data {version('mvcore-data')}",
            content_sha256=self._blobs["views"].sha256.hexdigest(),
        )
        places = tuple(blob.copy_into(file.create_group(name)) for name, blob in self._blobs.items())
        counts = [count for _, count in self._objects]
        file["views/codec"] = np.asarray(self._codec, "u1")
        file["views/size"] = np.asarray(self._size, "u2")
        file["views/object"] = np.repeat(np.arange(len(counts)), counts).astype("i4")
        file["objects/view_offset"] = np.cumsum([0, *counts]).astype("i8")
        _write_strings(file, "objects/id", [name for name, _ in self._objects])
        for table in TABLES:
            file[f"objects/{table}"] = np.asarray(self._rows[table], "i4")
            if self._names[table]:
                _write_strings(file, f"meta/{table}_names", list(self._names[table]))
        if "depth" in self._blobs:
            file["depth/scale"] = np.asarray(self._depth_scale, "f4")
        self._write_captions(file)
        self._write_cameras(file)
        file.attrs["complete"] = True
        return places

    def _write_captions(self, file: h5py.File) -> None:
        blob = b"".join(text for text, _ in self._captions)
        if self._captions:
            file["captions/blob"] = np.frombuffer(blob, "u1")
            file["captions/offset"] = np.cumsum([0, *(len(text) for text, _ in self._captions)]).astype("i8")
            file["captions/target"] = np.asarray([target for _, target in self._captions], "i4")

    def _write_cameras(self, file: h5py.File) -> None:
        valid = np.asarray([camera is not None for camera in self._cameras])
        if not valid.any():
            return
        intrinsics = np.zeros((len(valid), 3, 3), "f4")
        world_to_camera = np.zeros((len(valid), 4, 4), "f4")
        for v, camera in enumerate(self._cameras):
            if camera is not None:
                intrinsics[v], world_to_camera[v] = camera
        group = file.create_group("cameras")
        group.attrs["convention"] = "OpenCV axes (x right, y down, z forward), world to camera, pixel centres at +0.5"
        group["K"], group["w2c"], group["valid"] = intrinsics, world_to_camera, valid


def _write_strings(file: h5py.File, name: str, values: Sequence[str]) -> None:
    raw = [value.encode() for value in values]
    file[name] = np.asarray(raw, h5py.string_dtype("utf-8", max(map(len, raw))))
