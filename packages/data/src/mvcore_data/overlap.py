"""What two stores, or two splits of one, share: ids, and images that are nearly the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path, PurePosixPath

import numpy as np
from mvcore.api import ConfigError, DataError
from numpy.typing import NDArray

from mvcore_data import fingerprints
from mvcore_data.hamming import near_pairs
from mvcore_data.packed_cache import as_store
from mvcore_data.store import ViewStore

RADIUS = 10
"""Most bits of the hash that may differ."""

_CHUNK = 256
_MOST_OF_ONE_HASH = 16


@dataclass(frozen=True)
class Side:
    """The objects of a store that are compared, by their numbers there."""

    name: str
    store: ViewStore
    objects: list[int]

    def views(self) -> NDArray[np.int64]:
        """All views of the objects."""
        return np.concatenate([np.asarray(self.store.views_of(i), np.int64) for i in self.objects])


@dataclass(frozen=True)
class Place:
    """A view: its object's id and its number in the object."""

    object: str
    view: int


@dataclass(frozen=True)
class Pair:
    """Two near-identical views.

    Args:
        first, second: where they are.
        distance: bits of the hash that differ.
        residual: root mean square difference of their thumbnails, 0 to 255.
    """

    first: Place
    second: Place
    distance: int
    residual: float


@dataclass(frozen=True)
class Overlap:
    """What two sides share.

    Args:
        ids: ids that both have.
        names: pairs of other ids whose last path component is the same, where it names one object on each side.
        pairs: near-identical views, the most alike first.
        empty: views that show nothing and were not compared, of each side.
    """

    ids: list[str]
    names: list[tuple[str, str]]
    pairs: list[Pair] = field(default_factory=list)
    empty: tuple[int, int] = (0, 0)

    @property
    def by_object(self) -> dict[tuple[str, str], int]:
        """Pairs of views by pair of objects, the most first."""
        return dict(Counter((pair.first.object, pair.second.object) for pair in self.pairs).most_common())

    def __bool__(self) -> bool:
        return bool(self.ids or self.names or self.pairs)


def open_side(text: str) -> Side:
    """Opens `STORE` or `STORE#SPLIT`; `demo` is the embedded store, and a folder of images is packed once.

    Raises:
        DataError: no such store, or the split is empty.
        ConfigError: no such split.
    """
    path, mark, split = text.partition("#") if "#" in text and not Path(text).exists() else (text, "", "")
    if path == "demo":
        from mvcore_data.demo import store_path

        path = str(store_path())
    store = ViewStore(as_store(Path(path).expanduser()))
    if not mark:
        return Side(text, store, list(range(len(store))))
    splits = store.splits()
    if split not in splits:
        there = ", ".join(splits) or "none; make them with 'mvcore data split'"
        raise ConfigError(f"{path}: the store has no split {split!r} (splits: {there})")
    chosen = set(splits[split])
    if not chosen:
        raise DataError(f"{path}: split {split!r} is empty")
    return Side(text, store, [i for i, name in enumerate(store.object_ids) if name in chosen])


def find_overlap(
    first: Side,
    second: Side,
    *,
    images: bool = True,
    radius: int = RADIUS,
    workers: int = 1,
    on_views: Callable[[int, int], None] = lambda done, total: None,
) -> Overlap:
    """Compares two sides.

    Args:
        first, second: what to compare.
        images: compare images too, not ids alone.
        radius: most bits of the hash that may differ, 0 to 11.
        workers: processes that read images.
        on_views: called with the views read so far and in all.

    Raises:
        DataError: a view is damaged.
    """
    ids, names = _shared_ids(first, second)
    if not images:
        return Overlap(ids, names)
    views = [side.views() for side in (first, second)]
    total = sum(map(len, views))
    hashes: list[NDArray[np.uint64]] = []
    empty: list[int] = []
    done = 0
    for k, side in enumerate((first, second)):
        found: list[NDArray[np.uint64]] = []
        shown: list[NDArray[np.bool_]] = []
        for values, blank in _hashed(side, views[k], workers):
            found.append(values)
            shown.append(~blank)
            done += len(values)
            on_views(done, total)
        visible = np.concatenate(shown)
        hashes.append(np.concatenate(found)[visible])
        views[k] = views[k][visible]
        empty.append(int((~visible).sum()))
    return Overlap(ids, names, _pairs(first, second, views, hashes, radius), (empty[0], empty[1]))


