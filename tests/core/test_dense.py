"""Where a map's cells lie, and that `Model.dense` and `Model.keypoints` agree there whatever was resized or cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import mvcore
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mvcore.api import ConfigError, DenseGrid, load_encoder, sample_dense
from mvcore.fitting import Fitting
from mvcore.model import Model
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

RANDOM = np.random.default_rng(3)


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vit() -> Model:
    return load_encoder("core.timm", {"model": "test_vit", "image_size": 64})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """An open_clip model, which takes squares of one size."""
    text = {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    vision = {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
    path = tmp_path_factory.mktemp("clip") / "clip.json"
    path.write_text(f'{{"embed_dim": 16, "vision_cfg": {vision}, "text_cfg": {text}}}'.replace("'", '"'))
    return load_encoder("core.open_clip", {"model": str(path)})


# -- grids and sampling ------------------------------------------------------------------------------------------------


def naive(dense: Tensor, points: Tensor, grid: DenseGrid) -> Tensor:
    """One point after the other, in float64: the weighted mean of the four cells around it, clamped to the map."""
    found = torch.zeros(*points.shape[:2], dense.shape[1], dtype=torch.float64)
    for b in range(points.shape[0]):
        for p in range(points.shape[1]):
            column = (float(points[b, p, 0]) - grid.first[0]) / grid.step[0]
            row = (float(points[b, p, 1]) - grid.first[1]) / grid.step[1]
            column, row = min(max(column, 0), grid.columns - 1), min(max(row, 0), grid.rows - 1)
            left, top = math.floor(column), math.floor(row)
            for y, along_y in ((top, 1 - (row - top)), (top + 1, row - top)):
                for x, along_x in ((left, 1 - (column - left)), (left + 1, column - left)):
                    cell = dense[b, :, min(y, grid.rows - 1), min(x, grid.columns - 1)].double()
                    found[b, p] += along_x * along_y * cell
    return found


@settings(deadline=None, max_examples=40)
@given(
    sides=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    patch=st.sampled_from([8, 14, 16]),
    finer=st.booleans(),
    seed=st.integers(0, 2**16),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_samples_are_bilinear_between_centres(
    sides: tuple[int, int], patch: int, finer: bool, seed: int, dtype: torch.dtype
) -> None:
    """B1, B2: at any patch and stride, inside, at the border and beyond it."""
    width, height = (side * patch for side in sides)
    grid = DenseGrid.of_patches(width, height, patch, patch // 2 if finer else patch)
    generator = torch.Generator().manual_seed(seed)
    dense = torch.randn(2, 3, grid.rows, grid.columns, generator=generator, dtype=dtype)
    points = (1.4 * torch.rand(2, 7, 2, generator=generator) - 0.2) * torch.tensor([width, height])
    found = sample_dense(dense, points, grid)
    torch.testing.assert_close(found.double(), naive(dense, points, grid), rtol=1e-5, atol=1e-5)
    if not finer:
        places = 2 * points / torch.tensor([width, height]) - 1
        expected = F.grid_sample(dense, places[:, None].to(dtype), align_corners=False, padding_mode="border")
        torch.testing.assert_close(found, expected[:, :, 0].transpose(1, 2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stride", [16, 8])
def test_the_centre_of_a_cell_gives_that_cell(stride: int) -> None:
    """B2, with the patches of 16 pixels that the authors' code samples in the wrong place: x 256 of 512 is 31.5."""
    grid = DenseGrid.of_patches(1024, 512, 16, stride)
    columns = torch.arange(grid.columns, dtype=torch.float64).expand(grid.rows, -1)
    rows = torch.arange(grid.rows, dtype=torch.float64)[:, None].expand(-1, grid.columns)
    ramp = torch.stack([columns, rows])[None]
    centres = grid.centres(dtype=torch.float64).flatten(0, 1)[None]
    torch.testing.assert_close(sample_dense(ramp, centres, grid)[0], ramp[0].flatten(1).T)
    middle = sample_dense(ramp, torch.tensor([[[256, 256]]]), grid)
    assert middle[0, 0].tolist() == [(256 - 8) / stride] * 2
    assert sample_dense(ramp, torch.tensor([[[-90, 2000]]]), grid)[0, 0].tolist() == [0, grid.rows - 1]


