"""What makes two images near-identical: a perceptual hash that finds candidates, and a thumbnail that confirms them.

Both are made from the object, not from the picture: where the picture's border has one colour, what differs from it is
cut out and set before a neutral ground, centred and scaled by the object's moments. A white background thereby makes no
two renders alike, and a copy that is moved in its frame, cropped beside the object or put before another light ground
is still the same image. Where the border has many colours the whole picture counts.

The hash is the DCT hash of Zauner (Implementation and Benchmarking of Perceptual Image Hash Functions, 2010): the signs
of the 64 lowest frequencies of a 32 x 32 picture against their median. It is made here for many views at once with two
matrix products; the libraries that have it hash one image at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Side of a thumbnail in pixels."""

_LARGEST = 128
_UNIFORM = 0.7
_LEAST_CONTRAST = 12
_CONTRAST = 0.4
_SMALLEST = 0.002
_GROUND = 2.0
_FRAME = 3.2
# Chosen on the embedded demo store and copies of it, see `benchmarks/overlap.py`.
_RESIDUAL = 16.0
_CORRELATION = 0.88
_COVERING = 0.7
_OUTLINE = 0.9
_FLAT = 3.0
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(32, 32, 4) of an (H, W, 3) image: RGB and where the object is, 255 = there; all 0 there for an empty picture."""
    image = Image.fromarray(pixels)
    scale = _LARGEST / max(image.size)
    if scale < 1:
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BOX
        )
    small = np.asarray(image).astype(np.float32)
    there = _object(small)
    mass = float(there.sum())
    if mass == 0:
        return np.zeros((SIDE, SIDE, 4), np.uint8)
    return _framed(small, there, *_frame(there, mass))


def hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """(N,) 64-bit hashes of (N, 32, 32, 4) thumbnails; they do not depend on brightness, contrast and background."""
    there = thumbnails[..., 3].astype(np.float32) / 255
    grey = thumbnails[..., :3] @ _LUMA
    weight = np.maximum(there.sum((1, 2), keepdims=True), 1)
    mean = (grey * there).sum((1, 2), keepdims=True) / weight
    spread = np.sqrt((there * (grey - mean) ** 2).sum((1, 2), keepdims=True) / weight)
    plain = np.clip((grey - mean) / np.maximum(spread, 1e-3), -3, 3) * there + _GROUND * (1 - there)
    frequencies = (_DCT @ plain @ _DCT.T)[:, _LOW[0], _LOW[1]]
    bits = frequencies > np.median(frequencies, axis=1, keepdims=True)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64)[:, 0]


def is_empty(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N,) whether a picture shows nothing."""
    return thumbnails[..., 3].max((1, 2)) == 0


