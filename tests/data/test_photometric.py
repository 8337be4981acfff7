"""Photometric transforms against plain loops in float64, the distributions that they claim, and OpenCV."""

from __future__ import annotations

import colorsys
import math
from collections import Counter
from pathlib import Path
from statistics import NormalDist
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.types import ViewBatch
from mvcore_data import ViewStoreWriter
from mvcore_data.augmentation import Change
from mvcore_data.clahe import equalise, equalise_lightness, from_responses, to_responses
from mvcore_data.options import Augment, ImageOptions
from mvcore_data.photometric import (
    add_iso_noise,
    add_noise,
    adjust_brightness_contrast,
    blur,
    clahe,
    turn_and_lighten,
)
from mvcore_data.pipeline import Pipeline
from mvcore_data.rigs import make_rig
from mvcore_data.tracks import Tracks
from mvcore_data.views import Views
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

NAMES = ("blur", "iso_noise", "noise", "clahe", "brightness_contrast")
SEEDS = st.integers(0, 2**32)


def random_images(seed: int, count: int, height: int, width: int) -> Tensor:
    """(count, 3, height, width) of all levels, some of them grey, dark or plain."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    images[:, :, : height // 3] = images[:, :1, : height // 3]
    images[:, :, :, : width // 4] //= 16
    images[0, :, -2:] = 77
    return torch.from_numpy(images)


def drawn(count: int, side: int, *augment: dict[str, Any], seed: int = 0) -> tuple[Change, ...]:
    chain = Pipeline(side, ImageOptions(path="", augment=tuple(Augment(**one) for one in augment)))
    return chain.place([(side, side)] * count, [(np.random.default_rng(seed), count)]).changes


def changed(images: Tensor, *augment: dict[str, Any], seed: int = 0) -> Tensor:
    images = images.clone()
    for change in drawn(len(images), images.shape[-1], *augment, seed=seed):
        change.to(images)
    return images


# Against plain loops


def mirrored(at: int, side: int) -> int:
    return -at if at < 0 else 2 * (side - 1) - at if at >= side else at


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.sampled_from([1, 3, 5, 7, 9, 13]))
def test_blur_is_the_weighted_sum_of_neighbours(seed: int, size: int) -> None:
    images = random_images(seed, 2, 9, 12)
    found = blur(images, np.array([[size], [3]]))
    for image, side, result in zip(images.numpy(), (size, 3), found.numpy(), strict=True):
        weights = cv2.getGaussianKernel(side, 0).ravel()
        for channel in range(3):
            for y in range(9):
                for x in range(12):
                    total = 0.0
                    for j in range(side):
                        for i in range(side):
                            row, column = mirrored(y + j - side // 2, 9), mirrored(x + i - side // 2, 12)
                            total += weights[j] * weights[i] * float(image[channel, row, column])
                    assert abs(result[channel, y, x] - total) <= 0.5 + 1e-3


@pytest.mark.parametrize("size", [3, 5, 7, 9])
def test_small_blurs_are_those_of_opencv(size: int) -> None:
    images = random_images(0, 3, 33, 40)
    found = blur(images, np.full((3, 1), size)).permute(0, 2, 3, 1).numpy()
    for image, result in zip(images.permute(0, 2, 3, 1).numpy(), found, strict=True):
        assert np.array_equal(result, cv2.GaussianBlur(np.ascontiguousarray(image), (size, size), 0))


@settings(max_examples=20, deadline=None)
@given(SEEDS)
def test_hue_and_lightness_are_those_of_colorsys(seed: int) -> None:
    image = random_images(seed, 1, 6, 8)[0]
    rng = np.random.default_rng(seed)
    turns = rng.normal(0, 0.4, (6, 8)).astype(np.float32)
    grain = rng.uniform(0, 0.6, (6, 8)).astype(np.float32)
    found = turn_and_lighten(image, torch.from_numpy(turns), torch.from_numpy(grain)).numpy()
    for y in range(6):
        for x in range(8):
            hue, light, saturation = colorsys.rgb_to_hls(*(float(v) / 255 for v in image[:, y, x]))
            light += float(grain[y, x]) * (1 - light)
            wanted = 255 * np.array(colorsys.hls_to_rgb((hue + float(turns[y, x])) % 1, light, saturation))
            assert np.abs(found[:, y, x] - wanted).max() <= 0.5 + 1e-2


def naive_equalised(levels: NDArray[np.uint8], limit: float, tiles: int) -> NDArray[np.float64]:
    """Contrast-limited adaptive histogram equalisation before rounding, tile by tile and pixel by pixel."""
    height, width = levels.shape
    tall, wide = math.ceil(height / tiles), math.ceil(width / tiles)
    tables = np.zeros((tiles, tiles, 256))
    for row in range(tiles):
        for column in range(tiles):
            counts = [0] * 256
            for y in range(row * tall, (row + 1) * tall):
                for x in range(column * wide, (column + 1) * wide):
                    counts[levels[mirrored(y, height), mirrored(x, width)]] += 1
            most = max(1, int(limit * tall * wide / 256))
            excess = sum(max(0, count - most) for count in counts)
            counts = [min(count, most) + excess // 256 for count in counts]
            rest = excess % 256
            level = 0
            while rest > 0 and level < 256:
                counts[level] += 1
                level, rest = level + max(256 // (excess % 256), 1), rest - 1
            # As OpenCV, which multiplies in single precision: halves go where that takes them.
            tables[row, column] = np.rint(np.cumsum(counts).astype(np.float32) * np.float32(255 / (tall * wide)))
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            down, across = y / tall - 0.5, x / wide - 0.5
            for row, near in ((math.floor(down), 1 - down % 1), (math.floor(down) + 1, down % 1)):
                for column, close in ((math.floor(across), 1 - across % 1), (math.floor(across) + 1, across % 1)):
                    table = tables[min(max(row, 0), tiles - 1), min(max(column, 0), tiles - 1)]
                    result[y, x] += near * close * table[levels[y, x]]
    return result


@settings(max_examples=10, deadline=None)
@given(SEEDS, st.floats(1, 60), st.sampled_from([(1, 16, 16), (2, 16, 21), (4, 18, 30), (3, 24, 25)]))
def test_equalisation_is_that_of_plain_loops(seed: int, limit: float, shape: tuple[int, int, int]) -> None:
    tiles, height, width = shape
    levels = np.random.default_rng(seed).normal(90, 40, (height, width)).clip(0, 255).astype(np.uint8)
    assert np.abs(equalise(levels, limit, tiles) - naive_equalised(levels, limit, tiles)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize("limit", [1.0, 2.5, 4.0, 40.0])
@pytest.mark.parametrize("shape", [(64, 64), (72, 256), (77, 93)])
def test_equalisation_is_that_of_opencv(limit: float, shape: tuple[int, int]) -> None:
    levels = np.random.default_rng(0).normal(100, 30, shape).clip(0, 255).astype(np.uint8)
    assert np.array_equal(equalise(levels, limit, 8), cv2.createCLAHE(limit, (8, 8)).apply(levels))


XYZ = np.array([[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]])


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_lightness_moves_as_in_cie_1976(seed: int) -> None:
    image = random_images(seed, 1, 9, 9)[0].numpy()
    responses = to_responses(image)
    gains = np.random.default_rng(seed).uniform(-0.3, 0.3, (9, 9)).astype(np.float32)
    found = from_responses(responses + gains)
    for y in range(9):
        for x in range(9):
            level = image[:, y, x].astype(np.float64) / 255
            light = np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)
            xyz = XYZ @ light / XYZ.sum(axis=1)
            response = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
            assert np.abs(responses[:, y, x] - response).max() < 0.1 / 255
            response += gains[y, x]
            xyz = np.where(response > 6 / 29, response**3, (116 * response - 16) * 27 / 24389) * XYZ.sum(axis=1)
            light = np.linalg.solve(XYZ, xyz).clip(0, 1)
            level = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
            assert np.abs(found[:, y, x] - 255 * level).max() < 0.5 + 0.4


def test_only_lightness_is_equalised() -> None:
    image = random_images(0, 1, 24, 20)[0].numpy()
    responses = to_responses(image)
    lightness = 1.16 * responses[1] - 0.16
    wanted = equalise((lightness * 255 + 0.5).astype(np.uint8), 4.0, 2) / np.float32(255)
    opponents = responses[[0, 2]] - responses[1]
    found = equalise_lightness(image, 4.0, 2)
    equalised = to_responses(found)
    shown = (found.min(0) > 8) & (found.max(0) < 250)  # no channel was clipped
    assert shown.mean() > 0.3
    assert np.abs(1.16 * equalised[1] - 0.16 - wanted)[shown].max() < 1 / 255
    assert np.abs(equalised[[0, 2]] - equalised[1] - opponents)[:, shown].max() < 2 / 255


def test_contrast_limiting_looks_as_opencv_makes_it() -> None:
    """Its L*a*b* of 8 bits is coarser: the same to a level and a half on average, and no lighter or darker."""
    y, x = np.mgrid[:128, :128] / 128
    image = np.stack([90 + 60 * np.sin(9 * x), 110 + 50 * np.cos(7 * y), 80 + 70 * x * y], axis=-1).astype(np.uint8)
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2Lab)
    colours[..., 0] = cv2.createCLAHE(3.0, (8, 8)).apply(colours[..., 0])
    wanted = cv2.cvtColor(colours, cv2.COLOR_Lab2RGB).astype(int)
    found = clahe(torch.from_numpy(image).permute(2, 0, 1)[None], np.array([[3.0]]), 8)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - wanted).mean() < 1.5
    assert abs((found - wanted).mean()) < 0.5
    assert np.abs(image.astype(int) - wanted).mean() > 10


def test_equalising_a_grey_image_is_equalising_its_lightness() -> None:
    ramp = np.broadcast_to(np.linspace(60, 120, 32).astype(np.uint8), (3, 32, 32))
    found = equalise_lightness(ramp, 256.0, 1)
    assert np.abs(found.astype(int) - found[:1]).max() <= 1
    assert found.min() < 20
    assert found.max() > 250


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.floats(0, 2), st.floats(-1, 1))
def test_brightness_and_contrast_are_a_line(seed: int, factor: float, part: float) -> None:
    images = random_images(seed, 2, 5, 7)
    found = adjust_brightness_contrast(images, np.array([[factor, part], [1.0, 0.0]])).numpy()
    wanted = np.clip(images[0].numpy().astype(np.float64) * factor + 255 * part, 0, 255)
    assert np.abs(found[0] - wanted).max() <= 0.5 + 1e-3
    assert np.array_equal(found[1], images[1].numpy())


# The noise's distributions


def distance(samples: NDArray, cumulative: Any) -> float:
    """Kolmogorov's distance of whole numbers to a cumulative distribution."""
    levels, counts = np.unique(samples, return_counts=True)
    empirical = np.cumsum(counts) / samples.size
    return max(abs(e - cumulative(level)) for level, e in zip(levels.tolist(), empirical, strict=True))