def _shared_ids(first: Side, second: Side) -> tuple[list[str], list[tuple[str, str]]]:
    own, other = ([side.store.object_ids[i] for i in side.objects] for side in (first, second))
    both = set(own) & set(other)
    a, b = (_by_last_part([name for name in names if name not in both]) for names in (own, other))
    return [name for name in own if name in both], [(a[part], b[part]) for part in a if part in b]


def _by_last_part(ids: list[str]) -> dict[str, str]:
    """Ids by their last path component; one that several share, as `0001`, identifies nothing and is left out."""
    parts = {name: PurePosixPath(name).name for name in ids}
    counts = Counter(parts.values())
    return {part: name for name, part in parts.items() if part and counts[part] == 1}


def _hashed(
    side: Side, views: NDArray[np.int64], workers: int
) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.bool_]]]:
    """Hashes, and whether a view is empty, of each chunk of views in order."""
    chunks = [views[k : k + _CHUNK] for k in range(0, len(views), _CHUNK)]
    if workers < 2 or len(chunks) < 2:
        yield from (_hash_chunk(side.store, chunk) for chunk in chunks)
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(chunks)), context, _open_store, (side.store,)) as pool:
        yield from pool.map(_hash_opened, chunks)


_opened: list[ViewStore] = []


def _open_store(store: ViewStore) -> None:
    _opened[:] = [store]


def _hash_opened(views: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    return _hash_chunk(_opened[0], views)


def _hash_chunk(store: ViewStore, views: NDArray[np.int64]) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    thumbnails = _thumbnails(store, views)
    return fingerprints.hashes(thumbnails), fingerprints.is_empty(thumbnails)


def _thumbnails(store: ViewStore, views: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.stack([fingerprints.thumbnail(store.image(v)) for v in views.tolist()])


def _pairs(
    first: Side, second: Side, views: list[NDArray[np.int64]], hashes: list[NDArray[np.uint64]], radius: int
) -> list[Pair]:
    found: list[Pair] = []
    for a, b, distances in _candidates(views, hashes, radius):
        mine, others = (
            _thumbnails(side.store, unique)[inverse]
            for side, (unique, inverse) in (
                (first, np.unique(a, return_inverse=True)),
                (second, np.unique(b, return_inverse=True)),
            )
        )
        same, residual = fingerprints.confirm(mine, others)
        for k in np.flatnonzero(same).tolist():
            places = _place(first.store, int(a[k])), _place(second.store, int(b[k]))
            found.append(Pair(*places, int(distances[k]), round(float(residual[k]), 2)))
    return sorted(found, key=lambda pair: (pair.residual, pair.distance, pair.first.object, pair.second.object))


def _candidates(
    views: list[NDArray[np.int64]], hashes: list[NDArray[np.uint64]], radius: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]]:
    """Views of both sides with near hashes, in runs of some hundreds.

    Of the views of one hash, as of a placeholder that stands in for a thousand images, the first few speak for all.
    """
    if not all(map(len, views)):
        return
    known: list[NDArray[np.uint64]] = []
    members: list[list[NDArray[np.int64]]] = []
    for own, values in zip(views, hashes, strict=True):
        order = np.argsort(values, kind="stable")
        unique, start = np.unique(values[order], return_index=True)
        known.append(unique)
        members.append([run[:_MOST_OF_ONE_HASH] for run in np.split(own[order], start[1:])])
    rows, others, distances = near_pairs(known[0], known[1], radius)
    runs = (
        (np.repeat(a, len(b)), np.tile(b, len(a)), np.full(len(a) * len(b), d, np.uint8))
        for a, b, d in (
            (members[0][i], members[1][j], d)
            for i, j, d in zip(rows.tolist(), others.tolist(), distances.tolist(), strict=True)
        )
    )
    while batch := list(islice(runs, _CHUNK)):
        a, b, d = (np.concatenate(parts) for parts in zip(*batch, strict=True))
        yield a, b, d


def _place(store: ViewStore, view: int) -> Place:
    i = store.object_of(view)
    return Place(store.object_ids[i], view - store.views_of(i).start)
