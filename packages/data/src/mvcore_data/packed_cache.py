"""Folders of images in the place of a store: packed once into the user's cache, and again when they change."""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mvcore.api import DataError

from mvcore_data.schema import INDEX_NAME, SHARD_SUFFIXES

ENV_CACHE = "MVCORE_CACHE"


def cache_folder() -> Path:
    """`MVCORE_CACHE`, or `~/.cache/mvcore`."""
    return Path(os.environ.get(ENV_CACHE) or Path.home() / ".cache" / "mvcore").expanduser()


def as_store(
    path: Path,
    *,
    format: str | None = None,
    options: Mapping[str, Any] | None = None,
    background: str | None = None,
) -> Path:
    """The store at a path; for a source of images the store that it was packed into, which is made when needed.

    What is packed goes by the source's resolved path, the arguments, and the relative paths, sizes and times of all
    files in the folder: a change gives a new store. Of a file that lists images only the list itself is looked at.
    Processes that ask at the same time wait for the one that packs.

    Args:
        path: a store, or a file or folder that `mvcore data pack` reads.
        format, options, background: as in `mvcore_data.packing.pack`; without a format its marks must be clear.

    Raises:
        DataError: neither a store nor a source, or it cannot be packed.
    """
    if format is None and _is_store(path):
        return path
    from mvcore_data.importers import detect_format
    from mvcore_data.packing import pack

    name, mark = format, ""
    if name is None:
        try:
            found, mark = detect_format(path)
        except DataError as error:
            raise DataError(f"{error}, or give a store: a folder with {INDEX_NAME}, or a shard") from None
        name = found.name
    settings = {"format": name, "options": dict(options or {}), "background": background}
    place = _place(path, settings)
    if place.exists():
        return place
    said = f"{path} is no store: packing it once as {name}{f' ({mark})' if mark else ''} into {place}"
    with alone(place.with_name(f"{place.name}.lock"), f"{path}: waiting for another process that packs it"):
        if not place.exists():
            print(said, file=sys.stderr, flush=True)
            report = pack(path, place, format=name, options=options, background=background)
            for why, count in report.skipped.counts.items():
                print(f"skipped: {count} ({why}), first {report.skipped.first[why]}", file=sys.stderr)
    return place


def _is_store(path: Path) -> bool:
    if path.is_file():
        return path.suffix in SHARD_SUFFIXES and not _is_other_hdf5(path)
    # A folder with temporary files is a store that was never finished, and opening it says so.
    return not path.is_dir() or (path / INDEX_NAME).exists() or any(path.glob("shard-*.tmp"))


def _is_other_hdf5(path: Path) -> bool:
    """Whether an HDF5 file has the marks of a format; a shard that mvcore wrote is known by its first bytes."""
    from mvcore_data import seal
    from mvcore_data.importers import FORMATS, load_format

    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if seal.read(fd, str(path)) is not None:
            return False
    finally:
        os.close(fd)
    return any(found.detect(path) is not None for found in map(load_format, FORMATS) if found.strict_marks)


def _place(path: Path, settings: dict[str, Any]) -> Path:
    resolved = path.resolve()
    digest = sha256(json.dumps([str(resolved), settings, version("mvcore-data")], sort_keys=True).encode())
    for line in _listing(resolved):
        digest.update(line.encode("utf-8", "surrogateescape"))
    name = re.sub(r"[^\w.-]+", "_", resolved.name)[:40] or "source"
    return cache_folder() / "packed" / f"{name}-{digest.hexdigest()[:24]}"


def _listing(path: Path) -> Iterator[str]:
    """A line for each file with its size and time of change, in the order of their paths."""
    if path.is_file():
        stat = path.stat()
        yield f"{stat.st_size} {stat.st_mtime_ns}\0"
        return
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            try:
                stat = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - called for each of many files
            except OSError:
                continue  # a link to nowhere is no image
            yield f"{os.path.relpath(folder, path)}/{name} {stat.st_size} {stat.st_mtime_ns}\0"


@contextmanager
def alone(lock: Path, waiting: str) -> Iterator[None]:
    """Only one process at a time is inside; the kernel lets go of a process's lock when it ends.

    Args:
        lock: its file, made when needed.
        waiting: printed where another process is inside.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DataError(f"{lock.parent}: the cache cannot be written ({error.strerror}); set {ENV_CACHE}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(waiting, file=sys.stderr, flush=True)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