def test_noise_is_normal_and_of_each_pixel_by_itself() -> None:
    grey = torch.full((2, 3, 96, 96), 128, dtype=torch.uint8)
    noise = add_noise(grey, np.array([[7.0, 0.25], [7.0, 0.75]])).numpy().astype(int) - 128
    normal = NormalDist(0, 7)
    assert distance(noise[0], lambda level: normal.cdf(level + 0.5)) < 1.7 / math.sqrt(noise[0].size)
    fields = [noise[0, 0], noise[0, 1], noise[0, 2], noise[1, 0]]
    fields += [np.roll(noise[0, 0], shift, axis) for shift in (1, 2) for axis in (0, 1)]
    correlation = np.corrcoef([field.ravel() for field in fields]) - np.eye(len(fields))
    assert np.abs(correlation).max() < 4 / 96


def test_lightness_noise_is_poisson_noise_of_the_images_deviation() -> None:
    """Half black, half white: the lightness deviates by half of its range, and black gets the noise whole."""
    image = torch.zeros(1, 3, 128, 128, dtype=torch.uint8)
    image[..., 64:] = 255
    found = add_iso_noise(image, np.array([[0.0, 0.2, 0.5]]))[0].numpy()
    assert (found[..., 64:] == 255).all()
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    mean = 0.5 * 0.2 * 255
    mass = [math.exp(-mean + k * math.log(mean) - math.lgamma(k + 1)) for k in range(256)]
    black = found[0, :, :64]
    assert distance(black, lambda level: sum(mass[: level + 1])) < 1.7 / math.sqrt(black.size)


