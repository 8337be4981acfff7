"""`unpack`: a store's objects as files again; the export appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Literal

from mvcore.api import ConfigError, DataError

from mvcore_data import licences
from mvcore_data.exporters.base import Exporter, read_object
from mvcore_data.exporters.card import Card
from mvcore_data.exporters.folders import FolderExporter
from mvcore_data.exporters.webdataset import Sample, WebDatasetExporter
from mvcore_data.index import sync_folder
from mvcore_data.lock import LOCK_NAME, StoreLock
from mvcore_data.store import ViewStore

Layout = Literal["folders", "webdataset"]

SHARD_BYTES = 512 << 20
_EXPORT = "export"
_SENTENCES = {
    "folders": "A folder holds an object; `mvcore data pack` makes a store of them again.",
    "object": "The shards are for the `webdataset` library; a sample is an object.",
    "view": "The shards are for the `webdataset` library; a sample is a view.",
}


@dataclass(frozen=True)
class UnpackReport:
    """What was written: objects and views, and one line about what was left out for its licence ("" = nothing)."""

    objects: int
    views: int
    left_out: str


def unpack(
    store: str | PathLike[str],
    out: str | PathLike[str],
    *,
    format: Layout = "folders",
    split: str | None = None,
    allow_licences: Sequence[str] | None = None,
    sample: Sample | None = None,
    shard_bytes: int | None = None,
    on_object: Callable[[int, int], None] = lambda done, total: None,
) -> UnpackReport:
    """Writes a store's objects as files; images are the stored bytes.

    It is written in `OUT.partial` and renamed at the end. `LICENCES.csv` and `README.md` in it count licences, sources
    and creators; a `split-NAME.txt` for each split lists its ids.

    Args:
        store: a shard or the folder of a store.
        out: the folder to make.
        format: `folders`: OBJECT/NNN.jpg, which `mvcore data pack` reads; `webdataset`: tar shards.
        split: only the objects of this one.
        allow_licences: only objects of these licences; see `licences.allowed`.
        sample: of `webdataset`: one `object` (the default) or one `view`.
        shard_bytes: of `webdataset`: largest size of a shard, by default 512 MiB.
        on_object: called with the number of objects done and in all.

    Returns:
        What was written.

    Raises:
        DataError: the store is damaged, no object is left, `out` exists, or it cannot be written.
        ConfigError: an option of another format.
    """
    out = Path(out)
    if format == "folders" and (sample is not None or shard_bytes is not None):
        raise ConfigError("a sample and the size of shards are options of the format webdataset")
    sample = sample or "object"
    with ViewStore(store) as opened:
        chosen, left_out = _chosen(opened, split, allow_licences)
        needed = opened.n_bytes * sum(len(opened.views_of(i)) for i in chosen) // opened.n_views
        with _staged(out, needed) as folder:
            exporter: Exporter = FolderExporter(folder)
            if format == "webdataset":
                exporter = WebDatasetExporter(folder, sample, shard_bytes or SHARD_BYTES)
            card = Card()
            with exporter:
                for done, i in enumerate(chosen):
                    item = read_object(opened, i)
                    exporter.add(item)
                    card.add(item)
                    on_object(done + 1, len(chosen))
            card.write(folder, _SENTENCES[format if format == "folders" else sample], opened.splits())
    return UnpackReport(len(chosen), sum(card.views.values()), left_out)


def _chosen(store: ViewStore, split: str | None, patterns: Sequence[str] | None) -> tuple[list[int], str]:
    """Numbers of the objects to write, and a line about those left out for their licence."""
    chosen = list(range(len(store)))
    if split is not None:
        splits = store.splits()
        if split not in splits:
            there = ", ".join(splits) or "it was never split"
            raise DataError(f"{store.path}: has no split {split!r} ({there})")
        wanted = set(splits[split])
        chosen = [i for i in chosen if store.object_ids[i] in wanted]
        if not chosen:
            raise DataError(f"{store.path}: split {split!r} is empty")
    if patterns is None:
        return chosen, ""
    kept, line = licences.choose([store.licence(i) for i in chosen], patterns, str(store.path))
    return [chosen[k] for k in kept], line


@contextmanager
def _staged(out: Path, needed: int) -> Iterator[Path]:
    """A folder that becomes `out` on a clean exit and goes away otherwise; what a killed process left is removed."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: exists already; give another name")
    whole = Path(os.path.abspath(out))  # noqa: PTH100 - `.` has no name, and a link stays one
    partial = whole.with_name(f"{whole.name}.partial")
    folder = partial / _EXPORT
    lock: StoreLock | None = None
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = StoreLock(partial / LOCK_NAME)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        yield folder
        os.sync()  # one call for what may be a million files
        folder.replace(whole)
        sync_folder(whole.parent)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.ENOSPC:
            reason = f"no space left on the disk; the images alone take about {needed / 1e6:.1f} MB"
        raise DataError(f"{out}: cannot be written ({reason}); nothing was made") from None
    finally:
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            lock.release()
        with suppress(OSError):
            partial.rmdir()
