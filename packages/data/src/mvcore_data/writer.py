"""`ViewStoreWriter`: makes a multi-view store, or adds to one; all of it appears at once or nothing does."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from types import TracebackType

import numpy as np
from mvcore.api import DataError
from numpy.typing import ArrayLike, NDArray

from mvcore_data.index import Index, ShardEntry, commit_index, stage_index, sync_folder
from mvcore_data.lock import LOCK_NAME, StoreLock
from mvcore_data.objects import EncodedObject, GivenTracks, ImageFormat, View, encode_object
from mvcore_data.schema import CODECS, INDEX_NAME, SHARD_PATTERN, SHARD_SUFFIXES
from mvcore_data.shard_writer import ShardWriter

_LEFTOVERS = ("shard-*.tmp", f"{INDEX_NAME}.tmp")


class ViewStoreWriter:
    """Writes a store; use it as a context manager, which publishes on a clean exit and nothing otherwise.

    Encoded images are stored byte for byte. What a killed writer left is removed by the next one.

    Args:
        path: a folder for a store of shards with an index, or a name ending in `.h5` for one shard.
        append: add to the store in this folder as new shards; without it an existing store is refused.
        shard_bytes: a shard is closed when its images reach this size.
        codec: how arrays are encoded: `jpeg` (4:4:4), `png` or `webp`.
        quality: of JPEG and WebP, 1 to 100; WebP at 100 is lossless.

    Raises:
        DataError: the path is taken, cannot be written, or another process is writing there.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        append: bool = False,
        shard_bytes: int = 2 << 30,
        codec: str = "jpeg",
        quality: int = 95,
    ) -> None:
        if codec not in CODECS or not 1 <= quality <= 100:
            raise DataError(
                f"codec {codec!r} with quality {quality}: codecs are {', '.join(CODECS)}, quality is 1 to 100"
            )
        self.path = Path(path)
        self._format = ImageFormat(codec, quality)
        self._shard_bytes = shard_bytes
        self._single = self.path.suffix in SHARD_SUFFIXES
        self._index = Index(())
        self._ids: set[str] = set()
        self._shard: ShardWriter | None = None
        self._finished: list[tuple[ShardWriter, ShardEntry]] = []
        self._needed = 0  # bytes of what is being written, for the message of a full disk
        self._made_folder = False
        self._closed = False
        if self._single and append:
            raise DataError(f"{self.path}: a single shard cannot be added to; give a folder")
        self._lock = self._start(append)

    def add_object(
        self,
        id: str,
        views: Sequence[View] | NDArray[np.uint8],
        *,
        captions: Sequence[str] | str = (),
        view_captions: Sequence[Sequence[str] | str | None] | None = None,
        category: str | None = None,
        cameras: Sequence[tuple[ArrayLike, ArrayLike] | None] | None = None,
        depth: Sequence[ArrayLike | None] | None = None,
        masks: Sequence[ArrayLike | None] | None = None,
        tracks: Sequence[GivenTracks | None] | None = None,
        licence: str | None = None,
        source: str | None = None,
        creator: str | None = None,
    ) -> None:
        """Adds an object with its views.

        An object that is refused leaves the writer as it was; the next one may be added.

        Args:
            id: stable name, unique in the store.
            views: for each view the bytes of a JPEG, PNG or WebP file (without transparency), or (H, W, 3) uint8 RGB.
            captions: texts about the object as a whole.
            view_captions: for each view its texts, or None.
            category: one word or name.
            cameras: for each view (intrinsics (3, 3) in pixels with centres at +0.5, world_to_camera (4, 4)), OpenCV
                axes; or None.
            depth: for each view (H, W) z-depth in object units, 0 = none; or None.
            masks: for each view (H, W), non-zero = object; or None.
            tracks: for each view points of space that it shows, as (points (M, 2) in pixels with centres at +0.5, ids
                (M,), xyz (M, 3) in the cameras' frame), in any order; or None. An id is the same point in all views.
            licence: of the images, best an SPDX id.
            source: where the object came from.
            creator: who made it.

        Raises:
            DataError: something of it is wrong, or it cannot be written (then nothing is published).
        """
        self._require_new(id)
        names = {"category": category, "licence": licence, "source": source, "creator": creator}
        item = encode_object(
            id,
            views,
            self._format,
            captions=captions,
            view_captions=view_captions,
            names=names,
            cameras=cameras,
            depth=depth,
            masks=masks,
            tracks=tracks,
        )
        self.add_encoded(item)

    def add_encoded(self, item: EncodedObject) -> None:
        """Adds an object of another store byte for byte; see `repair.encoded_object`.

        Raises:
            DataError: its id is there already, or it cannot be written (then nothing is published).
        """
        self._require_new(item.id)
        with self._discard_on_error():
            self._write(item)
        self._ids.add(item.id)

    def set_splits(self, splits: Mapping[str, Sequence[str]]) -> None:
        """Names sets of objects by their ids, to be published with the store."""
        if self._single:
            raise DataError(f"{self.path}: a single shard has no splits; give a folder")
        self._index = replace(self._index, splits={name: list(ids) for name, ids in splits.items()})

    @property
    def closed(self) -> bool:
        """Whether it was published or discarded; a write that failed discards it."""
        return self._closed

    @property
    def object_ids(self) -> frozenset[str]:
        """The ids written so far, with those of the store that is added to."""
        return frozenset(self._ids)

    def holds(self, id: str) -> bool:
        """Whether an object of this id is there already."""
        return id in self._ids

    @property
    def finished_shards(self) -> int:
        """Shards that reached their size and are not published yet."""
        return len(self._finished)

    def publish(self) -> None:
        """Publishes the finished shards now, while the writer stays open: what is in them survives its end.

        Raises:
            DataError: they cannot be published.
        """
        with self._discard_on_error():
            self._publish()

    def close(self) -> None:
        """Publishes what was added.

        Raises:
            DataError: nothing was added to a new store, or it cannot be written; nothing is published then.
        """
        if self._closed:
            return
        with self._discard_on_error():
            self._finish_shard()
            if self._finished:
                self._publish()
            if not self._index.shards:
                raise DataError(f"{self.path}: no object was added, so no store was made")
        self._end()

    def discard(self) -> None:
        """Removes what was written; nothing is published."""
        if self._closed:
            return
        for writer in [*(writer for writer, _ in self._finished), *filter(None, [self._shard])]:
            writer.discard()
        if not self._single:
            self._remove_leftovers()
        self._end()
        if self._made_folder and not any(self.path.iterdir()):
            self.path.rmdir()

    def __enter__(self) -> ViewStoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()

    def _require_new(self, name: str) -> None:
        if self._closed:
            raise DataError(f"{self.path}: the writer is closed; make another one with append=True")
        if name in self._ids:
            raise DataError(f"{self.path}: object {name!r} is there already; ids must be unique")

    def _start(self, append: bool) -> StoreLock:
        try:
            if self._single:
                return self._start_file()
            return self._start_folder(append)
        except OSError as error:
            if self._made_folder and self.path.is_dir() and not any(self.path.iterdir()):
                self.path.rmdir()
            raise DataError(f"{self.path}: cannot be written ({error.strerror})") from None

    def _start_file(self) -> StoreLock:
        if self.path.exists():
            raise DataError(f"{self.path}: exists already; give another name")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = StoreLock(self.path.with_name(f"{self.path.name}.lock"))
        for name in ("", ".views", ".depth", ".masks", ".tracks"):
            self.path.with_name(f"{self.path.name}{name}.tmp").unlink(missing_ok=True)
        return lock

    def _start_folder(self, append: bool) -> StoreLock:
        from mvcore_data.store import ViewStore

        self._made_folder = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        lock = StoreLock(self.path / LOCK_NAME)
        try:
            if (self.path / INDEX_NAME).exists():
                if not append:
                    raise DataError(
                        f"{self.path}: holds a store already; add to it with append, or give another folder"
                    )
                with ViewStore(self.path) as store:
                    self._index = store.index
                    self._ids.update(store.object_ids)
            self._remove_leftovers()
        except BaseException:
            lock.release()
            raise
        return lock

    def _remove_leftovers(self) -> None:
        for pattern in _LEFTOVERS:
            for leftover in self.path.glob(pattern):
                leftover.unlink()

    def _write(self, item: EncodedObject) -> None:
        if self._shard is None:
            number = len(self._index.shards) + len(self._finished)
            path = self.path if self._single else self.path / SHARD_PATTERN.format(number)
            self._shard = ShardWriter(path, number)
        self._needed = item.n_bytes
        self._shard.add(item)
        if not self._single and self._shard.n_bytes >= self._shard_bytes:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._shard is not None:
            self._needed = self._shard.n_bytes
            self._finished.append((self._shard, self._shard.finish()))
            self._shard = None

    def _publish(self) -> None:
        self._needed = 0
        index = Index((*self._index.shards, *(entry for _, entry in self._finished)), self._index.splits)
        if not self._single:
            stage_index(self.path, index)
        for writer, _ in self._finished:
            writer.publish()
        sync_folder(self.path.parent if self._single else self.path)
        if not self._single:
            commit_index(self.path)
        self._index, self._finished = index, []

    def _end(self) -> None:
        self._closed = True
        self._lock.release()

    @contextmanager
    def _discard_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            reason = self._reason(error) if isinstance(error, OSError) else None
            self.discard()
            if reason is not None:
                raise DataError(f"{self.path}: cannot be written ({reason}); nothing was published") from None
            raise

    def _reason(self, error: OSError) -> str:
        reason = error.strerror or str(error)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or not self._needed:
            return reason
        free = shutil.disk_usage(self.path if self.path.is_dir() else self.path.parent).free
        return f"{reason}: {self._needed} bytes were to be written, {free} are free"
