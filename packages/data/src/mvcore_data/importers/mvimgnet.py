"""MVImgNet: frames of a clip round each object, with a COLMAP model and, where somebody made them, captions.

    CLASS/OBJECT/images/001.jpg ..., CLASS/OBJECT/sparse/0/*.bin, CLASS/OBJECT/masks/ (version 2)

Layout: https://github.com/GAP-LAB-CUHK-SZ/MVImgNet and https://github.com/GAP-LAB-CUHK-SZ/MVImgNet2.0; CLASS is a
number of the list of categories (`mvimgnet_category.txt`: `0,bag` a line; version 2: a JSON object).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mvcore.api import DataError, Options
from pydantic import Field

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView, spread
from mvcore_data.importers.colmap import model_folder, photos_of
from mvcore_data.importers.colmap_model import read_model
from mvcore_data.importers.scene_files import LazyViews, Root, image_names, read_json, subfolders
from mvcore_data.importers.scenes import Camera, views_of

_CATEGORY_FILES = ("mvimgnet_category.txt", "mvimgnet2_category.json")
_CAPTION_FILE = "captions.json"
_MAX_LIST_BYTES = 1 << 24


class MVImgNetOptions(Options):
    """Options of `mvimgnet`.

    Args:
        views: at most so many frames of an object, spread evenly over its whole clip; default: all.
        undistort: make the images of bent lenses straight, as for `colmap`; without it such views have no camera.
        categories: the list of category names; default: `mvimgnet_category.txt` or `mvimgnet2_category.json` in the
            source, where there is one. Without a list the numbers are the categories.
        captions: a JSON object of captions, one or a list, by object (`CLASS/OBJECT` or `CLASS_OBJECT`) or by frame
            (`CLASS/OBJECT/images/001.jpg` or `CLASS/OBJECT/001.jpg`); default: `captions.json` in the source.
        tracks: keep where each frame shows the model's points, as for `colmap`.
    """

    views: int | None = Field(default=None, ge=1)
    undistort: bool = False
    categories: str | None = None
    captions: str | None = None
    tracks: bool = False


@dataclass
class _Captions:
    """Captions by key, and which were used."""

    texts: dict[str, tuple[str, ...]]
    used: set[str] = field(default_factory=set)

    def of(self, *keys: str) -> tuple[str, ...]:
        found = [key for key in keys if key in self.texts]
        self.used.update(found)
        return tuple(text for key in found for text in self.texts[key])


def detect(path: Path) -> str | None:
    """Says by which marks a folder has this layout."""
    if not path.is_dir():
        return None
    for group in subfolders(path, path.resolve(), Skipped()):
        if group.name.isdecimal():
            folder = next(subfolders(group, path.resolve(), Skipped()), None)
            if folder is not None and (folder / "images").is_dir():
                return f"images in {folder.relative_to(path)}/images"
    return None


def open_source(path: Path, options: MVImgNetOptions) -> Source:
    """Opens a folder of classes; lists of names and captions are read now."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    categories, captions = _categories(path, options), _captions(path, options)
    root, nothing = path.resolve(), Skipped()
    total = sum(1 for group in subfolders(path, root, nothing) for _ in subfolders(group, root, nothing))
    return Source(lambda skipped: _objects(path, options, categories, _Captions(captions), skipped), total)


def _objects(
    path: Path, options: MVImgNetOptions, categories: dict[str, str], captions: _Captions, skipped: Skipped
) -> Iterator[SourceObject]:
    root = Root(path)
    for group in subfolders(path, root.path, skipped):
        category = categories.get(group.name, None if categories else group.name)
        if category is None:
            skipped.add("no category: the list does not name its class", group)
        for folder in subfolders(group, root.path, skipped):
            if not (folder / "images").is_dir():
                skipped.add("a folder without images/", folder)
                continue
            yield _object(folder, root, options, category, captions, skipped)
    for key in captions.texts:
        if key not in captions.used:
            skipped.add("a caption of nothing that is here", key)


def _object(
    folder: Path, root: Root, options: MVImgNetOptions, category: str | None, captions: _Captions, skipped: Skipped
) -> SourceObject:
    group = folder.parent.name
    # The file order of a folder is that of its disk: frames are sorted, so that a spread goes over the whole clip.
    names = image_names(folder / "images", root.path, skipped)
    by_frame = {
        name: captions.of(f"{group}/{folder.name}/images/{name}", f"{group}/{folder.name}/{name}") for name in names
    }

    def views() -> list[SourceView]:
        model = _model(folder, options.tracks, skipped)
        chosen = spread(names, options.views)
        photos = photos_of(root, folder, folder / "images", chosen, model, "masks", skipped, by_frame)
        return views_of(photos, skipped, undistort=options.undistort)

    return SourceObject(
        id=f"{group}/{folder.name}",
        name=str(folder),
        category=category,
        captions=captions.of(f"{group}/{folder.name}", f"{group}_{folder.name}"),
        views=LazyViews(views),
    )


def _model(folder: Path, tracks: bool, skipped: Skipped) -> dict[str, Camera] | None:
    found = model_folder(folder)
    if found is None:
        return None
    try:
        return read_model(found, tracks=tracks)
    except DataError as error:
        skipped.add("no cameras: a COLMAP model that cannot be read", str(error))
        return None


def _categories(path: Path, options: MVImgNetOptions) -> dict[str, str]:
    beside = (path / name for name in _CATEGORY_FILES)
    file = next((f for f in beside if f.is_file()), None) if options.categories is None else Path(options.categories)
    if file is None:
        return {}
    names = read_json(file, _MAX_LIST_BYTES) if file.suffix == ".json" else dict(_category_lines(file))
    if not all(isinstance(name, str) and name.strip() for name in names.values()):
        raise DataError(f"{file}: categories are names by number")
    return {number: name.strip() for number, name in names.items()}


def _category_lines(file: Path) -> Iterator[tuple[str, str]]:
    try:
        if file.stat().st_size > _MAX_LIST_BYTES:
            raise DataError(f"{file}: larger than {_MAX_LIST_BYTES} bytes")
        lines = file.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{file}: cannot be read as UTF-8 text") from None
    for line in filter(str.strip, lines):
        number, comma, name = line.partition(",")
        if not comma:
            raise DataError(f"{file}: {line[:40]!r} is not 'number,name'")
        yield number.strip(), name


def _captions(path: Path, options: MVImgNetOptions) -> dict[str, tuple[str, ...]]:
    file = path / _CAPTION_FILE if options.captions is None else Path(options.captions)
    if options.captions is None and not file.is_file():
        return {}
    found: dict[str, tuple[str, ...]] = {}
    for key, value in read_json(file).items():
        texts: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DataError(f"{file}: the captions of {key!r} are no text and no list of texts")
        found[key] = tuple(text.strip() for text in texts)
    return found


FORMAT = Format(
    name="mvimgnet",
    summary="MVImgNet: CLASS/OBJECT/images, with sparse models, masks and captions where they are",
    detect=detect,
    open=open_source,
    options=MVImgNetOptions,
)
