"""Dense features of images, and where their cells lie."""

from __future__ import annotations

from mvcore.api import ConfigError, DenseGrid, Embedder
from torch import Tensor


def grid_of(model: Embedder, image_size: tuple[int, int], dense: Tensor) -> DenseGrid:
    """Where the cells of maps (N, C, h, w) of images (width, height) lie.

    As the backbone says; where it does not know, or an adapter changed the map's shape, the cells tile the image, as
    `sample_features` has it.
    """
    rows, columns = dense.shape[2:]
    tiling = DenseGrid.tiling(rows, columns, *image_size)
    try:
        grid = model.backbone.dense_grid(*image_size)
    except ConfigError:
        return tiling
    return grid if (grid.rows, grid.columns) == (rows, columns) else tiling
