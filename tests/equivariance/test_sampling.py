"""Acceptance B1, B2, B4, B5: descriptors of points, and the authors' resolution."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from mvcore_equivariance import released_resolution, sample_features
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate


def ramp(rows: int, columns: int) -> Tensor:
    """(1, 2, h, w) whose value at a cell is (column, row)."""
    i, j = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return torch.stack([j, i])[None]


def by_hand(dense: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bilinear samples one at a time, in float64."""
    _, width, rows, columns = dense.shape
    found = torch.zeros(*points.shape[:2], width, dtype=torch.float64)
    for b in range(len(points)):
        for p in range(points.shape[1]):
            x = min(max(float(points[b, p, 0]) * columns / image_size[0] - 0.5, 0.0), columns - 1.0)
            y = min(max(float(points[b, p, 1]) * rows / image_size[1] - 0.5, 0.0), rows - 1.0)
            left, top = min(math.floor(x), max(columns - 2, 0)), min(math.floor(y), max(rows - 2, 0))
            for i in {top, min(top + 1, rows - 1)}:
                for j in {left, min(left + 1, columns - 1)}:
                    found[b, p] += (1 - abs(x - j)) * (1 - abs(y - i)) * dense[b, :, i, j].double()
    return found


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    patch=st.sampled_from([8, 14, 16]),
    seed=st.integers(0, 10_000),
)
def test_b1_bilinear_with_half_pixel_centres(rows: int, columns: int, patch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = (columns * patch, rows * patch)
    dense = torch.randn(2, 3, rows, columns, generator=generator, dtype=torch.float64).requires_grad_()
    outside = torch.rand(2, 5, 2, generator=generator, dtype=torch.float64) * 1.6 - 0.3
    points = outside * torch.tensor(size)
    found = sample_features(dense, points, size)
    torch.testing.assert_close(found, by_hand(dense.detach(), points, size), atol=1e-12, rtol=0)
    grid = (2 * points / torch.tensor(size) - 1)[:, None]
    by_torch = grid_sample(dense, grid, align_corners=False, padding_mode="border")[:, :, 0].transpose(1, 2)
    torch.testing.assert_close(found, by_torch, atol=1e-12, rtol=0)
    weights = torch.randn(found.shape, generator=generator, dtype=torch.float64)
    mine, theirs = (torch.autograd.grad((out * weights).sum(), dense)[0] for out in (found, by_torch))
    torch.testing.assert_close(mine, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("patch", [14, 16])
def test_b2_a_token_is_sampled_at_its_centre_whatever_the_patch(patch: int) -> None:
    dense = ramp(5, 7)
    size = (7 * patch, 5 * patch)
    centres = torch.tensor([[(j + 0.5) * patch, (i + 0.5) * patch] for i in range(5) for j in range(7)])[None]
    expected = torch.tensor([[j, i] for i in range(5) for j in range(7)]).double()[None]
    torch.testing.assert_close(sample_features(dense, centres, size), expected, atol=1e-5, rtol=0)
    between = sample_features(dense, torch.tensor([[[3.25 * patch, 2.0 * patch]]]), size)
    torch.testing.assert_close(between, torch.tensor([[[2.75, 1.5]]]).double())
    outside = torch.tensor([[[-50.0, -50.0], [1000.0, 1000.0]]])
    assert torch.equal(sample_features(dense, outside, size), torch.tensor([[[0.0, 0.0], [6.0, 4.0]]]).double())


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_b1_overlapping_patches_are_sampled_at_their_centres(patch: int) -> None:
    stride = patch // 2
    dense = ramp(5, 9)  # of an image of 5 x 3 whole patches
    centres = torch.tensor([[[patch / 2 + j * stride, patch / 2 + i * stride] for i in range(5) for j in range(9)]])
    expected = torch.tensor([[j, i] for i in range(5) for j in range(9)]).double()[None]
    found = sample_features(dense, centres + (stride - patch) / 2, (9 * stride, 5 * stride))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_b2_the_middle_of_an_image_is_the_middle_of_its_map() -> None:
    # The released code for timm models reads column 45.2 here, because it takes their patches of 16 for 14.
    middle = sample_features(ramp(80, 80), torch.tensor([[[256.0, 256.0]]]), (512, 512))
    torch.testing.assert_close(middle, torch.full((1, 1, 2), 39.5).double())


@pytest.mark.parametrize("size", [(48, 32), (33, 47), (29, 64)])
def test_every_pixel_centre_gives_the_map_enlarged_to_the_image(size: tuple[int, int]) -> None:
    width, height = size
    dense = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    found = sample_features(dense, torch.stack([x, y], dim=-1).reshape(1, -1, 2), size)
    enlarged = interpolate(dense, (height, width), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, enlarged.flatten(2).transpose(1, 2), atol=1e-5, rtol=0)


def test_b4_points_of_any_real_type_and_none() -> None:
    dense = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    points = torch.tensor([[[3, 5], [9, 1]], [[0, 0], [15, 15]]])
    found = sample_features(dense, points, (16, 16))
    assert found.shape == (2, 2, 3)
    assert found.dtype == torch.float32
    for kind in (torch.float32, torch.float64, torch.float16, torch.uint8):
        assert torch.equal(sample_features(dense, points.to(kind), (16, 16)), found)
    for b in range(2):
        assert torch.equal(sample_features(dense[b : b + 1], points[b : b + 1], (16, 16))[0], found[b])
    none = sample_features(dense, torch.zeros(2, 0, 2), (16, 16))
    assert none.shape == (2, 0, 3)
    none.sum().backward()
    assert dense.grad is not None
    assert not dense.grad.any()


def test_half_precision_maps_are_sampled_in_float32() -> None:
    dense = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    points = torch.tensor([[[100.3, 411.9]]])
    found = sample_features(dense, points, (512, 512))
    assert found.dtype == torch.float32
    assert torch.equal(found, sample_features(dense.float(), points, (512, 512)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sample_features(dense, points, (512, 512)), found)


@pytest.mark.parametrize(
    ("dense", "points", "size", "text"),
    [
        (torch.zeros(3, 4, 4), torch.zeros(1, 2, 2), (8, 8), r"dense must be .* got \(3, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.int64), torch.zeros(1, 2, 2), (8, 8), "floating, got .*int64"),
        (torch.zeros(1, 3, 0, 4), torch.zeros(1, 2, 2), (8, 8), r"dense must be .* got \(1, 3, 0, 4\)"),
        (torch.zeros(2, 3, 4, 4), torch.zeros(1, 2, 2), (8, 8), r"with B = 2, got \(1, 2, 2\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 3), (8, 8), r"got \(1, 2, 3\)"),
        (torch.zeros(1, 3, 4, 4), torch.zeros(1, 2, 2), (8, 0), r"image_size must be .* got \(8, 0\)"),
    ],
)
def test_what_does_not_fit_is_named(dense: Tensor, points: Tensor, size: tuple[int, int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        sample_features(dense, points, size)


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ((512, 512), 14, (1120, 1120)),
        ((512, 512), 16, (1280, 1280)),
        ((640, 480), 14, (80 * 14, 60 * 14)),
        ((480, 640), 14, (60 * 14, 80 * 14)),
        ((1000, 300), 14, (80 * 14, 24 * 14)),
        ((64, 64), 14, (1120, 1120)),
    ],
)
def test_b5_the_authors_resolution(size: tuple[int, int], patch: int, expected: tuple[int, int]) -> None:
    assert released_resolution(size, patch) == expected


def test_b5_a_sliver_is_refused() -> None:
    with pytest.raises(ValueError, match="1000x12 has a side below 8 pixels"):
        released_resolution((1000, 12))
    with pytest.raises(ValueError, match="above 0"):
        released_resolution((0, 10))