def test_hue_noise_is_normal_and_keeps_plain_lightness() -> None:
    """A plain colour's lightness does not deviate, so that its hue alone is changed."""
    image = torch.tensor([200, 60, 60], dtype=torch.uint8)[None, :, None, None].expand(1, 3, 96, 96)
    found = add_iso_noise(image, np.array([[0.05, 0.5, 0.5]]))[0].flatten(1).T.numpy() / 255
    tones = np.array([colorsys.rgb_to_hls(*pixel) for pixel in found.tolist()])
    assert np.abs(tones[:, 1] - 260 / 510).max() < 1 / 255
    turns = (tones[:, 0] + 0.5) % 1 - 0.5
    assert turns.std() == pytest.approx(0.025, rel=0.05)
    assert abs(turns.mean()) < 4 * 0.025 / 96
    shares = np.searchsorted(np.sort(turns), [NormalDist(0, 0.025).inv_cdf(p) for p in (0.1, 0.3, 0.7, 0.9)]) / 96**2
    assert np.abs(shares - [0.1, 0.3, 0.7, 0.9]).max() < 0.05


def test_a_grey_image_of_one_level_gets_no_sensor_noise() -> None:
    image = torch.full((1, 3, 16, 16), 90, dtype=torch.uint8)
    assert torch.equal(add_iso_noise(image, np.array([[0.05, 0.5, 0.5]])), image)


