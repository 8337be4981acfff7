"""`index.json`: the shards of a store with their seals, and its splits."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

from mvcore.api import DataError

from mvcore_data.schema import INDEX_NAME, SCHEMA, SHARD_PATTERN, VERSION
from mvcore_data.seal import Seal

_MAX_INDEX_BYTES = 1 << 28
_STAGED = f"{INDEX_NAME}.tmp"


@dataclass(frozen=True)
class ShardEntry:
    """What the index records of one shard: its file's name, its counts and the seal that its bytes must have."""

    file: str
    objects: int
    views: int
    seal: Seal


@dataclass(frozen=True)
class Index:
    """The shards of a store in order, and its splits: object ids by the split's name."""

    shards: tuple[ShardEntry, ...]
    splits: dict[str, list[str]] = field(default_factory=dict)


def read_index(folder: Path) -> Index:
    """Reads a store's index.

    Raises:
        DataError: missing, damaged, or of another schema or version.
    """
    path = folder / INDEX_NAME
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise DataError(f"{path}: not a regular file; this is not the index of a store")
        if stat.st_size > _MAX_INDEX_BYTES:
            raise DataError(f"{path}: larger than {_MAX_INDEX_BYTES} bytes; this is not the index of a store")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(_missing(folder)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: damaged: not JSON; copy the store again") from None
    return _parse(value, path)


def write_index(folder: Path, index: Index) -> None:
    """Replaces a store's index atomically and flushes it to disk."""
    stage_index(folder, index)
    commit_index(folder)


def stage_index(folder: Path, index: Index) -> None:
    """Writes an index beside the old one; what is left for `commit_index` needs no space on the disk."""
    value = {
        "schema": SCHEMA,
        "version": VERSION,
        "shards": [{"file": s.file, "objects": s.objects, "views": s.views, **s.seal.as_json()} for s in index.shards],
        "splits": index.splits,
    }
    with (folder / _STAGED).open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())


def commit_index(folder: Path) -> None:
    """Puts the staged index in the place of the old one."""
    (folder / _STAGED).replace(folder / INDEX_NAME)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: no such file or folder; give a shard or the folder of a store"
    if any(folder.glob("*.tmp")):
        return f"{folder}: the store was never finished (only .tmp files); run again the command that was writing it"
    return f"{folder}: not a store (no {INDEX_NAME}); make one with 'mvcore data pack' or 'mvcore data render'"


def _parse(value: Any, path: Path) -> Index:
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise DataError(f"{path}: not the index of a {SCHEMA} store")
    if value.get("version") != VERSION:
        raise DataError(f"{path}: version {value.get('version')!r}, but version {VERSION} is read; upgrade mvcore-data")
    shards, splits = value.get("shards"), value.get("splits", {})
    if not isinstance(shards, list):
        raise DataError(f"{path}: damaged: 'shards' is not a list; copy the store again")
    if not shards:
        raise DataError(f"{path}: the store is empty, it holds no objects")
    named = isinstance(splits, dict) and all(
        isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in splits.values()
    )
    if not named:
        raise DataError(f"{path}: damaged: 'splits' does not map names to lists of object ids; copy the store again")
    return Index(tuple(_entry(shard, n, path) for n, shard in enumerate(shards)), splits)


def _entry(value: Any, n: int, path: Path) -> ShardEntry:
    record: dict[str, Any] = value if isinstance(value, dict) else {}
    name, objects, views = record.get("file"), record.get("objects"), record.get("views")
    expected = SHARD_PATTERN.format(n)
    if name != expected:
        raise DataError(f"{path}: damaged: shard {n} is {name!r}, not {expected!r}; copy the store again")
    if type(objects) is not int or type(views) is not int or not 0 < objects <= views:
        raise DataError(f"{path}: damaged: shard {n} has no counts of objects and views; copy the store again")
    return ShardEntry(expected, objects, views, Seal.from_json(record, f"{path}: shard {n}"))
