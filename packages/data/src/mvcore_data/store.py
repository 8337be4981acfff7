"""`ViewStore`: read access to a multi-view store."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data import decode
from mvcore_data.index import Index, read_index
from mvcore_data.schema import CODECS
from mvcore_data.shard import Shard


class ViewStore:
    """A reader over a shard or a folder of shards with its index.

    Objects are numbered 0 to `len(store) - 1`, views 0 to `n_views - 1`; the views of an object are adjacent. Offsets,
    cameras, captions and names stay in memory; images are read when asked for, each against its CRC. A store may be
    used from threads, forked and spawned workers; it pickles without its file handles.

    Args:
        path: a shard file or the folder of a store.

    Attributes:
        object_ids: the objects' names.
        index: what `index.json` records; without shards for a single shard file.

    Raises:
        DataError: missing, empty, damaged or unfinished, or of another version.
    """

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.is_file():
            self._shards = [Shard(self.path)]
            self.index = Index(())
        else:
            self.index = read_index(self.path)
            self._shards = _open_shards(self.path, self.index)
        self._first_view = [0, *accumulate(shard.n_views for shard in self._shards)]
        self._first_object = [0, *accumulate(shard.n_objects for shard in self._shards)]
        self.object_ids: list[str] = [name for shard in self._shards for name in shard.ids]
        self._check_names()

    @property
    def n_views(self) -> int:
        """Views in all."""
        return self._first_view[-1]

    @property
    def n_bytes(self) -> int:
        """Bytes of all encoded images."""
        return sum(shard.views.length for shard in self._shards)

    def __len__(self) -> int:
        return self._first_object[-1]

    def holds(self, what: Literal["cameras", "captions", "depth", "masks"]) -> bool:
        """Whether any shard has a table of these, without a look at each view."""
        if what == "captions":
            return any(shard.n_captions for shard in self._shards)
        name = "camera_valid" if what == "cameras" else what
        return any(getattr(shard, name) is not None for shard in self._shards)

    def views_of(self, i: int) -> range:
        """The views of object i."""
        n, local = self._object(i)
        begin, end = self._shards[n].view_offset[local : local + 2].tolist()
        return range(self._first_view[n] + begin, self._first_view[n] + end)

    def object_of(self, v: int) -> int:
        """The object that view v shows."""
        n, local = self._view(v)
        return self._first_object[n] + int(self._shards[n].object_of[local])

    def encoded(self, v: int) -> bytes:
        """View v's image as it is stored: a JPEG, PNG or WebP file.

        Raises:
            DataError: its bytes are not those that were written.
        """
        n, local = self._view(v)
        return self._shards[n].encoded(local)

    def codec(self, v: int) -> str:
        """The image format of view v: `jpeg`, `png` or `webp`."""
        n, local = self._view(v)
        return CODECS[self._shards[n].codec[local]]

    def size(self, v: int) -> tuple[int, int]:
        """View v's (height, width) in pixels."""
        n, local = self._view(v)
        height, width = self._shards[n].size[local].tolist()
        return height, width

    def image(self, v: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """View v's (H, W, 3) uint8 RGB pixels.

        Args:
            v: the view.
            out: (H, W, 3) uint8, contiguous, to decode into; it is what is given back.

        Raises:
            DataError: its bytes are not those that were written, or are no such image.
        """
        n, local = self._view(v)
        shard = self._shards[n]
        height, width = shard.size[local].tolist()
        out = np.empty((height, width, 3), np.uint8) if out is None else out
        data, codec = shard.encoded(local), CODECS[shard.codec.item(local)]
        if codec != "jpeg" or not decode.decode_jpeg(data, out):
            out[:] = decode.decode_image(data, codec, (height, width), shard.label(local))
        return out

    def camera(self, v: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """View v's intrinsics (3, 3) in pixels, centres at +0.5, and world-to-camera (4, 4), OpenCV axes; or None."""
        n, local = self._view(v)
        shard = self._shards[n]
        if shard.camera_valid is None or not shard.camera_valid[local]:
            return None
        return shard.intrinsics[local].copy(), shard.world_to_camera[local].copy()

    def depth(self, v: int) -> NDArray[np.float32] | None:
        """View v's (H, W) float32 z-depth in object units, 0 = none; or None."""
        n, local = self._view(v)
        shard = self._shards[n]
        data = shard.encoded_depth(local)
        if not data or shard.depth_scale is None:
            return None
        return decode.decode_depth(data, float(shard.depth_scale[local]), self.size(v), f"{shard.label(local)}: depth")

    def mask(self, v: int) -> NDArray[np.bool_] | None:
        """View v's (H, W) bool mask, True = object; or None."""
        n, local = self._view(v)
        data = self._shards[n].encoded_mask(local)
        return decode.decode_mask(data, self.size(v), f"{self._shards[n].label(local)}: mask") if data else None

    def has_depth(self, v: int) -> bool:
        """Whether view v has depth."""
        n, local = self._view(v)
        blob = self._shards[n].depth
        return blob is not None and bool(blob.offset[local + 1] > blob.offset[local])

    def has_mask(self, v: int) -> bool:
        """Whether view v has a mask."""
        n, local = self._view(v)
        blob = self._shards[n].masks
        return blob is not None and bool(blob.offset[local + 1] > blob.offset[local])

    def captions(self, i: int) -> list[str]:
        """The captions of object i as a whole."""
        n, local = self._object(i)
        return self._shards[n].captions_of(-1 - local)

    def view_captions(self, v: int) -> list[str]:
        """The captions of view v alone."""
        n, local = self._view(v)
        return self._shards[n].captions_of(local)

    def category(self, i: int) -> str | None:
        """The category of object i."""
        return self._named(i, "category")

    def licence(self, i: int) -> str | None:
        """The licence of object i's images."""
        return self._named(i, "licence")

    def source(self, i: int) -> str | None:
        """Where object i came from."""
        return self._named(i, "source")

    def creator(self, i: int) -> str | None:
        """Who made object i."""
        return self._named(i, "creator")

    def splits(self) -> dict[str, list[str]]:
        """Object ids by the name of the split; empty where the store was never split."""
        return {name: list(ids) for name, ids in self.index.splits.items()}

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        for shard in self._shards:
            shard.close()

    def __enter__(self) -> ViewStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _view(self, v: int) -> tuple[int, int]:
        return _locate(self._first_view, v, "view")

    def _object(self, i: int) -> tuple[int, int]:
        return _locate(self._first_object, i, "object")

    def _named(self, i: int, table: str) -> str | None:
        n, local = self._object(i)
        names, rows = self._shards[n].tables[table]
        row = int(rows[local])
        return names[row] if row >= 0 else None

    def _check_names(self) -> None:
        known = set(self.object_ids)
        if len(known) < len(self.object_ids):
            raise DataError(f"{self.path}: damaged: two shards hold objects of the same id; copy the store again")
        for split, ids in self.index.splits.items():
            if unknown := next((name for name in ids if name not in known), None):
                raise DataError(
                    f"{self.path}: split {split!r} names the object {unknown!r}, which the store does not hold"
                )


def _locate(first: list[int], index: int, what: str) -> tuple[int, int]:
    if not 0 <= index < first[-1]:
        raise IndexError(f"{what} {index} of a store with {first[-1]}")
    n = bisect_right(first, index) - 1
    return n, index - first[n]


def _open_shards(folder: Path, index: Index) -> list[Shard]:
    shards = [Shard(folder / entry.file, entry.seal) for entry in index.shards]
    for shard, entry in zip(shards, index.shards, strict=True):
        if (shard.n_objects, shard.n_views) != (entry.objects, entry.views):
            raise DataError(f"{shard.path}: {shard.n_objects} objects and {shard.n_views} views, not as the index says")
    return shards
