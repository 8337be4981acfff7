"""Image files of a list: read with bounds, transparency put on a background."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from mvcore.api import DataError
from numpy.typing import NDArray
from PIL import Image

from mvcore_data.decode import decode_image, inspect
from mvcore_data.image_structure import ImageInfo

_MAX_FILE_BYTES = 1 << 28


def read_image_file(path: Path, owner: str) -> tuple[bytes, ImageInfo]:
    """The bytes of a JPEG, PNG or WebP file and what its header says.

    Raises:
        DataError: missing, not a plain file, too large, or no such image.
    """
    try:
        if not path.is_file():
            raise DataError(f"{owner}: {path} {'is not a plain file' if path.exists() else 'does not exist'}")
        size = path.stat().st_size
        if size > _MAX_FILE_BYTES:
            raise DataError(f"{owner}: {path} has {size >> 20} MiB, more than {_MAX_FILE_BYTES >> 20}")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{owner}: {path} cannot be read ({error.strerror or error})") from None
    return data, inspect(data, owner)


def decode_image_file(
    data: bytes, info: ImageInfo, background: tuple[int, int, int] | None, owner: str
) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB. The EXIF orientation is ignored, as CLIP's own preprocessing does.

    Raises:
        DataError: damaged, or transparent where no background is given.
    """
    if not info.alpha:
        return decode_image(data, info.codec, (info.height, info.width), owner)
    try:
        pixels = np.array(Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")).convert("RGBA"))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(f"{owner}: cannot be decoded ({str(error) or type(error).__name__})") from None
    if (pixels[..., 3] == 255).all():
        return np.ascontiguousarray(pixels[..., :3])
    if background is None:
        raise DataError(f"{owner}: is transparent; say what stands behind it with background: [R, G, B]")
    alpha = pixels[..., 3:].astype(np.float32) / 255
    mixed = pixels[..., :3] * alpha + np.array(background, np.float32) * (1 - alpha)
    return np.round(mixed).astype(np.uint8)
