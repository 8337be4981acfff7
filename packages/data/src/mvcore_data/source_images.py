"""What every reader of image files needs: bounded reading, reasons to leave one out, colours."""

from __future__ import annotations

import os
from pathlib import Path
from stat import S_ISREG
from typing import TypeAlias

from mvcore.api import ConfigError
from PIL import ImageColor

Colour: TypeAlias = tuple[int, int, int]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_MAX_FILE_BYTES = 1 << 28


class UnusableError(Exception):
    """An image that is left out; the text says why, in words that many files may share."""


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UnusableError: missing, no plain file, too large, or it cannot be read.
    """
    try:
        # One open file for both: nothing can take its place in between, and a pipe does not block.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            stat = os.fstat(fd)
            if not S_ISREG(stat.st_mode):
                raise UnusableError("not a plain file")
            if stat.st_size > _MAX_FILE_BYTES:
                raise UnusableError(f"larger than {_MAX_FILE_BYTES} bytes")
            return _read(fd, stat.st_size)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise UnusableError("no such file") from None
    except OSError as error:
        raise UnusableError(error.strerror or "cannot be read") from None


def _read(fd: int, size: int) -> bytes:
    data = os.read(fd, size)
    while len(data) < size and (part := os.read(fd, size - len(data))):  # a file system may give less
        data += part
    return data


def parse_colour(text: str) -> Colour:
    """A colour as `#ffffff` or `white`.

    Raises:
        ConfigError: no such colour.
    """
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ConfigError(f"no colour {text!r}; give one as '#ffffff' or 'white'") from None
