"""Colours and textures, drawn independently of what the object is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (208, 44, 44),
    "orange": (240, 140, 36),
    "yellow": (244, 214, 58),
    "green": (58, 152, 70),
    "teal": (36, 158, 158),
    "blue": (48, 92, 204),
    "purple": (134, 66, 176),
    "pink": (240, 138, 178),
    "brown": (128, 82, 48),
    "white": (246, 246, 244),
    "grey": (140, 144, 148),
    "black": (44, 44, 48),
}

PATTERNS = ("plain", "striped", "banded", "dotted", "checked", "speckled")
_SIDE = 64

# Parts with a colour of their own kind; each object shifts them a little.
_FIXED = {
    "dark": (46, 46, 52),
    "metal": (168, 172, 180),
    "light": (240, 238, 226),
    "wood": (150, 104, 62),
    "glass": (120, 168, 200),
}


@dataclass(frozen=True)
class Paint:
    """How an object is painted.

    Attributes:
        colour: Name of the main colour.
        second: Name of the second colour; the pattern's and of the lesser parts.
        pattern: One of `PATTERNS`.
        texture: (64, 64, 3) uint8, tiles without a seam; the main parts' texture.
        scale: Repeats of the texture along one object unit.
        slots: sRGB in [0, 1] of every other slot.
    """

    colour: str
    second: str
    pattern: str
    texture: NDArray[np.uint8]
    scale: float
    slots: dict[str, tuple[float, float, float]]


def draw_paint(rng: Generator) -> Paint:
    """A paint by chance."""
    colour, second = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
    pattern = str(rng.choice(PATTERNS))
    main, other = _shift(COLOURS[colour], rng), _shift(COLOURS[second], rng)
    texture = _texture(pattern, main, other, rng)
    slots = {name: _unit(_shift(value, rng)) for name, value in _FIXED.items()}
    slots["second"] = _unit(other)
    return Paint(colour, second, pattern, texture, float(rng.uniform(0.9, 1.6)), slots)


def _shift(colour: tuple[int, int, int], rng: Generator) -> NDArray[np.float64]:
    return np.clip(np.array(colour) * rng.uniform(0.88, 1.06) + rng.uniform(-12, 12, 3), 0, 255)


def _unit(colour: NDArray[np.float64]) -> tuple[float, float, float]:
    red, green, blue = (colour / 255).tolist()
    return red, green, blue


def _texture(pattern: str, main: NDArray[np.float64], other: NDArray[np.float64], rng: Generator) -> NDArray[np.uint8]:
    y, x = np.mgrid[:_SIDE, :_SIDE] / _SIDE
    if pattern == "plain":
        cover = np.zeros_like(x)
    elif pattern == "striped":
        cover = (np.mod(x * 3, 1) < rng.uniform(0.3, 0.5)).astype(float)
    elif pattern == "banded":
        cover = (np.mod(y * 3, 1) < rng.uniform(0.3, 0.5)).astype(float)
    elif pattern == "dotted":
        reach = rng.uniform(0.25, 0.36)
        cover = (np.hypot(np.mod(x * 3, 1) - 0.5, np.mod(y * 3, 1) - 0.5) < reach).astype(float)
    elif pattern == "checked":
        cover = np.logical_xor(np.mod(x * 2, 1) < 0.5, np.mod(y * 2, 1) < 0.5).astype(float)
    else:
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(_SIDE, _SIDE))) * _low_pass(9)).real
        cover = (noise > np.quantile(noise, 0.7)).astype(float)
    grain = np.fft.ifft2(np.fft.fft2(rng.normal(size=(_SIDE, _SIDE))) * _low_pass(6)).real
    shade = 1 + 0.05 * grain / grain.std()
    colour = (main + cover[..., None] * (other - main)) * shade[..., None]
    return np.clip(colour, 0, 255).astype(np.uint8)


def _low_pass(cut: float) -> NDArray[np.float64]:
    frequency = np.fft.fftfreq(_SIDE) * _SIDE
    return np.exp(-(frequency[:, None] ** 2 + frequency[None] ** 2) / (2 * cut**2))
