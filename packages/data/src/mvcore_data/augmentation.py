"""Random transforms of views: what is drawn, and what it does to images in uint8."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvcore_data.options import Augment, ColourJitter
from mvcore_data.transforms import Matrices, Window

_LUMA = np.array([0.299, 0.587, 0.114])
_ASPECT = (3 / 4, 4 / 3)
_COLOURED_AT_ONCE = 1 << 21


@dataclass(frozen=True)
class Drawn:
    """What was drawn for V views.

    Args:
        boxes: (V, 4) of random resized crops in parts of the image's (width, height, width, height), or None.
        matrices: (V, 3, 3) of all other geometric transforms, in parts of the image's side; None where there are none.
        colours: (V, 4) brightness, contrast and saturation factors and hue in turns, or None.
    """

    boxes: Matrices | None
    matrices: Matrices | None
    colours: Matrices | None


class Augmentation:
    """Draws the transforms of a list of `Augment` options, for each view by itself."""

    def __init__(self, augments: Sequence[Augment]) -> None:
        self._crop: tuple[float, float] | None = None
        self._moves: list[Augment] = []
        self._jitters: list[ColourJitter] = []
        for augment in augments:
            if augment.random_resized_crop is not None:
                self._crop = augment.random_resized_crop
            elif augment.colour is not None:
                self._jitters.append(augment.colour)
            else:
                self._moves.append(augment)

    def __bool__(self) -> bool:
        return bool(self._crop or self._moves or self._jitters)

    def draw(self, rng: np.random.Generator, views: int) -> Drawn:
        """The transforms of so many views."""
        boxes = None if self._crop is None else _draw_boxes(rng, views, self._crop)
        matrices = None
        for move in self._moves:
            drawn = _draw_move(rng, views, move)
            matrices = drawn if matrices is None else drawn @ matrices
        colours = None
        for jitter in self._jitters:
            drawn = _draw_colour(rng, views, jitter)
            colours = drawn if colours is None else _combined(colours, drawn)
        return Drawn(boxes, matrices, colours)


def joined(drawn: Sequence[Drawn]) -> Drawn:
    """What was drawn for several objects, as one; all come from one `Augmentation`."""

    def rows(parts: list[Matrices | None]) -> Matrices | None:
        present = [part for part in parts if part is not None]
        return np.concatenate(present) if present else None

    return Drawn(
        rows([one.boxes for one in drawn]), rows([one.matrices for one in drawn]), rows([one.colours for one in drawn])
    )


def _draw_boxes(rng: np.random.Generator, views: int, area: tuple[float, float]) -> Matrices:
    """Boxes in parts of the image, by the usual draw of area and logarithmic aspect ratio, clipped to the image.

    The ratio is that of the box in parts of the image: a square image gives the usual random resized crop.
    """
    part = rng.uniform(*area, views)
    ratio = np.exp(rng.uniform(np.log(_ASPECT[0]), np.log(_ASPECT[1]), views))
    width, height = np.minimum(np.sqrt(part * ratio), 1), np.minimum(np.sqrt(part / ratio), 1)
    left, top = rng.uniform(0, 1, (2, views)) * (1 - np.stack([width, height]))
    return np.stack([left, top, left + width, top + height], axis=1)


def crop_window(box: NDArray[np.float64], height: int, width: int, side: int) -> Window:
    """The window of a drawn box in an image of (height, width)."""
    scaled = np.clip(box * [width, height, width, height], 0, [width, height, width, height])
    return Window((float(scaled[0]), float(scaled[1]), float(scaled[2]), float(scaled[3])), (side, side))


def _draw_move(rng: np.random.Generator, views: int, move: Augment) -> Matrices:
    """(V, 3, 3) in parts of the side; rotations, scalings and flips are about the centre."""
    matrices = np.broadcast_to(np.eye(3), (views, 3, 3)).copy()
    if move.translate is not None:
        matrices[:, :2, 2] = rng.uniform(-move.translate, move.translate, (views, 2))
        return matrices
    if move.rotate is not None:
        angle = np.radians(rng.uniform(-move.rotate, move.rotate, views))
        matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
        matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angle), np.sin(angle)
    elif move.scale is not None:
        matrices[:, 0, 0] = matrices[:, 1, 1] = rng.uniform(*move.scale, views)
    elif move.flip is not None:
        matrices[:, 0, 0] = np.where(rng.random(views) < move.flip, -1, 1)
    matrices[:, :2, 2] = 0.5 - matrices[:, :2, :2] @ np.array([0.5, 0.5])
    return matrices


def in_pixels(matrices: Matrices, side: int) -> Matrices:
    """Matrices in parts of the side as matrices in pixels."""
    scaled = matrices.copy()
    scaled[:, :2, 2] *= side
    return scaled


def _draw_colour(rng: np.random.Generator, views: int, jitter: ColourJitter) -> Matrices:
    wide = np.array([jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue])
    return rng.uniform(-wide, wide, (views, 4)) + np.array([1, 1, 1, 0])


def _combined(first: Matrices, second: Matrices) -> Matrices:
    return np.concatenate([first[:, :3] * second[:, :3], first[:, 3:] + second[:, 3:]], axis=1)


def jitter_colours(images: Tensor, colours: Matrices) -> Tensor:
    """Brightness, contrast (about the image's mean grey), saturation and hue, in that order, clipped once at the end.

    All four are linear in RGB: x' = M x + t, so an image is passed over once.

    Args:
        images: (N, 3, H, W) uint8.
        colours: (N, 4) as in `Drawn.colours`.

    Returns:
        (N, 3, H, W) uint8.
    """
    brightness, contrast, saturation, hue = colours.T
    saturate = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * np.outer(np.ones(3), _LUMA)
    linear = torch.from_numpy(_hue_matrices(hue) @ saturate * (brightness * contrast)[:, None, None]).float()
    lift = torch.from_numpy((1 - contrast) * brightness).float()
    luma = torch.from_numpy(_LUMA).float()
    step = max(1, _COLOURED_AT_ONCE // (images.shape[2] * images.shape[3]))
    parts: list[Tensor] = []
    for k in range(0, len(images), step):
        pixels = images[k : k + step].flatten(2).float()
        grey = lift[k : k + step] * (pixels.mean(dim=2) @ luma)
        pixels = torch.baddbmm(grey[:, None, None], linear[k : k + step], pixels)
        parts.append(pixels.round_().clamp_(0, 255).to(torch.uint8).reshape(images[k : k + step].shape))
    return torch.cat(parts)


def _hue_matrices(turns: Matrices) -> Matrices:
    """(N, 3, 3) rotations of the chroma in YIQ, which keep luma and greys."""
    to_yiq = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    angle = 2 * np.pi * turns
    rotation = np.broadcast_to(np.eye(3), (len(turns), 3, 3)).copy()
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.linalg.inv(to_yiq) @ rotation @ to_yiq
