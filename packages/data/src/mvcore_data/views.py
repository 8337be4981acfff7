"""`data.views`: objects and their views from a `mvcore.views` store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.api import DataError, ViewBatch, resolve_path
from numpy.typing import NDArray

from mvcore_data import licences
from mvcore_data.cache import ImageCache
from mvcore_data.caption_files import ViewCaptions, captions_path
from mvcore_data.covisibility import ViewGeometry, covisibility
from mvcore_data.embeddings import CaptionLookup, EmbeddingCache, seal_of, tags_of, transform_key
from mvcore_data.info import count_names
from mvcore_data.options import ViewsOptions
from mvcore_data.packed_cache import as_store
from mvcore_data.pipeline import Generators, Pipeline, Placed
from mvcore_data.store import ViewStore
from mvcore_data.view_selection import select_views

DEMO = "demo"


class Views:
    """An indexed dataset over a store. Object and view ids are the store's own numbers.

    Args:
        options: the fields of `ViewsOptions`.

    Raises:
        DataError: no such store, or it lacks what the options ask for.
        ConfigError: an unknown split.
    """

    def __init__(self, **options: Any) -> None:
        self.options = ViewsOptions(**options)
        self.path = _store_path(self.options)
        self.store = ViewStore(self.path)
        self.store_key = str(self.path.resolve())
        self.n_store_objects, self.n_store_views = len(self.store), self.store.n_views
        self._objects, self._views = select_views(self.store, self.options, self.path)
        self.image_size = self.options.image_size or min(self.store.size(self._views[0][0]))
        self._pipeline = Pipeline(self.image_size, self.options)
        self._check_maps()
        self._stored = {name: EmbeddingCache(self.store, tag) for name, tag in self.options.tags.items()}
        self._written = self._captions_from(self.options.captions_from)
        self._captions_kept: dict[int, tuple[tuple[str, ...], range]] = {}
        self.provides = self._provided()
        self._cache: ImageCache | None = None
        if self.options.cache == "memory":
            self._keep()

    def _keep(self) -> None:
        if self.options.images:
            self._cache = ImageCache(np.sort(np.fromiter(self._all_views(), np.int64)), self.image_size, str(self.path))
        for stored in self._stored.values():
            stored.keep()

    def __len__(self) -> int:
        return len(self._objects)

    def views_of(self, i: int) -> Sequence[int]:
        """The store's ids of object `i`'s views that the filter lets through."""
        return self._views[i]

    def object_name(self, i: int) -> str:
        """The object's id in the store."""
        return self.store.object_ids[self._objects[i]]

    def category(self, i: int) -> str | None:
        """The object's category word."""
        return self.store.category(self._objects[i])

    def licence(self, i: int) -> str | None:
        """The object's licence."""
        return self.store.licence(self._objects[i])

    def content_digest(self) -> str:
        """A digest over the store's shards in order; see `mvcore.parts.TraceableDataset`."""
        seals = "\n".join(map(seal_of, self.store.shards))
        return hashlib.sha256(seals.encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        """What the source trains on, for a model card; see `mvcore.parts.DescribedDataset`."""
        store = self.store
        stored = {name: {k: v for k, v in found.key.items() if k != "store"} for name, found in self._stored.items()}
        return {
            **({"embeddings": stored} if stored else {}),
            "name": self.path.name,
            "objects": len(self),
            "views": sum(map(len, self._views)),
            "licences": licences.count(map(store.licence, self._objects)),
            "sources": count_names(map(store.source, self._objects)),
            "creators": count_names(map(store.creator, self._objects)),
        }

    def cameras_of(self, i: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Intrinsics (V, 3, 3) of the stored images and world-to-camera (V, 4, 4); NaN for a view without a camera."""
        intrinsics = np.full((len(self._views[i]), 3, 3), np.nan, np.float32)
        extrinsics = np.full((len(self._views[i]), 4, 4), np.nan, np.float32)
        for row, view in enumerate(self._views[i]):
            camera = self.store.camera(view)
            if camera is not None:
                intrinsics[row], extrinsics[row] = camera
        return intrinsics, extrinsics

    def covisibility(self, i: int, views: Sequence[int]) -> NDArray[np.float64]:
        """(V, V) share of the foreground of the row's view that the column's view sees; 0 without camera or depth.

        Foreground is what has depth and, where a view has a mask, lies within it.

        Raises:
            DataError: a depth or mask is damaged.
        """
        return covisibility([self._geometry(view) for view in views])

    def _geometry(self, view: int) -> ViewGeometry | None:
        camera, depth = self.store.camera(view), self.store.depth(view)
        if camera is None or depth is None:
            return None
        mask = self.store.mask(view)
        return ViewGeometry(depth if mask is None else np.where(mask, depth, 0), *camera)

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        """One object's batch; see `mvcore.parts.IndexedDataset`.

        Raises:
            DataError: a view is damaged.
        """
        return self.load_many([(i, views)], None if rng is None else lambda _: rng)

    def load_many(
        self, requests: Sequence[tuple[int, Sequence[int]]], rng_of: Callable[[int], np.random.Generator] | None
    ) -> ViewBatch:
        """The batch of several objects at once; `rng_of(k)` gives the generator of request k.

        Raises:
            DataError: a view is damaged.
        """
        objects = [self._objects[i] for i, _ in requests]
        counts = [len(views) for _, views in requests]
        ids = np.fromiter((view for _, views in requests for view in views), np.int64, sum(counts))
        views: list[int] = ids.tolist()
        generators = self._generators(counts, rng_of)
        fields, caption_rows = self._captions(objects, views, counts, generators)
        fields["embeddings"] = self._embeddings({"image": ids, "text": caption_rows})
        if not self._placed:
            return ViewBatch.make(counts, object_ids=torch.tensor(objects), view_ids=torch.from_numpy(ids), **fields)
        placed = self._pipeline.place([self.store.size(view) for view in views], generators)
        if self.options.images:
            fields["images"] = self._images(ids, placed)
        if "cameras" in self.provides:
            fields |= self._pipeline.cameras([self.store.camera(view) for view in views], placed)
        if self.options.depth:
            fields["depth"] = self._pipeline.maps([self.store.depth(view) for view in views], placed, np.float32)
            fields["depth_valid"] = torch.tensor([self.store.has_depth(view) for view in views])
        if self.options.masks:
            fields["masks"] = self._pipeline.maps([self.store.mask(view) for view in views], placed, np.bool_)
        if self.options.restore_background and self._pipeline.augmentation and generators is not None:
            fields["images"] = self._pipeline.with_background(fields["images"], _shown(fields))
        if self.options.tracks:
            fields["tracks"] = self._pipeline.tracks([self.store.tracks(view) for view in views], placed)
        return ViewBatch.make(counts, object_ids=torch.tensor(objects), view_ids=torch.from_numpy(ids), **fields)

    def _generators(self, counts: list[int], rng_of: Callable[[int], np.random.Generator] | None) -> Generators | None:
        if rng_of is None or not (self._pipeline.augmentation or self._choosing):
            return None
        return [(rng_of(k), count) for k, count in enumerate(counts)]

    def _images(self, ids: NDArray[np.int64], placed: Placed) -> torch.Tensor:
        # A drawn crop comes from the stored image, not from its fitted copy: the cache never changes a pixel.
        if self._cache is None or placed.cropped:
            images = self._pipeline.cut(placed, lambda row, out: self._pixels(int(ids[row]), out))
        else:
            images = torch.from_numpy(self._cache.images(ids, lambda view: self._pipeline.fit(self._pixels(view))))
        return self._pipeline.finish(images, placed)

    def _pixels(self, view: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        pixels = self.store.image(view, None if out is None or self.store.size(view) != out.shape[:2] else out)
        background = self.options.background
        mask = None if background is None else self.store.mask(view)
        return pixels if mask is None else np.where(mask[..., None], pixels, np.array(background, np.uint8))

    def _captions(
        self, objects: list[int], views: list[int], counts: list[int], generators: Generators | None
    ) -> tuple[dict[str, Any], NDArray[np.int64]]:
        """The batch's caption fields, and the captions' places among the store's."""
        if "captions" not in self.provides:
            return {}, np.zeros(0, np.int64)
        texts: list[str] = []
        places: list[int] = []
        owners: list[int] = []
        rows: list[int] = []
        row = 0
        for k, (number, count) in enumerate(zip(objects, counts, strict=True)):
            rng = None if generators is None else generators[k][0]
            found = [(-1, *self._object_captions(number))]
            if self._views_captioned:
                found += [(r, *self._view_captions(view)) for r, view in enumerate(views[row : row + count], row)]
            for target, captions, stored in found:
                for which in self._chosen(len(captions), rng):
                    texts.append(captions[which])
                    places.append(stored[which])
                    owners.append(k)
                    rows.append(target)
            row += count
        fields = {
            "captions": texts,
            "caption_object": torch.tensor(owners, dtype=torch.int64),
            "caption_view": torch.tensor(rows, dtype=torch.int64),
        }
        return fields, np.array(places, np.int64)

    def _object_captions(self, number: int) -> tuple[Sequence[str], range]:
        """An object's own captions and their places among the store's."""
        if self._written is not None:
            return (), range(0)
        found = self._captions_kept.get(number)
        if found is None:
            found = tuple(self.store.captions(number)), self.store.caption_rows(number)
            if self.options.cache == "memory":
                self._captions_kept[number] = found
        return found

    def _view_captions(self, view: int) -> tuple[Sequence[str], range]:
        if self._written is not None:
            return self._written.of_view(view), range(1)  # their places are not asked for: options exclude vectors
        return self.store.view_captions(view), self.store.view_caption_rows(view)

    def _chosen(self, count: int, rng: np.random.Generator | None) -> Iterable[int]:
        """Which of an object's or a view's captions are given."""
        if self.options.captions == "all" or count < 2:
            return range(count)
        return (0 if rng is None else int(rng.integers(count)),)

    def _embeddings(self, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, torch.Tensor]:
        return {
            f"{name}/{kind}": torch.from_numpy(stored.read(kind, rows[kind]))
            for name, stored in self._stored.items()
            for kind in stored.widths
        }

    def stored_embeddings(self, tag: str) -> dict[str, int]:
        """Widths of the vectors under a tag, `image` and `text`; see `mvcore.parts.StoredEmbeddings`.

        `tag` is a name of the option `embeddings` or a tag of the store.

        Raises:
            DataError: they are damaged or unfinished, or were made for other data.
        """
        return {} if (found := self._cache_of(tag)) is None else dict(found.widths)

    def stored_views(self, tag: str, model: Mapping[str, Any]) -> Views:
        """This source with the vectors of a model under a tag in the place of its images.

        Raises:
            DataError: they were made with another model or with other transforms.
        """
        stored = self._cache_or_fault(tag)
        stored.require({**model, **transform_key(self.options, self.image_size)})
        other = copy(self)
        update = {"images": False, "embeddings": {tag: stored.tag}, "depth": False, "masks": False, "cache": "none"}
        update |= {"tracks": False, "restore_background": False}
        other.options = self.options.model_copy(update={**update, "augment": ()})
        other._stored, other._cache = {tag: stored}, None
        other.provides = other._provided()
        return other

    def stored_texts(self, tag: str, model: Mapping[str, Any]) -> CaptionLookup:
        """The vectors of the store's captions by a model.

        Raises:
            DataError: they were made with another model.
        """
        self.check_stored(tag, model)
        return CaptionLookup(self._cache_or_fault(tag))

    def check_stored(self, tag: str, model: Mapping[str, Any]) -> None:
        """Refuses vectors of another model.

        Raises:
            DataError: says what differs.
        """
        self._cache_or_fault(tag).require(model)

    def stored_model(self, tag: str) -> dict[str, Any]:
        """What of the vectors' key is their model's, for `check_stored` of another source; empty of imported ones."""
        key = self._cache_or_fault(tag).key
        return {name: key[name] for name in ("model", "architecture_sha256", "weights_sha256") if name in key}

    def _cache_of(self, tag: str) -> EmbeddingCache | None:
        if tag in self._stored:
            return self._stored[tag]
        return EmbeddingCache(self.store, tag) if tag in tags_of(self.path) else None

    def _cache_or_fault(self, tag: str) -> EmbeddingCache:
        return self._cache_of(tag) or EmbeddingCache(self.store, tag)

    def _provided(self) -> frozenset[str]:
        provides = {"object_ids", "view_ids"}
        provides |= {"images"} if self.options.images else set()
        provides |= {"embeddings"} if self._stored else set()
        if (
            self.options.cameras
            and self.store.holds("cameras")
            and any(self.store.camera(view) is not None for view in self._all_views())
        ):
            provides.add("cameras")
        if self.options.captions != "none" and self._has_captions():
            provides.add("captions")
        return frozenset(provides | {name for name in ("depth", "masks", "tracks") if getattr(self.options, name)})

    def _has_captions(self) -> bool:
        if self._written is not None:
            return any(map(self._written.of_view, self._all_views()))
        if not self.store.holds("captions"):
            return False
        return any(map(self.store.captions, self._objects)) or any(map(self.store.view_captions, self._all_views()))

    @property
    def _placed(self) -> bool:
        """Something of a batch depends on where its pixels come from."""
        return self.options.images or bool(self.provides & {"cameras", "depth", "masks", "tracks"})

    @cached_property
    def _views_captioned(self) -> bool:
        """Some view may have captions of its own."""
        return self._written is not None or any(shard.n_view_captions for shard in self.store.shards)

    @cached_property
    def _choosing(self) -> bool:
        """Which captions a batch holds is drawn."""
        several = self._written is not None or any(shard.most_captions > 1 for shard in self.store.shards)
        return self.options.captions == "random" and several

    def _captions_from(self, name: str | None) -> ViewCaptions | None:
        return None if name is None else ViewCaptions(self.store, captions_path(self.path, name))

    def _all_views(self) -> Iterator[int]:
        return chain.from_iterable(self._views)

    def _check_maps(self) -> None:
        if self.options.depth and not any(map(self.store.has_depth, self._all_views())):
            raise DataError(f"{self.path}: depth: true, but no view of the source has depth")
        if self.options.tracks and not any(map(self.store.has_tracks, self._all_views())):
            raise DataError(
                f"{self.path}: tracks: true, but no view of the source has tracks; pack a COLMAP model with "
                "'mvcore data pack SRC OUT --option tracks=true'"
            )
        for number, ids in zip(self._objects, self._views, strict=True) if self.options.masks else ():
            if missing := sum(not self.store.has_mask(view) for view in ids):
                raise DataError(
                    f"{self.path}: masks: true, but {missing} of the {len(ids)} views of object "
                    f"{self.store.object_ids[number]!r} have no mask"
                )


def _shown(fields: Mapping[str, Any]) -> torch.Tensor:
    """(N, S, S) where views show an object: by their masks, or else by their depth, where they have it."""
    if "masks" in fields:
        return fields["masks"]
    return (fields["depth"] > 0) | ~fields["depth_valid"][:, None, None]


def _store_path(options: ViewsOptions) -> Path:
    if options.path == DEMO:
        from mvcore_data.demo import store_path, vectors

        found = Path(store_path())
        if vectors.TAG in options.tags.values():
            vectors.make_vectors()
        return found
    return as_store(
        resolve_path(options.path, what="store"),
        format=options.format,
        options=options.format_options,
        background=None if options.background is None else "#{:02x}{:02x}{:02x}".format(*options.background),
    )
