"""What a store does not take is refused in one line that names the object and what is wrong with it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.api import DataError
from mvcore_data import ViewStoreWriter
from PIL import Image

SMALL = np.zeros((4, 4, 3), np.uint8)


def truncated_jpeg() -> bytes:
    """The beginning of a picture."""
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((12, 16, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[:60]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"views": []}, "no views"),
        ({"views": [np.zeros((4, 4), np.uint8)]}, "uint8 RGB"),
        ({"views": [np.zeros((4, 4, 3))]}, "float64"),
        ({"views": [np.zeros((0, 4, 3), np.uint8)]}, "4x0 pixels"),
        ({"views": [b""]}, "view 0"),
        ({"views": [truncated_jpeg()]}, "view 0"),
        ({"views": [SMALL], "cameras": [None, None]}, "2 cameras for 1 views"),
        ({"views": [SMALL], "cameras": [(np.eye(3), np.eye(3))]}, "world_to_camera"),
        ({"views": [SMALL], "cameras": [(np.eye(3), np.diag([1, 1, -1, 1]))]}, "rotation"),
        ({"views": [SMALL], "cameras": [(np.eye(3) * np.nan, np.eye(4))]}, "intrinsics"),
        ({"views": [SMALL], "depth": [np.zeros((4, 5))]}, "depth is float64 of shape"),
        ({"views": [SMALL], "masks": [np.zeros((4, 4, 1))]}, "mask is float64 of shape"),
        ({"views": [SMALL], "captions": ["\ud800"]}, "Unicode"),
        ({"views": [SMALL], "captions": [" "]}, "empty caption"),
        ({"views": [SMALL], "category": ""}, "category"),
        ({"views": [SMALL], "licence": "x" * 2000}, "licence"),
        ({"id": "a\nb", "views": [SMALL]}, "object id"),
    ],
)
def test_wrong_objects_get_one_clear_line(tmp_path: Path, arguments: dict[str, Any], words: str) -> None:
    with ViewStoreWriter(tmp_path / "store") as writer:
        writer.add_object("sound", [SMALL])
        with pytest.raises(DataError, match=words) as caught:
            writer.add_object(**{"id": "wrong", **arguments})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["alpha", "rotated", "animated", "16-bit"])
def test_images_that_cannot_be_kept_as_they_are(tmp_path: Path, kind: str) -> None:
    buffer = io.BytesIO()
    if kind == "alpha":
        Image.new("RGBA", (8, 8)).save(buffer, "PNG")
    elif kind == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    elif kind == "animated":
        frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
        frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:])
    else:
        Image.fromarray(np.zeros((8, 8), np.uint16)).save(buffer, "PNG")
    with pytest.raises(DataError, match="object 'a', view 0"), ViewStoreWriter(tmp_path / "store") as writer:
        writer.add_object("a", [buffer.getvalue()])
