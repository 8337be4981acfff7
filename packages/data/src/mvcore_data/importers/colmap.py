"""Photographs with a COLMAP sparse model, one object a model, as COLMAP writes it and MVImgNet ships it.

    OBJECT/images/*.jpg, OBJECT/sparse/0/{cameras,images}.bin (or .txt)

The source is such an object, or a folder of them, one or two levels deep.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mvcore.api import DataError, Options
from pydantic import Field

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, spread
from mvcore_data.importers.colmap_model import model_suffix, read_model
from mvcore_data.importers.scene_files import LazyViews, Root, first_scene, image_names, natural, scene_folders
from mvcore_data.importers.scenes import Camera, Photo, views_of
from mvcore_data.source_images import UnusableError

MODEL_FOLDERS = ("sparse/0", "sparse", ".")
UNREGISTERED = "the model does not hold its image"
_LEVELS = 2


class ColmapOptions(Options):
    """Options of `colmap`.

    Args:
        views: at most so many views of an object, spread evenly over its images; default: all.
        undistort: make the images of bent lenses straight, with the same focal length and black where the lens saw
            nothing; without it such views have no camera. Straightened images are encoded anew.
        images: the folder of images, relative to the object's.
        model: the folder of the sparse model, relative to the object's; default: `sparse/0`, `sparse` or the object's.
        masks: a folder of masks, relative to the object's: `NAME.png` for the image NAME or for its name without
            suffix; default: `masks`, where there is one.
        tracks: keep where each image shows the model's points, and where in space they are.
    """

    views: int | None = Field(default=None, ge=1)
    undistort: bool = False
    images: str = "images"
    model: str | None = None
    masks: str = "masks"
    tracks: bool = False


def model_folder(folder: Path, model: str | None = None) -> Path | None:
    """The folder of an object's sparse model, if it has one."""
    candidates = MODEL_FOLDERS if model is None else (model,)
    return next((folder / name for name in candidates if model_suffix(folder / name)), None)


def _is_object(folder: Path, options: ColmapOptions) -> bool:
    return (folder / options.images).is_dir() and model_folder(folder, options.model) is not None


def detect(path: Path) -> str | None:
    """Says by which marks a folder has this layout."""
    found = first_scene(path, _LEVELS, lambda folder: _is_object(folder, ColmapOptions()))
    if found is None or _is_mvimgnet(path, found):
        return None
    model = model_folder(found)
    return None if model is None else f"a COLMAP model in {model.relative_to(path)}"


def _is_mvimgnet(path: Path, found: Path) -> bool:
    parts = found.relative_to(path).parts
    return len(parts) == 2 and parts[0].isdecimal()


def open_source(path: Path, options: ColmapOptions) -> Source:
    """Opens an object or a folder of them."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    if _is_object(path, options):
        model = read_model(_model(path, options), tracks=options.tracks)
        return Source(lambda skipped: iter([_object(path, Root(path), path, options, model, skipped)]), 1)
    return Source(lambda skipped: _objects(path, options, skipped))


def _model(folder: Path, options: ColmapOptions) -> Path:
    found = model_folder(folder, options.model)
    if found is None:
        raise DataError(f"{folder}: holds no COLMAP model (cameras and images, .bin or .txt)")
    return found


def _objects(path: Path, options: ColmapOptions, skipped: Skipped) -> Iterator[SourceObject]:
    root = Root(path)
    for folder in scene_folders(path, skipped, _LEVELS, lambda folder: _is_object(folder, options)):
        try:
            model = read_model(_model(folder, options), tracks=options.tracks)
        except DataError as error:
            skipped.add("a COLMAP model that cannot be read", str(error))
            continue
        yield _object(path, root, folder, options, model, skipped)


def _object(
    path: Path, root: Root, folder: Path, options: ColmapOptions, model: dict[str, Camera], skipped: Skipped
) -> SourceObject:
    name = root.path.name if folder == path else folder.relative_to(path).as_posix()
    if options.model is None:
        for other in sorted((folder / "sparse").glob("[1-9]*")):
            skipped.add("a further COLMAP model of an object; only sparse/0 is taken", other)
    parts = folder.relative_to(path).parts
    return SourceObject(
        id=name,
        name=str(folder),
        category=parts[0] if len(parts) > 1 else None,
        views=LazyViews(lambda: _views(root, folder, options, model, skipped)),
    )


def _views(root: Root, folder: Path, options: ColmapOptions, model: dict[str, Camera], skipped: Skipped) -> list[Any]:
    images = folder / options.images
    beside = image_names(images, root.path, skipped)
    names = sorted({*model, *beside}, key=natural)
    photos = photos_of(root, folder, images, spread(names, options.views), model, options.masks, skipped)
    return views_of(photos, skipped, undistort=options.undistort)


def photos_of(
    root: Root,
    folder: Path,
    images: Path,
    names: list[str],
    model: dict[str, Camera] | None,
    masks: str,
    skipped: Skipped,
    captions: dict[str, tuple[str, ...]] | None = None,
) -> Iterator[Photo]:
    """Photographs of a folder with the cameras of its model; those that leave `root` are counted and left out.

    Args:
        root: of the source.
        folder: of the object.
        images: of its images.
        names: of the images to take.
        model: cameras by image name; None where there is no model.
        masks: name of the folder of masks.
        skipped: counts.
        captions: by image name.
    """
    for name in names:
        try:
            path = root.inside(images, name)
        except UnusableError as error:
            skipped.add(str(error), images / name)
            continue
        camera = "" if model is None else model.get(name, UNREGISTERED)
        yield Photo(
            path=path,
            name=str(images / name),
            camera=camera,
            mask=_mask(root, folder / masks, name, skipped),
            captions=(captions or {}).get(name, ()),
        )


def _mask(root: Root, masks: Path, name: str, skipped: Skipped) -> tuple[Path, int] | None:
    if not masks.is_dir():
        return None
    for candidate in (f"{name}.png", str(Path(name).with_suffix(".png"))):
        try:
            path = root.inside(masks, candidate)
        except UnusableError as error:
            skipped.add(f"no mask: {error}", masks / candidate)
            return None
        if path.is_file():
            return path, 1
    skipped.add("no mask: no such file", masks / f"{name}.png")
    return None


FORMAT = Format(
    name="colmap",
    summary="photographs with a COLMAP sparse model",
    detect=detect,
    open=open_source,
    options=ColmapOptions,
)
