"""Image files as views: bytes kept where they can be, pixels set upright and put on a background where they must be."""

from __future__ import annotations

import io
from pathlib import Path
from stat import S_ISREG
from typing import NamedTuple, TypeAlias

import numpy as np
from mvcore.api import ConfigError, DataError
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageOps

from mvcore_data import decode

Colour: TypeAlias = tuple[int, int, int]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_MAX_FILE_BYTES = 1 << 28


class UnusableError(Exception):
    """An image that is left out; the text says why, in words that many files may share."""


class SourceImage(NamedTuple):
    """A view's bytes, and why they are not the file's own; empty where they are."""

    data: bytes
    reencoded: str


def read_image(path: Path, background: Colour | None) -> SourceImage:
    """Reads one image and decodes it, so that a damaged one is found now.

    Raises:
        UnusableError: damaged, too large, or no single 8-bit JPEG, PNG or WebP image.
        DataError: it has transparent pixels and there is no background.
    """
    data = read_bytes(path)
    try:
        info = decode.inspect(data, "image")
        if not info.alpha and not info.rotated:
            decode.decode_image(data, info.codec, (info.height, info.width), "image")
            return SourceImage(data, "")
        with Image.open(io.BytesIO(data)) as image:
            upright = ImageOps.exif_transpose(image).convert("RGBA" if info.alpha else "RGB")
    except DataError as error:
        raise UnusableError(str(error).removeprefix("image: ")) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UnusableError((str(error).splitlines() or ["cannot be read"])[0]) from None
    if info.alpha:
        return SourceImage(decode.encode_image(_on_background(upright, background, path), "png", 100), "alpha channel")
    return SourceImage(decode.encode_image(np.asarray(upright), "jpeg", 95), "EXIF rotation")


def read_bytes(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UnusableError: missing, no plain file, too large, or it cannot be read.
    """
    try:
        stat = path.stat()
        if not S_ISREG(stat.st_mode):
            raise UnusableError("not a plain file")
        if stat.st_size > _MAX_FILE_BYTES:
            raise UnusableError(f"larger than {_MAX_FILE_BYTES} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise UnusableError("no such file") from None
    except OSError as error:
        raise UnusableError(error.strerror or "cannot be read") from None


def parse_colour(text: str) -> Colour:
    """A colour as `#ffffff` or `white`.

    Raises:
        ConfigError: no such colour.
    """
    try:
        return ImageColor.getrgb(text)[:3]
    except ValueError:
        raise ConfigError(f"no colour {text!r}; give one as '#ffffff' or 'white'") from None


def _on_background(image: Image.Image, background: Colour | None, path: Path) -> NDArray[np.uint8]:
    opaque = int(np.asarray(image)[..., 3].min()) == 255
    if background is None and not opaque:
        raise DataError(f"{path}: has transparent pixels; choose what is behind them, as in --background '#ffffff'")
    behind = Image.new("RGBA", image.size, (*(background or (0, 0, 0)), 255))
    return np.asarray(Image.alpha_composite(behind, image).convert("RGB"))
