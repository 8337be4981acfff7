"""One shard, read only: everything in it is checked before it is used.

The metadata is read once into memory and HDF5 is closed again; views are then read with `os.pread` at the blob's place
in the file. `pread` shares no file position, so threads and forked workers may read through one descriptor, no HDF5
handle lives on for a fork to inherit, and a file truncated later gives a short read, not a signal.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data import seal
from mvcore_data.schema import CODECS, MAX_NAME_BYTES, MAX_PIXELS, MAX_SIDE, SCHEMA, TABLES, VERSION


@dataclass(frozen=True)
class Blob:
    """Byte strings of variable length, one after another in the file: entry i lies at `start + offset[i]`."""

    start: int
    offset: NDArray[np.int64]
    crc32: NDArray[np.uint32]

    @property
    def length(self) -> int:
        """Bytes in all."""
        return int(self.offset[-1])


class Shard:
    """A shard's metadata in memory and its blobs in the file.

    Args:
        path: the file.
        expected: the seal that an index records for it; without it the file's own seal counts.
        probing: this is the child process that tries a file without a seal.

    Raises:
        DataError: missing, damaged, unfinished, or not a shard of this schema and version.
    """

    def __init__(self, path: Path, expected: seal.Seal | None = None, *, probing: bool = False) -> None:
        self.path = path
        self._fd: int | None = None
        self._stamp = (0, 0)
        try:
            self.seal = self._check_seal(expected, probing)
            with _hdf5(path) as file:
                self._read(file)
        except BaseException:
            self.close()
            raise

    @property
    def n_objects(self) -> int:
        """Objects in the shard."""
        return len(self.ids)

    @property
    def n_views(self) -> int:
        """Views in the shard."""
        return len(self.codec)

    def encoded(self, v: int) -> bytes:
        """View v's encoded image.

        Raises:
            DataError: its bytes are not those that were written.
        """
        return self._entry(self.views, v, "view")

    def encoded_depth(self, v: int) -> bytes:
        """View v's depth PNG; empty where it has none."""
        return b"" if self.depth is None else self._entry(self.depth, v, "the depth of view")

    def encoded_mask(self, v: int) -> bytes:
        """View v's mask PNG; empty where it has none."""
        return b"" if self.masks is None else self._entry(self.masks, v, "the mask of view")

    def label(self, v: int) -> str:
        """How messages name view v."""
        o = int(self.object_of[v])
        return f"{self.path}: view {v - int(self.view_offset[o])} of object {self.ids[o]!r}"

    def close(self) -> None:
        """Closes the file; reading opens it again."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fd": None}

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.close()

    def _entry(self, blob: Blob, i: int, what: str) -> bytes:
        begin, end = int(blob.offset[i]), int(blob.offset[i + 1])
        data = os.pread(self._descriptor(), end - begin, blob.start + begin)
        if len(data) != end - begin or zlib.crc32(data) != blob.crc32[i]:
            raise DataError(f"{self.label(i)}: the bytes of {what} are damaged; copy the shard again")
        return data

    def _descriptor(self) -> int:
        if self._fd is not None:
            return self._fd
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        stat = os.fstat(fd)
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._stamp != (0, 0) and stamp != self._stamp:
            os.close(fd)
            raise DataError(f"{self.path}: changed since the store was opened; open it again")
        self._fd, self._stamp = fd, stamp
        return fd

    def _check_seal(self, expected: seal.Seal | None, probing: bool) -> seal.Seal | None:
        fd = self._descriptor()
        own = expected or seal.read(fd, str(self.path))
        if own is not None:
            seal.verify(fd, own, str(self.path))
        elif not probing:
            # A file that another program wrote: a child process tries HDF5 on it first.
            from mvcore_data.check import probe

            probe(self.path)
        return own

    def _read(self, file: h5py.File) -> None:
        reader = _Reader(file, self.path, self._stamp[0])
        n_objects, n_views = reader.counts()
        self.views = reader.blob("views", n_views)
        self.codec = reader.array("views/codec", "u1", (n_views,))
        self.size = reader.array("views/size", "u2", (n_views, 2))
        self.object_of = reader.array("views/object", "i4", (n_views,))
        self.view_offset = reader.array("objects/view_offset", "i8", (n_objects + 1,))
        self.ids = reader.strings("objects/id", n_objects)
        self.tables = {name: self._table(reader, name) for name in TABLES}
        self._read_captions(reader)
        self._read_cameras(reader)
        self.depth = reader.blob("depth", n_views) if "depth" in file else None
        self.depth_scale = reader.array("depth/scale", "f4", (n_views,)) if "depth" in file else None
        self.masks = reader.blob("masks", n_views) if "masks" in file else None
        self._check(reader.require)
        blobs = tuple(sorted((b.start, b.length) for b in (self.views, self.depth, self.masks) if b is not None))
        if self.seal is not None:
            reader.require(self.seal.blobs == blobs, "its blobs are not where its seal says")

    def _table(self, reader: _Reader, name: str) -> tuple[list[str], NDArray[np.int32]]:
        if name == "creator" and "objects/creator" not in reader.file:  # shards made before there was such a column
            return [], np.full(len(self.ids), -1, np.int32)
        rows = reader.array(f"objects/{name}", "i4", (len(self.ids),))
        names = reader.strings(f"meta/{name}_names") if rows.size and rows.max() >= 0 else []
        reader.require(bool(np.all((rows >= -1) & (rows < len(names)))), f"/objects/{name} points outside its table")
        return names, rows

    def _read_captions(self, reader: _Reader) -> None:
        self.texts: list[str] = []
        target = np.zeros(0, np.int32)
        if "captions" in reader.file:
            target = reader.array("captions/target", "i4")
            offset = reader.array("captions/offset", "i8", (len(target) + 1,))
            blob = reader.array("captions/blob", "u1").tobytes()
            reader.check_offsets("captions", offset, len(blob))
            try:
                self.texts = [blob[a:b].decode() for a, b in pairwise(offset.tolist())]
            except UnicodeDecodeError:
                raise reader.fault("its captions are not UTF-8") from None
        low, high = -len(self.ids), len(self.codec)
        reader.require(bool(np.all((target >= low) & (target < high))), "a caption belongs to no object or view")
        # Captions in order of their target, so that those of one target are one slice.
        self._caption_order = np.argsort(target, kind="stable")
        self._caption_target = target[self._caption_order]

    def captions_of(self, target: int) -> list[str]:
        """The captions of view `target`, or of object `-1 - target`."""
        begin, end = np.searchsorted(self._caption_target, [target, target + 1])
        return [self.texts[i] for i in self._caption_order[begin:end]]

    def _read_cameras(self, reader: _Reader) -> None:
        self.camera_valid: NDArray[np.bool_] | None = None
        if "cameras" not in reader.file:
            return
        n = len(self.codec)
        self.intrinsics = reader.array("cameras/K", "f4", (n, 3, 3))
        self.world_to_camera = reader.array("cameras/w2c", "f4", (n, 4, 4))
        valid = self.camera_valid = reader.array("cameras/valid", "b1", (n,))
        finite = np.isfinite(self.intrinsics).all((1, 2)) & np.isfinite(self.world_to_camera).all((1, 2))
        reader.require(bool((finite | ~valid).all()), "a camera is not finite")

    def _check(self, require: Callable[[bool, str], None]) -> None:
        n = len(self.codec)
        require(bool(np.all(np.diff(self.views.offset) > 0)), "a view has no bytes")
        require(
            bool(self.view_offset[0] == 0 and self.view_offset[-1] == n), "/objects/view_offset does not span its views"
        )
        counts = np.diff(self.view_offset)
        require(bool(np.all((counts > 0) & (counts <= n))), "an object has no views")
        require(
            np.array_equal(self.object_of, np.repeat(np.arange(len(counts)), counts)), "/views/object is inconsistent"
        )
        require(bool(np.all(self.codec < len(CODECS))), "/views/codec holds an unknown codec")
        side = self.size.astype(np.int64)
        fits = (side > 0).all() and (side <= MAX_SIDE).all() and (side.prod(1) <= MAX_PIXELS).all()
        require(bool(fits), f"/views/size holds an image without pixels or of more than {MAX_PIXELS}")
        require(len(set(self.ids)) == len(self.ids) and all(self.ids), "object ids are empty or repeated")
        scale = self.depth_scale
        require(scale is None or bool(np.all(np.isfinite(scale) & (scale > 0))), "/depth/scale is not positive")


@contextmanager
def _hdf5(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except DataError:
        raise
    except Exception as error:  # h5py raises OSError, KeyError, RuntimeError, ValueError and more on damage
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path}: not a readable shard ({reason})") from None


class _Reader:
    """Reads the datasets of one file, each only after its kind, type, shape and place were checked."""

    def __init__(self, file: h5py.File, path: Path, file_size: int) -> None:
        self.file = file
        self.path = path
        self.file_size = file_size

    def require(self, condition: bool, fault: str) -> None:
        """Raises a DataError about this file unless the condition holds."""
        if not condition:
            raise self.fault(fault)

    def fault(self, text: str) -> DataError:
        """What is wrong with this file, as an error."""
        return DataError(f"{self.path}: damaged: {text}; copy the shard again")

    def attribute(self, name: str, kind: type) -> Any:
        """A scalar attribute of the file."""
        value = self.file.attrs.get(name)
        value = value.item() if isinstance(value, np.generic) else value
        self.require(isinstance(value, kind), f"attribute {name!r} is missing or of the wrong type")
        return value

    def counts(self) -> tuple[int, int]:
        """Objects and views, after schema and version were checked."""
        if self.file.attrs.get("schema") != SCHEMA:
            raise DataError(
                f"{self.path}: not a {SCHEMA} shard; make one with 'mvcore data pack' or 'mvcore data render'"
            )
        version = self.attribute("version", int)
        if version != VERSION:
            raise DataError(
                f"{self.path}: {SCHEMA} version {version}, but version {VERSION} is read; upgrade mvcore-data"
            )
        self.require(self.attribute("complete", bool), "it was never finished")
        n_objects, n_views = self.attribute("n_objects", int), self.attribute("n_views", int)
        if n_objects == 0:
            raise DataError(f"{self.path}: empty, it holds no objects")
        self.require(0 < n_objects <= n_views <= self.file_size, "impossible counts of objects and views")
        return n_objects, n_views

    def dataset(self, name: str) -> h5py.Dataset:
        """A dataset of this very file: no link leaves it, and its bytes are stored plainly and in full."""
        group: Any = self.file
        for part in name.split("/"):
            self.require(isinstance(group, h5py.Group) and part in group, f"/{name} is missing")
            self.require(
                isinstance(group.get(part, getlink=True), h5py.HardLink), f"/{name} is a link, which is not allowed"
            )
            group = group[part]
        self.require(isinstance(group, h5py.Dataset), f"/{name} is not a dataset")
        create = group.id.get_create_plist()
        plain = create.get_layout() in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS) and create.get_external_count() == 0
        self.require(plain and create.get_nfilters() == 0, f"/{name} is chunked, filtered, external or virtual")
        return group

    def array(self, name: str, dtype: str, shape: tuple[int, ...] | None = None) -> NDArray[Any]:
        """A whole dataset of the given type and shape (None: any length)."""
        dataset = self.dataset(name)
        self.require(dataset.dtype == np.dtype(dtype), f"/{name} holds {dataset.dtype}, not {np.dtype(dtype)}")
        wanted = (len(dataset),) if shape is None and dataset.ndim == 1 else shape
        self.require(dataset.shape == wanted, f"/{name} has shape {dataset.shape}, not {wanted}")
        self.require(
            dataset.id.get_storage_size() == dataset.nbytes <= self.file_size, f"/{name} is not stored in full"
        )
        return dataset[()]

    def strings(self, name: str, count: int | None = None) -> list[str]:
        """UTF-8 strings of a fixed length."""
        dataset = self.dataset(name)
        kind = h5py.check_string_dtype(dataset.dtype)
        fixed = kind is not None and kind.encoding == "utf-8" and kind.length is not None
        self.require(
            fixed and dataset.dtype.itemsize <= MAX_NAME_BYTES, f"/{name} does not hold UTF-8 of a fixed length"
        )
        raw = self.array(name, dataset.dtype.str, None if count is None else (count,))
        try:
            return [bytes(value).decode() for value in raw]
        except UnicodeDecodeError:
            raise self.fault(f"/{name} is not UTF-8") from None

    def blob(self, group: str, count: int) -> Blob:
        """The blob of a group with its offsets and checksums."""
        dataset = self.dataset(f"{group}/blob")
        start = dataset.id.get_offset()
        contiguous = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS
        right = contiguous and start is not None and dataset.dtype == np.uint8 and dataset.ndim == 1
        if not right or start is None:
            raise self.fault(f"/{group}/blob is not one contiguous run of bytes")
        length = dataset.shape[0]
        self.require(start + length <= self.file_size, f"/{group}/blob goes beyond the end of the file")
        offset = self.array(f"{group}/offset", "i8", (count + 1,))
        self.check_offsets(group, offset, length)
        return Blob(start, offset, self.array(f"{group}/crc32", "u4", (count,)))

    def check_offsets(self, group: str, offset: NDArray[np.int64], length: int) -> None:
        """Offsets must rise from 0 to the blob's length."""
        right = offset[0] == 0 and offset[-1] == length and np.all(offset[1:] >= offset[:-1])
        self.require(bool(right), f"/{group}/offset does not rise from 0 to the {length} bytes of its blob")
