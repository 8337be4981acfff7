"""Folders and paths of a source: natural order, nothing hidden, nothing outside."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mvcore.api import DataError

from mvcore_data.source_images import SUFFIXES, UnusableError

OUTSIDE = "leads out of the source's folder"


def list_folder(folder: Path, root: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """Files, folders, and links that lead out of `root`, each in the order of their names (2 before 10).

    Hidden entries are left out. A link that stays inside counts as what it leads to.

    Raises:
        DataError: the folder cannot be read.
    """
    files: list[Path] = []
    folders: list[Path] = []
    outside: list[Path] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                path = folder / entry.name
                if entry.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                    outside.append(path)
                elif entry.is_dir():
                    folders.append(path)
                elif entry.is_file():
                    files.append(path)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return sorted(files, key=natural), sorted(folders, key=natural), sorted(outside, key=natural)


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A sorting key by name in which numbers count as numbers."""
    parts = re.findall(r"\d+|\D+", path.name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def is_image(path: Path) -> bool:
    """Whether a file's suffix is that of an image that a store holds."""
    return path.suffix.lower() in SUFFIXES


def inside(root: Path, text: str, *, allow_absolute: bool = False) -> Path:
    """The file that a list names by a path below `root`.

    Args:
        root: the folder that relative paths start from.
        text: the path.
        allow_absolute: whether an absolute path may name a file anywhere.

    Raises:
        UnusableError: it is empty, or leads out of `root`, by `..`, a link, or as an absolute path.
    """
    if not text or "\0" in text:
        raise UnusableError("its path is empty")
    path = Path(text)
    if path.is_absolute():
        if not allow_absolute:
            raise UnusableError("its path is absolute, which is not allowed")
        return path
    path = root / path
    if not path.resolve().is_relative_to(root.resolve()):
        raise UnusableError(f"its path {OUTSIDE}")
    return path
