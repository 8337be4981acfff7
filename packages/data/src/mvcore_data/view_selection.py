"""Which objects and views of a store a source gives: by split, licence, depth and viewpoint."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mvcore.api import ConfigError, DataError

from mvcore_data import licences
from mvcore_data.options import ViewFilter, ViewsOptions
from mvcore_data.store import ViewStore
from mvcore_data.viewpoints import azimuth_elevation, within


def select_views(store: ViewStore, options: ViewsOptions, path: Path) -> tuple[list[int], list[Sequence[int]]]:
    """The store's numbers of the objects, and of the views of each, that the options leave.

    Args:
        store: the opened store.
        options: `split`, `licences`, `depth`, `views` and `limit_objects` choose.
        path: the store's, for messages.

    Raises:
        DataError: nothing is left, or a choice by what the store does not have.
        ConfigError: an unknown split.
    """
    objects = list(range(len(store))) if options.split is None else _of_split(store, options.split, path)
    if options.licences is not None:
        kept, note = licences.choose([store.licence(number) for number in objects], options.licences, str(path))
        if note:
            print(f"note: {note}", file=sys.stderr)
        objects = [objects[k] for k in kept]
    views: list[Sequence[int]] = [store.views_of(number) for number in objects]
    if options.depth == "only":
        views = [[view for view in ids if store.has_depth(view)] for ids in views]
        objects, views = _seen(objects, views)
        if not objects:
            within_split = "" if options.split is None else f" of split {options.split!r}"
            raise DataError(f"{path}: no view{within_split} has depth; render with it, or set depth to false")
    if options.views is not None:
        views = [_shown(store, n, ids, options.views, path) for n, ids in zip(objects, views, strict=True)]
        objects, views = _seen(objects, views)
        if not objects:
            asked = options.views.model_dump(exclude_none=True)
            raise DataError(f"{path}: no view lies in {asked}; see the viewpoints with 'mvcore data info'")
    if not objects:
        raise DataError(f"{path}: the store holds no object")
    return objects[: options.limit_objects], views[: options.limit_objects]


def _seen(objects: list[int], views: list[Sequence[int]]) -> tuple[list[int], list[Sequence[int]]]:
    """Only the objects that have a view left."""
    kept = [k for k, ids in enumerate(views) if len(ids)]
    return [objects[k] for k in kept], [views[k] for k in kept]


def _of_split(store: ViewStore, split: str, path: Path) -> list[int]:
    splits = store.splits()
    if split not in splits:
        there = ", ".join(splits) or "none; make them with 'mvcore data split'"
        raise ConfigError(f"{path}: the store has no split {split!r} (splits: {there})")
    number_of = {name: number for number, name in enumerate(store.object_ids)}
    numbers = sorted(number_of[name] for name in splits[split])
    if not numbers:
        raise DataError(f"{path}: split {split!r} is empty")
    return numbers


def _shown(store: ViewStore, number: int, ids: Sequence[int], wanted: ViewFilter, path: Path) -> Sequence[int]:
    cameras = [store.camera(view) for view in ids]
    extrinsics = [camera[1] for camera in cameras if camera is not None]
    if len(extrinsics) < len(cameras):
        raise DataError(
            f"{path}: object {store.object_ids[number]!r} has views without a camera, so 'views' cannot "
            "choose by viewpoint; pack the store with cameras or leave 'views' out"
        )
    azimuth, elevation = azimuth_elevation(np.stack(extrinsics))
    shown = np.ones(len(ids), np.bool_)
    if wanted.azimuth is not None:
        shown &= within(azimuth, list(wanted.azimuth))
    if wanted.elevation is not None:
        shown &= within(elevation, list(wanted.elevation))
    return np.asarray(ids)[shown].tolist()
