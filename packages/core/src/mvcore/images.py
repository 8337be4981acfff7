"""Images as users have them: arrays, tensors, Pillow's images and files, brought to (H, W, 3) uint8 RGB."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from mvcore.errors import ConfigError, DataError

RGB = tuple[int, int, int]
Pixels = NDArray[np.uint8]

WHITE: RGB = (255, 255, 255)
MAX_PIXELS = 1 << 27
"""Of an image file: what it unpacks to is not to be had from its size."""
_CHANNELS = (1, 3, 4)
_SHAPES = "(H, W), (H, W, 1), (H, W, 3) or (H, W, 4), uint8 or float in 0 to 1"


def to_rgb(image: Any, background: RGB = WHITE) -> Pixels:
    """One image as (H, W, 3) uint8 RGB.

    Args:
        image: an array or tensor, (H, W) grey or (H, W, C) with C of 1 (grey), 3 (RGB) or 4 (RGBA), or (C, H, W) where
            only the first axis can be the channels'; uint8, or floating in 0 to 1, which is rounded to 8 bits; or a
            Pillow image.
        background: RGB that stands behind what is transparent.

    Raises:
        ConfigError: anything else, an image without pixels, or floats outside 0 to 1.
    """
    if isinstance(image, Image.Image):
        return _from_pillow(image, background)
    array = _as_array(image)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim == 3 and array.shape[2] not in _CHANNELS and array.shape[0] in _CHANNELS:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] not in _CHANNELS:
        raise ConfigError(f"an image must be {_SHAPES}, not {array.shape} {array.dtype}")
    if 0 in array.shape:
        raise ConfigError(f"an image must have pixels; this one is {array.shape}")
    pixels = _as_bytes(array)
    if pixels.shape[2] == 4:
        return composited(pixels, background)
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def composited(pixels: Pixels, background: RGB = WHITE) -> Pixels:
    """(H, W, 4) uint8 with straight alpha laid over a colour, each value rounded to the nearest."""
    alpha = pixels[:, :, 3:].astype(np.uint32)
    mixed = pixels[:, :, :3] * alpha + np.array(background, np.uint32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def split_images(images: Any) -> list[Any]:
    """The images of a stack or a list; of one image, that image alone.

    Raises:
        ConfigError: something that is no image and no sequence of images.
    """
    if isinstance(images, Image.Image):
        return [images]
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    return list(_sequence(images, "images"))


def split_objects(objects: Any) -> list[list[Any]]:
    """The images of each object.

    Args:
        objects: a list with one entry an object, each what `split_images` takes, or a (B, F, H, W, C) stack; or one
            image, or one (F, H, W, C) stack of views, which are one object.

    Raises:
        ConfigError: no object, or an object without a view.
    """
    single = isinstance(objects, (np.ndarray, Tensor)) and objects.ndim < 5
    listed = [objects] if single or isinstance(objects, Image.Image) else list(_sequence(objects, "objects"))
    if not listed:
        raise ConfigError("no object given")
    found = [split_images(views) for views in listed]
    for number, views in enumerate(found):
        if not views:
            raise ConfigError(f"object {number} has no view; give each object at least one")
    return found


def _sequence(values: Any, what: str) -> Iterator[Any]:
    if isinstance(values, (str, bytes, dict, Path)) or not isinstance(values, (Sequence, np.ndarray, Tensor)):
        raise ConfigError(f"{what} must be arrays, or a list of them, not a {type(values).__name__}")
    return iter(values)


def read_image(path: Path, background: RGB = WHITE) -> Pixels:
    """An image file that Pillow reads, as (H, W, 3) uint8 RGB, turned upright as its EXIF data says.

    Raises:
        DataError: absent, damaged, no image, or of too many pixels.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns from a size on that is below the limit here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if image.width * image.height > MAX_PIXELS:
                    size = f"{image.width}x{image.height}"
                    raise DataError(f"{path}: {size} pixels; at most {MAX_PIXELS} in all are read")
                return _from_pillow(ImageOps.exif_transpose(image), background)
    except FileNotFoundError:
        raise DataError(f"{path}: no such image") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: too many pixels; at most {MAX_PIXELS} in all are read") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "damaged, or not an image"
        raise DataError(f"{path}: cannot be read as an image ({reason})") from None


def parse_colour(text: str) -> RGB:
    """`white`, `#d6dade` or `rgb(214,218,222)` as RGB.

    Raises:
        ConfigError: no colour.
    """
    try:
        found = ImageColor.getrgb(text)
    except ValueError:
        raise ConfigError(f"{text!r} is no colour; write a name as white, or #rrggbb") from None
    return found[0], found[1], found[2]


def _from_pillow(image: Image.Image, background: RGB) -> Pixels:
    if image.mode.startswith("I;16"):
        return to_rgb((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ConfigError(f"an image of mode {image.mode} has no known range; save it with 8 or 16 bits a channel")
    transparent = "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
    return to_rgb(np.asarray(image.convert("RGBA" if transparent else "RGB")), background)


def _as_array(image: Any) -> NDArray[Any]:
    if isinstance(image, Tensor):
        # bfloat16 is unknown to NumPy.
        image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise ConfigError(f"an image must be an array of (H, W, 3) uint8, not a {type(image).__name__}")
    return image


def _as_bytes(array: NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(f"an image must be {_SHAPES}, not {array.shape} {array.dtype}")
    if not ((array >= 0) & (array <= 1)).all():
        raise ConfigError("an image of floats must lie in 0 to 1; one has values outside")
    return np.rint(array * 255).astype(np.uint8)
