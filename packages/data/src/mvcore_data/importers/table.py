"""`table`: a CSV, TSV or Parquet file with a row for each image."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView
from mvcore_data.importers.listing import ListedFiles, ListOptions, listed_files
from mvcore_data.importers.table_rows import CsvRows, ParquetRows, Row, Rows

_SUFFIXES = {".csv": ",", ".tsv": "\t", ".parquet": ""}
_ABOUT = ("category", "licence", "source", "creator")


class TableOptions(ListOptions):
    """Options of `table`: which columns hold what, where they are named otherwise.

    Args:
        path: column with the image's path; required in the table.
        object: column with the object's id; without such a column each row is an object, named by its path.
        caption, category, licence, source, creator: columns with these texts, all optional.
        captions_of: whether a caption describes the row's `view` or its whole `object`.
        delimiter: what stands between the cells of a CSV file.
        root: the folder that relative paths start from; by default that of the table.
        anywhere: let absolute paths, `..` and links lead out of that folder.
    """

    path: str = "path"
    object: str = "object"
    caption: str = "caption"
    category: str = "category"
    licence: str = "licence"
    source: str = "source"
    creator: str = "creator"
    captions_of: Literal["view", "object"] = "view"
    delimiter: str | None = None


def _rows(path: Path, options: TableOptions) -> Rows:
    if path.suffix not in _SUFFIXES:
        raise DataError(f"{path}: no table; give a .csv, .tsv or .parquet file")
    if path.suffix == ".parquet":
        return ParquetRows(path)
    return CsvRows(path, options.delimiter or _SUFFIXES[path.suffix])


def _detect(src: Path) -> str | None:
    if src.suffix not in _SUFFIXES or not src.is_file():
        return None
    try:
        columns = _rows(src, TableOptions()).columns
    except DataError:
        return None
    return f"{src.suffix} with a column path" if "path" in columns else None


def _open(src: Path, options: TableOptions) -> Source:
    rows = _rows(src, options)
    if options.path not in rows.columns:
        raise DataError(
            f"{src}: has no column {options.path!r}, but {', '.join(rows.columns)}; name it with option path"
        )
    fields = type(options).model_fields
    for name in ("object", "caption", *_ABOUT):
        asked = getattr(options, name)
        if asked != fields[name].default and asked not in rows.columns:
            raise DataError(f"{src}: has no column {asked!r} (option {name})")
    files = listed_files(src, options)
    if options.object not in rows.columns:
        return Source(lambda skipped: _single(rows, options, files, skipped))
    groups = _Groups(rows.keys(options.object))
    return Source(lambda skipped: _grouped(rows, groups, options, files, skipped), len(groups))


class _Groups:
    """The rows of each object, in the order in which objects first appear."""

    def __init__(self, keys: NDArray[np.int64]) -> None:
        self._order = np.argsort(keys, kind="stable")
        ordered = keys[self._order]
        self._begin = (
            np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1])) if len(keys) else np.zeros(0, np.int64)
        )
        self._end = np.append(self._begin[1:], len(keys))
        self._sequence = np.argsort(self._order[self._begin], kind="stable")

    def __len__(self) -> int:
        return len(self._begin)

    def __iter__(self) -> Iterator[list[int]]:
        for k in self._sequence.tolist():
            yield self._order[self._begin[k] : self._end[k]].tolist()


def _single(rows: Rows, options: TableOptions, files: ListedFiles, skipped: Skipped) -> Iterator[SourceObject]:
    for number in range(len(rows)):
        row = rows.row(number)
        path = row.get(options.path) or ""
        yield from _object(path, [(number, row)], rows, options, files, skipped)


def _grouped(
    rows: Rows, groups: _Groups, options: TableOptions, files: ListedFiles, skipped: Skipped
) -> Iterator[SourceObject]:
    for numbers in groups:
        found = [(number, rows.row(number)) for number in numbers]
        ids = {row.get(options.object) or "" for _, row in found}
        if len(ids) > 1:  # two ids of the same 64-bit digest
            raise DataError(f"{rows.path}: objects {' and '.join(sorted(ids))} cannot be told apart; rename one")
        yield from _object(ids.pop(), found, rows, options, files, skipped)


def _object(
    id: str, found: list[tuple[int, Row]], rows: Rows, options: TableOptions, files: ListedFiles, skipped: Skipped
) -> Iterator[SourceObject]:
    name = f"{rows.path}: row {found[0][0] + 1}"
    if not id:
        skipped.add("a row without object or path", name)
        return
    about: dict[str, str | None] = {}
    for what in _ABOUT:
        values = sorted({value for _, row in found if (value := row.get(getattr(options, what)))})
        if len(values) > 1:
            skipped.add(f"an object whose rows have several values of {what}", f"{name}, {id}: {', '.join(values)}")
            return
        about[what] = values[0] if values else None
    captions = [row.get(options.caption) or "" for _, row in found]
    of_views = options.captions_of == "view"
    views = [
        SourceView(
            name=row.get(options.path) or f"{rows.path}: row {number + 1}",
            read=files.reader(row.get(options.path) or ""),
            captions=[caption] if of_views and caption else [],
        )
        for (number, row), caption in zip(found, captions, strict=True)
    ]
    whole = [] if of_views else list(dict.fromkeys(filter(None, captions)))
    yield SourceObject(id=id, name=name, views=views, captions=whole, **about)


FORMAT = Format(
    name="table",
    summary="a CSV, TSV or Parquet file of path, object, caption, category, licence, source, creator",
    detect=_detect,
    open=_open,
    options=TableOptions,
)
