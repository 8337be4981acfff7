"""Tracks: from a COLMAP model to a store, and from a store to batches; what is wrong is one line."""

from __future__ import annotations

import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from mvcore.api import DataError
from mvcore.testing import check_dataset
from mvcore_data import ViewStore, ViewStoreWriter, seal
from mvcore_data.check import check_store
from mvcore_data.importers.lens import Lens
from mvcore_data.info import store_info
from mvcore_data.packing import pack
from mvcore_data.repair import repair_store
from mvcore_data.views import Views
from PIL import Image

W, H = 48, 40
K = np.array([[50.0, 0, 23.5], [0, 52, 20.5], [0, 0, 1]])
TURNS = (0.0, 0.25, -0.3)
POINTS = {7: (0.1, 0.2, 0.0), 3: (-0.3, 0.1, 0.2), 11: (0.4, -0.3, 0.1), 2: (0.0, 0.35, -0.2)}
BENT = 0.11


def pose(angle: float) -> np.ndarray:
    """World to camera, two units away and turned about y."""
    matrix = np.eye(4)
    matrix[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    matrix[2, 3] = 2
    return matrix


def seen_at(xyz: Any, matrix: np.ndarray, bent: float = 0.0) -> tuple[float, float]:
    x, y, z = matrix[:3, :3] @ np.array(xyz) + matrix[:3, 3]
    u, v = x / z, y / z
    factor = 1 + bent * (u * u + v * v)
    return K[0, 0] * u * factor + K[0, 2], K[1, 1] * v * factor + K[1, 2]


def scene(folder: Path, *, text: bool = False, bent: float = 0.0, broken: str = "") -> Path:
    """An object as COLMAP leaves it: three images that observe four points, and keypoints that became none."""
    sparse = folder / "sparse/0"
    sparse.mkdir(parents=True)
    (folder / "images").mkdir()
    model, parameters = (4, [50, 52, 23.5, 20.5, bent, 0, 0, 0]) if bent else (1, [50, 52, 23.5, 20.5])
    cameras = struct.pack(f"<QiiQQ{len(parameters)}d", 1, 5, model, W, H, *parameters)
    images, points = struct.pack("<Q", len(TURNS)), struct.pack("<Q", len(POINTS))
    lines = ["# images"]
    for k, angle in enumerate(TURNS):
        Image.fromarray(np.full((H, W, 3), 60 * k, np.uint8)).save(folder / f"images/{k}.png")
        row = [np.cos(angle / 2), 0, np.sin(angle / 2), 0, 0, 0, 2]
        found = [(3.5, 4.5, -1)] + [(*seen_at(xyz, pose(angle), bent), number) for number, xyz in POINTS.items()]
        found.append((1.0, 1.0, 7))  # a second keypoint of the same point
        found.append((-3.0, 5.0, 2) if k == 2 else (0.5, 0.5, -1))
        if k == 2:
            found = [entry for entry in found if entry[2] != 2 or entry[0] < 0]  # observed outside of the image alone
        if broken == "no such point":
            found.append((5.0, 5.0, 99))
        images += struct.pack("<i7di", k, *row, 5) + f"{k}.png".encode() + b"\0" + struct.pack("<Q", len(found))
        images += b"".join(struct.pack("<ddq", *entry) for entry in found)
        lines += [f"{k} {' '.join(map(repr, map(float, row)))} 5 {k}.png"]
        lines += [" ".join(f"{float(x)!r} {float(y)!r} {n}" for x, y, n in found)]
    for number, xyz in POINTS.items():
        points += struct.pack("<q3d3BdQ", number, *xyz, 1, 2, 3, 0.1, 2) + struct.pack("<4i", 0, 0, 1, 0)
    if text:
        line = " ".join(map(str, parameters))
        (sparse / "cameras.txt").write_text(f"5 {'OPENCV' if bent else 'PINHOLE'} {W} {H} {line}\n")
        (sparse / "images.txt").write_text("\n".join(lines) + "\n")
        rows = [f"{n} {x} {y} {z} 1 2 3 0.1 0 0 1 0\n" for n, (x, y, z) in POINTS.items()]
        (sparse / "points3D.txt").write_text("# points\n" + "".join(rows))
        return folder
    (sparse / "cameras.bin").write_bytes(cameras)
    (sparse / "images.bin").write_bytes(images)
    if broken != "no file":
        (sparse / "points3D.bin").write_bytes(points[: len(points) - 5 if broken == "cut" else None])
    return folder


def packed(src: Path, out: Path, **options: Any) -> ViewStore:
    pack(src, out, options={"tracks": "true", **options.pop("options", {})}, **options)
    return ViewStore(out)


@pytest.mark.parametrize("text", [False, True])
def test_a_models_points_are_where_the_stored_cameras_see_them(tmp_path: Path, text: bool) -> None:
    with packed(scene(tmp_path / "cup", text=text), tmp_path / "store") as store:
        assert store.holds("tracks")
        for v in range(3):
            tracks, camera = store.tracks(v), store.camera(v)
            assert tracks is not None
            assert camera is not None
            assert tracks.ids.tolist() == ([3, 7, 11] if v == 2 else [2, 3, 7, 11])
            np.testing.assert_allclose(tracks.xyz, [POINTS[n] for n in tracks.ids.tolist()], atol=1e-6)
            expected = [seen_at(xyz, camera[1].astype(float)) for xyz in tracks.xyz]
            np.testing.assert_allclose(tracks.points, expected, atol=1e-3)
        assert (store.tracks(0).points.dtype, store.tracks(0).ids.dtype) == (np.float32, np.int64)  # pyright: ignore


def test_tracks_are_kept_when_asked_for_alone(tmp_path: Path) -> None:
    pack(scene(tmp_path / "cup"), tmp_path / "store")
    with ViewStore(tmp_path / "store") as store:
        assert not store.holds("tracks")
        assert store.tracks(0) is None


def test_tracks_of_a_bent_lens_are_made_straight_with_the_image(tmp_path: Path) -> None:
    src = scene(tmp_path / "cup", bent=BENT)
    with packed(src, tmp_path / "straight", options={"undistort": "true"}) as store:
        tracks, camera = store.tracks(1), store.camera(1)
        assert tracks is not None
        assert camera is not None
        expected = [seen_at(xyz, pose(TURNS[1])) for xyz in tracks.xyz]
        np.testing.assert_allclose(tracks.points, expected, atol=2e-3)
    with packed(src, tmp_path / "bent") as store:  # no camera, and the points where the image shows them
        tracks = store.tracks(1)
        assert store.camera(1) is None
        assert tracks is not None
        expected = [seen_at(xyz, pose(TURNS[1]), BENT) for xyz in tracks.xyz]
        np.testing.assert_allclose(tracks.points, expected, atol=1e-3)


def test_a_point_that_no_lens_drew_is_nowhere() -> None:
    folding = Lens((-0.5, 0.0, 0.0))
    points = np.array([[K[0, 2] + 5, K[1, 2]], [K[0, 2] + 400, K[1, 2]]])
    straight = folding.straight_points(points, K)
    assert np.isfinite(straight[0]).all()
    assert np.isnan(straight[1]).all()


def test_tracks_follow_a_smaller_image(tmp_path: Path) -> None:
    with packed(scene(tmp_path / "cup"), tmp_path / "store", resize=20) as store:
        tracks = store.tracks(0)
        assert tracks is not None
        assert store.size(0) == (20, 24)
        np.testing.assert_allclose(tracks.points[2], np.array(seen_at(POINTS[7], pose(0))) / 2, atol=1e-3)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("no file", "points3D.bin: no such file"),
        ("cut", "more than the 11 bytes left"),
        ("no such point", "observes the point 99"),
    ],
)
def test_damaged_points_are_refused(tmp_path: Path, broken: str, words: str) -> None:
    src = scene(tmp_path / "cup", broken=broken)
    with pytest.raises(DataError, match=words) as caught:
        packed(src, tmp_path / "store")
    assert "\n" not in str(caught.value)
    pack(src, tmp_path / "without")  # nobody asked for them


