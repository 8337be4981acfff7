"""What becomes of one view: its bytes, and with changed pixels its camera, depth and mask."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStore, decode
from mvcore_data.importers.base import SourceView
from mvcore_data.packing import pack
from mvcore_data.source_images import UnusableError
from mvcore_data.source_views import ReadyView, Treatment, prepare_view
from PIL import Image

CAMERA = (np.array([[40.0, 0, 21], [0, 44, 14], [0, 0, 1]]), np.eye(4))


def encoded(pixels: np.ndarray, codec: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **options)
    return buffer.getvalue()


def prepared(image: Any, treatment: Treatment = Treatment(), **fields: Any) -> ReadyView:  # noqa: B008
    return prepare_view(SourceView(name="here", read=lambda: image, **fields), treatment)


def noise(height: int, width: int, bands: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, bands), dtype=np.uint8)


def test_alpha_becomes_the_mask_where_the_source_has_none() -> None:
    pixels = noise(8, 6, 4)
    view = prepared(encoded(pixels), Treatment(background=(255, 0, 0)), camera=CAMERA)
    assert view.reencoded == "alpha channel"
    assert view.camera is CAMERA
    assert view.mask is not None
    np.testing.assert_array_equal(view.mask, pixels[..., 3] >= 128)
    own = np.zeros((8, 6))
    assert prepared(encoded(pixels), Treatment(background=(0, 0, 0)), mask=lambda: own).mask is own
    pixels[..., 3] = 255
    assert prepared(encoded(pixels)).mask is None
    with pytest.raises(DataError, match="here: has transparent pixels"):
        prepared(noise(8, 6, 4))


def test_pixels_of_an_importer_are_encoded() -> None:
    pixels = noise(8, 6)
    view = prepared(pixels)
    assert (view.reencoded, view.image[:2]) == ("pixels", b"\xff\xd8")
    for wrong in (pixels.astype(np.float32), pixels[..., 0], pixels[..., :2]):
        with pytest.raises(UnusableError, match="pixels of shape"):
            prepared(wrong)


@pytest.mark.parametrize("field", ["camera", "depth", "mask"])
def test_a_rotation_beside_geometry_leaves_the_view_out(field: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(8, 6), "JPEG", exif=exif)
    value: Any = CAMERA if field == "camera" else lambda: np.ones((8, 6))
    with pytest.raises(UnusableError, match="an EXIF rotation beside a camera, depth or mask"):
        prepared(data, **{field: value})
    assert prepared(data).reencoded == "EXIF rotation"


@pytest.mark.parametrize("field", ["depth", "mask"])
def test_maps_of_another_size_leave_the_view_out(field: str) -> None:
    fields: dict[str, Any] = {field: lambda: np.ones((6, 8))}
    with pytest.raises(UnusableError, match=f"its {field} is of another size"):
        prepared(encoded(noise(8, 6)), **fields)


def test_a_map_that_cannot_be_read_says_which() -> None:
    def broken() -> np.ndarray:
        raise UnusableError("no such file")

    with pytest.raises(UnusableError, match="its depth: no such file"):
        prepared(encoded(noise(8, 6)), depth=broken)


def test_a_smaller_size_takes_camera_depth_and_mask_along() -> None:
    """A bright square at a known place: its centre moves as the camera says, and the maps keep its values."""
    height, width = 60, 84
    pixels, depth = np.zeros((height, width, 3), np.uint8), np.full((height, width), 2.0)
    pixels[24:36, 42:63], depth[24:36, 42:63] = 255, 5.0
    point = np.array([(52.5 - 21) / 40, (30 - 14) / 44, 1.0])  # seen at the square's centre
    view = prepared(encoded(pixels), Treatment(resize=20), camera=CAMERA, depth=lambda: depth, mask=lambda: depth > 4)
    assert view.reencoded == "resized"
    assert view.camera is not None
    assert view.depth is not None
    assert view.mask is not None
    small = decode.decode_image(view.image, "png", (20, 28), "x")[..., 0] / 255
    rows, columns = np.mgrid[0:20, 0:28] + 0.5
    centre = [(small * columns).sum() / small.sum(), (small * rows).sum() / small.sum()]
    seen = np.asarray(view.camera[0]) @ point
    np.testing.assert_allclose(seen[:2], centre, atol=0.05)
    np.testing.assert_allclose(seen[:2], [52.5 / 3, 10], atol=1e-9)
    assert set(np.unique(view.depth)) == {2.0, 5.0}
    np.testing.assert_array_equal(view.depth > 4, small > 0.5)
    np.testing.assert_array_equal(view.mask, small > 0.5)


def test_smaller_images_keep_their_bytes() -> None:
    data = encoded(noise(8, 6), "JPEG")
    assert prepared(data, Treatment(resize=6)).image == data
    assert prepared(data, Treatment(resize=5)).image != data


def test_verify_decode_finds_what_the_structure_does_not(tmp_path: Path) -> None:
    (tmp_path / "src/cup").mkdir(parents=True)
    good = encoded(noise(64, 64), "PNG")
    import struct
    import zlib

    body = zlib.compress(b"\0" * 10)  # a whole chunk with a right checksum, but too few pixels
    chunk = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    (tmp_path / "src/cup/a.png").write_bytes(good)
    (tmp_path / "src/cup/b.png").write_bytes(good[:33] + chunk + good[-12:])
    assert pack(tmp_path / "src", tmp_path / "quick").views == 2
    report = pack(tmp_path / "src", tmp_path / "slow", verify="decode")
    assert (report.views, sum(report.skipped.counts.values())) == (1, 1)
    assert next(iter(report.skipped.counts)).startswith("cannot be decoded")
    with pytest.raises(DataError, match=r"b\.png: cannot be decoded .*\(--strict: nothing is left out\)"):
        pack(tmp_path / "src", tmp_path / "strict", verify="decode", strict=True)
    assert not (tmp_path / "strict").exists()


def test_licences_defaults_and_creators(tmp_path: Path) -> None:
    for name, licence in (("a", "by"), ("b", "CC-BY-NC-4.0"), ("c", None)):
        (tmp_path / f"src/{name}").mkdir(parents=True)
        (tmp_path / f"src/{name}/0.png").write_bytes(encoded(noise(4, 4)))
        if licence:
            (tmp_path / f"src/{name}/metadata.json").write_text(f'{{"licence": "{licence}", "creator": "Ada"}}')
    report = pack(tmp_path / "src", tmp_path / "one", allow_licences=["CC-BY"])
    assert report.skipped.counts == {
        "licence CC-BY-NC-4.0 is not of CC-BY": 1,
        "licence unknown is not of CC-BY": 1,
    }
    assert ViewStore(tmp_path / "one").object_ids == ["a"]
    pack(tmp_path / "src", tmp_path / "two", allow_licences=["by", "MIT"], licence="MIT", creator="Bob")
    store = ViewStore(tmp_path / "two")
    assert store.object_ids == ["a", "c"]
    assert [store.creator(i) for i in range(2)] == ["Ada", "Bob"]
    assert [store.licence(i) for i in range(2)] == ["by", "MIT"]
    with pytest.raises(ConfigError, match="licences: name at least one"):
        pack(tmp_path / "src", tmp_path / "three", allow_licences=[])
