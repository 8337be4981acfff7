"""`image-text`: a JSON list of `{"path", "caption"}`, as `metadata_imgnet.json` of Omniview-Tuning: one view each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView
from mvcore_data.importers.json_list import JsonList, first_entry
from mvcore_data.importers.listing import ListedFiles, ListOptions, listed_files
from mvcore_data.importers.mvcap import list_file

_ABOUT = ("category", "licence", "source", "creator")


def _detect(src: Path) -> str | None:
    path = list_file(src)
    entry = first_entry(path)
    marked = isinstance(entry, dict) and {"path", "caption"} <= entry.keys() and "obj_id" not in entry
    return f"{path.name} with path and caption" if marked else None


def _open(src: Path, options: ListOptions) -> Source:
    path = list_file(src)
    entries = JsonList(path)
    files = listed_files(path, options)
    return Source(lambda skipped: _objects(entries, files, skipped))


def _objects(entries: JsonList, files: ListedFiles, skipped: Skipped) -> Iterator[SourceObject]:
    """The image's path is its object's id."""
    for place in entries:
        entry = entries.read_entry(place.begin, place.end)
        name = f"{entries.path}: entry {place.number}"
        if entry is None:
            skipped.add("an entry that is not UTF-8", name)
            continue
        texts = [entry.get(key) for key in ("caption", *_ABOUT)] if isinstance(entry, dict) else []
        if (
            not texts
            or not isinstance(entry.get("path"), str)
            or any(type(text) not in (str, type(None)) for text in texts)
        ):
            skipped.add("an entry without path (text) and caption (text)", name)
            continue
        caption, about = (texts[0] or "").strip(), dict(zip(_ABOUT, (text or None for text in texts[1:]), strict=True))
        view = SourceView(name=entry["path"], read=files.reader(entry["path"]), captions=[caption] if caption else [])
        yield SourceObject(id=entry["path"], name=name, views=[view], **about)


FORMAT = Format(
    name="image-text",
    summary='a JSON list (or JSON lines) of {"path", "caption"}, one view an object',
    detect=_detect,
    open=_open,
    options=ListOptions,
)
