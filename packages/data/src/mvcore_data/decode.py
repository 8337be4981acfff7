"""Images to bytes and back, with bounds: JPEG, PNG and WebP views, 16-bit PNG depth, 8-bit PNG masks.

JPEG is decoded by simplejpeg (libjpeg-turbo). On one core, 64 px: 20,800 images/s against torchvision's 16,300 and
Pillow's 8,600; 224 px: 2,190 against 2,030 and 1,490; equal pixels in all three, and no torch import. What simplejpeg
refuses (CMYK, recoverable oddities) and the other formats go to Pillow.
"""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
from mvcore.api import DataError
from numpy.typing import NDArray
from PIL import Image

from mvcore_data.image_structure import ImageInfo, header
from mvcore_data.schema import CODECS, MAX_PIXELS, MAX_SIDE

_READ = ("JPEG", "PNG", "WEBP")
# Pillow calls a JPEG that brings more pictures in an MPF segment, as phones write them, an MPO.
_PIL_FORMATS = {"JPEG": "jpeg", "PNG": "png", "WEBP": "webp", "MPO": "jpeg"}
_ORIENTATION = 0x0112
_MAX_SCANS = 500
# A scan of a few bytes has the decoder walk over the whole image, so many of them in a large image take hours. Images
# of less than this, in bytes of pixels times bytes of file, are decoded in seconds whatever they hold.
_MANY_SCANS = 1 << 40
_PIL_ERRORS = (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError)


def check_size(height: int, width: int, owner: str) -> None:
    """Refuses images without pixels or beyond the limits.

    Raises:
        DataError: a side or the number of pixels out of bounds.
    """
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise DataError(
            f"{owner}: {width}x{height} pixels; sides go from 1 to {MAX_SIDE} with at most {MAX_PIXELS} pixels in all"
        )


def inspect(data: bytes, owner: str) -> ImageInfo:
    """Reads the header of an encoded image.

    Raises:
        DataError: not a single JPEG, PNG or WebP image of 8 bits a channel, or of a size beyond the limits.
    """
    plain = header(data)
    if plain is not None:
        check_size(plain.height, plain.width, owner)
        return plain
    image = _open(data, owner)
    codec = _PIL_FORMATS[str(image.format)]
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{owner}: an animation of {getattr(image, 'n_frames', 0)} frames; give one image")
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}:
        raise DataError(f"{owner}: pixels of the kind {image.mode}; give 8-bit RGB or grey")
    alpha = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
    try:
        rotated = image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # a broken EXIF block does not make the pixels wrong
        rotated = False
    return ImageInfo(codec, image.height, image.width, alpha, rotated)


def decode_jpeg(data: bytes, out: NDArray[np.uint8]) -> bool:
    """Decodes a JPEG into (H, W, 3) uint8, contiguous; False where it is another image, or one for `decode_image`.

    A header that asks for more pixels than `out` holds is refused before anything is decoded.
    """
    if out.nbytes * len(data) > _MANY_SCANS and data.count(b"\xff\xda") > _MAX_SCANS:
        return False
    try:
        # Of the size that was asked for, or nothing: a smaller image would come back in another shape.
        return simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape == out.shape
    except ValueError:
        return False


def decode_image(data: bytes, codec: str, size: tuple[int, int], owner: str) -> NDArray[np.uint8]:
    """The (H, W, 3) uint8 RGB pixels of an encoded image that must have the given codec and (H, W).

    Raises:
        DataError: damaged, or of another codec or size.
    """
    if codec == "jpeg" and decode_jpeg(data, out := np.empty((*size, 3), np.uint8)):
        return out
    image = _open(data, owner)  # Pillow reads more kinds, and names what is wrong
    if _PIL_FORMATS[str(image.format)] != codec or (image.height, image.width) != size:
        raise DataError(
            f"{owner}: a {image.format} image of {image.width}x{image.height}, not the {codec} of {size[1]}x{size[0]}"
            " that the store records"
        )
    if codec == "jpeg" and data.count(b"\xff\xda") > _MAX_SCANS:
        raise DataError(f"{owner}: a JPEG of more than {_MAX_SCANS} scans, made to take long; leave it out")
    try:
        return np.array(image.convert("RGB"))
    except _PIL_ERRORS as error:
        raise _damaged(owner, error) from None


def encode_image(pixels: NDArray[np.uint8], codec: str, quality: int) -> bytes:
    """Encodes (H, W, 3) uint8 RGB pixels; JPEG without chroma subsampling, PNG and WebP at 100 without loss."""
    if codec == "jpeg":
        return simplejpeg.encode_jpeg(
            np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="444"
        )
    buffer = io.BytesIO()
    options = {"lossless": quality == 100, "quality": quality} if codec == "webp" else {}
    Image.fromarray(pixels).save(buffer, codec.upper(), **options)
    return buffer.getvalue()


def encode_depth(depth: NDArray[np.floating]) -> tuple[bytes, float]:
    """A (H, W) depth map as a 16-bit PNG and its scale: depth = value * scale, 0 where there is none.

    The scale spreads the map's range over 16 bits, so the error is at most half of its largest depth / 65,535.
    """
    depth = np.asarray(depth, np.float64)
    known = np.isfinite(depth) & (depth > 0)
    scale = np.float32(depth[known].max() / 65535 if known.any() else 1)
    scale = float(max(scale, np.finfo(np.float32).tiny))
    values = np.where(known, depth, 0) / scale
    values = np.where(known, np.clip(np.round(values), 1, 65535), 0).astype(np.uint16)
    return _png(Image.fromarray(values)), scale


def decode_depth(data: bytes, scale: float, size: tuple[int, int], owner: str) -> NDArray[np.float32]:
    """The (H, W) float32 depth that `encode_depth` stored.

    Raises:
        DataError: damaged, not a 16-bit PNG, or of another size.
    """
    values = _decode_grey(data, size, ("I;16", "I;16B", "I"), "16-bit", owner)
    return values.astype(np.float32) * np.float32(scale)


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A (H, W) bool mask as an 8-bit PNG, 255 = object."""
    return _png(Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)))


def decode_mask(data: bytes, size: tuple[int, int], owner: str) -> NDArray[np.bool_]:
    """The (H, W) bool mask of an 8-bit or 1-bit PNG, True = object.

    Raises:
        DataError: damaged, not such a PNG, or of another size.
    """
    return _decode_grey(data, size, ("L", "1"), "8-bit", owner) > 0


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _decode_grey(data: bytes, size: tuple[int, int], modes: tuple[str, ...], kind: str, owner: str) -> NDArray:
    image = _open(data, owner)
    if image.format != "PNG" or image.mode not in modes or (image.height, image.width) != size:
        raise DataError(
            f"{owner}: a {image.format} image of kind {image.mode} and {image.width}x{image.height} pixels,"
            f" not a {kind} PNG of {size[1]}x{size[0]}"
        )
    try:
        return np.array(image)
    except _PIL_ERRORS as error:
        raise _damaged(owner, error) from None


def _open(data: bytes, owner: str) -> Image.Image:
    """Parses a header; no pixel is decoded, so the size can be checked first."""
    try:
        image = Image.open(io.BytesIO(data), formats=_READ)
    except Image.DecompressionBombError:
        raise DataError(f"{owner}: more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # Pillow's parsers raise many kinds on damaged bytes
        raise _damaged(owner, error) from None
    check_size(image.height, image.width, owner)
    return image


def _damaged(owner: str, error: BaseException) -> DataError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
        reason = f"none of {', '.join(CODECS)}"
    return DataError(f"{owner}: cannot be decoded ({reason})")
