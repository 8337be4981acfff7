"""Gzipped JSON lists, read item by item and bounded, so that a small file cannot ask for all memory."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson
from mvcore.api import DataError

MAX_BYTES = 1 << 34
MAX_ITEM_BYTES = 1 << 24


class _Bounded:
    """A decompressed stream that ends with an error beyond a total, or when one item takes too much of it."""

    def __init__(self, file: gzip.GzipFile, path: Path, most: int, item: int) -> None:
        self._file = file
        self._path = path
        self._left = most
        self._item = item
        self._item_left = item

    def next_item(self) -> None:
        self._item_left = self._item

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, 1 << 16))
        self._left -= len(data)
        self._item_left -= len(data)
        if self._left < 0:
            raise DataError(f"{self._path}: unpacks to more than is allowed; is it what it says?")
        if self._item_left < 0:
            raise DataError(f"{self._path}: one of its items is larger than {self._item} bytes")
        return data


def read_items(path: Path, prefix: str = "item", *, most: int = MAX_BYTES, item: int = MAX_ITEM_BYTES) -> Iterator[Any]:
    """The items of a gzipped JSON list, one after another.

    Args:
        path: of the file.
        prefix: what to give of each item, in ijson's words: `item`, or `item.name` for one of its keys.
        most: bytes that it may unpack to.
        item: bytes that one item may take.

    Raises:
        DataError: missing, damaged, cut, no JSON list, or beyond the bounds.
    """
    try:
        with gzip.open(path, "rb") as file:
            stream = _Bounded(file, path, most, item)
            for value in ijson.items(stream, prefix, use_float=True, buf_size=1 << 16):
                stream.next_item()
                yield value
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be unpacked ({str(error) or type(error).__name__})") from None
    except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
        raise DataError(f"{path}: is no JSON list ({str(error).splitlines()[0]})") from None
