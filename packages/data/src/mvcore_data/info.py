"""What a store holds, in figures and as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mvcore.api import DataError
from PIL import Image, ImageDraw, ImageFont

from mvcore_data import licences
from mvcore_data.store import ViewStore

_GAP = 4
_LABEL = 16


@dataclass(frozen=True)
class StoreInfo:
    """Figures of a store.

    Args:
        objects, views: how many.
        views_per_object: smallest, mean and largest number.
        bytes: encoded images in all.
        sizes: views by "WIDTHxHEIGHT".
        codecs: views by image format.
        cameras, depth, masks, tracks: views that have one.
        captioned_objects, captioned_views: objects with a caption as a whole, views with one of their own.
        captions: captions in all.
        categories, sources, creators: objects by category, source and creator; "" = none.
        licences: objects by licence, under its SPDX name where it is a known one; "" = none.
        splits: objects by split.
    """

    objects: int
    views: int
    views_per_object: tuple[int, float, int]
    bytes: int
    sizes: dict[str, int]
    codecs: dict[str, int]
    cameras: int
    depth: int
    masks: int
    tracks: int
    captioned_objects: int
    captioned_views: int
    captions: int
    categories: dict[str, int]
    licences: dict[str, int]
    sources: dict[str, int]
    creators: dict[str, int]
    splits: dict[str, int]


def store_info(store: ViewStore) -> StoreInfo:
    """Counts what a store holds; no image is decoded."""
    objects, views = range(len(store)), range(store.n_views)
    counts = [len(store.views_of(i)) for i in objects]
    whole = [len(store.captions(i)) for i in objects]
    own = [len(store.view_captions(v)) for v in views]
    sizes = Counter("{1}x{0}".format(*store.size(v)) for v in views)
    return StoreInfo(
        objects=len(store),
        views=store.n_views,
        views_per_object=(min(counts), store.n_views / len(store), max(counts)),
        bytes=store.n_bytes,
        sizes=dict(sizes.most_common()),
        codecs=dict(Counter(store.codec(v) for v in views).most_common()),
        cameras=sum(store.camera(v) is not None for v in views),
        depth=sum(store.has_depth(v) for v in views),
        masks=sum(store.has_mask(v) for v in views),
        tracks=sum(store.has_tracks(v) for v in views),
        captioned_objects=sum(n > 0 for n in whole),
        captioned_views=sum(n > 0 for n in own),
        captions=sum(whole) + sum(own),
        categories=count_names(map(store.category, objects)),
        licences=licences.count(map(store.licence, objects)),
        sources=count_names(map(store.source, objects)),
        creators=count_names(map(store.creator, objects)),
        splits={name: len(names) for name, names in store.splits().items()},
    )


def count_names(names: Iterable[str | None]) -> dict[str, int]:
    """How often each name occurs, the most frequent first; "" = none."""
    return dict(Counter(name or "" for name in names).most_common())


def contact_sheet(store: ViewStore, out: Path, *, objects: int = 8, views: int = 12, cell: int = 96) -> None:
    """Draws objects spread over the store, a row each with its views in order, as a PNG.

    Args:
        store: where from.
        out: the PNG to write, replaced whole.
        objects: rows at most.
        views: columns at most.
        cell: side of a view in pixels; views keep their proportions.

    Raises:
        DataError: a view is damaged, or the picture cannot be written.
    """
    rows = {i: _spread(store.views_of(i), views) for i in _spread(range(len(store)), objects)}
    cell = min(cell, max(max(store.size(v)) for shown in rows.values() for v in shown))  # views are never enlarged
    columns = max(map(len, rows.values()))
    height = len(rows) * (_LABEL + cell + _GAP) + _GAP
    sheet = Image.new("RGB", (columns * (cell + _GAP) + _GAP, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for row, (i, shown) in enumerate(rows.items()):
        top = _GAP + row * (_LABEL + cell + _GAP)
        category = store.category(i)
        label = store.object_ids[i] if category is None else f"{store.object_ids[i]}  ({category})"
        draw.text((_GAP, top), label, "black", font)
        for column, v in enumerate(shown):
            picture = Image.fromarray(store.image(v))
            picture.thumbnail((cell, cell))
            sheet.paste(picture, (_GAP + column * (cell + _GAP), top + _LABEL))
    temporary = out.with_name(f"{out.name}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        sheet.save(temporary, "PNG")
        temporary.replace(out)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None


def _spread(items: range, most: int) -> list[int]:
    """At most so many of the items, evenly spread, in order."""
    if len(items) <= most:
        return list(items)
    return [items[int(k)] for k in np.linspace(0, len(items) - 1, most).round()]
