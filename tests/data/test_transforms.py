"""Transforms move pixels, masks, depth, cameras and keypoints together."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mvcore_data.options import Augment, ImageOptions
from mvcore_data.photometric import jitter_colours
from mvcore_data.pipeline import Pipeline, Placed
from mvcore_data.rigs import look_at
from mvcore_data.transforms import cut_image, cut_map, fit_window, move_cameras, move_points, warp
from mvcore_data.viewpoints import azimuth_elevation, within
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError


def pipeline(side: int, *augment: dict[str, Any], **options: Any) -> Pipeline:
    return Pipeline(side, ImageOptions(path="", augment=tuple(Augment(**one) for one in augment), **options))


def blob(height: int, width: int, centre: NDArray[np.float64], sigma: float) -> NDArray[np.uint8]:
    """A Gaussian spot in continuous pixels on a black image."""
    y, x = np.mgrid[:height, :width] + 0.5
    spot = 255 * np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * sigma**2))
    return np.repeat(spot.round().astype(np.uint8)[..., None], 3, axis=2)


def centroid(weights: NDArray[np.floating]) -> NDArray[np.float64]:
    y, x = np.mgrid[: weights.shape[0], : weights.shape[1]] + 0.5
    return np.array([(x * weights).sum(), (y * weights).sum()]) / weights.sum()


def project(point: NDArray[np.float64], intrinsics: Any, world_to_camera: Any) -> tuple[NDArray[np.float64], float]:
    x, y, z = np.asarray(world_to_camera, np.float64)[:3] @ [*point, 1.0]
    u, v, w = np.asarray(intrinsics, np.float64) @ [x, y, z]
    return np.array([u / w, v / w]), z


CHAINS: dict[str, tuple[dict[str, Any], ...]] = {
    "evaluation": (),
    "rotate": ({"rotate": 180},),
    "translate": ({"translate": 0.1},),
    "scale": ({"scale": (0.8, 1.3)},),
    "random resized crop": ({"random_resized_crop": (0.6, 1.0)},),
    "shift, scale and rotate": ({"shift_scale_rotate": {"shift": 0.1}},),
    "flip": ({"flip": 1.0},),
    "all": (
        {"rotate": 60},
        {"random_resized_crop": (0.8, 1.0)},
        {"translate": 0.05},
        {"scale": (0.9, 1.1)},
        {"flip": 0.5},
        {"colour": {"brightness": 0.1}},
    ),
}


@pytest.mark.parametrize("name", CHAINS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_a_marker_goes_where_the_moved_camera_projects_it(name: str, data: st.DataObject) -> None:
    height, width = data.draw(st.sampled_from([(96, 96), (96, 120), (110, 80)]))
    side = data.draw(st.sampled_from([48, 96, 128]))
    fit = data.draw(st.sampled_from(["crop", "pad"]))
    seed = data.draw(st.integers(0, 2**32))
    rng = np.random.default_rng(seed)
    intrinsics = np.array([[110.0, 0, width / 2 + 3], [0, 105.0, height / 2 - 2], [0, 0, 1]], np.float32)
    extrinsics = look_at(rng.normal(size=3) * [1, 0.3, 1] + [0, 0, 4]).astype(np.float32)
    point = rng.uniform(-0.25, 0.25, 3)
    pixel, depth = project(point, intrinsics, extrinsics)

    chain = pipeline(side, *CHAINS[name], fit=fit)
    placed = chain.place([(height, width)], [(np.random.default_rng(seed), 1)])
    image = blob(height, width, pixel, sigma=3.0)
    mask, depths = image[..., 0] > 100, np.where(image[..., 0] > 100, depth, 0).astype(np.float32)
    moved = chain.finish(chain.cut(placed, lambda _row, _out: image), placed)[0, 0].numpy().astype(np.float64)
    masks = chain.maps([mask], placed, np.bool_)[0].numpy()
    moved_depth = chain.maps([depths], placed, np.float32)[0].numpy()

    expected = move_points(pixel[None, None], placed.matrices())[0, 0]
    assume((0.15 * side < expected).all() and (expected < 0.85 * side).all())  # else a centroid says nothing
    assert np.abs(centroid(moved) - expected).max() < 0.35
    # The nearest pixel is taken twice, where the image is fitted and where it is moved: up to half a pixel each.
    assert np.abs(centroid(masks.astype(np.float64)) - expected).max() < 1
    assert np.array_equal(masks, moved_depth > 0)
    cameras = chain.cameras([(intrinsics, extrinsics)], placed)
    mirrored = np.linalg.det(placed.matrices()[0, :2, :2]) < 0
    assert cameras["camera_valid"].tolist() == [not mirrored]
    if not mirrored:
        seen, z = project(point, cameras["cameras"].intrinsics[0], cameras["cameras"].world_to_camera[0])
        assert np.abs(seen - expected).max() < 1e-3
        assert z == pytest.approx(depth, abs=1e-4)
        assert moved_depth[moved_depth > 0] == pytest.approx(z, abs=1e-4)
        check_is_camera(cameras["cameras"].intrinsics[0].numpy(), cameras["cameras"].world_to_camera[0].numpy())


def check_is_camera(intrinsics: NDArray[np.float32], extrinsics: NDArray[np.float32]) -> None:
    rotation = extrinsics[:3, :3]
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5)
    assert intrinsics[0, 0] > 0
    assert intrinsics[1, 1] > 0
    assert intrinsics[1, 0] == intrinsics[2, 0] == intrinsics[2, 1] == 0


def test_a_pure_resize_leaves_the_extrinsics_alone() -> None:
    intrinsics = np.array([[[100.0, 0, 32], [0, 100, 32], [0, 0, 1]]])
    extrinsics = look_at(np.array([1.0, 2, 3]))[None]
    matrices = fit_window(64, 64, 224).matrix()[None]
    moved, turned, valid = move_cameras(intrinsics, extrinsics, matrices)
    assert np.array_equal(turned, extrinsics)
    assert np.allclose(moved[0], [[350, 0, 112], [0, 350, 112], [0, 0, 1]])
    assert valid.all()


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(4, 50), st.sampled_from(["crop", "pad"]))
def test_masks_and_depth_take_the_nearest_stored_pixel(height: int, width: int, side: int, fit: Any) -> None:
    values = np.random.default_rng(0).uniform(1, 9, (height, width)).astype(np.float32)
    window = fit_window(height, width, side, fit)
    cut = cut_map(values, window, side)
    inverse = np.linalg.inv(window.matrix())
    for row in range(side):
        for column in range(side):
            x, y = (inverse @ [column + 0.5, row + 0.5, 1])[:2]
            at_edge = min(abs(x - round(x)), abs(y - round(y))) < 1e-6
            inside = 0 < x < width and 0 < y < height
            if not at_edge:
                assert cut[row, column] == (values[int(y), int(x)] if inside else 0)


def test_nothing_to_do_gives_the_same_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    window = fit_window(64, 64, 64)
    assert cut_image(image, window, 64) is image
    identity = np.eye(3)[None]
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
    assert torch.equal(warp(tensor, identity, None), tensor)


def test_fitting_is_the_resize_and_centre_crop_of_pillow() -> None:
    image = np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8)
    pillow = Image.fromarray(image).resize((40, 24), Image.Resampling.BICUBIC).crop((8, 0, 32, 24))
    assert np.abs(pipeline(24).fit(image).astype(int) - np.asarray(pillow)).max() <= 1


def test_downscaling_is_antialiased() -> None:
    checkers = np.indices((128, 128)).sum(0) % 2 * 255
    image = np.repeat(checkers.astype(np.uint8)[..., None], 3, axis=2)
    assert np.abs(pipeline(32).fit(image).astype(int) - 127.5).max() < 12


def test_padding_and_outside_take_the_background() -> None:
    image = np.full((10, 20, 3), 200, np.uint8)
    chain = pipeline(20, {"translate": 0.4}, fit="pad", background=(1, 2, 3))
    padded = chain.fit(image)
    assert (padded[:5] == [1, 2, 3]).all()
    assert (padded[5:15] == 200).all()
    moved = warp(
        torch.full((1, 3, 8, 8), 200, dtype=torch.uint8), np.array([[[1.0, 0, 3], [0, 1, 0], [0, 0, 1]]]), (1, 2, 3)
    )
    assert moved[0, :, 4, :3].T.tolist() == [[1, 2, 3]] * 3
    assert (moved[0, :, :, 3:] == 200).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_a_flip_is_exact_and_marks_the_camera(seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    chain = pipeline(16, {"flip": 0.5})
    placed = chain.place([(16, 16)] * 8, [(np.random.default_rng(seed), 8)])
    flipped = chain.finish(chain.cut(placed, lambda _row, _out: image), placed).permute(0, 2, 3, 1).numpy()
    camera = (np.eye(3, dtype=np.float32), np.eye(4, dtype=np.float32))
    valid = chain.cameras([camera] * 8, placed)["camera_valid"].tolist()
    for pixels, upright in zip(flipped, valid, strict=True):
        assert np.array_equal(pixels, image if upright else image[:, ::-1])


def test_what_is_drawn_stays_in_its_range_and_fills_it() -> None:
    chain = pipeline(100, {"rotate": 30}, {"translate": 0.1}, {"scale": (0.5, 2)})
    moves = chain.place([(100, 100)] * 2000, [(np.random.default_rng(0), 2000)]).moves
    assert moves is not None
    angles = np.degrees(np.arctan2(moves[:, 1, 0], moves[:, 0, 0]))
    scales = np.hypot(moves[:, 0, 0], moves[:, 1, 0])
    assert 29 < angles.max() <= 30
    assert -30 <= angles.min() < -29
    assert 0.5 <= scales.min() < 0.52
    assert 1.95 < scales.max() <= 2
    centres = move_points(np.full((2000, 1, 2), 50.0), moves)[:, 0] - 50
    assert 18 < np.abs(centres).max() <= 20 + 1e-9


def test_shift_scale_rotate_is_one_move_with_a_probability() -> None:
    """The ranges and the probability of the 3D-equivariance authors."""
    chain = pipeline(100, {"shift_scale_rotate": {}})
    moves = chain.place([(100, 100)] * 4000, [(np.random.default_rng(0), 4000)]).moves
    assert moves is not None
    moved = (moves != np.eye(3)).any((1, 2))
    assert moved.mean() == pytest.approx(0.5, abs=0.03)
    angles = np.degrees(np.arctan2(moves[moved, 1, 0], moves[moved, 0, 0]))
    scales = np.hypot(moves[moved, 0, 0], moves[moved, 1, 0])
    shifts = move_points(np.full((4000, 1, 2), 50.0), moves)[moved, 0] - 50
    for values, highest in ((angles, 45), (scales - 1, 0.25), (shifts[:, 0], 25), (shifts[:, 1], 25)):
        assert np.abs(values).max() <= highest + 1e-9
        assert values.max() > 0.98 * highest
        assert values.min() < -0.98 * highest
        assert np.abs(values.mean()) < 0.05 * highest
    # Each is drawn by itself.
    assert np.abs(np.corrcoef([angles, scales, *shifts.T]) - np.eye(4)).max() < 0.1


def test_shift_scale_rotate_fills_with_the_background() -> None:
    chain = pipeline(32, {"shift_scale_rotate": {"shift": 1.0, "probability": 1.0}}, background=(0, 0, 0))
    placed = chain.place([(32, 32)] * 20, [(np.random.default_rng(0), 20)])
    white = np.full((32, 32, 3), 255, np.uint8)
    moved = chain.finish(chain.cut(placed, lambda _row, _out: white), placed)
    assert (moved.flatten(1).min(1).values == 0).all()


def test_crops_have_the_asked_area_and_stay_inside() -> None:
    chain = pipeline(32, {"random_resized_crop": (0.3, 0.9)})
    placed = chain.place([(60, 60)] * 500, [(np.random.default_rng(0), 500)])
    boxes = np.array([window.box for window in placed.windows])
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) / 3600
    assert boxes.min() >= 0
    assert boxes.max() <= 60
    assert 0.29 < areas.min() < 0.33
    assert 0.8 < areas.max() <= 0.9 + 1e-9


def naive_jitter(image: NDArray[np.uint8], colours: NDArray[np.float64]) -> NDArray[np.float64]:
    """One operation after the other in float64, the image (H, W, 3)."""
    brightness, contrast, saturation, hue = colours
    luma = np.array([0.299, 0.587, 0.114])
    pixels = image.astype(np.float64) * brightness
    pixels = (pixels - (pixels @ luma).mean()) * contrast + (pixels @ luma).mean()
    grey = (pixels @ luma)[..., None]
    pixels = grey + (pixels - grey) * saturation
    yiq = pixels @ np.array([luma, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]]).T
    chroma = (yiq[..., 1] + 1j * yiq[..., 2]) * np.exp(2j * np.pi * hue)
    turned = np.stack([yiq[..., 0], chroma.real, chroma.imag], axis=-1)
    return turned @ np.linalg.inv(np.array([luma, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])).T


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_colours_equal_the_separate_operations(seed: int) -> None:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    colours = rng.uniform([0.5, 0.5, 0.5, -0.5], [1.5, 1.5, 1.5, 0.5], (3, 4))
    changed = jitter_colours(torch.from_numpy(images).permute(0, 3, 1, 2), colours).permute(0, 2, 3, 1).numpy()
    expected = np.stack([naive_jitter(image, row) for image, row in zip(images, colours, strict=True)])
    assert np.abs(changed - expected.clip(0, 255)).max() < 0.51


def test_warping_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.integers(0, 256, (7, 3, 16, 16), dtype=np.uint8))
    chain = pipeline(16, {"rotate": 90})
    moves = chain.place([(16, 16)] * 7, [(rng, 7)]).moves
    assert moves is not None
    whole = warp(images, moves, None)
    monkeypatch.setattr("mvcore_data.transforms._WARPED_AT_ONCE", 2 * 16 * 16)
    assert torch.equal(warp(images, moves, None), whole)


def test_evaluation_draws_nothing() -> None:
    chain = pipeline(16, {"rotate": 90}, {"random_resized_crop": (0.1, 0.2)})
    assert chain.place([(16, 16)], None) == Placed([fit_window(16, 16, 16)])


@pytest.mark.parametrize(
    "wrong", [{}, {"rotate": 1, "flip": 0.5}, {"scale": (2, 1)}, {"random_resized_crop": (0, 1)}, {"rotat": 3}]
)
def test_a_wrong_transform_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Augment(**wrong)


@settings(max_examples=80, deadline=None)
@given(st.floats(-179.9, 180), st.floats(-89, 89), st.floats(0.5, 9))
def test_viewpoints_come_back_from_cameras(azimuth: float, elevation: float, distance: float) -> None:
    a, e = np.radians([azimuth, elevation])
    position = distance * np.array([np.cos(e) * np.sin(a), np.sin(e), np.cos(e) * np.cos(a)])
    found = azimuth_elevation(look_at(position))
    assert float(found[0]) == pytest.approx(azimuth, abs=1e-6)
    assert float(found[1]) == pytest.approx(elevation, abs=1e-6)


def test_viewpoints_at_the_seams() -> None:
    azimuth, elevation = azimuth_elevation(
        np.stack([look_at(np.array(p)) for p in [(0.0, 0, -2), (0, 3.0, 0), (2.0, 0, 0)]])
    )
    assert azimuth.tolist() == pytest.approx([180, 0, 90])
    assert elevation.tolist() == pytest.approx([0, 90, 0])


def test_ranges_wrap_round_the_circle() -> None:
    angles = [-180.0, -171, -169, 0, 20, 21, 175, 180]
    assert within(angles, [(170, -170)]).tolist() == [True, True, False, False, False, False, True, True]
    assert within(angles, [(170, 190)]).tolist() == within(angles, [(170, -170)]).tolist()
    assert within(angles, [(-5, 20)]).tolist() == [False, False, False, True, True, False, False, False]
    assert within(angles, [(0, 0), (21, 21)]).tolist() == [False, False, False, True, False, True, False, False]
    assert within(angles, [(-180, 180)]).all()
