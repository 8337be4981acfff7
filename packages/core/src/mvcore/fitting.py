"""How an image is brought to what a model takes, and where its points go then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2

from mvcore.dense_grid import DenseGrid
from mvcore.errors import ConfigError
from mvcore.images import to_rgb


@dataclass(frozen=True)
class Fitting:
    """The evaluation's way with images of one size: resized, then the middle cut out; or taken as they are.

    Args:
        width, height: of the image.
        size: side of the square that the model takes; None = images are taken whole, as they are.
    """

    width: int
    height: int
    size: int | None

    @property
    def resized(self) -> tuple[int, int]:
        """(H, W) before the cut: the shorter side is the square's."""
        if self.size is None:
            return self.height, self.width
        shorter = min(self.height, self.width)
        return int(self.size * self.height / shorter), int(self.size * self.width / shorter)

    @property
    def corner(self) -> tuple[int, int]:
        """(x, y) of the cut's upper left corner in the resized image."""
        if self.size is None:
            return 0, 0
        height, width = self.resized
        return round((width - self.size) / 2), round((height - self.size) / 2)

    @property
    def scale(self) -> tuple[float, float]:
        """By what x and y are multiplied before the cut."""
        height, width = self.resized
        return width / self.width, height / self.height

    @property
    def seen(self) -> tuple[float, float, float, float]:
        """The part of the image that the model sees: left, top, right, bottom in the image's own pixels."""
        height, width = (self.size, self.size) if self.size is not None else self.resized
        (left, top), (x, y) = self.corner, self.scale
        return left / x, top / y, (left + width) / x, (top + height) / y

    def apply(self, pixels: Tensor) -> Tensor:
        """(3, H, W) uint8 as the model sees it (bicubic, antialiased)."""
        if self.size is None or (self.height, self.width) == (self.size, self.size):
            return pixels
        pixels = v2.functional.resize(pixels, list(self.resized), v2.InterpolationMode.BICUBIC, antialias=True)
        left, top = self.corner
        return pixels[:, top : top + self.size, left : left + self.size]

    def grid(self, seen: DenseGrid) -> DenseGrid:
        """The places in the image of cells that lie so in what the model sees of it."""
        return seen.before(self.scale, (float(self.corner[0]), float(self.corner[1])))

    def check_inside(self, points: Tensor, which: int) -> None:
        """Whether the model sees all of these points (P, 2).

        Args:
            which: the image's number, for the text of the error.

        Raises:
            ConfigError: it does not; the text names the first of them.
        """
        left, top, right, bottom = self.seen
        x, y = points.unbind(-1)
        slack = 1e-6 * max(self.width, self.height)
        inside = (x >= left - slack) & (x <= right + slack) & (y >= top - slack) & (y <= bottom + slack)
        if not inside.all():
            row = int((~inside).nonzero()[0])
            place = f"({points[row, 0]:g}, {points[row, 1]:g})"
            cut = self.seen != (0, 0, self.width, self.height)
            advice = "; this model sees the middle square alone: cut or pad the image to a square" if cut else ""
            raise ConfigError(
                f"point {row} of image {which}, {place}, lies outside of what the model sees of the {self.width}x"
                f"{self.height} pixels: x {left:g} to {right:g}, y {top:g} to {bottom:g}{advice}"
            )


def as_pixels(image: Any) -> Tensor:
    """One image, as `to_rgb` takes it, as (3, H, W) uint8."""
    return torch.from_numpy(np.array(to_rgb(image), order="C")).permute(2, 0, 1)


def as_points(points: Any, n_images: int) -> Tensor:
    """(N, P, 2) float64 of points as `Model.keypoints` takes them.

    Raises:
        ConfigError: another shape or number, or values that are not finite.
    """
    try:
        if isinstance(points, Sequence) and not isinstance(points, (str, bytes)):
            found = torch.stack([torch.as_tensor(each).to(torch.float64) for each in points]) if points else None
        else:
            found = torch.as_tensor(points).to(torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"points must be an (N, P, 2) array, as many for each image: {error}") from None
    if found is not None and found.ndim == 2 and n_images == 1:
        found = found[None]
    if found is None or found.ndim != 3 or found.shape[0] != n_images or found.shape[2] != 2:
        shape = "none" if found is None else tuple(found.shape)
        raise ConfigError(f"points must be (N, P, 2) for {n_images} images, not {shape}")
    if not found.isfinite().all():
        raise ConfigError("points must be finite; one is not")
    return found
