"""Captions that stand beside a store: `STORE/captions/<name>.jsonl`, a line a view, made by a model or by hand.

A store is immutable, and to caption it anew must not copy its images. The first line says what made the captions; each
further one is `{"object": id, "view": number in the object, "caption": text or null}`, null = left out. A file grows as
`<name>.jsonl.tmp` and takes its name when every view has a line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from mvcore.api import ConfigError, DataError
from numpy.typing import NDArray

from mvcore_data.index import sync_folder
from mvcore_data.store import ViewStore

SCHEMA = "mvcore.captions"
VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,99}")
_MAX_LINE = 1 << 16
_UNSEEN, _LEFT_OUT = -1, -2


def captions_path(store: Path, name: str) -> Path:
    """The file of a store's captions of a name; beside a single shard it is in `SHARD.h5.captions/`.

    Raises:
        ConfigError: it can be no name of a file.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"captions {name!r}: a name has letters, digits, '_', '-' and '.', at most 100")
    folder = store.with_name(f"{store.name}.captions") if store.is_file() else store / "captions"
    return folder / f"{name}.jsonl"


class ViewCaptions:
    """Captions of a store's views from a file beside it, held as one text and two arrays.

    Args:
        store: the opened store.
        path: the file.

    Attributes:
        key: what the first line says of how they were made.

    Raises:
        DataError: missing or damaged, or of objects that the store does not hold.
    """

    def __init__(self, store: ViewStore, path: Path) -> None:
        self._start = np.full(store.n_views, _UNSEEN, np.int64)
        self._length = np.zeros(store.n_views, np.int32)
        numbers = {name: i for i, name in enumerate(store.object_ids)}
        parts: list[bytes] = []
        size = 0
        lines = read_lines(path)
        self.key = next(lines)[1]
        for number, line in lines:
            view, caption = _parsed(store, numbers, line, f"{path}: line {number}")
            if self._start[view] != _UNSEEN:
                raise DataError(f"{path}: line {number}: a second caption of view {line['view']} of {line['object']!r}")
            self._start[view] = _LEFT_OUT if caption is None else size
            if caption is not None:
                parts.append(caption)
                self._length[view] = len(caption)
                size += len(caption)
        self._text = b"".join(parts)

    @property
    def missing(self) -> NDArray[np.int64]:
        """Views that the file has no line of."""
        return np.flatnonzero(self._start == _UNSEEN)

    @property
    def count(self) -> int:
        """Views with a caption."""
        return int((self._start >= 0).sum())

    def of_view(self, v: int) -> list[str]:
        """The captions of view v: one or none."""
        start = int(self._start[v])
        return [] if start < 0 else [self._text[start : start + int(self._length[v])].decode()]


class CaptionWriter:
    """Adds lines to a file of captions that is not finished; what a killed one left is gone on with.

    Use it as a context manager. The lines of one `add` are on disk when it returns.

    Args:
        path: the finished file's.
        key: what makes the captions, for the first line.
        anew: start with none.
    """

    def __init__(self, path: Path, key: Mapping[str, Any], *, anew: bool) -> None:
        self.path = path
        self.partial = path.with_name(f"{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if anew:
                header = {"schema": SCHEMA, "version": VERSION, **key}
                self.partial.write_text(json.dumps(header, ensure_ascii=False) + "\n", encoding="utf-8")
            self._file = self.partial.open("a", encoding="utf-8")
        except OSError as error:
            raise DataError(f"{self.partial}: cannot be written ({error.strerror})") from None

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines.

        Raises:
            DataError: the disk is full.
        """
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            self._file.write(text)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise DataError(f"{self.partial}: cannot be written ({error.strerror}); what it holds is kept") from None

    def finish(self) -> None:
        """Gives the file its name."""
        self._file.close()
        self.partial.replace(self.path)
        sync_folder(self.path.parent)

    def __enter__(self) -> CaptionWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and value of each line, the key of the file first.

    Raises:
        DataError: missing or damaged.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), 1):
                value = _value(line, f"{path}: line {number}")
                if number == 1 and (value.get("schema"), value.get("version")) != (SCHEMA, VERSION):
                    raise DataError(f"{path}: not a file of captions ({SCHEMA} version {VERSION})")
                yield number, value
            if not file.tell():
                raise DataError(f"{path}: empty")
    except FileNotFoundError:
        there = ", ".join(sorted(other.stem for other in path.parent.glob("*.jsonl"))) or "none"
        raise DataError(
            f"{path}: no such captions (there are: {there}); make them with 'mvcore data caption'"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def drop_torn_line(path: Path) -> None:
    """Cuts a last line that a killed writer did not finish."""
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        begin = max(0, end - _MAX_LINE - 1)
        file.seek(begin)
        file.truncate(begin + file.read().rfind(b"\n") + 1)


def _value(line: bytes, where: str) -> dict[str, Any]:
    if len(line) > _MAX_LINE:
        raise DataError(f"{where}: longer than {_MAX_LINE} bytes")
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}: not JSON") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: not a mapping")
    return value


def _parsed(
    store: ViewStore, numbers: Mapping[str, int], line: Mapping[str, Any], where: str
) -> tuple[int, bytes | None]:
    name, view, caption = line.get("object"), line.get("view"), line.get("caption")
    i = numbers.get(name) if isinstance(name, str) else None
    if i is None:
        raise DataError(f"{where}: the store holds no object {name!r}")
    views = store.views_of(i)
    if type(view) is not int or not 0 <= view < len(views):
        raise DataError(f"{where}: object {name!r} has no view {view!r}, it has {len(views)}")
    if caption is None:
        return views[view], None
    if not isinstance(caption, str) or not caption.strip():
        raise DataError(f"{where}: the caption is no text; give null for none")
    try:
        return views[view], caption.encode()
    except UnicodeEncodeError:
        raise DataError(f"{where}: the caption is not valid Unicode") from None
