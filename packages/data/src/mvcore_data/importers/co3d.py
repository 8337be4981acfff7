"""CO3D version 2, as Meta ships it: sequences of frames with cameras, depth and masks, one object a sequence.

    CATEGORY/frame_annotations.jgz, CATEGORY/sequence_annotations.jgz
    CATEGORY/SEQUENCE/{images,depths,depth_masks,masks}/frame000001.*

The source is the folder of categories or that of one category; paths are relative to the former.

- `X_camera = X_world @ R + T`, rows from the left, with PyTorch3D's axes: x left, y up, z forward. Focal length and
  principal point are normalised: `ndc_norm_image_bounds` has each side from -1 to 1, `ndc_isotropic` the shorter one.
  https://github.com/facebookresearch/co3d/blob/main/co3d/dataset/data_types.py (ViewpointAnnotation)
- To pixels: half the image's size, less the principal point times half the (shorter) side. The borders of the image lie
  at -1 and 1, so pixel centres are at +0.5 as in a store.
  https://github.com/facebookresearch/pytorch3d/blob/main/pytorch3d/implicitron/dataset/frame_data.py
- Depth is z-depth: 16 bits of a PNG that are those of a half-precision number, times `scale_adjustment`; where the
  depth mask is 0 or the number is not finite, there is none. Masks are probabilities of 0 to 255. The same file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mvcore.api import DataError, Options
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView, spread
from mvcore_data.importers.cameras import from_ndc, from_pytorch3d
from mvcore_data.importers.gzip_json import read_items
from mvcore_data.importers.scene_files import LazyViews, Root, mask_values, subfolders
from mvcore_data.importers.scenes import Camera, Photo, views_of
from mvcore_data.source_images import UnusableError

FRAMES_FILE = "frame_annotations.jgz"
SEQUENCES_FILE = "sequence_annotations.jgz"
_OBJECT_FROM = 128
"""A mask's value from which on a pixel is more likely object than not."""

Triple = tuple[float, float, float]


class Co3dOptions(Options):
    """Options of `co3d`.

    Args:
        views: at most so many frames of a sequence, spread evenly over it; default: all.
        depth_masks: take depth only where its own mask says that it is good.
    """

    views: int | None = Field(default=None, ge=1)
    depth_masks: bool = True


class _Image(BaseModel):
    path: str
    size: tuple[int, int]


class _Depth(BaseModel):
    path: str
    scale_adjustment: float = Field(gt=0, allow_inf_nan=False)
    mask_path: str | None = None


class _Mask(BaseModel):
    path: str


class _Viewpoint(BaseModel):
    R: tuple[Triple, Triple, Triple]
    T: Triple
    focal_length: tuple[float, float]
    principal_point: tuple[float, float]
    intrinsics_format: Literal["ndc_norm_image_bounds", "ndc_isotropic"] = "ndc_norm_image_bounds"


class _Frame(BaseModel):
    sequence_name: str = Field(min_length=1)
    frame_number: int
    image: _Image
    depth: _Depth | None = None
    mask: _Mask | None = None
    viewpoint: _Viewpoint | None = None


def detect(path: Path) -> str | None:
    """Says by which marks a folder has this layout."""
    if not path.is_dir():
        return None
    found = next(iter(_categories(path, Skipped())), None)
    return None if found is None else f"{FRAMES_FILE} in {found}"


def _categories(path: Path, skipped: Skipped) -> Iterator[Path]:
    if (path / FRAMES_FILE).is_file():
        yield path
        return
    for folder in subfolders(path, path.resolve(), skipped):
        if (folder / FRAMES_FILE).is_file():
            yield folder


def open_source(path: Path, options: Co3dOptions) -> Source:
    """Opens the folder of categories, or that of one."""
    if not path.is_dir():
        raise DataError(f"{path}: no such folder")
    return Source(lambda skipped: _objects(path, options, skipped))


def _objects(path: Path, options: Co3dOptions, skipped: Skipped) -> Iterator[SourceObject]:
    root = Root(path)
    for folder in _categories(path, skipped):
        categories = _sequence_categories(folder)
        for sequence, frames in _sequences(folder / FRAMES_FILE, skipped):
            category = categories.get(sequence, folder.resolve().name)
            if not (folder.resolve().parent / frames[0].image.path).parent.is_dir():
                skipped.add("a sequence whose images are not here", f"{category}/{sequence}")
                continue
            views = LazyViews(partial(_views, root, folder.resolve().parent, frames, options, skipped))
            yield SourceObject(id=f"{category}/{sequence}", name=str(folder / sequence), category=category, views=views)