def test_mvimgnet_keeps_tracks(tmp_path: Path) -> None:
    scene(tmp_path / "mvi/17/ab01")
    with packed(tmp_path / "mvi", tmp_path / "store", format="mvimgnet") as store:
        assert store.has_tracks(0)


# --- the store --------------------------------------------------------------------------------------------------------


def view(ids: Any, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids = np.array(ids, np.int64)
    points = np.random.default_rng(seed).uniform(0, 8, (len(ids), 2))
    return points, ids, np.stack([ids, -ids, ids * 0.5], 1)


def store_of(path: Path, *tracks: Any) -> Path:
    with ViewStoreWriter(path, codec="png") as writer:
        writer.add_object("none", np.zeros((1, 8, 8, 3), np.uint8))
        writer.add_object("some", np.zeros((len(tracks), 8, 8, 3), np.uint8), tracks=tracks)
    return path


def test_a_store_gives_back_what_was_written(tmp_path: Path) -> None:
    with ViewStore(store_of(tmp_path / "store", view([5, 1, 9]), None, view([9, 40])), skip_damaged=False) as store:
        assert store.tracks(0) is None
        assert store.tracks(2) is None
        assert [store.has_tracks(v) for v in range(4)] == [False, True, False, True]
        points, _, xyz = view([5, 1, 9])
        found = store.tracks(1)
        assert found is not None
        assert found.ids.tolist() == [1, 5, 9]
        np.testing.assert_array_equal(found.points, points[[1, 0, 2]].astype(np.float32))
        np.testing.assert_array_equal(found.xyz, xyz[[1, 0, 2]].astype(np.float32))
        assert store_info(store).tracks == 2
    assert check_store(tmp_path / "store").ok


@pytest.mark.parametrize(
    ("tracks", "words"),
    [
        ([(*view([1, 1])[:2], np.zeros((2, 3)))], "an id twice"),
        ([view([-4])], "the id -4"),
        ([(np.array([[8.5, 1]]), [1], np.zeros((1, 3)))], "outside of the image of 8x8"),
        ([(np.array([[np.nan, 1]]), [1], np.zeros((1, 3)))], "not finite"),
        ([(np.zeros((1, 2)), [1], np.full((1, 3), np.inf))], "not finite"),
        ([(np.zeros((2, 2)), [1], np.zeros((1, 3)))], r"shapes \(2, 2\), \(1,\)"),
        ([(np.zeros((1, 2)), [1.5], np.zeros((1, 3)))], "whole ids"),
        ([view([3]), (np.zeros((1, 2)), [3], np.zeros((1, 3)))], "track 3 has another place"),
        ([view([3]), None], None),
    ],
)
def test_wrong_tracks_are_not_written(tmp_path: Path, tracks: Any, words: str | None) -> None:
    if words is None:
        store_of(tmp_path / "store", *tracks)
        return
    with pytest.raises(DataError, match=words):
        store_of(tmp_path / "store", *tracks)


def edit(path: Path, name: str, change: Any) -> None:
    """Changes a dataset as a hostile writer would: with a seal that fits, and for the blob a CRC."""
    shard = path / "shard-00000.h5"
    with h5py.File(shard, "r+") as file:
        dataset: Any = file[name]
        data = change(dataset[()].copy())
        dataset[...] = data
        if name == "tracks/blob":
            offset: Any = file["tracks/offset"]
            ends = offset[()]
            crc: Any = file["tracks/crc32"]
            crc[...] = [zlib.crc32(data[a:b].tobytes()) for a, b in pairwise(ends.tolist())]
        places = []
        for group in ("views", "tracks"):
            blob: Any = file[f"{group}/blob"]
            places.append((blob.id.get_offset(), blob.shape[0]))
    seal.write(shard, tuple(places))
    (path / "index.json").unlink()


def record(which: int, field: str, value: Any) -> Any:
    from mvcore_data.tracks import RECORD

    def change(data: np.ndarray) -> np.ndarray:
        records = np.frombuffer(data.tobytes(), RECORD).copy()
        records[field][which] = value
        return np.frombuffer(records.tobytes(), np.uint8)

    return change


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("tracks/blob", record(1, "id", -2), "the id -2"),
        ("tracks/blob", record(1, "id", 1), "an id twice, or not in order"),
        ("tracks/blob", record(0, "point", (9, 1)), "outside of the image"),
        ("tracks/blob", record(0, "xyz", np.nan), "not finite"),
        ("tracks/offset", lambda o: o + np.array([0, 0, -5, 0]), "whole records"),
        ("tracks/offset", lambda o: o + np.array([0, 0, 99999, 0]), "does not rise"),
    ],
)
def test_a_damaged_store_is_one_line(tmp_path: Path, name: str, change: Any, words: str) -> None:
    path = store_of(tmp_path / "store", view([1, 5]), view([5]))
    edit(path, name, change)
    report = check_store(path / "shard-00000.h5")
    assert len(report.problems) == 1
    assert words in report.problems[0]
    assert "shard-00000.h5" in report.problems[0]


