"""JPEG, PNG and WebP files by their structure alone: what the header says, and whether the file is whole.

No pixel is decoded. `header` knows the plain kinds that nearly all files are and leaves the rest to Pillow, which takes
ten times as long for them. Sources: ITU-T T.81 annex B (JPEG markers), the PNG specification (section 5, chunks), the
WebP container specification (RIFF).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image

_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_ALPHA = {0: False, 2: False, 4: True, 6: True}
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended and progressive, Huffman coded
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length
_SCAN, _APP1 = 0xDA, 0xE1
_END = b"\xff\xd9"


class ImageInfo(NamedTuple):
    """What an encoded image's header says."""

    codec: str
    height: int
    width: int
    alpha: bool
    rotated: bool


def header(data: bytes) -> ImageInfo | None:
    """What the header of an ordinary JPEG or PNG says; None for any other file, which Pillow must open."""
    if data[:3] == b"\xff\xd8\xff":
        return _jpeg_header(data)
    if data[:8] == _PNG:
        return _png_header(data)
    return None


def missing(data: bytes, codec: str) -> str | None:
    """What a JPEG, PNG or WebP file lacks to be whole, or None: a truncated file is found without decoding it."""
    if codec == "jpeg":
        return _missing_of_jpeg(data)
    if codec == "png":
        return _missing_of_png(data)
    return None if int.from_bytes(data[4:8], "little") + 8 <= len(data) else "truncated: its RIFF chunk is longer"


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, begin, end) of the segments up to the first scan, whose end is where its coded data begin."""
    at, size = 2, len(data)
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _BARE:
            at += 2
        else:
            end = at + 2 + (data[at + 2] << 8 | data[at + 3])
            if end > size:
                return
            yield marker, at + 4, end
            if marker == _SCAN:
                return
            at = end


def _jpeg_header(data: bytes) -> ImageInfo | None:
    size: tuple[int, int] | None = None
    rotated = False
    for marker, begin, end in _segments(data):
        if marker in _FRAMES:
            if end - begin < 6:
                return None
            precision, height, width = data[begin], data[begin + 1 : begin + 3], data[begin + 3 : begin + 5]
            size = int.from_bytes(height), int.from_bytes(width)
            if precision != 8 or data[begin + 5] not in (1, 3, 4) or 0 in size:
                return None
        elif marker == _APP1 and data[begin : begin + 6] == b"Exif\0\0":
            rotated = _is_rotated(data[begin:end])
        elif marker == _APP1 and b"Orientation" in data[begin:end]:  # in XMP
            return None
        elif marker == _SCAN and size is not None:
            return ImageInfo("jpeg", *size, alpha=False, rotated=rotated)
    return None


def _is_rotated(exif: bytes) -> bool:
    """Whether an EXIF block says that the pixels must be turned; a broken block does not make them wrong."""
    try:
        parsed = Image.Exif()
        parsed.load(exif)
        return parsed.get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # Pillow's parser raises many kinds on damaged bytes
        return False


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(type, begin, end) of the chunks of a PNG that lie within the file with their checksums."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4])
        if end + 4 > len(data):
            return
        yield data[at + 4 : at + 8], at + 8, end
        at = end + 4


def _png_header(data: bytes) -> ImageInfo | None:
    info: ImageInfo | None = None
    for kind, begin, _ in _chunks(data):
        if kind == b"IHDR" and info is None:
            width, height = (int.from_bytes(data[begin + k : begin + k + 4]) for k in (0, 4))
            depth, colour = data[begin + 8], data[begin + 9]
            if depth != 8 or colour not in _PNG_ALPHA or 0 in (width, height):
                return None
            info = ImageInfo("png", height, width, _PNG_ALPHA[colour], rotated=False)
        elif kind in (b"tRNS", b"acTL", b"eXIf") or data[begin : begin + 11] in (b"Raw profile", b"XML:com.ado"):
            return None  # transparency, animation, orientation
        elif kind == b"IDAT":
            return info
    return None


def _missing_of_jpeg(data: bytes) -> str | None:
    coded = next((end for marker, _, end in _segments(data) if marker == _SCAN), None)
    # In coded data 0xFF is always followed by 0, a restart marker or the end; what follows the end does no harm.
    if coded is None or (data[-2:] != _END and data.find(_END, coded) < 0):
        return "truncated: the JPEG does not reach its end marker"
    return None if len(data) - 2 >= coded else "truncated: the JPEG has no coded data"


def _missing_of_png(data: bytes) -> str | None:
    for kind, begin, end in _chunks(data):
        if zlib.crc32(data[begin - 4 : end]) != int.from_bytes(data[end : end + 4]):
            return f"damaged: the checksum of its {kind.decode('ascii', 'replace')} chunk is wrong"
        if kind == b"IEND":
            return None
    return "truncated: the PNG does not reach its end chunk"