# What is drawn


@pytest.mark.parametrize(
    ("augment", "limits"),
    [
        ({"iso_noise": {}}, [(0.01, 0.05), (0.1, 0.5), (0, 1)]),
        ({"noise": {}}, [(math.sqrt(10), math.sqrt(50)), (0, 1)]),
        ({"clahe": {}}, [(1, 4)]),
        ({"brightness_contrast": {}}, [(0.8, 1.2), (-0.2, 0.2)]),
        ({"noise": {"variance": [5, 5]}}, [(math.sqrt(5), math.sqrt(5)), (0, 1)]),
    ],
)
def test_half_of_the_views_are_changed_over_the_whole_range(
    augment: dict[str, Any], limits: list[tuple[float, float]]
) -> None:
    (change,) = drawn(4000, 32, augment)
    assert len(change.rows) / 4000 == pytest.approx(0.5, abs=0.03)
    assert change.values.shape == (len(change.rows), len(limits))
    for column, (low, high) in zip(change.values.T, limits, strict=True):
        assert column.min() == pytest.approx(low, abs=0.01 * (high - low) + 1e-9)
        assert column.max() == pytest.approx(high, abs=0.01 * (high - low) + 1e-9)
        assert low <= column.min()
        assert column.max() <= high
    # Each is drawn by itself, and so is whether the view is changed at all.
    spread = change.values[:, np.ptp(change.values, axis=0) > 0]
    correlation = np.atleast_2d(np.corrcoef(spread, rowvar=False)) - np.eye(spread.shape[1])
    assert np.abs(correlation).max() < 0.1