def test_repair_carries_tracks_along(tmp_path: Path) -> None:
    path = store_of(tmp_path / "store", view([1, 5]), view([5, 8]))
    with ViewStore(path) as store:
        kept = store.encoded_tracks(2)
        place = store.shards[0].tracks
        assert place is not None
    shard = path / "shard-00000.h5"
    data = bytearray(shard.read_bytes())
    data[place.start + 3] ^= 1
    shard.write_bytes(data)
    report = repair_store(path, tmp_path / "repaired", keep_good_views=True)
    assert report.thinned == ["some"]
    assert "the tracks of view are damaged" in report.problems[0]
    with ViewStore(tmp_path / "repaired") as store:
        assert store.encoded_tracks(1) == kept


# --- batches ----------------------------------------------------------------------------------------------------------


def batches(path: Path, seed: int | None = None, **options: Any) -> Any:
    source = Views(path=str(path), tracks=True, **options)
    return source, source.load(0, [0, 1, 2], None if seed is None else np.random.default_rng(seed))


@pytest.mark.parametrize("fit", ["crop", "pad"])
@pytest.mark.parametrize("augment", [[], [{"rotate": 30}, {"translate": 0.1}, {"scale": [0.8, 1.3]}]])
def test_points_move_with_the_pixels_as_cameras_do(tmp_path: Path, fit: str, augment: Any) -> None:
    pack(scene(tmp_path / "cup"), tmp_path / "store", options={"tracks": "true"})
    source, batch = batches(tmp_path / "store", 4, image_size=32, fit=fit, augment=augment)
    assert "tracks" in source.provides
    tracks, cameras = batch.tracks, batch.cameras
    shown = tracks.ids >= 0
    assert shown.sum() >= 6
    for n, m in shown.nonzero().tolist():
        local = cameras.world_to_camera[n, :3, :3] @ tracks.xyz[n, m] + cameras.world_to_camera[n, :3, 3]
        x, y, z = cameras.intrinsics[n] @ local
        assert torch.allclose(tracks.points[n, m], torch.stack([x / z, y / z]), atol=5e-3)
        assert tracks.xyz[n, m].tolist() == pytest.approx(POINTS[int(tracks.ids[n, m])])
    assert not tracks.points[~shown].any()


