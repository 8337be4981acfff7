"""What is behind an object: one colour, one image, or for each view one of a folder's images."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mvcore.api import ConfigError, DataError
from numpy.typing import NDArray
from PIL import Image, ImageOps

from mvcore_data.image_files import decode_image_file, read_image_file
from mvcore_data.source_images import SUFFIXES, parse_colour


class BackgroundError(DataError):
    """A background cannot be read: not the object's fault, so the whole render stops."""


@dataclass(frozen=True)
class Background:
    """Either a colour or images.

    Attributes:
        colour: sRGB, 0 to 255; behind every view where there are no images.
        images: Path, bytes and time of change of each image; one is drawn for each view of each object.
    """

    colour: tuple[int, int, int] = (255, 255, 255)
    images: tuple[tuple[str, int, int], ...] = ()

    def behind(self, object_id: str, view: int, size: int, seed: int) -> NDArray[np.uint8]:
        """The sRGB background of a view: (size, size, 3), or (3,) if it is a colour.

        Raises:
            BackgroundError: An image is gone or damaged.
        """
        if not self.images:
            return np.array(self.colour, np.uint8)
        digest = hashlib.sha256(f"{seed}\0{object_id}\0{view}".encode()).digest()
        return _square(self.images[int.from_bytes(digest[:8], "big") % len(self.images)][0], size)


def read_background(text: str) -> Background:
    """What a user calls a background: ``#ffffff``, ``white``, an image file or a folder of images.

    Raises:
        ConfigError: It is none of these.
    """
    path = Path(text)
    if text.startswith("#") or not path.exists():
        try:
            return Background(parse_colour(text))
        except ConfigError:
            raise ConfigError(
                f"--background {text!r}: must be a colour like '#ffffff', an image or a folder of images"
            ) from None
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
        if not files:
            raise ConfigError(f"--background {text!r}: no image in this folder ({', '.join(sorted(SUFFIXES))})")
    else:
        files = [path]
        try:
            _square(str(path), 8)
        except BackgroundError as error:
            raise ConfigError(f"--{error}") from None
    stats = [file.stat() for file in files]
    return Background(
        images=tuple((str(file), stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True))
    )


@functools.lru_cache(maxsize=16)
def _square(path: str, size: int) -> NDArray[np.uint8]:
    """The middle of an image, (size, size, 3); what is transparent in it is white."""
    owner = f"background {path}"
    try:
        pixels = decode_image_file(*read_image_file(Path(path), owner), (255, 255, 255), owner)
    except DataError as error:
        raise BackgroundError(str(error)) from None
    return np.asarray(ImageOps.fit(Image.fromarray(pixels), (size, size), Image.Resampling.LANCZOS))
