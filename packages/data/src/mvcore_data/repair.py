"""`repair_store`: copies what is sound of a damaged store into a new one, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mvcore.api import DataError

from mvcore_data import sandbox
from mvcore_data.check import CHECK_SECONDS, MEMORY_BYTES, problems_of, reading_seconds
from mvcore_data.embedding_check import embedding_problems
from mvcore_data.objects import EncodedObject, EncodedView
from mvcore_data.store import ViewStore
from mvcore_data.writer import ViewStoreWriter


@dataclass
class RepairReport:
    """What a repair kept and what it left out.

    Args:
        objects, views: kept.
        dropped: ids of the objects that were left out.
        thinned: ids of the objects that lost views, but not all.
        dropped_views: views left out of objects that could be read, damaged or not.
        lost_objects, lost_views: in shards that could not be opened, as the index counts them.
        problems: what is wrong, a line each; empty for a sound store, of which no copy is made.
        vectors: what is wrong with the vectors beside a store that is sound itself.
    """

    objects: int = 0
    views: int = 0
    dropped: list[str] = field(default_factory=list)
    thinned: list[str] = field(default_factory=list)
    dropped_views: int = 0
    lost_objects: int = 0
    lost_views: int = 0
    problems: list[str] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)


def repair_store(
    path: str | os.PathLike[str], out: str | os.PathLike[str], *, keep_good_views: bool = False, untrusted: bool = False
) -> RepairReport:
    """Writes a new store without what is damaged; the old one is only read.

    Kept are images, depth, masks, tracks and captions byte for byte, cameras, names, and the splits; vectors beside the
    store are not. A store appears at `out` when all of it is written, or not at all.

    Args:
        path: a store, or a single shard.
        out: the folder to make.
        keep_good_views: keep an object without its damaged views, instead of leaving out the whole object.
        untrusted: do all of it in a child process with limits of time and memory.

    Raises:
        DataError: `path` has no readable index, nothing in it is sound, or `out` is taken or cannot be written.
    """
    if not untrusted:
        return _repair(Path(path), Path(out), keep_good_views)
    seconds = CHECK_SECONDS + 3 * reading_seconds(Path(path))
    arguments = (os.fspath(path), os.fspath(out), keep_good_views)
    try:
        found = sandbox.call("mvcore_data.repair:repair_here", *arguments, seconds=seconds, memory=MEMORY_BYTES)
    except sandbox.SandboxError as error:
        raise DataError(f"{path}: reading it {error}, so it is damaged or hostile; {out} was not made") from None
    return RepairReport(**found)


def repair_here(path: str, out: str, keep_good_views: bool) -> dict[str, Any]:
    """Repairs a store, in the child."""
    return asdict(_repair(Path(path), Path(out), keep_good_views))


def encoded_object(store: ViewStore, i: int, views: Sequence[int] | None = None) -> EncodedObject:
    """Object i as it is stored, for `ViewStoreWriter.add_encoded`.

    Args:
        store: where from.
        i: the object.
        views: those to keep, in order; all of it by default.

    Raises:
        DataError: its bytes are not those that were written.
    """
    names = {
        "category": store.category(i),
        "licence": store.licence(i),
        "source": store.source(i),
        "creator": store.creator(i),
    }
    encoded = tuple(_encoded_view(store, v) for v in (store.views_of(i) if views is None else views))
    return EncodedObject(store.object_ids[i], encoded, _as_bytes(store.captions(i)), names)


def _encoded_view(store: ViewStore, v: int) -> EncodedView:
    return EncodedView(
        store.encoded(v),
        store.codec(v),
        store.size(v),
        _as_bytes(store.view_captions(v)),
        store.camera(v),
        store.encoded_depth(v),
        store.encoded_mask(v),
        store.encoded_tracks(v),
    )


def _as_bytes(texts: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


def _repair(path: Path, out: Path, keep_good_views: bool) -> RepairReport:
    with ViewStore(path, skip_damaged=True) as store, ViewStoreWriter(out) as writer:
        report = RepairReport(
            lost_objects=sum(shard.objects for shard in store.lost),
            lost_views=sum(shard.views for shard in store.lost),
            problems=[shard.problem for shard in store.lost],
        )
        kept = {i: _kept_views(store, i, keep_good_views, report) for i in range(len(store))}
        if not report.problems:
            report.vectors = list(embedding_problems(store))
            writer.discard()
            return report
        if not any(kept.values()):
            raise DataError(f"{path}: nothing in it is sound, so {out} was not made; copy the store again")
        for i, views in kept.items():
            if views:
                writer.add_encoded(encoded_object(store, i, views))
                report.objects += 1
                report.views += len(views)
        there = writer.object_ids
        if splits := store.splits():
            writer.set_splits({name: [id for id in ids if id in there] for name, ids in splits.items()})
    return report


def _kept_views(store: ViewStore, i: int, keep_good_views: bool, report: RepairReport) -> list[int]:
    views = store.views_of(i)
    problems = {v: problems_of(store, v) for v in views}
    bad = [v for v in views if problems[v]]
    report.problems += [line for v in bad for line in problems[v]]
    kept = [v for v in views if not problems[v]] if keep_good_views or not bad else []
    report.dropped_views += len(views) - len(kept)
    if not kept:
        report.dropped.append(store.object_ids[i])
    elif bad:
        report.thinned.append(store.object_ids[i])
    return kept
