"""Headers are read as Pillow reads them, and files that are not whole are found without decoding them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import DataError
from mvcore_data import decode
from mvcore_data.image_structure import header, missing
from PIL import Image, PngImagePlugin

FORMATS = ("jpeg", "png", "webp")


def encoded(mode: str, codec: str, size: tuple[int, int] = (13, 9), **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, codec.upper(), **options)
    return buffer.getvalue()


def rotated(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def xmp(orientation: int) -> bytes:
    return (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
        % orientation
    )


def text_chunk() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("Software", "a renderer")
    return info


CASES = {
    "grey jpeg": encoded("L", "jpeg"),
    "jpeg": encoded("RGB", "jpeg"),
    "progressive": encoded("RGB", "jpeg", progressive=True, quality=60),
    "cmyk": encoded("CMYK", "jpeg"),
    "upright exif": encoded("RGB", "jpeg", exif=rotated(1)),
    "rotated exif": encoded("RGB", "jpeg", exif=rotated(6)),
    "rotated xmp": encoded("RGB", "jpeg", xmp=xmp(6)),
    "upright xmp": encoded("RGB", "jpeg", xmp=xmp(1)),
    "broken exif": encoded("RGB", "jpeg", exif=b"Exif\0\0nonsense"),
    "restart markers": encoded("RGB", "jpeg", size=(64, 64), restart_marker_blocks=1),
    "png": encoded("RGB", "png"),
    "png with alpha": encoded("RGBA", "png"),
    "grey png": encoded("L", "png"),
    "grey png with alpha": encoded("LA", "png"),
    "palette": encoded("P", "png"),
    "palette with a transparent colour": encoded("P", "png", transparency=0),
    "one bit": encoded("1", "png"),
    "png with text": encoded("RGB", "png", pnginfo=text_chunk()),
    "rotated png": encoded("RGB", "png", exif=rotated(3)),
    "webp": encoded("RGB", "webp"),
    "webp with alpha": encoded("RGBA", "webp"),
    "rotated webp": encoded("RGB", "webp", exif=rotated(8)),
}


def by_pillow(data: bytes) -> tuple[str, int, int, bool, bool]:
    """The oracle: Pillow's own parser and EXIF reader."""
    with Image.open(io.BytesIO(data)) as image:
        alpha = image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info
        turned = image.getexif().get(0x0112, 1) not in (0, 1)
        return str(image.format).lower(), image.height, image.width, alpha, turned


@pytest.mark.parametrize("name", CASES)
def test_headers_are_read_as_pillow_reads_them(name: str) -> None:
    data = CASES[name]
    try:
        expected = by_pillow(data)
    except SyntaxError:  # Pillow raises on a broken EXIF block
        expected = ("jpeg", 9, 13, False, False)
    assert decode.inspect(data, "x") == expected
    assert missing(data, expected[0]) is None
    quick = header(data)
    assert quick is None or quick == expected


def test_ordinary_files_need_no_pillow() -> None:
    for name in ("jpeg", "progressive", "rotated exif", "png", "png with alpha", "png with text"):
        assert header(CASES[name]) is not None


@pytest.mark.parametrize("name", CASES)
def test_every_truncation_is_found(name: str) -> None:
    data = CASES[name]
    codec = by_pillow(data)[0] if name != "broken exif" else "jpeg"
    for length in range(len(data)):
        cut = data[:length]
        try:
            decode.inspect(cut, "x")
        except DataError:
            continue
        assert missing(cut, codec) is not None, length


def test_what_follows_the_end_does_no_harm() -> None:
    for name in ("jpeg", "png", "webp", "progressive"):
        assert missing(CASES[name] + b"\0" * 40, by_pillow(CASES[name])[0]) is None


def test_a_photo_with_more_pictures_inside_is_a_jpeg() -> None:
    """Phones write MPF segments; Pillow calls such a file MPO."""
    first, second = (Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 255))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second], exif=rotated(6))
    data = buffer.getvalue()
    assert decode.inspect(data, "x") == ("jpeg", 8, 8, False, True)
    assert missing(data, "jpeg") is None
    assert decode.decode_image(data, "jpeg", (8, 8), "x").max() < 10


@pytest.mark.parametrize("at", range(5))
def test_a_wrong_png_checksum_is_found(at: int) -> None:
    data = bytearray(CASES["png"])
    place = 33 + 8 + at  # inside the first IDAT chunk
    data[place] ^= 1
    assert missing(bytes(data), "png") == "damaged: the checksum of its IDAT chunk is wrong"


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(CASES)),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 10**6),
)
def test_damaged_bytes_give_an_answer(name: str, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(CASES[name])
    for place, value in changes:
        data[place % len(data)] = value
    damaged = bytes(data[: cut % (2 * len(data)) or len(data)])
    for codec in FORMATS:
        found = missing(damaged, codec)
        assert found is None or found
    quick = header(damaged)
    assert quick is None or (0 < quick.height < 65536 * 65536 and quick.width > 0)
