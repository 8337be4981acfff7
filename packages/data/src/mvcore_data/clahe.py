"""Contrast-limited adaptive histogram equalisation, as OpenCV does it.

Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV (1994). Each tile of the image has a
table that would spread its own levels evenly, were its histogram's peaks not cut off and spread over all levels; a
pixel takes the mean of the four nearest tiles' tables, weighted by how near their centres are.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

_LEVELS = 256
_STEPS = 1 << 14
"""Steps of light in tables: a seventh of a level where sRGB is steepest."""
_TO_XYZ = np.array(
    # Of linear sRGB (IEC 61966-2-1) to CIE XYZ, each row over the white point D65's.
    [
        [0.412453 / 0.950456, 0.357580 / 0.950456, 0.180423 / 0.950456],
        [0.212671, 0.715160, 0.072169],
        [0.019334 / 1.088754, 0.119193 / 1.088754, 0.950227 / 1.088754],
    ],
    np.float32,
)
_TO_RGB = np.linalg.inv(_TO_XYZ)


def equalise_lightness(image: NDArray[np.uint8], clip_limit: float, tiles: int) -> NDArray[np.uint8]:
    """Equalises L* of CIE 1976 in 256 levels; the opponent colours a* and b* stay.

    Args:
        image: (3, H, W) sRGB.
        clip_limit: see `equalise`.
        tiles: along each side.

    Returns:
        (3, H, W).
    """
    response = to_responses(image)
    lightness = 1.16 * response[1] - 0.16  # 0 to 1
    levels = (lightness * 255 + 0.5).astype(np.uint8)
    # With a* and b* kept, what L* gains all three responses gain.
    response += (equalise(levels, clip_limit, tiles) * np.float32(1 / 255) - lightness) / 1.16
    return from_responses(response)


def to_responses(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(3, H, W) responses of CIE 1976 to X, Y and Z, 1 for white, of (3, H, W) sRGB pixels."""
    light = _TO_XYZ @ np.take(_light(), image.reshape(3, -1))
    return np.take(_response(), _steps(light)).reshape(image.shape)


def from_responses(response: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(3, H, W) sRGB pixels of `to_responses`, clipped."""
    near_black = (response - 4 / 29) * np.float32(3 * (6 / 29) ** 2)
    light = np.where(response > 6 / 29, response * response * response, near_black)
    light = _TO_RGB @ light.reshape(3, -1)
    return np.take(_level(), _steps(light.clip(0, 1, out=light))).reshape(response.shape)


def _steps(light: NDArray[np.float32]) -> NDArray[np.uint16]:
    return (light * _STEPS + 0.5).astype(np.uint16)


@cache
def _light() -> NDArray[np.float32]:
    """Linear light of sRGB's 256 levels."""
    level = np.arange(_LEVELS) / 255
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4).astype(np.float32)


@cache
def _level() -> NDArray[np.uint8]:
    """sRGB's levels at steps of linear light."""
    light = np.arange(_STEPS + 1) / _STEPS
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


@cache
def _response() -> NDArray[np.float32]:
    """CIE 1976's response at steps of light: its cube root, and near black a line."""
    light = np.arange(_STEPS + 1) / _STEPS
    line = light / (3 * (6 / 29) ** 2) + 4 / 29
    return np.where(light > (6 / 29) ** 3, np.cbrt(light), line).astype(np.float32)


def equalise(levels: NDArray[np.uint8], clip_limit: float, tiles: int) -> NDArray[np.uint8]:
    """Contrast-limited adaptive histogram equalisation of one channel.

    Args:
        levels: (H, W).
        clip_limit: height at which a tile's histogram is cut, in multiples of its mean, at least one pixel.
        tiles: along each side; an image that they do not divide is mirrored beyond its right and lower edge.

    Returns:
        (H, W).
    """
    tables = _tables(levels, clip_limit, tiles).ravel()
    (above, below, down), (left, right, across) = (_nearest_tiles(side, tiles) for side in levels.shape)
    value = levels.astype(np.int32)

    def looked_up(row: NDArray[np.int32], column: NDArray[np.int32]) -> NDArray[np.float32]:
        return tables[(row[:, None] * tiles + column) * _LEVELS + value]

    upper = looked_up(above, left) * (1 - across) + looked_up(above, right) * across
    lower = looked_up(below, left) * (1 - across) + looked_up(below, right) * across
    return np.rint(upper * (1 - down[:, None]) + lower * down[:, None]).astype(np.uint8)


def _nearest_tiles(side: int, tiles: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
    """The two tiles whose centres are nearest to each pixel along a side, and the weight of the second."""
    at = np.arange(side, dtype=np.float32) * np.float32(1 / -(-side // tiles)) - np.float32(0.5)
    first = np.floor(at)
    pair = np.clip([first, first + 1], 0, tiles - 1).astype(np.int32)
    return pair[0], pair[1], at - first


def _tables(levels: NDArray[np.uint8], clip_limit: float, tiles: int) -> NDArray[np.float32]:
    """(tiles x tiles, 256) new levels of the old ones."""
    height, width = (-(-side // tiles) for side in levels.shape)
    beyond = [(0, size * tiles - side) for size, side in zip((height, width), levels.shape, strict=True)]
    cut = np.pad(levels, beyond, mode="reflect").reshape(tiles, height, tiles, width)
    tile = np.arange(tiles * tiles, dtype=np.intp).reshape(tiles, 1, tiles, 1) * _LEVELS
    counts = np.bincount((tile + cut).ravel(), minlength=tiles * tiles * _LEVELS).reshape(-1, _LEVELS)
    area = height * width
    limit = max(1, int(clip_limit * area / _LEVELS))
    share, rest = np.divmod((counts - np.minimum(counts, limit)).sum(axis=1, keepdims=True), _LEVELS)
    every = np.maximum(_LEVELS // np.maximum(rest, 1), 1)
    number, between = np.divmod(np.arange(_LEVELS), every)
    counts = np.minimum(counts, limit) + share + ((between == 0) & (number < rest))
    return np.rint(np.cumsum(counts, axis=1, dtype=np.float32) * np.float32(255 / area)).clip(0, 255)
