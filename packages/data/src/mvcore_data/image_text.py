"""`data.image_text`: images with captions from a JSON list."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mvcore.api import DataError, ViewBatch, resolve_path
from numpy.typing import NDArray

from mvcore_data.image_files import decode_image_file, read_image_file
from mvcore_data.options import ImageTextOptions
from mvcore_data.pipeline import Pipeline

_KEYS = {"path": str, "caption": str, "obj_id": int, "img_id": int}
_REQUIRED = ("path", "caption")
_MAX_LIST_BYTES = 1 << 32


class _Entry(NamedTuple):
    path: str
    caption: str
    object_id: int
    image_id: int


class ImageText:
    """An indexed dataset of image files with one caption each.

    The file is a JSON list of `{"path": str, "caption": str}`; with `"obj_id": int` and, optionally, `"img_id": int` it
    is the format of Omniview-Tuning's metadata. Entries of one `obj_id` become one object, whose captions belong to its
    views; an entry without is an object of its own with the ids -1. Object ids number the distinct `obj_id`s in
    ascending order, whatever gaps they have; view ids are positions in the list. Paths are relative to the file.

    Args:
        options: the fields of `ImageTextOptions`.

    Raises:
        DataError: no such file, or an entry that is wrong; the text names it.
    """

    def __init__(self, **options: Any) -> None:
        self.options = ImageTextOptions(**options)
        self.path = resolve_path(self.options.path, what="image-text list")
        self.image_size = self.options.image_size
        self.store_key = str(self.path.resolve())
        self._entries = _read(self.path)
        self._groups = _groups(self._entries)[: self.options.limit_objects]
        known = sorted({entry.object_id for entry in self._entries if entry.object_id >= 0})
        self._number_of = {object_id: number for number, object_id in enumerate(known)}
        self.provides = frozenset({"images", "captions", *(("object_ids", "view_ids") if known else ())})
        self.n_store_objects = len(known)
        self.n_store_views = len(self._entries) if known else 0
        self._pipeline = Pipeline(self.image_size, self.options)

    def __len__(self) -> int:
        return len(self._groups)

    def views_of(self, i: int) -> Sequence[int]:
        """The positions in the list of object `i`'s images."""
        return self._groups[i]

    def object_name(self, i: int) -> str:
        """The object's `obj_id`, or its image's path."""
        entry = self._entries[self._groups[i][0]]
        return entry.path if entry.object_id < 0 else str(entry.object_id)

    def category(self, i: int) -> str | None:
        """None: the list has no categories."""
        return None

    def load(self, i: int, views: Sequence[int], rng: np.random.Generator | None) -> ViewBatch:
        """One object's batch; see `mvcore.parts.IndexedDataset`.

        Raises:
            DataError: an image is missing or damaged.
        """
        return self.load_many([(i, views)], None if rng is None else lambda _: rng)

    def load_many(
        self, requests: Sequence[tuple[int, Sequence[int]]], rng_of: Callable[[int], np.random.Generator] | None
    ) -> ViewBatch:
        """The batch of several objects at once; `rng_of(k)` gives the generator of request k.

        Raises:
            DataError: an image is missing or damaged.
        """
        counts = [len(views) for _, views in requests]
        positions = [view for _, views in requests for view in views]
        entries = [self._entries[position] for position in positions]
        owners = [f"{self.path}: entry {position}" for position in positions]
        files = [
            read_image_file(self.path.parent / entry.path, owner) for entry, owner in zip(entries, owners, strict=True)
        ]
        draws = rng_of is not None and bool(self._pipeline.augmentation)
        generators = [(rng_of(k), count) for k, count in enumerate(counts)] if draws and rng_of is not None else None
        placed = self._pipeline.place([(info.height, info.width) for _, info in files], generators)

        def pixels(row: int, _out: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
            return decode_image_file(*files[row], self.options.background, owners[row])

        first = np.cumsum([0, *counts[:-1]]).tolist()
        return ViewBatch.make(
            counts,
            images=self._pipeline.finish(self._pipeline.cut(placed, pixels), placed),
            object_ids=torch.tensor([self._number_of.get(entries[row].object_id, -1) for row in first]),
            view_ids=torch.tensor(
                [p if entry.object_id >= 0 else -1 for p, entry in zip(positions, entries, strict=True)]
            ),
            captions=[entry.caption for entry in entries],
            caption_object=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)),
            caption_view=torch.arange(len(entries)),
        )


def _read(path: Path) -> list[_Entry]:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; an image-text list is a JSON file")
    if path.stat().st_size > _MAX_LIST_BYTES:
        raise DataError(f"{path}: more than {_MAX_LIST_BYTES >> 30} GiB; split the list")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(values, list):
        raise DataError(f'{path}: holds no list; write [{{"path": "a.jpg", "caption": "a chair"}}, ...]')
    if not values:
        raise DataError(f"{path}: the list is empty")
    entries = [_entry(value, position, path) for position, value in enumerate(values)]
    _check_image_ids(values, path)
    return entries


def _entry(value: Any, position: int, path: Path) -> _Entry:
    where = f"{path}: entry {position}"
    if not isinstance(value, dict):
        raise DataError(f"{where} is {type(value).__name__}, not an object with path and caption")
    for key in _REQUIRED:
        if key not in value:
            raise DataError(f"{where} has no {key!r}")
    for key, given in value.items():
        if key not in _KEYS:
            raise DataError(f"{where} has the unknown key {key!r}; known are {', '.join(_KEYS)}")
        if type(given) is not _KEYS[key]:
            raise DataError(f"{where}: {key} must be {_KEYS[key].__name__}, not {given!r:.80}")
    if min(value.get("obj_id", 0), value.get("img_id", 0)) < 0:
        raise DataError(f"{where}: obj_id and img_id count from 0")
    if "img_id" in value and "obj_id" not in value:
        raise DataError(f"{where} has an img_id but no obj_id")
    if not value["path"] or "\0" in value["path"]:
        raise DataError(f"{where}: {value['path']!r} is no path")
    return _Entry(value["path"], value["caption"], value.get("obj_id", -1), value.get("img_id", -1))


def _check_image_ids(values: list[dict[str, Any]], path: Path) -> None:
    """The list's positions and its img_ids must be one to one, or anchors would be mixed up."""
    seen: dict[int, int] = {}
    for position, value in enumerate(values):
        if "img_id" not in value:
            continue
        first = seen.setdefault(value["img_id"], position)
        if first != position:
            raise DataError(f"{path}: entries {first} and {position} have the same img_id {value['img_id']}")


def _groups(entries: list[_Entry]) -> list[list[int]]:
    """Positions by object, in order of first appearance; an entry without obj_id stands alone."""
    groups: list[list[int]] = []
    group_of: dict[int, list[int]] = {}
    for position, entry in enumerate(entries):
        if entry.object_id < 0:
            groups.append([position])
            continue
        if entry.object_id not in group_of:
            group_of[entry.object_id] = []
            groups.append(group_of[entry.object_id])
        group_of[entry.object_id].append(position)
    return groups