def _sequence_categories(folder: Path) -> dict[str, str]:
    """Categories by sequence; empty where the file is not there."""
    file = folder / SEQUENCES_FILE
    if not file.is_file():
        return {}
    found: dict[str, str] = {}
    for entry in read_items(file):
        values = entry if isinstance(entry, dict) else {}
        name, category = values.get("sequence_name"), values.get("category")
        if not (isinstance(name, str) and isinstance(category, str)):
            raise DataError(f"{file}: an entry without sequence_name and category")
        found[name] = category
    return found


def _sequences(file: Path, skipped: Skipped) -> Iterator[tuple[str, list[_Frame]]]:
    """Sequences with their frames in order, each as soon as the last of its frames was read.

    The file is read twice: whoever wrote it, frames of a sequence need not stand beside each other, and yet only
    sequences that have begun are in memory.
    """
    missing = Counter(_sequence_of(entry) for entry in read_items(file))
    if not missing:
        raise DataError(f"{file}: lists no frames")
    begun: dict[str, list[_Frame]] = {}
    for entry in read_items(file):
        name = _sequence_of(entry)
        frames = begun.setdefault(name, [])
        try:
            frames.append(_Frame.model_validate(entry))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"])) or "value"
            skipped.add(f"a frame with a wrong or missing {where}", f"{file}: {name or 'no sequence_name'}")
        missing[name] -= 1
        if missing[name] <= 0 and (done := begun.pop(name)):
            yield name, sorted(done, key=lambda frame: frame.frame_number)


def _sequence_of(entry: Any) -> str:
    return str(entry.get("sequence_name", "")) if isinstance(entry, dict) else ""


def _views(root: Root, dataset: Path, frames: list[_Frame], options: Co3dOptions, skipped: Skipped) -> list[SourceView]:
    photos: list[Photo] = []
    for frame in spread(frames, options.views):
        try:
            photos.append(_photo(root, dataset, frame, options, skipped))
        except UnusableError as error:
            skipped.add(str(error), frame.image.path)
    return views_of(photos, skipped)


def _photo(root: Root, dataset: Path, frame: _Frame, options: Co3dOptions, skipped: Skipped) -> Photo:
    return Photo(
        path=root.inside(dataset, frame.image.path),
        name=str(dataset / frame.image.path),
        camera=_camera(frame),
        depth=_depth(root, dataset, frame, options, skipped),
        mask=_mask(root, dataset, frame, skipped),
    )


def _depth(
    root: Root, dataset: Path, frame: _Frame, options: Co3dOptions, skipped: Skipped
) -> tuple[Path, Callable[[NDArray[Any]], NDArray[np.float64]]] | None:
    depth = frame.depth
    if depth is None:
        return None
    masked = options.depth_masks and depth.mask_path
    try:
        path = root.inside(dataset, depth.path)
        good = root.inside(dataset, depth.mask_path) if masked and depth.mask_path else None
    except UnusableError as error:
        skipped.add(f"no depth: {error}", frame.image.path)
        return None
    return path, partial(_metric, scale=depth.scale_adjustment, good=good)


def _mask(root: Root, dataset: Path, frame: _Frame, skipped: Skipped) -> tuple[Path, int] | None:
    if frame.mask is None:
        return None
    try:
        return root.inside(dataset, frame.mask.path), _OBJECT_FROM
    except UnusableError as error:
        skipped.add(f"no mask: {error}", frame.image.path)
        return None


def _metric(values: NDArray[Any], *, scale: float, good: Path | None) -> NDArray[np.float64]:
    depth = values.astype(np.uint16).view(np.float16).astype(np.float64) * scale
    if good is None:
        return depth
    mask = mask_values(good)
    if mask.shape != depth.shape:
        raise UnusableError("a depth mask of another size than the depth")
    return np.where(mask > 0, depth, 0)


def _camera(frame: _Frame) -> Camera | str:
    view, size = frame.viewpoint, frame.image.size
    if view is None:
        return "the annotation has no viewpoint"
    isotropic = view.intrinsics_format == "ndc_isotropic"
    return Camera(
        world_to_camera=from_pytorch3d(np.array(view.R), np.array(view.T)),
        intrinsics=from_ndc(view.focal_length, view.principal_point, size, isotropic=isotropic),
        made_for=size,
    )


FORMAT = Format(
    name="co3d",
    summary="CO3D version 2: frame_annotations.jgz with images, depths and masks",
    detect=detect,
    open=open_source,
    options=Co3dOptions,
)
