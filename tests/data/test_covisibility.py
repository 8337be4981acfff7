"""How much two views share, against a naive oracle and against what geometry says of a sphere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.errors import DataError
from mvcore.training.sampling import PairFilter, SourceSampler, SourceSpecification
from mvcore_data import ViewStoreWriter
from mvcore_data.covisibility import MAX_POINTS, TOLERANCE, ViewGeometry, covisibility
from mvcore_data.rigs import intrinsics, look_at
from mvcore_data.views import Views

SIZE = 48


def sphere(position: np.ndarray, size: int = SIZE, radius: float = 0.5, field: float = 40.0) -> ViewGeometry:
    """The z-depth of a sphere about the origin, exact for each pixel's centre."""
    camera, matrix = intrinsics(size, field), look_at(position)
    grid = np.arange(size) + 0.5
    rays = np.stack([*np.meshgrid(grid, grid), np.ones((size, size))], -1) @ np.linalg.inv(camera).T
    centre = matrix[:3, 3]
    a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - radius**2
    root = b**2 - a * c
    depth = np.where(root > 0, (b - np.sqrt(np.maximum(root, 0))) / a, 0.0)
    return ViewGeometry(depth.astype(np.float32), camera.astype(np.float32), matrix.astype(np.float32))


def at(azimuth: float, elevation: float = 0.0, distance: float = 2.0) -> np.ndarray:
    a, e = math.radians(azimuth), math.radians(elevation)
    return distance * np.array([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)])


def naive_share(first: ViewGeometry, second: ViewGeometry) -> float:
    """One pixel after the other, in float64."""
    pixels = [(r, c) for r in range(SIZE) for c in range(SIZE) if first.depth[r, c] > 0]
    if len(pixels) > MAX_POINTS:
        pixels = [pixels[int(np.round(k * (len(pixels) - 1) / (MAX_POINTS - 1)))] for k in range(MAX_POINTS)]
    seen = 0
    for r, c in pixels:
        z = float(first.depth[r, c])
        k = first.intrinsics.astype(np.float64)
        local = np.array([(c + 0.5 - k[0, 2]) / k[0, 0] * z, (r + 0.5 - k[1, 2]) / k[1, 1] * z, z, 1.0])
        x, y, z, _ = second.world_to_camera.astype(np.float64) @ (
            np.linalg.inv(first.world_to_camera.astype(np.float64)) @ local
        )
        if z <= 0:
            continue
        k = second.intrinsics.astype(np.float64)
        column, row = math.floor(k[0, 0] * x / z + k[0, 2]), math.floor(k[1, 1] * y / z + k[1, 2])
        if 0 <= column < SIZE and 0 <= row < SIZE and second.depth[row, column] > 0:
            seen += abs(second.depth[row, column] - z) <= TOLERANCE * z / k[0, 0]
    return seen / len(pixels) if pixels else 0.0


angle = st.floats(-180, 180)


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(angle, st.floats(-80, 80), st.floats(0.9, 3)), min_size=2, max_size=3))
def test_shares_are_those_of_one_pixel_after_the_other(places: list[tuple[float, float, float]]) -> None:
    views = [sphere(at(*place)) for place in places]
    found = covisibility(views)
    for i, first in enumerate(views):
        for j, second in enumerate(views):
            # A point on the very edge of a pixel or of the tolerance may fall to either side.
            assert found[i, j] == pytest.approx(naive_share(first, second), abs=3 / MAX_POINTS)


def test_a_sphere_is_shared_as_far_as_both_cameras_see_round_it() -> None:
    views = [sphere(at(azimuth), size=128) for azimuth in (0, 30, 90, 180)]
    shares = covisibility(views)[0]
    assert shares[0] == 1
    assert shares[1] > shares[2] > shares[3]
    # From distance 2 a sphere of radius 0.5 shows a cap of 75.5 degrees: opposite caps do not touch.
    assert shares[3] == 0
    assert shares[1] > 0.7
    assert shares[2] < 0.45


