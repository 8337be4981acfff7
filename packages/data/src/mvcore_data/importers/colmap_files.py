"""Files of a COLMAP model, binary and text, read with bounds."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from mvcore.api import DataError

COUNT = struct.Struct("<Q")
MAX_LINE = 1 << 16
_MAX_NAME_BYTES = 4096


class BinaryFile:
    """A binary file whose every length is checked against what is left of it."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._left = path.stat().st_size

    def count(self, what: str, least: int) -> int:
        """A number of records, of which each has at least so many bytes."""
        number = int(self.unpack(COUNT, what)[0])
        if number * least > self._left:
            raise DataError(f"{self._path}: announces {number} {what}, more than the {self._left} bytes left can hold")
        return number

    def unpack(self, form: struct.Struct, what: str) -> tuple[float, ...]:
        return form.unpack(self.read(form.size, what))

    def read(self, size: int, what: str) -> bytes:
        data = self._file.read(size) if size <= self._left else b""
        if len(data) != size:
            raise DataError(f"{self._path}: ends within its {what}")
        self._left -= size
        return data

    def skip(self, size: int) -> None:
        self._file.seek(size, 1)
        self._left -= size

    def name(self, what: str) -> str:
        begin = self._file.tell()
        end = (data := self._file.read(min(_MAX_NAME_BYTES, self._left))).find(b"\0")
        if end < 0:
            raise DataError(f"{self._path}: the name of one of its {what} has no end")
        self._file.seek(begin + end + 1)
        self._left -= end + 1
        return decoded(data[:end], self._path)

    def finish(self) -> None:
        if self._left:
            raise DataError(f"{self._path}: {self._left} bytes too long")


def text_line(file: BinaryIO, path: Path, *, whole: bool = True) -> str:
    """The next line that is neither empty nor a comment; empty at the end.

    Args:
        file: opened.
        path: for messages.
        whole: refuse a line beyond 64 kB; else it is cut off there.
    """
    while data := file.readline(MAX_LINE):
        if len(data) == MAX_LINE:
            if whole:
                raise DataError(f"{path}: a line of more than {MAX_LINE} bytes")
            if not data.endswith(b"\n"):
                skip_line(file)
        if (text := decoded(data, path).strip()) and not text.startswith("#"):
            return text
    return ""


def skip_line(file: BinaryIO) -> None:
    """The rest of a line, of any length; it may be empty."""
    while (part := file.readline(MAX_LINE)) and not part.endswith(b"\n"):
        pass


def decoded(data: bytes, path: Path) -> str:
    """UTF-8 of a file."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: {data[:40]!r} is not UTF-8") from None
