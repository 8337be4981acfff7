"""Changes of pixels where they are: colours, blur, noise and contrast, by what was drawn for each view.

What albumentations 1.3.1 has too follows its definitions, with two differences: results are rounded where it truncates,
and its noise comes from generators of its own. Cameras, depth, masks and points stay as they are.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from mvcore_data.clahe import equalise_lightness
from mvcore_data.transforms import Matrices

_LUMA = np.array([0.299, 0.587, 0.114])
_QUANTILES = 1 << 16
"""Of a table of noise: its values are as likely as each other."""
_KERNELS = {
    3: (1, 2, 1),
    5: (1, 4, 6, 4, 1),
    7: (8, 28, 56, 72, 56, 28, 8),
    9: (4, 13, 30, 51, 60, 51, 30, 13, 4),
}
"""OpenCV's small kernels, which are not quite Gaussian."""


def jitter_colours(images: Tensor, colours: Matrices) -> Tensor:
    """Brightness, contrast (about the image's mean grey), saturation and hue, in that order, clipped once at the end.

    All four are linear in RGB: x' = M x + t, so an image is passed over once.

    Args:
        images: (N, 3, H, W) uint8.
        colours: (N, 4) brightness, contrast and saturation factors and hue in turns.

    Returns:
        (N, 3, H, W) uint8.
    """
    brightness, contrast, saturation, hue = colours.T
    saturate = saturation[:, None, None] * np.eye(3) + (1 - saturation)[:, None, None] * np.outer(np.ones(3), _LUMA)
    linear = torch.from_numpy(_hue_matrices(hue) @ saturate * (brightness * contrast)[:, None, None]).float()
    lift = torch.from_numpy((1 - contrast) * brightness).float()
    luma = torch.from_numpy(_LUMA).float()
    pixels = images.flatten(2).float()
    grey = lift * (pixels.mean(dim=2) @ luma)
    return _rounded(torch.baddbmm(grey[:, None, None], linear, pixels)).reshape(images.shape)


