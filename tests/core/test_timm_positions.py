"""`positions: dinov2` of `core.timm`: tokens as the code of DINOv2 and of DINO-Tracker makes them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mvcore.api import ConfigError, ViewBatch
from mvcore.encoders.positions import dinov2_positions
from mvcore.encoders.timm import Timm
from torch import Tensor


def _load_small() -> Any:
    """Once in a process: timm knows a model by the module that registered it."""
    if "small_timm" not in sys.modules:
        spec = importlib.util.spec_from_file_location("small_timm", Path(__file__).with_name("small_timm.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules["small_timm"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["small_timm"])
    return sys.modules["small_timm"]


small_timm = _load_small()
NAMES, awake = small_timm.NAMES, small_timm.awake


def bicubic(values: np.ndarray, place: float) -> np.ndarray:
    """Values (M, ...) at a place between their centres, by the cubic kernel of a = -0.75; borders repeat."""
    first = int(np.floor(place))
    total = np.zeros_like(values[0])
    for k in range(first - 1, first + 3):
        x = abs(place - k)
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        total = total + (near if x <= 1 else far) * values[min(max(k, 0), len(values) - 1)]
    return total


def resampled(square: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """(rows * columns, C) of (M, M, C), one place after another."""
    if grid == square.shape[:2]:
        return torch.from_numpy(square.reshape(-1, square.shape[2]))
    found = np.zeros((*grid, square.shape[2]))
    for i in range(grid[0]):
        for j in range(grid[1]):
            row, column = ((k + 0.5) * len(square) / (n + 0.1) - 0.5 for k, n in zip((i, j), grid, strict=True))
            found[i, j] = bicubic(bicubic(square, row), column)
    return torch.from_numpy(found.reshape(-1, square.shape[2]))


@pytest.mark.parametrize("grid", [(7, 7), (11, 8), (4, 6), (37, 5)])
def test_positions_are_those_of_dinov2s_own_code(grid: tuple[int, int]) -> None:
    positions = torch.randn(1, 1 + 25, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = dinov2_positions(positions, grid)
    expected = resampled(positions[0, 1:].reshape(5, 5, 3).numpy(), grid)
    torch.testing.assert_close(found[0, 1:], expected, atol=1e-9, rtol=0)
    assert torch.equal(found[:, :1], positions[:, :1])
    assert dinov2_positions(positions, (5, 5)) is positions
    half = dinov2_positions(positions.half(), grid)  # a model in half precision resamples in float32, as theirs does
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), found, atol=4e-3, rtol=0)


def test_positions_of_something_else_are_refused() -> None:
    for shape, grid in (((1, 25, 3), (4, 4)), ((26, 3), (4, 4)), ((1, 26, 3), (0, 4)), ((1, 0, 3), (1, 1))):
        with pytest.raises(ValueError, match=r"positions must be \(1, 1 \+ M \* M, C\), got"):
            dinov2_positions(torch.zeros(shape), grid)


def small(name: str = "dinov2", **options: Any) -> Timm:
    backbone = Timm(NAMES[name], **options)
    awake(backbone.model)
    return backbone.double().eval()


def by_hand(vit: Any, pixels: Tensor, stride: int) -> Tensor:
    """The final map (1, C, h, w) of overlapping patches, taken one by one, under positions from `resampled`."""
    patch, side = vit.patch_embed.patch_size[0], vit.patch_embed.grid_size[0]
    rows, columns = ((length - patch) // stride + 1 for length in pixels.shape[2:])
    weight, bias = vit.patch_embed.proj.weight, vit.patch_embed.proj.bias
    cells = []
    for y in range(rows):
        for x in range(columns):
            part = pixels[:, :, y * stride : y * stride + patch, x * stride : x * stride + patch]
            cells.append(torch.einsum("nchw,dchw->nd", part, weight) + bias)
    places = resampled(vit.pos_embed[0, 1:].reshape(side, side, -1).numpy(), (rows, columns))
    tokens = torch.cat([vit.cls_token + vit.pos_embed[:, :1], torch.stack(cells, 1) + places], 1)
    for block in vit.blocks:
        tokens = block(tokens)
    return vit.norm(tokens)[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))


@pytest.mark.parametrize(
    ("height", "width", "options", "stride"),
    [
        (28, 28, {}, 7),
        (40, 40, {"patches": 6}, 7),
        (64, 48, {"patches": 9}, 7),
        (28, 28, {"patches": 3, "stride": 1}, 1),
    ],
)
def test_a_map_is_that_of_dinov2s_positions(height: int, width: int, options: dict[str, Any], stride: int) -> None:
    backbone = small(positions="dinov2", **options)
    size = (1, 3, height, width)
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = backbone.encode(ViewBatch.make([1], images=images), frozenset({"dense", "view"}))
        expected = by_hand(backbone.model, backbone.normalise(images), stride)
        timms = small(**options).encode(ViewBatch.make([1], images=images), frozenset({"dense", "view"}))
    torch.testing.assert_close(found["dense"], expected, atol=1e-9, rtol=1e-9)
    assert torch.equal(found["dense"], timms["dense"]) == (options == {}), "resampled at another grid alone"
    assert torch.equal(found["view"], timms["view"]) == (options == {})


def test_a_pass_may_ask_for_other_positions() -> None:
    backbone, images = small(patches=6), torch.full((1, 3, 28, 28), 90, dtype=torch.uint8)
    batch, dense = ViewBatch.make([1], images=images), frozenset({"dense"})
    with torch.no_grad():
        before = backbone.encode(batch, dense)["dense"]
        with backbone.dense_at(positions="dinov2"):
            other = backbone.encode(batch, dense)["dense"]
        after = backbone.encode(batch, dense)["dense"]
        theirs = small(patches=6, positions="dinov2").encode(batch, dense)["dense"]
    assert torch.equal(before, after)
    assert torch.equal(other, theirs)
    assert not torch.equal(other, before)


@pytest.mark.parametrize("name", ["dinov2_reg4", "dinov3", "siglip2", "deit3", "swin", "resnet"])
def test_models_with_other_positions_refuse_it(name: str) -> None:
    with pytest.raises(ConfigError, match=r"positions: dinov2 is for models .*set positions to timm|plain vision"):
        Timm(NAMES[name], positions="dinov2")


def test_what_reads_vectors_by_key_tells_positions_apart() -> None:
    assert "positions" not in small().preprocessing()
    assert small(positions="dinov2").preprocessing()["positions"] == "dinov2"
