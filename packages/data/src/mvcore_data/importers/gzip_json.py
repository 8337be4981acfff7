"""Gzipped JSON lists, read item by item and bounded, so that a small file cannot ask for all memory or time."""

from __future__ import annotations

import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvcore.api import DataError

MAX_BYTES = 1 << 34
MAX_ITEM_CHARACTERS = 1 << 20
_CHUNK = 1 << 16
_SPACE = " \t\r\n"
_AFTER_ITEM = tuple(_SPACE + ",]")


def read_items(path: Path, *, most: int = MAX_BYTES, item: int = MAX_ITEM_CHARACTERS) -> Iterator[Any]:
    """The items of a gzipped JSON list, one after another.

    Args:
        path: of the file.
        most: bytes that it may unpack to.
        item: characters that one item may take.

    Raises:
        DataError: missing, damaged, cut, no JSON list, or beyond the bounds.
    """
    try:
        with gzip.open(path, "rb") as file:
            yield from _Items(file, path, most, item)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({str(error) or type(error).__name__})") from None


class _Items:
    """A list's items; of the text, only what is left of the last chunk and the item at hand is in memory."""

    def __init__(self, file: gzip.GzipFile, path: Path, most: int, item: int) -> None:
        self._file = file
        self._path = path
        self._left = most
        self._item = item
        self._text = ""
        self._at = 0
        self._ended = False
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._scan = json.JSONDecoder().raw_decode

    def __iter__(self) -> Iterator[Any]:
        self._expect("[")
        if self._peek() != "]":
            yield self._value()
            while self._peek() == ",":
                self._at += 1
                yield self._value()
        self._expect("]")
        if self._peek():
            raise self._wrong("something follows the list")

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._scan(self._text, self._at)
                # A number that seems to end with the text, as `1` in `1.` or `1e`, may go on in the next chunk.
                if self._ended or self._text[end : end + 1] in _AFTER_ITEM:
                    self._at = end
                    return value
            except ValueError as error:  # wrong, or not all of it is here yet
                if self._ended:
                    raise self._wrong(str(error)) from None
            except RecursionError:
                raise self._wrong("nested too deeply") from None
            length = len(self._text) - self._at
            if length > self._item:
                raise self._wrong(f"an item of more than {self._item} characters, or one that is damaged")
            # Twice as much each time, so that a long item is not scanned over and over.
            self._more(max(_CHUNK, length))

    def _peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if self._ended:
                return ""
            self._more(_CHUNK)

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._wrong(f"{character!r} expected")
        self._at += 1

    def _more(self, size: int) -> None:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path}: unpacks to more than is allowed; is it what it says?")
        try:
            self._text = self._text[self._at :] + self._decode(data, final=not data)
        except UnicodeDecodeError:
            raise self._wrong("not UTF-8") from None
        self._at = 0
        self._ended = not data

    def _wrong(self, why: str) -> DataError:
        return DataError(f"{self._path}: is no JSON list ({why})")
