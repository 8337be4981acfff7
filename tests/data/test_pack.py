"""Folders of images become a store: bytes kept, everything left out counted with its reason."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.api import ConfigError, DataError
from mvcore_data import ViewStore
from mvcore_data.packing import pack
from PIL import Image


def photo(path: Path, seed: int = 0, size: tuple[int, int] = (16, 12), mode: str = "RGB", **options: Any) -> bytes:
    """An image file; gives its bytes."""
    bands = len(mode)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


def test_a_folder_for_each_object(tmp_path: Path) -> None:
    src = tmp_path / "src"
    data = {
        f"{name}/view_{k}.jpg": photo(src / f"{name}/view_{k}.jpg", k) for name in ("cup", "jug") for k in (2, 10, 1)
    }
    (src / "cup/captions.txt").write_text("\ufeffa red cup\n\n  une tasse rouge \n", encoding="utf-8")
    (src / "jug/caption.txt").write_text("a jug")
    report = pack(src, tmp_path / "out", licence="MIT", source="attic")
    assert (report.objects, report.views, report.skipped.counts, report.reencoded) == (2, 6, {}, {})
    store = ViewStore(tmp_path / "out")
    assert store.object_ids == ["cup", "jug"]
    # Views in the order of their numbers, bytes as they were.
    assert [store.encoded(v) for v in store.views_of(1)] == [data[f"jug/view_{k}.jpg"] for k in (1, 2, 10)]
    assert [store.captions(i) for i in range(2)] == [["a red cup", "une tasse rouge"], ["a jug"]]
    assert [store.category(i) for i in range(2)] == [None, None]
    assert (store.licence(0), store.source(1)) == ("MIT", "attic")


def test_a_folder_for_each_category(tmp_path: Path) -> None:
    src = tmp_path / "src"
    for name in ("cup/one", "cup/two", "jug/one"):
        photo(src / name / "a.png")
    photo(src / "solo/a.webp", lossless=True)
    pack(src, tmp_path / "out.h5")
    store = ViewStore(tmp_path / "out.h5")
    assert store.object_ids == ["cup/one", "cup/two", "jug/one", "solo"]
    assert [store.category(i) for i in range(4)] == ["cup", "cup", "jug", None]


def test_metadata_and_cameras(tmp_path: Path) -> None:
    src = tmp_path / "src"
    photo(src / "cup/a.jpg")
    photo(src / "cup/b.jpg")
    metadata = {
        "captions": ["one"],
        "view_captions": {"b.jpg": ["from behind"]},
        "category": "mug",
        "licence": "CC0-1.0",
    }
    (src / "cup/metadata.json").write_text(json.dumps(metadata))
    K, pose = [[20, 0, 8], [0, 20, 6], [0, 0, 1]], np.eye(4).tolist()
    (src / "cup/cameras.json").write_text(json.dumps({"a.jpg": {"intrinsics": K, "world_to_camera": pose}}))
    pack(src, tmp_path / "out", licence="MIT")
    store = ViewStore(tmp_path / "out")
    assert (store.captions(0), store.category(0), store.licence(0)) == (["one"], "mug", "CC0-1.0")
    assert [store.view_captions(v) for v in range(2)] == [[], ["from behind"]]
    camera = store.camera(0)
    assert camera is not None
    np.testing.assert_array_equal(camera[0], np.asarray(K, np.float32))
    assert store.camera(1) is None


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("metadata.json", "{", "metadata.json: cannot be read as JSON"),
        ("metadata.json", "[]", "no JSON object"),
        ("metadata.json", '{"caption": "x"}', "metadata.json: caption: extra"),
        ("metadata.json", '{"captions": "x"}', "captions: input should be a valid list"),
        ("metadata.json", '{"view_captions": {"z.jpg": ["x"]}}', "z.jpg"),
        ("cameras.json", '{"a.jpg": {"intrinsics": [[1]], "world_to_camera": [[1]]}}', "src/cup: object 'cup', view 0"),
        ("cameras.json", '{"z.jpg": {"intrinsics": [[1]], "world_to_camera": [[1]]}}', "z.jpg"),
        ("captions.txt", b"\xff\xfe\xff", "UTF-8"),
    ],
)
def test_wrong_metadata_stops_the_pack(tmp_path: Path, name: str, text: str | bytes, words: str) -> None:
    src = tmp_path / "src"
    photo(src / "cup/a.jpg")
    (src / "cup" / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=words) as caught:
        pack(src, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_left_out_is_counted_with_its_reason(tmp_path: Path) -> None:
    src = tmp_path / "src"
    photo(src / "cup/sub/a.jpg")
    photo(src / "stray.jpg")
    photo(src / "cup/beside.jpg")
    photo(src / "cup/sub/deep/a.jpg")
    (src / "cup/sub/b.jpg").write_bytes(photo(src / "cup/sub/c.jpg")[:-20])
    (src / "cup/sub/d.jpg").write_bytes(b"hello")
    (src / "cup/sub/notes.md").write_text("x")
    (src / "cup/sub/.hidden").write_text("x")
    (src / "empty").mkdir()
    (src / "cup/broken").mkdir()
    (src / "cup/broken/a.png").write_bytes(b"")
    report = pack(src, tmp_path / "out")
    assert ViewStore(tmp_path / "out").object_ids == ["cup/sub"]
    assert (report.objects, report.views) == (1, 2)
    assert set(report.skipped.counts.values()) == {1, 2}
    left_out = {Path(name).relative_to(src).as_posix(): why for why, name in report.skipped.first.items()}
    assert left_out == {
        "stray.jpg": "not in the folder of an object",
        "cup/beside.jpg": "beside the folders of objects",
        "cup/sub/deep": "deeper than CATEGORY/OBJECT",
        "cup/sub/b.jpg": "truncated: the JPEG does not reach its end marker",
        "cup/broken/a.png": "cannot be decoded (none of jpeg, png, webp)",  # and cup/sub/d.jpg
        "cup/sub/notes.md": "not a JPEG, PNG or WebP file (.md)",
        "cup/broken": "no usable image",
        "empty": "no images in the folder",
    }


def test_transparency_needs_a_background(tmp_path: Path) -> None:
    src = tmp_path / "src"
    photo(src / "cup/a.png", mode="RGBA")
    with pytest.raises(DataError, match=r"a\.png: has transparent pixels.*--background"):
        pack(src, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    report = pack(src, tmp_path / "out", background="#204060")
    assert report.reencoded == {"alpha channel": 1}
    given = np.asarray(Image.open(src / "cup/a.png")).astype(float)
    alpha = given[..., 3:] / 255
    expected = given[..., :3] * alpha + np.array([0x20, 0x40, 0x60]) * (1 - alpha)
    assert np.abs(ViewStore(tmp_path / "out").image(0) - expected).max() <= 1
    with pytest.raises(ConfigError, match="no colour 'octarine'"):
        pack(src, tmp_path / "other", background="octarine")


def test_an_opaque_alpha_channel_needs_none(tmp_path: Path) -> None:
    src = tmp_path / "src"
    (src / "cup").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pixels[..., 3] = 255
    Image.fromarray(pixels).save(src / "cup/a.png")
    assert pack(src, tmp_path / "out").reencoded == {"alpha channel": 1}
    np.testing.assert_array_equal(ViewStore(tmp_path / "out").image(0), pixels[..., :3])


def test_a_rotated_photo_is_set_upright(tmp_path: Path) -> None:
    src = tmp_path / "src"
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    (src / "cup").mkdir(parents=True)
    Image.fromarray(pixels).save(src / "cup/a.jpg", exif=exif, quality=95)
    assert pack(src, tmp_path / "out").reencoded == {"EXIF rotation": 1}
    found = ViewStore(tmp_path / "out").image(0)
    buffer = io.BytesIO()
    Image.fromarray(np.rot90(pixels, -1)).save(buffer, "PNG")
    assert found.shape == (32, 16, 3)
    assert found[:15].min() > 240
    assert found[17:].max() < 15


def test_nothing_to_pack(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing: no such file or folder"):
        pack(tmp_path / "nothing", tmp_path / "out")
    src = tmp_path / "src"
    photo(src / "a.jpg")
    with pytest.raises(DataError, match=r"src: has the marks of no format; name one with --format: .*folders"):
        pack(src, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds nothing of the format folders \(skipped: 1 not in the folder of an"):
        pack(src, tmp_path / "out", format="folders")
    (src / "cup").mkdir()
    (src / "cup/a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="none of its images can be used"):
        pack(src, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["src"]
    photo(src / "cup/b.jpg")
    pack(src, tmp_path / "out")
    with pytest.raises(DataError, match="holds a store already"):
        pack(src, tmp_path / "out")
