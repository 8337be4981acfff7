"""Folders of objects with images that are called by their numbers, `000.png` and on, as render scripts leave them."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from mvcore.api import DataError

from mvcore_data.importers.base import Skipped
from mvcore_data.importers.scene_files import LEAVES, natural

_NUMBERED = re.compile(r"(\d{3,4})\.png")
_LOOKED_AT = 50


def folder_names(src: Path) -> list[str]:
    """The names of the folders in a folder, in natural order; hidden ones left out.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with os.scandir(src) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError as error:
        raise DataError(f"{src}: cannot be read ({error.strerror})") from None
    return sorted(names, key=natural)


def first_folder(src: Path, matches: Callable[[Path], bool]) -> Path | None:
    """A folder that matches, among the first in `src`."""
    if not src.is_dir():
        return None
    with os.scandir(src) as entries:
        folders = (src / entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        return next(filter(matches, islice(folders, _LOOKED_AT)), None)


def numbered_images(folder: Path, root: Path, skipped: Skipped) -> dict[int, Path]:
    """The images in an object's folder by their numbers, ascending; links out of `root` left out."""
    outside = root.resolve()
    if folder.is_symlink() and not folder.resolve().is_relative_to(outside):
        skipped.add(LEAVES, folder)
        return {}
    found: dict[int, Path] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                number = _NUMBERED.fullmatch(entry.name)
                if number is None:
                    continue
                path = folder / entry.name
                if entry.is_symlink() and not path.resolve().is_relative_to(outside):
                    skipped.add(LEAVES, path)
                else:
                    found[int(number[1])] = path
    except OSError as error:
        skipped.add(f"a folder that cannot be read ({error.strerror})", folder)
    return dict(sorted(found.items()))
