"""The entries of a JSON list or of JSON lines, one after another: a file of gigabytes takes the memory of one entry."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mvcore.api import DataError

_CHUNK = 1 << 20
_MAX_ENTRY = 1 << 20
_MARK = re.compile("(\xef\xbb\xbf)?")
_BETWEEN = re.compile(r"[\s,]*")


class Entry(NamedTuple):
    """One entry: its number, its place in bytes, and its value.

    In the value, text outside ASCII is not decoded yet; `read_entry` gives the whole entry.
    """

    number: int
    begin: int
    end: int
    value: Any


class JsonList:
    """Reads a JSON list of objects, or a file with a JSON object a line.

    The text is scanned as Latin-1, in which a character is a byte, so that places are exact whatever the encoding of
    the strings inside; JSON's own signs are ASCII.

    Args:
        path: the file.

    Raises:
        DataError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None

    def __del__(self) -> None:
        if hasattr(self, "_fd"):
            os.close(self._fd)

    def __iter__(self) -> Iterator[Entry]:
        """The entries in order.

        Raises:
            DataError: it is no list, or ends early; the text names the entry.
        """
        window = _Window(self._fd)
        window.skip(_MARK)
        window.skip(_BETWEEN)
        opening = window.text[window.at : window.at + 1]
        if opening == "[":
            window.at += 1
        elif opening != "{":
            raise DataError(f'{self.path}: holds no list; write [{{"path": "a.jpg", "caption": "a chair"}}, ...]')
        number = 0
        while True:
            window.skip(_BETWEEN)
            sign = window.text[window.at : window.at + 1]
            if sign == ("]" if opening == "[" else ""):
                return
            begin = window.place
            value = self._decode(window, number)
            yield Entry(number, begin, window.place, value)
            number += 1

    def read_entry(self, begin: int, end: int) -> dict[str, Any] | None:
        """The entry at that place, or None where its text is not UTF-8."""
        try:
            return json.loads(os.pread(self._fd, end - begin, begin))
        except ValueError:
            return None

    def _decode(self, window: _Window, number: int) -> Any:
        while True:
            try:
                value, window.at = _DECODER.raw_decode(window.text, window.at)
                return value
            except RecursionError:
                raise DataError(f"{self.path}: entry {number} is nested too deeply") from None
            except ValueError as error:
                if len(window.text) - window.at > _MAX_ENTRY:
                    raise DataError(
                        f"{self.path}: entry {number} is no JSON, or larger than {_MAX_ENTRY} bytes"
                    ) from None
                if not window.grow():
                    place = window.place - window.at + error.pos if isinstance(error, json.JSONDecodeError) else 0
                    raise DataError(
                        f"{self.path}: entry {number} is no JSON, or the file ends in it (byte {place})"
                    ) from None


def first_entry(path: Path) -> Any:
    """The first entry's value, or None where the file is no such list; for detection."""
    if not path.is_file() or path.suffix not in (".json", ".jsonl"):
        return None
    try:
        entry = next(iter(JsonList(path)), None)
    except DataError:
        return None
    return None if entry is None else entry.value


_DECODER = json.JSONDecoder()


class _Window:
    """The part of a file that is in memory."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._begin = 0
        self.text = ""
        self.at = 0
        self.grow()

    @property
    def place(self) -> int:
        """The byte of the file that is read next."""
        return self._begin + self.at

    def grow(self) -> bool:
        """Reads on, and forgets what lies behind; False at the end of the file."""
        self.text, self._begin, self.at = self.text[self.at :], self._begin + self.at, 0
        part = os.pread(self._fd, _CHUNK, self._begin + len(self.text))
        self.text += part.decode("latin-1")
        return bool(part)

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Passes by what matches, however long it is."""
        while True:
            found = pattern.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if self.at < len(self.text) or not self.grow():
                return