def test_a_thing_in_front_hides_what_is_behind_it() -> None:
    behind = sphere(at(0))
    wall = ViewGeometry(np.full((SIZE, SIZE), 1.0, np.float32), behind.intrinsics, behind.world_to_camera)
    assert covisibility([behind, wall])[0].tolist() == [1.0, 0.0]


def test_views_without_camera_depth_or_foreground_share_nothing() -> None:
    good, empty = sphere(at(0)), sphere(at(0))
    empty.depth[:] = 0
    no_camera = ViewGeometry(good.depth, np.zeros((3, 3), np.float32), good.world_to_camera)
    found = covisibility([good, None, empty, no_camera])
    assert found.tolist() == [[1, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert covisibility([]).shape == (0, 0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ball seen from 0, 20, 90 and 180 degrees; one seen from opposite sides; one with cameras alone."""
    path = tmp_path_factory.mktemp("covisibility") / "store"
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    with ViewStoreWriter(path, codec="png") as writer:
        for name, azimuths in (("ball", (0, 20, 90, 180)), ("far", (0, 180)), ("flat", (0, 20))):
            views = [sphere(at(azimuth)) for azimuth in azimuths]
            cameras = [(view.intrinsics, view.world_to_camera) for view in views]
            writer.add_object(
                name,
                np.stack([pixels] * len(views)),
                cameras=[None if (name, k) == ("ball", 3) else camera for k, camera in enumerate(cameras)],
                depth=None if name == "flat" else [view.depth for view in views],
            )
    return path


def test_a_store_gives_cameras_and_covisibility_of_its_views(store: Path) -> None:
    views = Views(path=str(store))
    matrices = views.cameras_of(0)[1]
    assert np.isnan(matrices[3]).all()
    assert np.allclose(matrices[1], look_at(at(20)), atol=1e-6)
    shares = views.covisibility(0, views.views_of(0))
    assert shares.shape == (4, 4)
    assert shares[3].tolist() == [0] * 4
    expected = covisibility([sphere(at(0)), sphere(at(20))])
    assert np.abs(shares[:2, :2] - expected).max() < 0.02  # depth is stored in 16 bits
    assert views.covisibility(2, views.views_of(2)).tolist() == [[0, 0], [0, 0]]


def test_a_mask_says_what_is_foreground(tmp_path: Path) -> None:
    view = sphere(at(0))
    mask = np.zeros((SIZE, SIZE), np.uint8)
    with ViewStoreWriter(tmp_path / "store", codec="png") as writer:
        writer.add_object(
            "ball",
            np.zeros((2, SIZE, SIZE, 3), np.uint8),
            cameras=[(view.intrinsics, view.world_to_camera)] * 2,
            depth=[view.depth] * 2,
            masks=[mask, mask + 1],
        )
    assert Views(path=str(tmp_path / "store")).covisibility(0, [0, 1]).tolist() == [[0, 0], [0, 1]]


def sampler_of(store: Path, wanted: PairFilter) -> SourceSampler:
    dataset = Views(path=str(store))
    return SourceSampler(
        SourceSpecification(name="a", dataset=dataset, sampling="pairs", batch_size=3, pairs_like=wanted), seed=0
    )


def test_pairs_are_drawn_by_what_both_views_see(store: Path) -> None:
    sampler = sampler_of(store, PairFilter(covisibility=0.7))
    assert sampler.source.pairs is not None
    assert sampler.source.pairs.left_out == 2
    drawn = {tuple(sampler.draw(step).views.tolist()) for step in range(40)}
    assert drawn == {(0, 1), (1, 0)}
    by_angle = sampler_of(store, PairFilter(angle=(80, 180)))
    drawn = {tuple(views) for step in range(40) for _, views in by_angle.draw(step).requests()}
    assert drawn == {(0, 2), (2, 0), (4, 5), (5, 4)}


def test_pairs_that_no_object_has_are_refused(store: Path) -> None:
    with pytest.raises(DataError, match=r"data\.a: no object has two views with pair_angle: \[25, 30\] \(rotation\)"):
        sampler_of(store, PairFilter(angle=(25, 30)))
