"""`mvc`: the renders behind mvc_heads, `renderings/<uid>/000.png` to `035.png`, and the objects' names.

View `12 j + i` has the j-th elevation of (70, 40, 10) degrees and the i-th azimuth, in steps of 30 degrees counter-
clockwise from +X; the camera is 1.5 from an object whose longest side is 1, with a lens of 35 mm on a sensor of 32 mm:
the rig `mvc36`. `uid_to_name.json` has the title of each object, which is its caption.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mvcore.api import DataError, Options
from numpy.typing import NDArray

from mvcore_data.importers.base import Format, Skipped, Source, SourceObject, SourceView, file_reader
from mvcore_data.importers.numbered import first_folder, folder_names, numbered_images
from mvcore_data.importers.scene_files import LazyViews, peek, read_json
from mvcore_data.rigs import make_rig
from mvcore_data.source_images import UnusableError

_NAMES = "uid_to_name.json"
_RENDERS = "renderings"


class MvcOptions(Options):
    """Options of `mvc`.

    Args:
        views: of a complete object: 36, or 18 with every second azimuth; objects with another number are left out.
        names: the JSON of names by object id, from the source's folder.
    """

    views: Literal[36, 18] = 36
    names: str = _NAMES


def _renders(src: Path) -> Path:
    return src / _RENDERS if (src / _RENDERS).is_dir() else src


def _detect(src: Path) -> str | None:
    if not (src / _NAMES).is_file():
        return None
    folder = first_folder(_renders(src), lambda folder: (folder / "000.png").is_file())
    return None if folder is None else f"{_NAMES} and {folder.relative_to(src)}/000.png"


def _open(src: Path, options: MvcOptions) -> Source:
    names = read_json(src / options.names)
    if not all(isinstance(name, str) for name in names.values()):
        raise DataError(f"{src / options.names}: holds no names by object id")
    folders = folder_names(_renders(src))
    return Source(lambda skipped: _objects(src, folders, names, options, skipped), len(folders))


def _objects(
    src: Path, folders: list[str], names: dict[str, Any], options: MvcOptions, skipped: Skipped
) -> Iterator[SourceObject]:
    for uid in folders:
        folder = _renders(src) / uid
        images = numbered_images(folder, src, skipped)
        if list(images) != list(range(options.views)):
            skipped.add(f"not the {options.views} views 000.png and on", folder)
            continue
        if not (name := names.get(uid, "").strip()):
            skipped.add(f"a caption: no name in {options.names}; the object is kept without", folder)
        views = LazyViews(partial(_views, list(images.values()), options.views))
        yield SourceObject(id=uid, name=str(folder), views=views, captions=[name] if name else [])


def _views(images: list[Path], count: int) -> list[SourceView]:
    views: list[SourceView] = []
    for k, path in enumerate(images):
        camera = None
        with suppress(UnusableError):  # the driver, which reads the image, says what is wrong with it
            height, width = peek(path).size
            if height == width:
                intrinsics, world_to_camera = _cameras(count, width)
                camera = intrinsics[k], world_to_camera[k]
        views.append(SourceView(name=str(path), read=file_reader(path), camera=camera))
    return views


@lru_cache(maxsize=4)
def _cameras(count: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return make_rig("mvc36", count).cameras(size)


FORMAT = Format(
    name="mvc",
    summary="renderings/<uid>/000.png to 035.png of the rig mvc36, with uid_to_name.json",
    detect=_detect,
    open=_open,
    options=MvcOptions,
)
