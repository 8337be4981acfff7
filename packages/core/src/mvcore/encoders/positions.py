"""Position embeddings as DINOv2's own code resamples them, which is not how timm does."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mvcore.errors import ConfigError

_TOO_LARGE = 0.1
"""DINOv2's `interpolate_offset` of models without registers, against an error of rounding in torch."""


def dinov2_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position embeddings of DINOv2 without registers, resampled as its own code does.

    That code enlarges by a ratio that is 0.1 patches too large and does not smooth where it reduces; timm does neither.
    DINO-Tracker's code for overlapping patches takes the same ratio, with the number of overlapping patches as `grid`.

    Args:
        positions: (1, 1 + M * M, C), of the class token and of M x M patches.
        grid: (rows, columns) of patches.

    Returns:
        (1, 1 + rows * columns, C).

    Raises:
        ValueError: not the positions of a class token and a square of patches, or no patch is asked for.
    """
    side = math.isqrt(max(0, positions.shape[1] - 1)) if positions.ndim == 3 else 0
    if side < 1 or positions.shape[1] != 1 + side * side or min(grid) < 1:
        raise ValueError(f"positions must be (1, 1 + M * M, C), got {tuple(positions.shape)} for a grid of {grid}")
    if tuple(grid) == (side, side):
        return positions
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
    kind = positions.dtype if positions.dtype == torch.float64 else torch.float32
    ratios = [(cells + _TOO_LARGE) / side for cells in grid]
    resampled = F.interpolate(patches.to(kind), scale_factor=ratios, mode="bicubic").to(positions.dtype)
    return torch.cat([positions[:, :1], resampled.flatten(2).transpose(1, 2)], dim=1)


def check_dinov2_positions(trunk: Any, owner: str) -> None:
    """Whether a timm model has the positions that `dinov2_positions` resamples.

    Raises:
        ConfigError: it has others, as a model with registers, or none.
    """
    table = getattr(trunk, "pos_embed", None)
    one_class_token = getattr(trunk, "num_prefix_tokens", 0) == 1 and not getattr(trunk, "no_embed_class", False)
    square = isinstance(table, Tensor) and math.isqrt(table.shape[1] - 1) ** 2 == table.shape[1] - 1
    if not (one_class_token and square):
        raise ConfigError(
            f"{owner}: positions: dinov2 is for models with a class token and no registers, as DINOv2's first ones; "
            "set positions to timm, which for others is what their authors' code does"
        )
