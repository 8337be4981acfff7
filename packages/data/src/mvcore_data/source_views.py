"""One view of a source as it goes into a store: its bytes where they can be kept, and its pixels made fit where not."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from mvcore.api import DataError
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from mvcore_data import decode
from mvcore_data.image_structure import ImageInfo, missing
from mvcore_data.importers.base import SourceView
from mvcore_data.source_images import Colour, UnusableError
from mvcore_data.tracks import Tracks

_PIL_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
_OPAQUE = 128  # alpha from here on counts as object


class Treatment(NamedTuple):
    """What is done to every view.

    Args:
        background: colour behind transparent pixels.
        resize: length of the shorter side of images that are larger; None keeps every size.
        decode: decode each image, so that damage inside it is found now.
    """

    background: Colour | None = None
    resize: int | None = None
    decode: bool = False


class ReadyView(NamedTuple):
    """A view to write; `reencoded` says why its bytes are not the source's own, and is empty where they are."""

    image: bytes
    camera: tuple[ArrayLike, ArrayLike] | None
    depth: NDArray[Any] | None
    mask: NDArray[Any] | None
    tracks: Tracks | None
    reencoded: str


def prepare_view(view: SourceView, treatment: Treatment) -> ReadyView:
    """Reads and checks a view, and changes its pixels only where it must.

    An alpha channel is put on the background and becomes the mask where the source gives none, unless it is opaque.
    An EXIF rotation is applied; as a camera, depth or mask may mean the turned pixels or the others, a view that has
    both is left out. A smaller size moves camera and tracks with the pixels: with centres at +0.5,
    `K' = diag(s_x, s_y, 1) K`.

    Raises:
        UnusableError: damaged, truncated, too large, or no single 8-bit JPEG, PNG or WebP image.
        DataError: it has transparent pixels and there is no background.
    """
    given = view.read()
    if isinstance(given, (bytes, bytearray, memoryview)):
        return _from_bytes(bytes(given), view, treatment)
    image = _from_pixels(given)
    return _changed(image, "pixels", "jpeg", view, treatment)


def _from_bytes(data: bytes, view: SourceView, treatment: Treatment) -> ReadyView:
    info = _usable(lambda: decode.inspect(data, "image"))
    if lack := missing(data, info.codec):
        raise UnusableError(lack)
    if info.rotated and any(part is not None for part in (view.camera, view.depth, view.mask, view.tracks)):
        raise UnusableError("an EXIF rotation beside a camera, depth or mask; turn its pixels upright first")
    smaller = treatment.resize is not None and min(info.height, info.width) > treatment.resize
    if info.alpha or info.rotated or smaller:
        why = "alpha channel" if info.alpha else "EXIF rotation" if info.rotated else ""
        codec = "png" if info.alpha or info.codec == "png" else "jpeg"
        return _changed(_opened(data, info), why, codec, view, treatment)
    if treatment.decode:
        _usable(lambda: decode.decode_image(data, info.codec, (info.height, info.width), "image"))
    size = (info.height, info.width)
    depth, mask = _map(view.depth, "depth", size), _map(view.mask, "mask", size)
    return ReadyView(data, view.camera, depth, mask, view.tracks, "")


def _usable(read: Callable[[], Any]) -> Any:
    try:
        return read()
    except DataError as error:
        raise UnusableError(str(error).removeprefix("image: ")) from None


def _opened(data: bytes, info: ImageInfo) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as image:
            upright = ImageOps.exif_transpose(image) if info.rotated else image
            return upright.convert("RGBA" if info.alpha else "RGB")
    except _PIL_ERRORS as error:
        raise UnusableError((str(error).splitlines() or ["cannot be read"])[0]) from None


def _from_pixels(given: Any) -> Image.Image:
    pixels = np.asarray(given)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
        raise UnusableError(f"{pixels.dtype} pixels of shape {pixels.shape}, not (H, W, 3 or 4) uint8")
    height, width = pixels.shape[:2]
    _usable(lambda: decode.check_size(height, width, "image"))
    return Image.fromarray(np.ascontiguousarray(pixels))


def _changed(image: Image.Image, why: str, codec: str, view: SourceView, treatment: Treatment) -> ReadyView:
    size = (image.height, image.width)
    depth, mask = _map(view.depth, "depth", size), _map(view.mask, "mask", size)
    camera, tracks = view.camera, view.tracks
    if image.mode == "RGBA":
        image, alpha = _on_background(image, treatment.background, view.name)
        mask = alpha if mask is None else mask
    if treatment.resize is not None and min(size) > treatment.resize:
        image, camera, depth, mask = _resized(image, treatment.resize, camera, depth, mask)
        if tracks is not None:
            stretch = np.array(image.size) / np.array(size[::-1])
            tracks = tracks._replace(points=(tracks.points * stretch).astype(np.float32))
        why = f"{why}, resized" if why and why != "pixels" else "resized"
    data = decode.encode_image(np.asarray(image), codec, 95)
    return ReadyView(data, camera, depth, mask, tracks, why)


def _map(read: Callable[[], ArrayLike] | None, what: str, size: tuple[int, int]) -> NDArray[Any] | None:
    if read is None:
        return None
    try:
        found = np.asarray(read())
    except UnusableError as error:
        raise UnusableError(f"its {what}: {error}") from None
    except DataError as error:
        raise UnusableError(f"its {what}: {str(error).removeprefix('image: ')}") from None
    if found.shape != size:
        raise UnusableError(f"its {what} is of another size than its image")
    return found


def _on_background(
    image: Image.Image, background: Colour | None, name: str
) -> tuple[Image.Image, NDArray[np.bool_] | None]:
    alpha = np.asarray(image)[..., 3]
    opaque = int(alpha.min()) == 255
    if background is None and not opaque:
        raise DataError(
            f"{name}: has transparent pixels; choose what is behind them, as in --background '#ffffff'"
            " (in a run's config: background: [255, 255, 255])"
        )
    behind = Image.new("RGBA", image.size, (*(background or (0, 0, 0)), 255))
    return Image.alpha_composite(behind, image).convert("RGB"), None if opaque else alpha >= _OPAQUE


def _resized(
    image: Image.Image,
    side: int,
    camera: tuple[ArrayLike, ArrayLike] | None,
    depth: NDArray[Any] | None,
    mask: NDArray[Any] | None,
) -> tuple[Image.Image, tuple[ArrayLike, ArrayLike] | None, NDArray[Any] | None, NDArray[Any] | None]:
    """All of a view with the shorter side of its image at `side` pixels; depth and mask take the nearest value."""
    scale = side / min(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    if camera is not None:
        stretch = np.diag([width / image.width, height / image.height, 1.0])
        camera = stretch @ np.asarray(camera[0], np.float64), camera[1]
    rows = ((np.arange(height) + 0.5) * image.height / height).astype(np.int64)
    columns = ((np.arange(width) + 0.5) * image.width / width).astype(np.int64)
    nearest = np.ix_(rows, columns)
    return (
        image.resize((width, height), Image.Resampling.LANCZOS),
        camera,
        None if depth is None else depth[nearest],
        None if mask is None else mask[nearest],
    )