def test_a_gradient_reaches_the_map() -> None:
    grid = DenseGrid.tiling(3, 4, 40, 30)
    dense = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    points = torch.tensor([[[3.0, 4.0], [21.5, 17.0], [39.0, 1.0]]])
    assert torch.autograd.gradcheck(lambda values: sample_dense(values, points, grid), dense)
    ours = torch.autograd.grad(sample_dense(dense, points, grid).square().sum(), dense)[0]
    theirs = torch.autograd.grad(naive(dense, points, grid).square().sum(), dense)[0]
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("dense", "points"),
    [((1, 2, 3, 4), (2, 5, 2)), ((1, 2, 3, 4), (1, 5, 3)), ((2, 3, 4), (2, 5, 2)), ((1, 2, 4, 4), (1, 5, 2))],
)
def test_shapes_that_do_not_fit_are_said(dense: tuple[int, ...], points: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(\d, \d"):
        sample_dense(torch.zeros(dense), torch.zeros(points), DenseGrid.tiling(3, 4, 40, 30))


# -- what is resized and cut -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(height=st.integers(5, 70), width=st.integers(5, 70), size=st.integers(4, 40))
def test_an_image_is_fitted_as_torchvision_does_it(height: int, width: int, size: int) -> None:
    pixels = torch.from_numpy(picture(height, width)).permute(2, 0, 1)
    expected = pixels
    if (height, width) != (size, size):
        expected = v2.functional.resize(pixels, [size], v2.InterpolationMode.BICUBIC, antialias=True)
        expected = v2.functional.center_crop(expected, [size, size])
    assert torch.equal(Fitting(width, height, size).apply(pixels), expected)


@pytest.mark.parametrize(("height", "width"), [(96, 96), (120, 90), (90, 131), (32, 32), (16, 20)])
def test_a_dot_is_where_its_point_goes(height: int, width: int) -> None:
    """The centroid of a bright blob, through the pixels, and its middle, through the grid."""
    x, y = 0.55 * width, 0.4 * height
    rows, columns = np.mgrid[:height, :width] + 0.5
    blob = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (0.01 * width * height))
    image = torch.from_numpy(np.round(255 * blob).astype(np.uint8)).expand(3, -1, -1)
    fitting = Fitting(width, height, 32)
    fitted = fitting.apply(image)[0].double()
    centres = torch.arange(32) + 0.5
    found = torch.stack([(fitted.sum(0) * centres).sum(), (fitted.sum(1) * centres).sum()]) / fitted.sum()
    cells = fitting.grid(DenseGrid.tiling(32, 32, 32, 32)).cells(torch.tensor([x, y]))
    torch.testing.assert_close(found, cells.double() + 0.5, rtol=0, atol=0.1)


# -- maps and points of a model ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (97, 61), (300, 300), (40, 140)])
def test_a_map_and_a_point_agree_at_the_same_pixel(vit: Model, height: int, width: int) -> None:
    """B3: any pixel of any image, portrait, landscape and odd."""
    images = np.stack([picture(height, width), picture(height, width, 1)])
    every = vit.dense(images, per_pixel=True)
    assert every.shape == (2, 64, height, width)
    columns, rows = RANDOM.integers(0, width, 20), RANDOM.integers(0, height, 20)
    points = np.stack([columns, rows], axis=1) + 0.5
    found = vit.keypoints(images, [points, points])
    assert found.shape == (2, 20, 64)
    torch.testing.assert_close(found, every[:, :, rows, columns].transpose(1, 2), rtol=0, atol=1e-5)
    grid = vit.dense_grid(width, height)
    sampled = sample_dense(vit.dense(images), torch.from_numpy(points).expand(2, -1, -1), grid)
    torch.testing.assert_close(found, sampled, rtol=0, atol=1e-5)


@pytest.mark.parametrize("settings_", [{}, {"stride": 8}, {"patches": 9}, {"stride": 4, "layer": 1}])
def test_a_cells_own_point_gives_the_cell(vit: Model, settings_: dict[str, Any]) -> None:
    image = picture(80, 112)
    with vit.backbone.dense_at(**settings_):
        dense, grid = vit.dense(image), vit.dense_grid(112, 80)
        found = vit.keypoints(image, grid.centres().flatten(0, 1))
    assert dense.shape[2:] == (grid.rows, grid.columns)
    torch.testing.assert_close(found[0], dense[0].flatten(1).T, rtol=0, atol=1e-4)


def test_a_model_of_squares_sees_the_middle_one(clip: Model) -> None:
    """Its map is that of the cut, and points are the image's own."""
    image = picture(40, 90)
    cut = v2.functional.center_crop(
        v2.functional.resize(
            torch.from_numpy(image).permute(2, 0, 1), [32], v2.InterpolationMode.BICUBIC, antialias=True
        ),
        [32, 32],
    )
    dense = clip.dense(image)
    torch.testing.assert_close(dense, clip.dense(cut.permute(1, 2, 0).numpy()))
    middle = clip.keypoints(image, [[45, 20]])
    torch.testing.assert_close(middle, dense[:, :, 1:3, 1:3].mean((2, 3))[:, None], rtol=0, atol=1e-5)
    torch.testing.assert_close(clip.keypoints(image, [[30, 20]]), dense[:, :, 1:3, 0:1].mean(2).transpose(1, 2))
    with pytest.raises(
        ConfigError, match=r"point 1 of image 0, \(20, 20\), lies outside .* x 25 to 65, y 0 to 40; .*pad"
    ):
        clip.keypoints(image, [[45, 20], [20, 20]])
    with pytest.raises(ConfigError, match="point 0 of image 0"):
        clip.dense(image, per_pixel=True)
    assert clip.dense(picture(40, 40), per_pixel=True).shape == (1, 32, 40, 40)


def test_points_of_any_real_type_and_number(vit: Model) -> None:
    """B4."""
    image = picture(64, 80)
    whole = [[3, 4], [70, 60]]
    expected = vit.keypoints(image, torch.tensor(whole, dtype=torch.float32))
    for points in (
        whole,
        np.array(whole),
        np.array(whole, np.float64),
        torch.tensor(whole),
        np.array([whole], np.float32),
    ):
        assert torch.equal(vit.keypoints(image, points), expected)
    assert vit.keypoints(image, np.zeros((0, 2))).shape == (1, 0, 64)
    several = [image, picture(97, 61), picture(64, 80, 2)]
    points = np.full((3, 4, 2), 30.25)
    together = vit.keypoints(several, points)
    for row, one in enumerate(several):
        torch.testing.assert_close(together[row : row + 1], vit.keypoints(one, points[0]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ([[-0.5, 3]], r"point 0 of image 0, \(-0.5, 3\), lies outside"),
        ([[3, 64.5]], "lies outside of what the model sees of the 80x64 pixels"),
        ([[float("nan"), 3]], "points must be finite"),
        ([[1, 2, 3]], r"points must be \(N, P, 2\) for 1 images, not \(1, 1, 3\)"),
        ([[[1, 2]], [[1, 2]]], r"for 1 images, not \(2, 1, 2\)"),
        ([[[1, 2]], [[1, 2], [3, 4]]], "points must be"),
        ("ab", "points must be"),
        ([], "not none"),
    ],
)
def test_points_that_are_none_are_said_in_one_line(vit: Model, points: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        vit.keypoints(picture(64, 80), points)
    assert "\n" not in str(caught.value)


def test_what_gives_no_map_is_said(vit: Model) -> None:
    with pytest.raises(ConfigError, match="no image given"):
        vit.dense([])
    with pytest.raises(ConfigError, match="no image given"):
        vit.dense([], per_pixel=True)
    with pytest.raises(ConfigError, match="no image given"):
        vit.keypoints([], np.zeros((0, 1, 2)))
    with pytest.raises(ConfigError, match="the maps differ in size"):
        vit.dense([picture(64, 64), picture(64, 80)])
    assert vit.dense([picture(64, 64), picture(200, 200)]).shape == (2, 64, 4, 4)
    with pytest.raises(ConfigError, match="images of 9x40 pixels are smaller than a patch of test_vit, 16x16"):
        vit.dense(picture(9, 40))
    with pytest.raises(ConfigError, match="a map of pixels needs images of one size"):
        vit.dense([picture(64, 64), picture(200, 200)], per_pixel=True)


def test_the_blocks_of_a_run_are_left_as_they_were(vit: Model) -> None:
    state = torch.random.get_rng_state()
    vit.keypoints(picture(64, 64), [[1, 1]])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not vit.pipeline.training


def test_a_resnet_has_no_places_for_its_cells(tmp_path: Path) -> None:
    text = '{"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}'
    vision = '{"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}'
    path = tmp_path / "rn.json"
    path.write_text(f'{{"embed_dim": 16, "vision_cfg": {vision}, "text_cfg": {text}}}')
    model = mvcore.load(str(path))
    assert model.dense(picture(64, 64)).shape == (1, 256, 2, 2)
    with pytest.raises(ConfigError, match="the places of the cells of its map are not known"):
        model.keypoints(picture(64, 64), [[3, 3]])