@pytest.mark.parametrize(
    ("kernel", "shares"), [((1, 3), {1: 1 / 3, 3: 2 / 3}), ((3, 7), {3: 0.2, 5: 0.4, 7: 0.4}), ((5, 5), {5: 1})]
)
def test_kernels_are_as_likely_as_in_albumentations(kernel: tuple[int, int], shares: dict[int, float]) -> None:
    (change,) = drawn(6000, 32, {"blur": {"kernel": kernel, "probability": 1.0}})
    found = Counter(change.values[:, 0].astype(int).tolist())
    assert {size: count / 6000 for size, count in found.items()} == pytest.approx(shares, abs=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_probability_nought_changes_nothing_and_one_each_view(name: str) -> None:
    images = random_images(0, 12, 16, 16)
    assert torch.equal(changed(images, {name: {"probability": 0.0}}), images)
    certain = changed(images, {name: {"probability": 1.0}})
    assert (certain != images).flatten(1).any(1).all()
    some = changed(images, {name: {}})
    assert 0 < (some != images).flatten(1).any(1).sum() < 12


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_view_is_changed_by_itself(name: str, layout: torch.memory_format) -> None:
    """Neither the batch around it nor how the batch lies in memory makes a difference."""
    images = random_images(0, 9, 21, 21).contiguous(memory_format=layout)
    (change,) = drawn(9, 21, {name: {}})
    together = images.clone()
    change.to(together)
    for row, values in zip(change.rows, change.values, strict=True):
        alone = images[row : row + 1].clone(memory_format=torch.contiguous_format)
        Change(change.apply, np.array([0]), values[None]).to(alone)
        assert torch.equal(alone[0], together[row])


def test_changes_come_in_the_order_of_the_list() -> None:
    images = random_images(0, 2, 16, 16)
    lighter = {"brightness_contrast": {"brightness": 1.0, "probability": 1.0}}
    blurred = {"blur": {"kernel": [7, 7], "probability": 1.0}}
    for order in ((lighter, blurred), (blurred, lighter)):
        by_hand = images
        for change in drawn(2, 16, *order):
            by_hand = change.apply(by_hand, change.values)
        assert torch.equal(changed(images, *order), by_hand)
    light, smooth = drawn(2, 16, lighter, blurred)
    assert not torch.equal(
        smooth.apply(light.apply(images, light.values), smooth.values),
        light.apply(smooth.apply(images, smooth.values), light.values),
    )


@pytest.mark.parametrize("side", [8, 9, 31])
def test_the_smallest_images_can_be_changed(side: int) -> None:
    images = random_images(0, 3, side, side)
    augment = [{name: {"probability": 1.0}} for name in NAMES if name not in ("blur", "clahe")]
    augment += [{"blur": {"kernel": [15, 15], "probability": 1.0}}, {"clahe": {"tiles": 32, "probability": 1.0}}]
    assert changed(images, *augment).shape == images.shape


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"blur": {"kernel": [3, 6]}}, "odd"),
        ({"blur": {"kernel": [7, 3]}}, "lowest, highest"),
        ({"blur": {"kernel": [3, 17]}}, "less than or equal to 15"),
        ({"blur": {"probability": 1.5}}, "less than or equal to 1"),
        ({"iso_noise": {"intensity": [0.5, 0.1]}}, "lowest, highest"),
        ({"iso_noise": {"colour_shift": [-0.1, 0.1]}}, "greater than or equal to 0"),
        ({"noise": {"variance": [50, 10]}}, "lowest, highest"),
        ({"noise": {"variance": [0, float("inf")]}}, "less than or equal to 10000"),
        ({"noise": {"variance": [float("nan"), 1.0]}}, "less than or equal to 10000"),
        ({"clahe": {"clip_limit": [0.5, 4]}}, "greater than or equal to 1"),
        ({"clahe": {"tiles": 0}}, "greater than or equal to 1"),
        ({"brightness_contrast": {"contrast": -0.1}}, "greater than or equal to 0"),
        ({"noise": {"sigma": 3}}, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_option_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as error:
        Augment(**wrong)
    assert error.value.error_count() == 1


# What stays as it was


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two objects of three views: noisy discs before white, with cameras, depth, masks and tracks."""
    path = tmp_path_factory.mktemp("photometric") / "store"
    rng = np.random.default_rng(0)
    intrinsics, extrinsics = make_rig("ring", 3).cameras(24)
    y, x = np.mgrid[:24, :24] + 0.5
    inside = (x - 12) ** 2 + (y - 12) ** 2 < 64
    tracks = Tracks(
        rng.uniform(0, 24, (5, 2)).astype(np.float32), np.arange(5), rng.normal(size=(5, 3)).astype(np.float32)
    )
    with ViewStoreWriter(path) as writer:
        for number in range(2):
            pixels = np.where(inside[..., None], rng.integers(0, 256, (3, 24, 24, 3)), 255).astype(np.uint8)
            depth = np.where(inside, 2.0, 0).astype(np.float32)
            writer.add_object(
                f"disc-{number}",
                pixels,
                cameras=list(zip(intrinsics, extrinsics, strict=True)),
                depth=[depth, depth, None],
                masks=[inside] * 3,
                tracks=[tracks] * 3,
            )
    return path


ALL = [{name: {"probability": 1.0}} for name in NAMES]


def test_only_pixels_are_changed(store: Path) -> None:
    source = Views(path=str(store), depth=True, masks=True, tracks=True, augment=ALL)
    plain, noisy = (source.load(1, source.views_of(1), rng) for rng in (None, np.random.default_rng(0)))
    assert (pixels(plain) != pixels(noisy)).any()
    one, other = geometry(plain), geometry(noisy)
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


def geometry(batch: ViewBatch) -> dict[str, Tensor]:
    """All that a batch says of where things are."""
    assert batch.cameras is not None
    assert batch.tracks is not None
    parts: dict[str, Any] = {name: getattr(batch, name) for name in ("depth", "depth_valid", "masks", "camera_valid")}
    parts |= {name: getattr(batch.cameras, name) for name in ("intrinsics", "world_to_camera")}
    return parts | {name: getattr(batch.tracks, name) for name in ("points", "ids", "xyz")}


@pytest.mark.parametrize("told", [{"masks": True}, {"depth": True}, {"masks": True, "depth": True}])
def test_the_background_is_restored_behind_the_object(store: Path, told: dict[str, bool]) -> None:
    options = {"path": str(store), "background": [10, 20, 30], "augment": [{"shift_scale_rotate": {}}, *ALL], **told}
    noisy, restored = (Views(**options, restore_background=yes) for yes in (False, True))
    views = noisy.views_of(0)
    before, after = (source.load(0, views, np.random.default_rng(4)) for source in (noisy, restored))
    old, new = pixels(before), pixels(after)
    if after.masks is not None:
        shown = after.masks
    else:
        assert after.depth is not None
        shown = after.depth > 0
        assert not shown[2].any()
        shown[2] = True  # no depth, and no word on where the object is
    behind = torch.tensor([10, 20, 30])
    assert (new[~shown] == behind).all()
    assert torch.equal(new[shown], old[shown])
    assert (old[~shown] != behind).any()
    assert torch.equal(pixels(restored.load(0, views, None)), pixels(noisy.load(0, views, None)))


def pixels(batch: ViewBatch) -> Tensor:
    assert batch.images is not None
    return batch.images.permute(0, 2, 3, 1)


@pytest.mark.parametrize("options", [{"masks": True}, {"background": [0, 0, 0]}])
def test_a_background_that_cannot_be_restored_is_refused(store: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="restore_background needs a background"):
        Views(path=str(store), restore_background=True, **options)
