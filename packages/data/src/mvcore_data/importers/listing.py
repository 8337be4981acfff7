"""Folders of a source: natural order, nothing hidden, nothing outside; and the files that lists name."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from mvcore.api import DataError, Options

from mvcore_data.importers.scene_files import LEAVES, natural
from mvcore_data.source_images import SUFFIXES, UnusableError, read_bytes


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
    return _in_order(files), _in_order(folders), _in_order(outside)


def _in_order(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: natural(path.name))


def is_image(path: Path) -> bool:
    """Whether a file's suffix is that of an image that a store holds."""
    return path.suffix.lower() in SUFFIXES


class ListOptions(Options):
    """Options of formats that are a list of image files.

    Args:
        root: the folder that relative paths start from; by default that of the list.
        anywhere: let absolute paths, `..` and links lead out of that folder.
    """

    root: str | None = None
    anywhere: bool = False


def listed_files(path: Path, options: ListOptions) -> ListedFiles:
    """The files that the list `path` names.

    Raises:
        DataError: the folder that the options name is not there.
    """
    root = path.parent if options.root is None else Path(options.root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder (option root)")
    return ListedFiles(root, anywhere=options.anywhere)


class ListedFiles:
    """The image files that a list names, found only when they are read.

    Args:
        root: the folder that relative paths start from, and that no path may leave.
        anywhere: let absolute paths, `..` and links lead out of it.
    """

    def __init__(self, root: Path, *, anywhere: bool = False) -> None:
        self._root = root
        self._anywhere = anywhere
        self._resolved = root.resolve()
        # The images of an object mostly share a folder, and a folder is resolved by a system call for each part.
        self._folder = lru_cache(maxsize=256)(self._resolve)

    def reader(self, text: str) -> Callable[[], bytes]:
        """A `SourceView.read` for the file of this path."""
        return lambda: read_bytes(self.path(text))

    def path(self, text: str) -> Path:
        """The file of this path.

        Raises:
            UnusableError: the path is empty or leads out of the folder.
        """
        if not text or "\0" in text:
            raise UnusableError("an empty path")
        path = self._root / text
        if self._anywhere:
            return path
        folder = self._folder(path.parent)
        found = folder / path.name
        if path.name == ".." or found.is_symlink():
            found = found.resolve()
        if not found.is_relative_to(self._resolved):
            raise UnusableError(f"{LEAVES}; --option anywhere=true allows it")
        return found

    @staticmethod
    def _resolve(folder: Path) -> Path:
        try:
            return folder.resolve()
        except (OSError, RuntimeError):  # a loop of links
            raise UnusableError(LEAVES) from None
