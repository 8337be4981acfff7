"""One object's render: what goes to a worker process, what it does, and the file that it leaves."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray
from PIL import Image

from mvcore_data.render.settings import RenderSettings
from mvcore_data.rigs import Rig

if TYPE_CHECKING:
    from mvcore_data.render.renderer import Renderer
    from mvcore_data.render.surfaces import Surface


class WorkFolderError(DataError):
    """No result can be kept: not the object's fault, so the whole render stops."""


@dataclass(frozen=True)
class Drawable:
    """An object ready to be drawn, with its captions."""

    surfaces: list[Surface]
    captions: tuple[str, ...]


class Item(Protocol):
    """An object to render; it travels to the worker by pickle and is made there."""

    @property
    def id(self) -> str: ...
    @property
    def category(self) -> str | None: ...
    @property
    def licence(self) -> str | None: ...
    @property
    def source(self) -> str | None: ...
    @property
    def geometry(self) -> bool:
        """Whether depth and masks are kept."""
        ...

    def build(self, unit: str) -> Drawable:
        """The object's surfaces, its size one as the rig's `unit` says."""
        ...

    def fingerprint(self) -> str:
        """Changes when the object does."""
        ...


@dataclass(frozen=True)
class RenderedObject:
    """A finished object: V encoded views, and depth and masks (V, H, W) where they are kept."""

    views: list[bytes]
    captions: list[str]
    depth: NDArray[np.float32] | None
    masks: NDArray[np.bool_] | None


def render_item(renderer: Renderer, item: Item, rig: Rig, settings: RenderSettings, path: Path) -> None:
    """Draw all views of an object and leave them in a file, which appears whole or not at all."""
    drawable = item.build(rig.unit)
    plain = settings.materials == "grey"
    surfaces = [surface.without_material() for surface in drawable.surfaces] if plain else drawable.surfaces
    encoded, depths, masks = [], [], []
    for v, view in enumerate(renderer.render(surfaces, *rig.cameras(settings.size, item.id))):
        behind = settings.background.behind(item.id, v, settings.size, settings.seed)
        encoded.append(encode_image(view.over(behind), settings.codec, settings.quality))
        depths.append(view.depth)
        masks.append(view.mask)
    arrays: dict[str, Any] = {
        "blob": np.frombuffer(b"".join(encoded), np.uint8),
        "lengths": np.array([len(view) for view in encoded], np.int64),
        "captions": np.array(drawable.captions, dtype=np.str_),
    }
    if item.geometry:
        arrays["depth"], arrays["masks"] = np.stack(depths), np.stack(masks)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        temporary.replace(path)
    except OSError as error:
        raise WorkFolderError(f"{path.parent}: cannot be written ({error.strerror})") from None


def read_rendered(path: Path) -> RenderedObject:
    """The file of `render_item` again.

    Raises:
        DataError: It is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            ends = np.cumsum(stored["lengths"])
            blob = stored["blob"].tobytes()
            views = [blob[end - length : end] for end, length in zip(ends, stored["lengths"], strict=True)]
            captions = [str(text) for text in stored["captions"]]
            depth, masks = (stored.get(name) for name in ("depth", "masks"))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: damaged ({error}); delete it and run the command again") from None
    return RenderedObject(views, captions, depth, masks)


def encode_image(image: NDArray[np.uint8], codec: str, quality: int) -> bytes:
    """An (H, W, 3) uint8 picture as JPEG (4:4:4, optimised tables), PNG or WebP (100 is lossless)."""
    stream = io.BytesIO()
    picture = Image.fromarray(image)
    if codec == "jpeg":
        picture.save(stream, "JPEG", quality=quality, optimize=True, subsampling=0)
    elif codec == "webp":
        picture.save(stream, "WEBP", quality=quality, method=6, lossless=quality == 100)
    else:
        picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()