def test_a_painted_dot_moves_with_its_track(tmp_path: Path) -> None:
    """A crop, a flip and a turn: the brightest pixels stay at the point."""
    pixels = np.zeros((1, 64, 64, 3), np.uint8)
    pixels[0, 20:23, 37:40] = 255
    with ViewStoreWriter(tmp_path / "store", codec="png") as writer:
        writer.add_object("dot", pixels, tracks=[([[38.5, 21.5]], [4], [[0, 0, 1]])])
    augment = [{"random_resized_crop": [0.7, 1.0]}, {"flip": 0.5}, {"rotate": 40}]
    source = Views(path=str(tmp_path / "store"), tracks=True, augment=augment, background=[0, 0, 0])
    there = 0
    for seed in range(12):
        batch = source.load(0, [0], np.random.default_rng(seed))
        assert batch.images is not None
        assert batch.tracks is not None
        bright = batch.images[0, 0].float()
        if not batch.tracks.ids.numel():
            continue
        there += 1
        rows, columns = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
        centre = torch.stack([(bright * part).sum() / bright.sum() for part in (columns, rows)])
        assert (centre - batch.tracks.points[0, 0]).norm() < 0.5
    assert there >= 8


def test_points_that_leave_the_image_are_dropped(tmp_path: Path) -> None:
    with ViewStoreWriter(tmp_path / "store", codec="png") as writer:
        tracks = ([[1.0, 20.0], [40.0, 20.0], [79.5, 20.0]], [0, 1, 2], np.zeros((3, 3)))
        writer.add_object("wide", np.zeros((2, 40, 80, 3), np.uint8), tracks=[tracks, None])
    source = Views(path=str(tmp_path / "store"), tracks=True, image_size=40)
    batch = source.load(0, [0, 1], None)
    assert batch.tracks is not None
    assert batch.tracks.ids.tolist() == [[1], [-1]]
    assert batch.tracks.points[0].tolist() == [[20.0, 20.0]]


def test_a_source_without_tracks_is_one_line(tmp_path: Path) -> None:
    pack(scene(tmp_path / "cup"), tmp_path / "store")
    with pytest.raises(DataError, match="no view of the source has tracks"):
        Views(path=str(tmp_path / "store"), tracks=True)


def test_a_source_with_tracks_keeps_to_what_a_dataset_must(tmp_path: Path) -> None:
    pack(scene(tmp_path / "cup"), tmp_path / "store", options={"tracks": "true"})
    args = {"path": str(tmp_path / "store"), "tracks": True, "augment": [{"rotate": 30}], "captions": "none"}
    found = check_dataset("data.views", args=args)
    assert found
