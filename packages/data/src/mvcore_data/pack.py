"""`pack_folders`: a store from a folder of images for each object; the files' bytes are kept as they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from mvcore.api import DataError

from mvcore_data.folder_metadata import (
    CAMERAS_FILE,
    CAPTION_FILES,
    METADATA_FILE,
    read_cameras,
    read_captions,
    read_metadata,
)
from mvcore_data.source_images import SUFFIXES, Colour, UnusableError, parse_colour, read_image
from mvcore_data.writer import ViewStoreWriter


@dataclass
class PackReport:
    """What became of a folder.

    Args:
        objects, views: packed.
        reencoded: images by why their bytes could not be kept.
        skipped: files and folders left out, by why.
    """

    objects: int = 0
    views: int = 0
    reencoded: Counter[str] = field(default_factory=Counter)
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, why: str, path: Path) -> None:
        """Records something left out."""
        self.skipped.setdefault(why, []).append(str(path))


@dataclass(frozen=True)
class _Folder:
    path: Path
    id: str
    category: str | None
    images: list[Path]


def pack_folders(
    src: str | PathLike[str],
    out: str | PathLike[str],
    *,
    background: str | None = None,
    licence: str | None = None,
    source: str | None = None,
    on_object: Callable[[int, int], None] = lambda done, total: None,
) -> PackReport:
    """Packs `src/OBJECT/*` or `src/CATEGORY/OBJECT/*` into a store.

    An object's images are its views in the order of their names (2 before 10). Beside them may stand `captions.txt` (a
    caption a line), `metadata.json` (`ObjectMetadata`) and `cameras.json` (`ViewCamera` by file name). JPEG, PNG and
    WebP files are copied byte for byte, except those with an alpha channel or an EXIF rotation, which are encoded anew.

    Args:
        src: the folder.
        out: the store to make.
        background: colour behind transparent pixels, as `#ffffff` or `white`; without it such a file is an error.
        licence: of all objects that name none.
        source: of all objects that name none.
        on_object: called with the number of folders done and in all.

    Returns:
        What was packed, encoded anew and skipped.

    Raises:
        DataError: nothing to pack, wrong metadata, transparency without a background, or the store cannot be written;
            nothing is published then.
        ConfigError: no such colour.
    """
    colour = None if background is None else parse_colour(background)
    report = PackReport()
    folders = list(_object_folders(Path(src), report))
    if not folders:
        raise DataError(f"{src}: holds no images in OBJECT/ or CATEGORY/OBJECT/ folders{_reasons(report)}")
    with ViewStoreWriter(out) as writer:
        for done, folder in enumerate(folders):
            _pack_object(writer, folder, colour, licence, source, report)
            on_object(done + 1, len(folders))
        if not report.objects:
            raise DataError(f"{src}: none of its images can be used{_reasons(report)}")
    return report


def _object_folders(src: Path, report: PackReport) -> Iterator[_Folder]:
    if not src.is_dir():
        raise DataError(f"{src}: no such folder")
    files, folders = _listing(src)
    _skip_all(files, "not in the folder of an object", report)
    for first in folders:
        files, inner = _listing(first)
        nested = [(folder, *_listing(folder)) for folder in inner]
        if not any(_is_image(file) for _, inner_files, _ in nested for file in inner_files):
            yield from _folder(first, first.name, None, files, report)
            _skip_all(inner, "no images in the folder", report)
            continue
        _skip_all(files, "beside the folders of objects", report)
        for folder, inner_files, deeper in nested:
            _skip_all(deeper, "deeper than CATEGORY/OBJECT", report)
            yield from _folder(folder, f"{first.name}/{folder.name}", first.name, inner_files, report)


def _folder(path: Path, name: str, category: str | None, files: list[Path], report: PackReport) -> Iterator[_Folder]:
    images = [file for file in files if _is_image(file)]
    known = {*CAPTION_FILES, METADATA_FILE, CAMERAS_FILE}
    for file in files:
        if not _is_image(file) and file.name not in known:
            report.skip(f"not a JPEG, PNG or WebP file ({file.suffix or 'no suffix'})", file)
    if images:
        yield _Folder(path, name, category, images)
    else:
        report.skip("no images in the folder", path)


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders in the order of their names, hidden ones left out."""
    try:
        entries = sorted((p for p in folder.iterdir() if not p.name.startswith(".")), key=_natural)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    return [p for p in entries if p.is_file()], [p for p in entries if p.is_dir()]


def _natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.name.casefold())
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path.name


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _skip_all(paths: list[Path], why: str, report: PackReport) -> None:
    for path in paths:
        report.skip(why, path)


def _pack_object(
    writer: ViewStoreWriter,
    folder: _Folder,
    colour: Colour | None,
    licence: str | None,
    source: str | None,
    report: PackReport,
) -> None:
    metadata = read_metadata(folder.path, {path.name for path in folder.images})
    cameras = read_cameras(folder.path, {path.name for path in folder.images})
    views: list[bytes] = []
    used: list[Path] = []
    for path in folder.images:
        try:
            image = read_image(path, colour)
        except UnusableError as error:
            report.skip(str(error), path)
            continue
        views.append(image.data)
        used.append(path)
        if image.reencoded:
            report.reencoded[image.reencoded] += 1
    if not views:
        report.skip("no usable image in the folder", folder.path)
        return
    try:
        writer.add_object(
            folder.id,
            views,
            captions=metadata.captions + read_captions(folder.path),
            view_captions=[metadata.view_captions.get(path.name) for path in used],
            category=metadata.category or folder.category,
            cameras=[cameras.get(path.name) for path in used],
            licence=metadata.licence or licence,
            source=metadata.source or source,
        )
    except DataError as error:
        raise DataError(str(error) if writer.closed else f"{folder.path}: {error}") from None
    report.objects += 1
    report.views += len(views)


def _reasons(report: PackReport) -> str:
    if not report.skipped:
        return ""
    return " (skipped: " + ", ".join(f"{len(paths)} {why}" for why, paths in report.skipped.items()) + ")"