def _hue_matrices(turns: Matrices) -> Matrices:
    """(N, 3, 3) rotations of the chroma in YIQ, which keep luma and greys."""
    to_yiq = np.array([_LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
    angle = 2 * np.pi * turns
    rotation = np.broadcast_to(np.eye(3), (len(turns), 3, 3)).copy()
    rotation[:, 1, 1] = rotation[:, 2, 2] = np.cos(angle)
    rotation[:, 1, 2], rotation[:, 2, 1] = -np.sin(angle), np.sin(angle)
    return np.linalg.inv(to_yiq) @ rotation @ to_yiq


def blur(images: Tensor, values: Matrices) -> Tensor:
    """A Gaussian blur; the image is mirrored at its outermost pixels.

    Args:
        images: (N, 3, H, W) uint8.
        values: (N, 1) side of the kernel, odd.

    Returns:
        (N, 3, H, W) uint8.
    """
    return torch.stack([_blurred(image, int(size)) for image, (size,) in zip(images, values, strict=True)])


def _blurred(image: Tensor, size: int) -> Tensor:
    if size == 1:
        return image
    kernel, pad = _kernel(size), size // 2
    pixels = F.pad(image.float().contiguous(), (pad, pad, pad, pad), mode="reflect")
    # A few passes over shifted images take a fraction of the time of a convolution in groups.
    for axis in (2, 1):
        long = pixels.shape[axis] - 2 * pad
        pixels, whole = pixels.narrow(axis, pad, long) * kernel[pad], pixels
        for k in (k for k in range(size) if k != pad):
            pixels.add_(whole.narrow(axis, k, long), alpha=kernel[k])
    return _rounded(pixels)


def _kernel(size: int) -> list[float]:
    """The weights of OpenCV's Gaussian kernel of this size."""
    x = np.arange(size) - (size - 1) / 2
    deviation = 0.3 * ((size - 1) / 2 - 1) + 0.8
    weights = np.array(_KERNELS.get(size, np.exp(-(x**2) / (2 * deviation**2))), np.float64)
    return (weights / weights.sum()).tolist()


def add_noise(images: Tensor, values: Matrices) -> Tensor:
    """Gaussian noise, each pixel and channel by itself.

    Args:
        images: (N, 3, H, W) uint8.
        values: (N, 2) deviation in grey levels, and a number in [0, 1) that the noise follows from.

    Returns:
        (N, 3, H, W) uint8.
    """
    return torch.stack(
        [
            _rounded(image.float() + _field(_generator(seed), _normal() * np.float32(deviation), image.shape))
            for image, (deviation, seed) in zip(images, values, strict=True)
        ]
    )


def add_iso_noise(images: Tensor, values: Matrices) -> Tensor:
    """Poisson noise in lightness and Gaussian noise in hue, in the HLS colour space.

    Args:
        images: (N, 3, H, W) uint8.
        values: (N, 3) deviation of the hue in turns before the intensity, the intensity, and a number in [0, 1) that
            the noise follows from.

    Returns:
        (N, 3, H, W) uint8.
    """
    return torch.stack([_with_iso_noise(image, *row) for image, row in zip(images, values, strict=True)])


def _with_iso_noise(image: Tensor, shift: float, intensity: float, seed: float) -> Tensor:
    # The deviation by numpy, whose sums do not depend on the number of threads: the table has jumps.
    light = image.amax(0).short() + image.amin(0)
    deviation = float(np.std(light.numpy(), dtype=np.float64)) / 2
    rng = _generator(seed)
    grain = _field(rng, _poisson(deviation * intensity) / np.float32(255), light.shape)
    turns = _field(rng, _normal() * np.float32(shift * intensity), light.shape)
    return turn_and_lighten(image, turns, grain)


def turn_and_lighten(image: Tensor, turns: Tensor, grain: Tensor) -> Tensor:
    """Turns each pixel's hue and brings its lightness nearer to white, in the HLS colour space.

    Args:
        image: (3, H, W) uint8.
        turns: (H, W) added to the hue, in turns.
        grain: (H, W) part of the way to white, at least 0.

    Returns:
        (3, H, W) uint8.
    """
    red, green, blue = image.float().contiguous()
    highest, lowest = torch.maximum(red, torch.maximum(green, blue)), torch.minimum(red, torch.minimum(green, blue))
    chroma, light = highest - lowest, highest + lowest
    safe = chroma.clamp(min=1)
    hue = torch.where(
        highest == red,
        (green - blue) / safe,
        torch.where(highest == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    saturation = chroma / (255 - (light - 255).abs()).clamp_(min=1)
    light = torch.lerp(light, torch.tensor(510.0), grain.clamp(max=1))
    chroma = saturation * (255 - (light - 255).abs())
    hue = torch.add(hue, turns, alpha=6).remainder_(6)
    base = (light - chroma) / 2
    shares = ((hue - 3).abs_() - 1, 2 - (hue - 2).abs_(), 2 - (hue - 4).abs_())
    return _rounded(torch.stack([torch.addcmul(base, chroma, share.clamp_(0, 1)) for share in shares]))


def clahe(images: Tensor, values: Matrices, tiles: int) -> Tensor:
    """Contrast-limited adaptive histogram equalisation of the lightness L*.

    Args:
        images: (N, 3, H, W) uint8.
        values: (N, 1) clip limits.
        tiles: along each side.

    Returns:
        (N, 3, H, W) uint8.
    """
    changed = [equalise_lightness(image, limit, tiles) for image, (limit,) in zip(images.numpy(), values, strict=True)]
    return torch.from_numpy(np.stack(changed))


def adjust_brightness_contrast(images: Tensor, values: Matrices) -> Tensor:
    """Multiplies by a factor, and adds a part of white.

    Args:
        images: (N, 3, H, W) uint8.
        values: (N, 2) factor and part.

    Returns:
        (N, 3, H, W) uint8.
    """
    return torch.stack(
        [_rounded(image * factor + 255 * part) for image, (factor, part) in zip(images, values.tolist(), strict=True)]
    )


def _rounded(pixels: Tensor) -> Tensor:
    """Floats, which are changed, as uint8: truncating after adding a half rounds."""
    return pixels.add_(0.5).clamp_(0, 255).to(torch.uint8)


def _generator(seed: float) -> np.random.Generator:
    return np.random.Generator(np.random.SFC64(int(seed * 2**53)))


def _field(rng: np.random.Generator, table: NDArray[np.float32], shape: tuple[int, ...]) -> Tensor:
    """Noise whose every number is one of a table's: several times faster than to draw each from its distribution."""
    return torch.from_numpy(table[rng.integers(0, _QUANTILES, shape, dtype=np.uint16)])


@cache
def _normal() -> NDArray[np.float32]:
    """Quantiles of the standard normal distribution, out to 4.2 deviations."""
    middles = (torch.arange(_QUANTILES, dtype=torch.float64) + 0.5) / _QUANTILES
    return torch.special.ndtri(middles).float().numpy()


def _poisson(mean: float) -> NDArray[np.float32]:
    """Quantiles of a Poisson distribution."""
    counts = np.arange(int(mean + 10 * np.sqrt(mean)) + 20)
    logarithms = counts * np.log(max(mean, 1e-12)) - mean - torch.lgamma(torch.from_numpy(counts + 1.0)).numpy()
    upto = np.rint(np.cumsum(np.exp(logarithms)) * _QUANTILES).astype(np.int64)
    upto[-1] = _QUANTILES  # what is left beyond is less than one quantile
    return np.repeat(counts.astype(np.float32), np.diff(upto, prepend=0))
