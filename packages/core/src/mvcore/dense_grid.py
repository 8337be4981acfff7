"""Where the cells of a feature map lie in an image, and the map's values between them.

Points are (x, y) in continuous pixels: the upper left corner of an image is (0, 0) and pixel centres lie at +0.5.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class DenseGrid:
    """The places of a map's cells in an image.

    Cells need not tile the image: patches that overlap (a stride below the patch's side) have their first centre at
    half a patch, and a library may leave out a border that holds no whole patch.

    Args:
        rows, columns: the map's height and width.
        first: (x, y) of the centre of cell (0, 0), in pixels of the image.
        step: from one centre to the next, along x and along y, in the same pixels.
    """

    rows: int
    columns: int
    first: tuple[float, float]
    step: tuple[float, float]

    @classmethod
    def tiling(cls, rows: int, columns: int, width: float, height: float) -> DenseGrid:
        """Cells that tile an image of `width` x `height` pixels."""
        step = (width / columns, height / rows)
        return cls(rows, columns, (step[0] / 2, step[1] / 2), step)

    @classmethod
    def of_patches(cls, width: int, height: int, patch: int, stride: int) -> DenseGrid:
        """Square patches at a stride, from the upper left corner on, as many as fit into `width` x `height` pixels."""
        columns, rows = ((side - patch) // stride + 1 for side in (width, height))
        return cls(rows, columns, (patch / 2, patch / 2), (stride, stride))

    def before(self, scale: tuple[float, float], corner: tuple[float, float] = (0.0, 0.0)) -> DenseGrid:
        """The same cells in an image that was scaled by `scale` and then cut at `corner`, both as (x, y)."""
        first = tuple((place + cut) / by for place, cut, by in zip(self.first, corner, scale, strict=True))
        step = tuple(place / by for place, by in zip(self.step, scale, strict=True))
        return DenseGrid(self.rows, self.columns, (first[0], first[1]), (step[0], step[1]))

    def cells(self, points: Tensor) -> Tensor:
        """(..., 2) fractional (column, row) of points (..., 2); whole numbers are centres of cells."""
        first, step = (torch.tensor(pair, dtype=points.dtype, device=points.device) for pair in (self.first, self.step))
        return (points - first) / step

    def centres(self, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """(rows, columns, 2) points at the centres of the cells."""
        x, y = (
            first + step * torch.arange(count, dtype=dtype, device=device)
            for first, step, count in zip(self.first, self.step, (self.columns, self.rows), strict=True)
        )
        return torch.stack([x.expand(self.rows, -1), y[:, None].expand(-1, self.columns)], dim=-1)


def sample_dense(dense: Tensor, points: Tensor, grid: DenseGrid) -> Tensor:
    """Values of maps at points: bilinear between the centres of cells, those of the border beyond them.

    Args:
        dense: (B, C, h, w) maps, floating.
        points: (B, P, 2) of any real type, in pixels of the images that `grid` is of; P may be 0.
        grid: where the cells lie.

    Returns:
        (B, P, C), of the type of `dense`.

    Raises:
        ValueError: shapes that do not fit together.
    """
    if dense.ndim != 4 or points.ndim != 3 or points.shape[0] != dense.shape[0] or points.shape[2] != 2:
        shapes = f"{tuple(dense.shape)} and {tuple(points.shape)}"
        raise ValueError(f"maps (B, C, h, w) and points (B, P, 2) do not fit together: {shapes}")
    if tuple(dense.shape[2:]) != (grid.rows, grid.columns):
        raise ValueError(f"a map of {tuple(dense.shape[2:])} cells is not on a grid of {(grid.rows, grid.columns)}")
    cells = grid.cells(points.to(torch.float64))
    sides = torch.tensor([grid.columns, grid.rows], dtype=torch.float64, device=points.device)
    places = ((2 * cells + 1) / sides - 1).to(dense.dtype)
    found = F.grid_sample(dense, places[:, None], mode="bilinear", padding_mode="border", align_corners=False)
    return found[:, :, 0].transpose(1, 2)
