"""Dense features of images of any size, and where their cells lie in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mvcore.api import ConfigError, DataError, DenseGrid, Embedder, ViewBatch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

DENSE = frozenset({"dense"})


@dataclass(frozen=True)
class DenseMaps:
    """Feature maps of images of one size.

    Args:
        values: (N, C, h, w) float32 on the model's device.
        grid: where their cells lie, in pixels of the images.
    """

    values: Tensor
    grid: DenseGrid


def dense_maps(model: Embedder, images: NDArray[Any], owner: str, at_once: int = 8) -> DenseMaps:
    """The maps of whole images; a model that takes one size only gets them resized to it, whatever their aspect.

    Args:
        model: gives `dense`.
        images: (N, H, W, 3) uint8.
        owner: what is measured, for the text of errors.
        at_once: images encoded together.

    Raises:
        DataError: features that are not finite.
    """
    pixels = torch.from_numpy(np.require(images, requirements="W")).permute(0, 3, 1, 2)
    height, width = pixels.shape[2:]
    side: int | None = None if model.backbone.any_size else model.backbone.image_size
    seen = (width, height) if side is None else (side, side)
    parts: list[Tensor] = []
    for some in pixels.split(at_once):
        fitted = some if seen == (width, height) else _resized(some, seen[0])
        parts.append(model.features(ViewBatch.make([1] * len(fitted), images=fitted), DENSE).dense.float())
    values = torch.cat(parts)
    if not bool(values.isfinite().all()):
        raise DataError(f"{owner}: the model gives dense features that are not finite")
    grid = grid_of(model, seen, values)
    return DenseMaps(values, grid.before((seen[0] / width, seen[1] / height)))


def _resized(images: Tensor, side: int) -> Tensor:
    resized = interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False)
    return (resized + 0.5).clamp_(0, 255.5).to(torch.uint8)


@contextmanager
def settings(model: Embedder, owner: str, **changes: Any) -> Iterator[None]:
    """Other settings of the model's map for a while; those that are None stay as they are.

    Raises:
        ConfigError: the model's map cannot be had so.
    """
    wanted = {key: value for key, value in changes.items() if value is not None}
    with ExitStack() as stack:
        if wanted:
            try:
                stack.enter_context(model.backbone.dense_at(**wanted))
            except ConfigError as error:
                asked = ", ".join(f"{key} {value}" for key, value in wanted.items())
                raise ConfigError(
                    f"{owner}: the map cannot be taken with {asked}: {error}; null leaves the model's own"
                ) from error
        yield


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
