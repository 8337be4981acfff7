"""`mvcap`: the list of Omniview-Tuning's MVCap, an entry for each image with the number of its object.

    [{"path": "./views/<uid>/026.png", "caption": "a chair ...", "obj_id": 3177, "img_id": 317726}, ...]

The published file has 4.6 million entries and 964 MB. Its objects need not be adjacent, so a first pass keeps three
numbers an entry (object, image, place in the file); the entries of an object are read again when it is its turn.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView
from mvcore_data.importers.json_list import JsonList, first_entry
from mvcore_data.importers.listing import ListedFiles, ListOptions, listed_files

LIST_NAME = "metadata.json"
_LARGEST = 2**63 - 1


def list_file(src: Path) -> Path:
    """The list itself, or the one in a folder."""
    return src / LIST_NAME if src.is_dir() else src


def _detect(src: Path) -> str | None:
    path = list_file(src)
    entry = first_entry(path)
    return f"{path.name} with obj_id" if isinstance(entry, dict) and {"path", "obj_id"} <= entry.keys() else None


class _Places:
    """Where the entries of each object lie; objects in ascending order, their images by img_id, then as listed."""

    def __init__(self, entries: JsonList) -> None:
        columns = [array("q") for _ in range(4)]
        self.faults: list[int] = []
        for entry in entries:
            if not _is_entry(entry.value):
                self.faults.append(entry.number)
                continue
            row = (entry.value["obj_id"], entry.value.get("img_id", -1), entry.begin, entry.end)
            for column, number in zip(columns, row, strict=True):
                column.append(number)
        self._object, self._image, self._begin, self._end = (np.frombuffer(column, np.int64) for column in columns)
        self._order = np.lexsort((self._begin, self._image, self._object))
        self.objects, first = np.unique(self._object[self._order], return_index=True)
        self._bounds = np.append(first, len(self._order))

    def rows(self, k: int) -> list[tuple[int, int, int]]:
        """(img_id, begin, end) of the k-th object's entries."""
        rows: NDArray[np.int64] = self._order[self._bounds[k] : self._bounds[k + 1]]
        columns = (self._image[rows], self._begin[rows], self._end[rows])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _is_entry(value: Any) -> bool:
    if not isinstance(value, dict) or "obj_id" not in value:
        return False
    texts = isinstance(value.get("path"), str) and isinstance(value.get("caption", ""), str)
    numbers = [value.get(key, 0) for key in ("obj_id", "img_id")]
    return texts and all(type(number) is int and 0 <= number <= _LARGEST for number in numbers)


def _open(src: Path, options: ListOptions) -> Source:
    path = list_file(src)
    entries = JsonList(path)
    places = _Places(entries)
    files = listed_files(path, options)
    return Source(lambda skipped: _objects(entries, places, files, skipped), len(places.objects))


def _objects(entries: JsonList, places: _Places, files: ListedFiles, skipped: Skipped) -> Iterator[SourceObject]:
    for number in places.faults:
        skipped.add("an entry without path (text), caption (text) and obj_id (whole number)", f"entry {number}")
    for k, number in enumerate(places.objects.tolist()):
        views = _views(entries, places.rows(k), files, skipped)
        if views:
            yield SourceObject(id=str(number), name=f"{entries.path}: obj_id {number}", views=views)


def _views(
    entries: JsonList, rows: list[tuple[int, int, int]], files: ListedFiles, skipped: Skipped
) -> list[SourceView]:
    views: list[SourceView] = []
    images: set[int] = set()
    paths: set[str] = set()
    for image, begin, end in rows:
        entry = entries.read_entry(begin, end)
        name = f"{entries.path}: byte {begin}"
        if entry is None:
            skipped.add("an entry that is not UTF-8", name)
        elif image in images:
            skipped.add("an img_id that another entry of its object has", entry["path"])
        elif entry["path"] in paths:
            skipped.add("a path that another entry of its object has", entry["path"])
        else:
            images |= {image} - {-1}
            paths.add(entry["path"])
            captions = [text] if (text := entry.get("caption", "").strip()) else []
            views.append(SourceView(name=entry["path"], read=files.reader(entry["path"]), captions=captions))
    return views


FORMAT = Format(
    name="mvcap",
    summary='a JSON list of {"path", "caption", "obj_id", "img_id"}, as metadata.json of Omniview-Tuning',
    detect=_detect,
    open=_open,
    options=ListOptions,
)
