"""`ViewStore`: read access to a multi-view store."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data import decode
from mvcore_data.index import Index, ShardEntry, read_index
from mvcore_data.schema import CODECS
from mvcore_data.shard import Shard
from mvcore_data.tracks import Tracks, decode_tracks


@dataclass(frozen=True)
class LostShard:
    """A shard that could not be opened.

    Args:
        file: its name.
        objects, views: how many the index counts in it; 0 for a shard without an index.
        problem: why, in one line.
    """

    file: str
    objects: int
    views: int
    problem: str


class ViewStore:
    """A reader over a shard or a folder of shards with its index.

    Objects are numbered 0 to `len(store) - 1`, views 0 to `n_views - 1`; the views of an object are adjacent. Offsets,
    cameras, captions and names stay in memory; images are read when asked for, each against its CRC. A store may be
    used from threads, forked and spawned workers; it pickles without its file handles.

    Args:
        path: a shard file or the folder of a store.
        skip_damaged: leave out shards that cannot be opened, and name them in `lost`.

    Attributes:
        object_ids: the objects' names.
        index: what `index.json` records; without shards for a single shard file.
        lost: the shards that were left out.

    Raises:
        DataError: missing, empty, damaged or unfinished, or of another version.
    """

    def __init__(self, path: str | PathLike[str], *, skip_damaged: bool = False) -> None:
        self.path = Path(path)
        self.lost: list[LostShard] = []
        self._shards: list[Shard] = []
        single = self.path.is_file()
        self.index = Index(()) if single else read_index(self.path)
        for entry in [None] if single else self.index.shards:
            try:
                self._shards.append(Shard(self.path) if entry is None else _open_shard(self.path, entry))
            except DataError as error:
                if not skip_damaged:
                    raise
                name, counts = (self.path.name, (0, 0)) if entry is None else (entry.file, (entry.objects, entry.views))
                self.lost.append(LostShard(name, *counts, str(error)))
        self._first_view = [0, *accumulate(shard.n_views for shard in self._shards)]
        self._first_caption = [0, *accumulate(shard.n_captions for shard in self._shards)]
        self._first_object = [0, *accumulate(shard.n_objects for shard in self._shards)]
        self.object_ids: list[str] = [name for shard in self._shards for name in shard.ids]
        self._check_names()

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in order."""
        return tuple(self._shards)

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

    def holds(self, what: Literal["cameras", "captions", "depth", "masks", "tracks"]) -> bool:
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
        stored = self.encoded_depth(v)
        label = f"{self._shards[n].label(local)}: depth"
        return None if stored is None else decode.decode_depth(*stored, self.size(v), label)

    def mask(self, v: int) -> NDArray[np.bool_] | None:
        """View v's (H, W) bool mask, True = object; or None."""
        n, local = self._view(v)
        stored = self.encoded_mask(v)
        label = f"{self._shards[n].label(local)}: mask"
        return None if stored is None else decode.decode_mask(stored, self.size(v), label)

    def tracks(self, v: int) -> Tracks | None:
        """View v's points of space that other views show too: `points` (M, 2), `ids` (M,), `xyz` (M, 3); or None."""
        n, local = self._view(v)
        stored = self.encoded_tracks(v)
        return None if stored is None else decode_tracks(stored, self.size(v), self._shards[n].label(local))

    def encoded_depth(self, v: int) -> tuple[bytes, float] | None:
        """View v's depth map as it is stored, a 16-bit PNG, and its scale: depth = value * scale; or None."""
        n, local = self._view(v)
        shard = self._shards[n]
        data = shard.encoded_depth(local)
        return (data, float(shard.depth_scale[local])) if data and shard.depth_scale is not None else None

    def encoded_mask(self, v: int) -> bytes | None:
        """View v's mask as it is stored, a PNG; or None."""
        n, local = self._view(v)
        return self._shards[n].encoded_mask(local) or None

    def encoded_tracks(self, v: int) -> bytes | None:
        """View v's tracks as they are stored, or None."""
        n, local = self._view(v)
        return self._shards[n].encoded_tracks(local) or None

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

    def has_tracks(self, v: int) -> bool:
        """Whether view v has tracks."""
        n, local = self._view(v)
        blob = self._shards[n].tracks
        return blob is not None and bool(blob.offset[local + 1] > blob.offset[local])

    def captions(self, i: int) -> list[str]:
        """The captions of object i as a whole."""
        n, local = self._object(i)
        return self._shards[n].captions_of(-1 - local)

    def view_captions(self, v: int) -> list[str]:
        """The captions of view v alone."""
        n, local = self._view(v)
        return self._shards[n].captions_of(local)

    def caption_rows(self, i: int) -> range:
        """The places of object i's own captions among the store's: by shard, in each in order of their target."""
        n, local = self._object(i)
        return self._caption_places(n, -1 - local)

    def view_caption_rows(self, v: int) -> range:
        """The places of view v's own captions; see `caption_rows`."""
        n, local = self._view(v)
        return self._caption_places(n, local)

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

    def _caption_places(self, n: int, target: int) -> range:
        rows = self._shards[n].caption_rows(target)
        return range(self._first_caption[n] + rows.start, self._first_caption[n] + rows.stop)

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
        if self.lost:
            return  # their objects may be in the splits
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


def _open_shard(folder: Path, entry: ShardEntry) -> Shard:
    shard = Shard(folder / entry.file, entry.seal)
    if (shard.n_objects, shard.n_views) != (entry.objects, entry.views):
        raise DataError(f"{shard.path}: {shard.n_objects} objects and {shard.n_views} views, not as the index says")
    return shard
