"""Renders of Zero123 and of mvc_heads become stores; their cameras are checked by where drawn points land."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mvcore.api import DataError
from mvcore_data import ViewStore
from mvcore_data.importers import detect_format
from mvcore_data.packing import PackReport, pack
from mvcore_data.viewpoints import azimuth_elevation
from PIL import Image

LENS, SENSOR = 35.0, 32.0
DISC = 3.0  # radius in pixels
# Points of an object as its glTF file has them: y up, +z to the front.
POINTS = [(0.3, 0.1, 0.2), (-0.25, 0.35, -0.1), (0.05, -0.3, 0.3)]


def blender_camera(position: tuple[float, float, float]) -> np.ndarray:
    """Blender's `[R | t]` (3, 4) of a camera that looks at the origin: -z forward, y up, in a world with z up."""
    back = np.array(position) / np.linalg.norm(position)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(back, right), back])
    return np.concatenate([rotation, (-rotation @ np.array(position))[:, None]], axis=1)


def draw(path: Path, k: int, matrix: np.ndarray, size: int) -> None:
    """The RGBA picture of view k: one point as a disc, as Blender's camera sees it after it imported the glTF file."""
    x, y, z = POINTS[k % len(POINTS)]
    right, up, back = matrix @ [x, -z, y, 1.0]
    focal = LENS / SENSOR * size
    u, v = size / 2 + focal * right / -back, size / 2 - focal * up / -back
    centres = np.arange(size) + 0.5
    distance = np.hypot(centres - u, centres[:, None] - v)
    pixels = np.zeros((size, size, 4), np.uint8)
    pixels[..., 3] = np.round(255 * np.clip(DISC + 0.5 - distance, 0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def landing(store: ViewStore) -> float:
    """The largest distance in pixels between a drawn disc's centre and where the stored camera sees its point."""
    distances: list[float] = []
    for i in range(len(store)):
        for k, v in enumerate(store.views_of(i)):
            camera = store.camera(v)
            assert camera is not None
            seen = camera[0] @ (camera[1] @ [*POINTS[k % len(POINTS)], 1.0])[:3]
            assert seen[2] > 0
            dark = 255.0 - store.image(v)[..., 0]
            rows, columns = np.mgrid[: dark.shape[0], : dark.shape[1]] + 0.5
            found = np.array([(dark * columns).sum(), (dark * rows).sum()]) / dark.sum()
            distances.append(float(np.linalg.norm(found - seen[:2] / seen[2])))
    return max(distances)


def packed(src: Path, tmp_path: Path, **options: Any) -> tuple[ViewStore, PackReport]:
    report = pack(src, tmp_path / "out.h5", background="white", **options)
    return ViewStore(tmp_path / "out.h5"), report


# --- zero123 --------------------------------------------------------------------------------------------------------


def zero123_source(folder: Path, uids: tuple[str, ...] = ("aa01", "bb02"), size: int = 96) -> Path:
    rng = np.random.default_rng(0)
    for uid in uids:
        for k in range(12):
            direction = rng.normal(size=3)
            matrix = blender_camera(tuple(direction / np.linalg.norm(direction) * rng.uniform(1.5, 2.2)))
            draw(folder / uid / f"{k:03d}.png", k, matrix, size)
            np.save(folder / uid / f"{k:03d}.npy", matrix)
    return folder


def test_zero123_cameras_see_the_points_where_they_were_drawn(tmp_path: Path) -> None:
    src = zero123_source(tmp_path / "views_release")
    store, report = packed(src, tmp_path)
    assert (report.format, report.mark[4:]) == ("zero123", "/000.png with 000.npy")
    assert store.object_ids == ["aa01", "bb02"]
    assert (report.views, report.skipped.counts, report.reencoded) == (24, {}, {"alpha channel": 24})
    assert landing(store) < 0.1
    for v in (0, 13):  # height above the ground is height above the object's, and alpha became the mask
        camera, mask = store.camera(v), store.mask(v)
        assert camera is not None
        assert mask is not None
        uid, k = ("aa01", v) if v < 12 else ("bb02", v - 12)
        matrix = np.load(src / uid / f"{k:03d}.npy")
        centre = -matrix[:, :3].T @ matrix[:, 3]
        elevation = np.rad2deg(np.arcsin(centre[2] / np.linalg.norm(centre)))
        assert azimuth_elevation(camera[1][None])[1][0] == pytest.approx(elevation, abs=1e-3)
        assert mask.sum() == (store.image(v) < 128).all(-1).sum()


def test_zero123_resized_keeps_its_cameras(tmp_path: Path) -> None:
    store, report = packed(zero123_source(tmp_path / "src", ("aa01",)), tmp_path, resize=64)
    assert report.reencoded == {"alpha channel, resized": 12}
    camera, mask = store.camera(0), store.mask(0)
    assert camera is not None
    assert mask is not None
    assert store.size(0) == mask.shape == (64, 64)
    K = camera[0]
    assert K[0, 0] == pytest.approx(LENS / SENSOR * 64, rel=1e-5)
    assert (K[0, 2], K[1, 2]) == (32, 32)


def test_zero123_counts_what_is_wrong(tmp_path: Path) -> None:
    src = zero123_source(tmp_path / "src", ("aa01", "bb02", "cc03"), size=32)
    (src / "valid_paths.json").write_text('["aa01", "bb02", "dd04"]')
    folder = src / "aa01"
    (folder / "000.npy").unlink()
    np.save(folder / "001.npy", np.eye(3))
    np.save(folder / "002.npy", np.full((3, 4), np.nan))
    np.save(folder / "003.npy", np.array([{"a": 1}], object), allow_pickle=True)
    (folder / "004.npy").write_bytes(b"\x93NUMPY")
    (folder / "005.png").write_bytes((folder / "005.png").read_bytes()[:-20])
    (folder / "006.png").unlink()
    (src / "bb02/000.png").unlink()
    (src / "bb02/000.png").symlink_to("/dev/zero")
    (src / "empty").mkdir()
    store, report = packed(src, tmp_path, options={"valid_paths": "true"})
    assert store.object_ids == ["aa01", "bb02"]
    assert [len(store.views_of(i)) for i in range(2)] == [10, 11]
    assert [store.camera(v) is None for v in range(10)] == [True] * 5 + [False] * 5
    assert report.skipped.counts == {
        "not in valid_paths.json": 2,
        "a camera (no such file); its view is kept without": 1,
        "a camera (of shape (3, 3), not (3, 4)); its view is kept without": 1,
        "a camera (no rotation and translation); its view is kept without": 1,
        "a camera (no .npy file of numbers); its view is kept without": 1,
        "a camera (no .npy file); its view is kept without": 1,
        "truncated: the PNG does not reach its end chunk": 1,
        "a path or link that leaves the folder": 1,
    }
    (src / "valid_paths.json").write_text("{")
    with pytest.raises(DataError, match=r"valid_paths\.json: cannot be read as JSON"):
        pack(src, tmp_path / "other")
    report = pack(src, tmp_path / "other", options={"valid_paths": "false"}, background="white")
    assert report.objects == 3


# --- mvc ------------------------------------------------------------------------------------------------------------


def mvc_source(folder: Path, views: int = 36, size: int = 96) -> Path:
    """Three polar angles of 20, 50 and 80 degrees from +z, azimuths counter-clockwise from +x, 1.5 away."""
    azimuths = views // 3
    for uid in ("u1", "u2"):
        for j, polar in enumerate((20, 50, 80)):
            for i in range(azimuths):
                theta, phi = 2 * math.pi * i / azimuths, math.radians(polar)
                at = (math.sin(phi) * math.cos(theta), math.sin(phi) * math.sin(theta), math.cos(phi))
                matrix = blender_camera((1.5 * at[0], 1.5 * at[1], 1.5 * at[2]))
                k = j * azimuths + i
                draw(folder / f"renderings/{uid}/{k:03d}.png", k, matrix, size)
    (folder / "uid_to_name.json").write_text(json.dumps({"u1": "Tasty Burger", "u2": " ", "u9": "Nobody"}))
    return folder


@pytest.mark.parametrize("views", [36, 18])
def test_mvc_cameras_see_the_points_where_they_were_drawn(tmp_path: Path, views: int) -> None:
    src = mvc_source(tmp_path / "src", views)
    found, mark = detect_format(src)
    assert found.name == "mvc"
    assert mark.startswith("uid_to_name.json and renderings/u")
    store, report = packed(src, tmp_path, options={"views": str(views)})
    assert (store.object_ids, report.views) == (["u1", "u2"], 2 * views)
    assert [store.captions(i) for i in range(2)] == [["Tasty Burger"], []]
    assert report.skipped.counts == {"a caption: no name in uid_to_name.json; the object is kept without": 1}
    assert landing(store) < 0.1


def test_mvc_leaves_out_incomplete_objects(tmp_path: Path) -> None:
    src = mvc_source(tmp_path / "src")
    (src / "renderings/u2/035.png").unlink()
    store, report = packed(src, tmp_path)
    assert store.object_ids == ["u1"]
    assert report.skipped.counts == {"not the 36 views 000.png and on": 1}
    (tmp_path / "out.h5").unlink()
    with pytest.raises(DataError, match=r"holds nothing of the format mvc \(skipped: 2 not the 18 views"):
        packed(src, tmp_path, options={"views": "18"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda src: (src / "uid_to_name.json").write_text("[]"), "uid_to_name.json: holds no JSON object"),
        (lambda src: (src / "uid_to_name.json").write_text('{"u1": 3}'), "holds no names by object id"),
        (lambda src: (src / "uid_to_name.json").write_bytes(b'{"u1": "\xff"}'), "cannot be read as JSON"),
        (lambda src: (src / "uid_to_name.json").unlink(), "uid_to_name.json: no such file"),
    ],
)
def test_mvc_with_wrong_names_is_one_line(tmp_path: Path, change: Callable[[Path], Any], words: str) -> None:
    src = mvc_source(tmp_path / "src", size=8)
    change(src)
    with pytest.raises(DataError, match=words) as caught:
        pack(src, tmp_path / "out", format="mvc", background="white")
    assert "\n" not in str(caught.value)