def confirm(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Compares (P, 32, 32, 4) thumbnails pairwise, at 16 x 16 and with a pixel of the 32 to either side for alignment.

    Returns:
        (P,) whether both show the same: objects that cover the same area, whose colours agree up to one gain and offset
        for all channels; and (P,) the root mean square difference that is left, 0 to 255.
    """
    same = np.zeros(len(first), np.bool_)
    least = np.full(len(first), np.inf, np.float32)
    coarse = _pooled(first)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            alike, residual = _compare(*coarse, *_pooled(np.roll(second, (dy, dx), (1, 2))))
            same |= alike
            least = np.minimum(least, residual)
    return same, least


def _pooled(thumbnails: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """(P, 256, 3) colours and (P, 256) where the object is."""
    half = SIDE // 2
    there = (thumbnails[..., 3:].astype(np.float32) / 255).reshape(-1, half, 2, half, 2, 1)
    colours = thumbnails[..., :3].astype(np.float32).reshape(-1, half, 2, half, 2, 3)
    weight = there.mean((2, 4))
    mean = (colours * there).mean((2, 4)) / np.maximum(weight, 1e-3)
    return mean.reshape(-1, half * half, 3), weight.reshape(-1, half * half) > 0.5


def _compare(
    x: NDArray[np.float32], a: NDArray[np.bool_], y: NDArray[np.float32], b: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    both = a & b
    weight = both[..., None].astype(np.float32)
    n = np.maximum(3 * both.sum(1, dtype=np.float32), 1)
    x, y = (z - ((weight * z).sum((1, 2)) / n)[:, None, None] for z in (x, y))
    xx, yy, xy = ((weight * u * v).sum((1, 2)) / n for u, v in ((x, x), (y, y), (x, y)))
    gain = xy / np.maximum(yy, 1e-6)
    residual = np.sqrt(np.maximum(xx - gain * xy, 0))
    covering = both.sum(1) / np.maximum((a | b).sum(1), 1)
    flat = np.maximum(_pattern(x, weight, n), _pattern(y, weight, n)) < _FLAT
    correlation = xy / np.sqrt(np.maximum(xx * yy, 1e-6))
    grey = np.maximum(xx, yy) < _FLAT**2  # neither pattern nor colour: nothing but noise to correlate
    fits = grey | ((gain > 0.4) & (gain < 2.5) & (correlation > _CORRELATION))
    # Without a pattern only the outline tells.
    return fits & (covering > np.where(flat, _OUTLINE, _COVERING)) & (residual < _RESIDUAL), residual


def _pattern(z: NDArray[np.float32], weight: NDArray[np.float32], n: NDArray[np.float32]) -> NDArray[np.float32]:
    """(P,) deviation of each channel from its own mean."""
    mean = (weight * z).sum(1, keepdims=True) / (n / 3)[:, None, None]
    return np.sqrt((weight * (z - mean) ** 2).sum((1, 2)) / n)


def _object(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) 0 to 1: how much the picture differs from the colour of its border; 1 where that has no one colour."""
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)
    distance = np.abs(pixels - ground).max(2)
    contrast = max(_LEAST_CONTRAST, _CONTRAST * float(np.percentile(distance, 99)))
    if (np.abs(border - ground).max(1) <= contrast).mean() < _UNIFORM:
        return np.ones(pixels.shape[:2], np.float32)
    there = np.clip(2 * distance / contrast - 1, 0, 1)
    return there if there.mean() >= _SMALLEST else np.zeros_like(there)


def _frame(there: NDArray[np.float32], mass: float) -> tuple[float, float, float]:
    """Centre (x, y) and side of the square that is looked at: from the moments of the object, which noise, a crop of
    the background and another size hardly change.
    """
    height, width = there.shape
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    columns, rows = there.sum(0) / mass, there.sum(1) / mass
    cx, cy = float(columns @ x), float(rows @ y)
    spread = float(columns @ (x - cx) ** 2 + rows @ (y - cy) ** 2)
    return cx, cy, max(_FRAME * spread**0.5, 2.0)


def _framed(
    pixels: NDArray[np.float32], there: NDArray[np.float32], cx: float, cy: float, side: float
) -> NDArray[np.uint8]:
    """The square at 32 x 32; colours are averaged over the object alone, and nothing is outside of the picture."""
    height, width = there.shape
    pad = int(np.ceil(max(0.0, side / 2 - min(cx, cy), side / 2 + cx - width, side / 2 + cy - height)))
    layers = np.pad(np.dstack([pixels * there[..., None], there * 255]), ((pad, pad), (pad, pad), (0, 0)))
    box = (cx - side / 2 + pad, cy - side / 2 + pad, cx + side / 2 + pad, cy + side / 2 + pad)
    planes = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(layers[..., k])).resize(
                (SIDE, SIDE), Image.Resampling.BILINEAR, box=box
            )
        )
        for k in range(4)
    ]
    colours = np.stack(planes[:3], 2) / np.maximum(planes[3] / 255, 1e-3)[..., None]
    return np.concatenate([colours, planes[3][..., None]], axis=2).clip(0, 255).round().astype(np.uint8)


def _dct() -> NDArray[np.float32]:
    """The orthonormal DCT-II as a matrix."""
    k, x = np.mgrid[:SIDE, :SIDE]
    matrix = np.sqrt(2 / SIDE) * np.cos(np.pi * k * (2 * x + 1) / (2 * SIDE))
    matrix[0] /= np.sqrt(2)
    return matrix.astype(np.float32)


_DCT = _dct()
_LOW = tuple(np.array(sorted(((u, v) for u in range(SIDE) for v in range(SIDE)), key=lambda p: (sum(p), p))[1:65]).T)
