"""One shard, read only: everything in it is checked before it is used.

The metadata is read once into memory and HDF5 is closed again; views are then read with `os.pread` at the blob's place
in the file. `pread` shares no file position, so threads and forked workers may read through one descriptor, no HDF5
handle lives on for a fork to inherit, and a file truncated later gives a short read, not a signal.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32  # zlib's own at five times its speed

from mvcore_data import probe, seal
from mvcore_data.schema import CODECS, MAX_PIXELS, MAX_SIDE, TABLES
from mvcore_data.tables import Blob, Tables, open_hdf5
from mvcore_data.tracks import RECORD

_LARGEST_SCALE = np.finfo(np.float32).max / 65535


class Shard:
    """A shard's metadata in memory and its blobs in the file.

    Args:
        path: the file.
        expected: the seal that an index records for it; without it the file's own seal counts.
        trusted: HDF5 may open it without a trial: this process wrote it.

    Raises:
        DataError: missing, damaged, unfinished, or not a shard of this schema and version.
    """

    def __init__(self, path: Path, expected: seal.Seal | None = None, *, trusted: bool = False) -> None:
        self.path = path
        self._fd: int | None = None
        self._stamp = (0, 0)
        try:
            self.seal = self._check_seal(expected, trusted)
            with open_hdf5(path) as file:
                self._read(Tables(file, path, self._stamp[0]))
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

    def encoded_tracks(self, v: int) -> bytes:
        """View v's tracks as records; empty where it has none."""
        return b"" if self.tracks is None else self._entry(self.tracks, v, "the tracks of view")

    def label(self, v: int) -> str:
        """How messages name view v."""
        o = int(self.object_of[v])
        return f"{self.path}: view {v - int(self.view_offset[o])} of object {self.ids[o]!r}"

    def remember(self) -> None:
        """Records that HDF5 may open this file again without a trial."""
        if self.seal is not None:
            probe.remember(self._descriptor(), self.seal)

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
        begin = blob.offset.item(i)
        length = blob.offset.item(i + 1) - begin
        fd = self._fd
        data = os.pread(self._descriptor() if fd is None else fd, length, blob.start + begin)
        if len(data) != length or crc32(data) != blob.crc32.item(i):
            raise DataError(f"{self.label(i)}: the bytes of {what} are damaged; copy the shard again")
        return data

    def _descriptor(self) -> int:
        if self._fd is not None:
            return self._fd
        try:
            # A pipe in the place of a file would let a plain open wait for ever.
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror})") from None
        stat = os.fstat(fd)
        if not S_ISREG(stat.st_mode):
            os.close(fd)
            raise DataError(f"{self.path}: not a regular file; give a shard or the folder of a store")
        stamp = (stat.st_size, stat.st_mtime_ns)
        if self._stamp != (0, 0) and stamp != self._stamp:
            os.close(fd)
            raise DataError(f"{self.path}: changed since the store was opened; open it again")
        self._fd, self._stamp = fd, stamp
        return fd

    def _check_seal(self, expected: seal.Seal | None, trusted: bool) -> seal.Seal | None:
        fd = self._descriptor()
        own = expected or seal.read(fd, str(self.path))
        if own is not None:
            seal.verify(fd, own, str(self.path))
        if not trusted:
            probe.ensure_openable(self.path, fd, own)
        return own

    def _read(self, reader: Tables) -> None:
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
        self.depth = reader.blob("depth", n_views) if reader.holds("depth") else None
        self.depth_scale = reader.array("depth/scale", "f4", (n_views,)) if reader.holds("depth") else None
        self.masks = reader.blob("masks", n_views) if reader.holds("masks") else None
        self.tracks = reader.blob("tracks", n_views) if reader.holds("tracks") else None
        self._check(reader.require)
        found = (self.views, self.depth, self.masks, self.tracks)
        blobs = tuple(sorted((b.start, b.length) for b in found if b is not None))
        if self.seal is not None:
            reader.require(self.seal.blobs == blobs, "its blobs are not where its seal says")

    def _table(self, reader: Tables, name: str) -> tuple[list[str], NDArray[np.int32]]:
        if name == "creator" and not reader.holds("objects/creator"):  # shards made before there was such a column
            return [], np.full(len(self.ids), -1, np.int32)
        rows = reader.array(f"objects/{name}", "i4", (len(self.ids),))
        names = reader.strings(f"meta/{name}_names") if rows.size and rows.max() >= 0 else []
        reader.require(bool(np.all((rows >= -1) & (rows < len(names)))), f"/objects/{name} points outside its table")
        return names, rows

    def _read_captions(self, reader: Tables) -> None:
        # Bytes and offsets, not strings: forked workers share arrays, but copy each page whose strings they count.
        target, offset, self._texts = np.zeros(0, np.int32), np.zeros(1, np.int64), b""
        if reader.holds("captions"):
            target = reader.array("captions/target", "i4")
            offset = reader.array("captions/offset", "i8", (len(target) + 1,))
            raw = reader.array("captions/blob", "u1")
            reader.check_offsets("captions", offset, len(raw))
            self._texts = raw.tobytes()
            reader.require(_is_utf8(self._texts, raw, offset), "its captions are not UTF-8")
        low, high = -len(self.ids), len(self.codec)
        reader.require(bool(np.all((target >= low) & (target < high))), "a caption belongs to no object or view")
        # Those of target t are entries first[t + O] to first[t + O + 1] of captions in order of their target.
        order = np.argsort(target, kind="stable")
        self._caption_begin, self._caption_end = offset[:-1][order], offset[1:][order]
        self._caption_first = np.searchsorted(target[order], np.arange(low, high + 1)).astype(np.int64)

    @property
    def n_captions(self) -> int:
        """Captions in all."""
        return len(self._caption_begin)

    @property
    def n_view_captions(self) -> int:
        """Captions of single views."""
        return self.n_captions - self._caption_first.item(len(self.ids))

    @property
    def most_captions(self) -> int:
        """The largest number of captions that an object or a view has of its own."""
        return int(np.diff(self._caption_first).max(initial=0))

    def captions_of(self, target: int) -> list[str]:
        """The captions of view `target`, or of object `-1 - target`."""
        return self.captions(self.caption_rows(target))

    def caption_rows(self, target: int) -> range:
        """The places of a target's captions among all of the shard in order of their target."""
        slot = target + len(self.ids)
        return range(self._caption_first.item(slot), self._caption_first.item(slot + 1))

    def captions(self, rows: range) -> list[str]:
        """The captions at these places."""
        return [self._texts[self._caption_begin.item(i) : self._caption_end.item(i)].decode() for i in rows]

    def _read_cameras(self, reader: Tables) -> None:
        self.camera_valid: NDArray[np.bool_] | None = None
        if not reader.holds("cameras"):
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
        whole = self.tracks is None or not np.any(np.diff(self.tracks.offset) % RECORD.itemsize)
        require(whole, "/tracks/offset does not hold whole records")
        scale = self.depth_scale
        require(
            scale is None or bool(np.all((scale > 0) & (scale <= _LARGEST_SCALE))),
            "/depth/scale is not positive, or makes depth infinite",
        )


def _is_utf8(texts: bytes, raw: NDArray[np.uint8], offset: NDArray[np.int64]) -> bool:
    """Whether texts one after another are UTF-8, each by itself: no text begins in the middle of a character."""
    try:
        texts.decode()
    except UnicodeDecodeError:
        return False
    begin = offset[offset < len(raw)]
    return not np.any(raw[begin] & 0xC0 == 0x80)
