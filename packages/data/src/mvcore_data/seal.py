"""The seal of a shard: a digest of every byte outside its blobs, checked before HDF5 opens the file.

HDF5 can crash or hang on damaged metadata, so a shard is only opened when its metadata is what was written. The blobs
are left out: they are large, and a CRC per view covers them. The seal stands in the file's user block, the first 512
bytes, which HDF5 ignores.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mvcore.api import DataError

USER_BLOCK = 512
_MAGIC = b"mvcore.views seal 1\n"
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Seal:
    """What a shard's bytes must be.

    Args:
        bytes: size of the file.
        blobs: (start, length) of each blob in the file, in file order.
        sha256: digest of these figures and of the bytes outside user block and blobs.
    """

    bytes: int
    blobs: tuple[tuple[int, int], ...]
    sha256: str

    def as_json(self) -> dict[str, object]:
        """The seal as plain values."""
        return {"bytes": self.bytes, "blobs": [list(blob) for blob in self.blobs], "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: object, owner: str) -> Seal:
        """Reads what `as_json` gave.

        Raises:
            DataError: a field is missing or of the wrong kind, or the blobs do not lie in the file one after another.
        """
        try:
            size, digest, blobs = cls._fields(value)
        except (KeyError, TypeError, ValueError):
            raise DataError(f"{owner}: the record of its size and digest is damaged; copy the store again") from None
        edges = [USER_BLOCK, *(edge for start, length in blobs for edge in (start, start + length)), size]
        if any(a > b for a, b in pairwise(edges)):
            raise DataError(f"{owner}: its blobs do not fit into {size} bytes; copy the store again")
        return cls(size, blobs, digest)

    @staticmethod
    def _fields(value: Any) -> tuple[int, str, tuple[tuple[int, int], ...]]:
        size, digest = value["bytes"], value["sha256"]
        blobs = tuple((start, length) for start, length in value["blobs"])
        numbers = [size, *(n for blob in blobs for n in blob)]
        if not isinstance(digest, str) or any(type(n) is not int or n < 0 for n in numbers):
            raise TypeError
        return size, digest, blobs


def compute(fd: int, size: int, blobs: tuple[tuple[int, int], ...]) -> str:
    """The digest of an open file of `size` bytes whose blobs lie at `blobs`."""
    digest = hashlib.sha256(json.dumps([size, blobs]).encode())
    for start, stop in _outside(size, blobs):
        while start < stop:
            part = os.pread(fd, min(_CHUNK, stop - start), start)
            if not part:
                break
            digest.update(part)
            start += len(part)
    return digest.hexdigest()


def _outside(size: int, blobs: tuple[tuple[int, int], ...]) -> Iterator[tuple[int, int]]:
    start = USER_BLOCK
    for blob, length in blobs:
        yield start, blob
        start = blob + length
    yield start, size


def write(path: Path, blobs: tuple[tuple[int, int], ...]) -> Seal:
    """Computes the seal of a finished shard, puts it into its user block, and flushes the file to disk."""
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        seal = Seal(size, tuple(sorted(blobs)), compute(file.fileno(), size, tuple(sorted(blobs))))
        block = _MAGIC + json.dumps(seal.as_json()).encode()
        if len(block) > USER_BLOCK:
            raise DataError(f"{path}: the seal does not fit into {USER_BLOCK} bytes")
        file.write(block.ljust(USER_BLOCK, b"\0"))
        file.flush()
        os.fsync(file.fileno())
    return seal


def read(fd: int, owner: str) -> Seal | None:
    """The seal in a file's user block, or None where the file has none.

    Raises:
        DataError: the seal is damaged.
    """
    block = os.pread(fd, USER_BLOCK, 0)
    if not block.startswith(_MAGIC):
        return None
    try:
        value = json.loads(block[len(_MAGIC) :].rstrip(b"\0"))
    except ValueError:
        raise DataError(f"{owner}: its first {USER_BLOCK} bytes are damaged; copy the file again") from None
    return Seal.from_json(value, owner)


def verify(fd: int, seal: Seal, owner: str) -> None:
    """Checks a file against its seal.

    Raises:
        DataError: another size or digest.
    """
    size = os.fstat(fd).st_size
    if size != seal.bytes:
        what = "truncated" if size < seal.bytes else "longer than it was written"
        raise DataError(f"{owner}: {what} ({size} bytes, not {seal.bytes}); copy the file again")
    if compute(fd, size, seal.blobs) != seal.sha256:
        raise DataError(f"{owner}: damaged (its metadata is not what was written); copy the file again")
