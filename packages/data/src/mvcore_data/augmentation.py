"""Random transforms of views: what is drawn for each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvcore_data import photometric
from mvcore_data.options import (
    Augment,
    Blur,
    BrightnessContrast,
    Clahe,
    ColourJitter,
    IsoNoise,
    Noise,
    ShiftScaleRotate,
)
from mvcore_data.transforms import Matrices, Window

Apply: TypeAlias = Callable[[Tensor, Matrices], Tensor]
"""Makes (M, 3, S, S) uint8 images of others and of (M, k) drawn values."""

_ASPECT = (3 / 4, 4 / 3)
_CHANGED_AT_ONCE = 1 << 16
"""Pixels that are held as floats at a time, or a view's: what fits into a core's cache."""


class Change(NamedTuple):
    """A change of pixels where they are, as drawn: which rows of a batch it changes, and (M, k) values that say how."""

    apply: Apply
    rows: NDArray[np.intp]
    values: Matrices

    def to(self, images: Tensor) -> None:
        """Changes (N, 3, S, S) uint8 images in place."""
        step = max(1, _CHANGED_AT_ONCE // images[0, 0].numel())
        for k in range(0, len(self.rows), step):
            rows = torch.from_numpy(self.rows[k : k + step])
            images[rows] = self.apply(images[rows], self.values[k : k + step])


@dataclass(frozen=True)
class Drawn:
    """What was drawn for N views.

    Args:
        boxes: (N, 4) of random resized crops in parts of the image's (width, height, width, height), or None.
        matrices: (N, 3, 3) of all other geometric transforms, in parts of the image's side; None where there are none.
        changes: of pixels where they are, in order.
    """

    boxes: Matrices | None
    matrices: Matrices | None
    changes: tuple[Change, ...]


class Augmentation:
    """The transforms of a list of `Augment` options, drawn for each view by itself.

    A view's transforms are a function of `numbers` uniform numbers, so that each object's generator is asked once and
    the arithmetic is done for all views of a batch together.
    """

    def __init__(self, augments: Sequence[Augment]) -> None:
        self._augments = augments
        self.numbers = sum(_NUMBERS[augment.name] for augment in augments)

    def __bool__(self) -> bool:
        return bool(self._augments)

    def draw(self, uniform: Matrices) -> Drawn:
        """The transforms of N views from (N, numbers) uniform numbers in [0, 1)."""
        boxes = matrices = None
        changes: list[Change] = []
        begin = 0
        for augment in self._augments:
            own = uniform[:, begin : begin + _NUMBERS[augment.name]].T
            begin += len(own)
            if augment.random_resized_crop is not None:
                boxes = _boxes(own, augment.random_resized_crop)
            elif augment.name in _CHANGES:
                changes.append(_change(own, augment))
            else:
                drawn = _move(own, augment)
                matrices = drawn if matrices is None else drawn @ matrices
        return Drawn(boxes, matrices, tuple(changes))


_NUMBERS = {
    "random_resized_crop": 4,
    "rotate": 1,
    "translate": 2,
    "scale": 1,
    "shift_scale_rotate": 5,
    "flip": 1,
    "colour": 4,
    "blur": 2,
    "iso_noise": 4,
    "noise": 3,
    "clahe": 2,
    "brightness_contrast": 3,
}
"""How many uniform numbers each transform takes."""


def _between(uniform: Matrices, low: float, high: float) -> Matrices:
    return low + uniform * (high - low)


def _boxes(uniform: Matrices, area: tuple[float, float]) -> Matrices:
    """Boxes in parts of the image, by the usual draw of area and logarithmic aspect ratio, clipped to the image.

    The ratio is that of the box in parts of the image: a square image gives the usual random resized crop.
    """
    part = _between(uniform[0], *area)
    ratio = np.exp(_between(uniform[1], np.log(_ASPECT[0]), np.log(_ASPECT[1])))
    width, height = np.minimum(np.sqrt(part * ratio), 1), np.minimum(np.sqrt(part / ratio), 1)
    left, top = uniform[2:] * (1 - np.stack([width, height]))
    return np.stack([left, top, left + width, top + height], axis=1)


def crop_window(box: NDArray[np.float64], height: int, width: int, side: int) -> Window:
    """The window of a drawn box in an image of (height, width)."""
    scaled = np.clip(box * [width, height, width, height], 0, [width, height, width, height])
    return Window((float(scaled[0]), float(scaled[1]), float(scaled[2]), float(scaled[3])), (side, side))


def _move(uniform: Matrices, move: Augment) -> Matrices:
    """(N, 3, 3) in parts of the side; rotations, scalings and flips are about the centre."""
    if move.shift_scale_rotate is not None:
        return _shifted_scaled_rotated(uniform, move.shift_scale_rotate)
    matrices = np.broadcast_to(np.eye(3), (uniform.shape[1], 3, 3)).copy()
    if move.translate is not None:
        matrices[:, :2, 2] = _between(uniform.T, -move.translate, move.translate)
        return matrices
    if move.rotate is not None:
        angle = np.radians(_between(uniform[0], -move.rotate, move.rotate))
        matrices[:, 0, 0] = matrices[:, 1, 1] = np.cos(angle)
        matrices[:, 0, 1], matrices[:, 1, 0] = -np.sin(angle), np.sin(angle)
    elif move.scale is not None:
        matrices[:, 0, 0] = matrices[:, 1, 1] = _between(uniform[0], *move.scale)
    elif move.flip is not None:
        matrices[:, 0, 0] = np.where(uniform[0] < move.flip, -1, 1)
    matrices[:, :2, 2] = 0.5 - matrices[:, :2, :2] @ np.array([0.5, 0.5])
    return matrices


def _shifted_scaled_rotated(uniform: Matrices, move: ShiftScaleRotate) -> Matrices:
    """(N, 3, 3) in parts of the side: turned and scaled about the centre, then shifted."""
    angle = np.radians(_between(uniform[0], -move.rotate, move.rotate))
    factor = _between(uniform[1], 1 - move.scale, 1 + move.scale)
    matrices = np.broadcast_to(np.eye(3), (uniform.shape[1], 3, 3)).copy()
    matrices[:, 0, 0] = matrices[:, 1, 1] = factor * np.cos(angle)
    matrices[:, 0, 1], matrices[:, 1, 0] = -factor * np.sin(angle), factor * np.sin(angle)
    matrices[:, :2, 2] = 0.5 - matrices[:, :2, :2] @ np.array([0.5, 0.5])
    matrices[:, :2, 2] += _between(uniform[2:4].T, -move.shift, move.shift)
    matrices[uniform[4] >= move.probability] = np.eye(3)
    return matrices


def in_pixels(matrices: Matrices, side: int) -> Matrices:
    """Matrices in parts of the side as matrices in pixels."""
    scaled = matrices.copy()
    scaled[:, :2, 2] *= side
    return scaled


def _change(uniform: Matrices, augment: Augment) -> Change:
    """The change of N views; the first number says whether there is one, where the transform has a probability."""
    rows = np.arange(uniform.shape[1])
    if augment.colour is None:
        rows = np.flatnonzero(uniform[0] < augment.value.probability)
        uniform = uniform[1:, rows]
    apply, values = _CHANGES[augment.name](uniform, augment.value)
    return Change(apply, rows, np.stack(values, axis=1))


def _colours(uniform: Matrices, jitter: ColourJitter) -> tuple[Apply, list[NDArray]]:
    wide = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    drawn = [middle + w * (2 * u - 1) for middle, w, u in zip((1, 1, 1, 0), wide, uniform, strict=True)]
    return photometric.jitter_colours, drawn


def _blur(uniform: Matrices, options: Blur) -> tuple[Apply, list[NDArray]]:
    low, high = options.kernel
    return photometric.blur, [np.floor(_between(uniform[0], low, high + 1)) // 2 * 2 + 1]


def _iso_noise(uniform: Matrices, options: IsoNoise) -> tuple[Apply, list[NDArray]]:
    shift, intensity = _between(uniform[0], *options.colour_shift), _between(uniform[1], *options.intensity)
    return photometric.add_iso_noise, [shift, intensity, uniform[2]]


def _noise(uniform: Matrices, options: Noise) -> tuple[Apply, list[NDArray]]:
    return photometric.add_noise, [np.sqrt(_between(uniform[0], *options.variance)), uniform[1]]


def _clahe(uniform: Matrices, options: Clahe) -> tuple[Apply, list[NDArray]]:
    return partial(photometric.clahe, tiles=options.tiles), [_between(uniform[0], *options.clip_limit)]


def _brightness_contrast(uniform: Matrices, options: BrightnessContrast) -> tuple[Apply, list[NDArray]]:
    factor = _between(uniform[0], 1 - options.contrast, 1 + options.contrast)
    return photometric.adjust_brightness_contrast, [
        factor,
        _between(uniform[1], -options.brightness, options.brightness),
    ]


_CHANGES = {
    "colour": _colours,
    "blur": _blur,
    "iso_noise": _iso_noise,
    "noise": _noise,
    "clahe": _clahe,
    "brightness_contrast": _brightness_contrast,
}
"""What becomes of (numbers, M) uniform numbers in each change."""
