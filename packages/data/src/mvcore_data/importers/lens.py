"""Lenses that bend straight lines: COLMAP's camera models, and images made straight.

A model maps a point (u, v) of the plane at distance 1 to the point where the lens draws it, (u', v'); pixels are then
`(fx u' + cx, fy v' + cy)`. So the straight image's pixel needs no inversion: it is looked up where the lens drew it.
Source: https://github.com/colmap/colmap/blob/main/src/colmap/sensor/models.h, which agrees with OpenCV's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvcore_data.importers.cameras import Matrix, Size

_SAMPLES = 4096
_INVERSIONS = 50
_INVERTED = 1e-3
"""Pixels by which a point that was made straight may be drawn elsewhere than it was."""


@dataclass(frozen=True)
class Lens:
    """A lens by its distortion.

    Args:
        radial: coefficients k1 k2 k3 of the factor's numerator 1 + k1 r^2 + k2 r^4 + ..., and k4 k5 k6 of its
            denominator; of the angle where `fisheye`: theta' = theta (1 + k1 theta^2 + ... + k4 theta^8).
        tangential: p1, p2.
        fisheye: equidistant; even without coefficients it is no pinhole.
    """

    radial: tuple[float, ...] = ()
    tangential: tuple[float, float] = (0.0, 0.0)
    fisheye: bool = False

    @property
    def straight(self) -> bool:
        """Whether it is a pinhole after all."""
        return not (self.fisheye or any(self.radial) or any(self.tangential))

    def draw(self, u: NDArray[np.float64], v: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where the lens draws points of the plane at distance 1; NaN where it cannot draw them.

        A polynomial is fitted to the image alone: where it folds back, beyond the image's corners, it would draw a
        second copy of the image.
        """
        radius = np.hypot(u, v)
        limit = self._limit(float(radius.max(initial=0)))
        with np.errstate(all="ignore"):
            factor = np.where(radius <= limit, self._factor(radius), np.nan)
        p1, p2 = self.tangential
        square = radius * radius
        return (
            u * factor + 2 * p1 * u * v + p2 * (square + 2 * u * u),
            v * factor + 2 * p2 * u * v + p1 * (square + 2 * v * v),
        )

    def _factor(self, radius: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.fisheye:
            angle = np.arctan(radius)
            bent = angle * _polynomial(self.radial, angle * angle)
            return np.divide(bent, radius, out=np.ones_like(radius), where=radius > 0)
        square = radius * radius
        return _polynomial(self.radial[:3], square) / _polynomial(self.radial[3:], square)

    def _limit(self, highest: float) -> float:
        """The radius up to which the drawn radius grows."""
        radii = np.linspace(0, highest, _SAMPLES)
        with np.errstate(all="ignore"):
            drawn = radii * self._factor(radii)
        falls = ~(np.diff(drawn) > 0)
        return float(radii[int(falls.argmax())]) if falls.any() else highest

    def straighten(self, image: NDArray, intrinsics: Matrix, *, nearest: bool) -> NDArray:
        """The image that a pinhole of the same intrinsics would have drawn.

        Args:
            image: (H, W) or (H, W, C).
            intrinsics: (3, 3) for this size.
            nearest: take the nearest pixel instead of a bilinear mean, as for depth and masks.

        Returns:
            As `image`; 0 where the lens saw nothing.
        """
        x, y = self._lookup(intrinsics, (image.shape[0], image.shape[1]))
        return _nearest(image, x, y) if nearest else _bilinear(image, x, y)

    def straight_points(self, points: NDArray[np.float64], intrinsics: Matrix) -> NDArray[np.float64]:
        """Where points of the image are after `straighten`.

        Args:
            points: (M, 2) in pixels, centres at +0.5.
            intrinsics: (3, 3) of the image.

        Returns:
            (M, 2); NaN for a point that the lens cannot have drawn.
        """
        (fx, skew, cx), (_, fy, cy), _ = intrinsics
        bent_v = (points[:, 1] - cy) / fy
        bent_u = (points[:, 0] - cx - skew * bent_v) / fx
        u, v = bent_u, bent_v
        off = np.full(len(points), np.inf)
        # What the lens adds changes slowly: taking it off again and again ends at the point.
        for _ in range(_INVERSIONS):
            drawn_u, drawn_v = self.draw(u, v)
            off = np.hypot((drawn_u - bent_u) * fx, (drawn_v - bent_v) * fy)
            known = np.isfinite(off)
            u, v = np.where(known, u - drawn_u + bent_u, u), np.where(known, v - drawn_v + bent_v, v)
        straight = np.stack([fx * u + skew * v + cx, fy * v + cy], 1)
        return np.where((off < _INVERTED)[:, None], straight, np.nan)

    def _lookup(self, intrinsics: Matrix, size: Size) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        (fx, skew, cx), (_, fy, cy), _ = intrinsics
        rows, columns = np.mgrid[0 : size[0], 0 : size[1]] + 0.5
        v = (rows - cy) / fy
        u = (columns - cx - skew * v) / fx
        drawn_u, drawn_v = self.draw(u, v)
        return fx * drawn_u + skew * drawn_v + cx, fy * drawn_v + cy


PINHOLE = Lens()


def lens_of(model: str, parameters: Sequence[float]) -> Lens | None:
    """The lens of a COLMAP camera, or None for a model that is not known here.

    Args:
        model: COLMAP's name.
        parameters: all of them, in COLMAP's order.
    """
    extra = tuple(parameters[FOCAL_LENGTHS.get(model, 2) + 2 :])
    match model:
        case "SIMPLE_PINHOLE" | "PINHOLE":
            return PINHOLE
        case "SIMPLE_RADIAL" | "RADIAL":
            return Lens((*extra, 0.0, 0.0)[:3])
        case "OPENCV":
            return Lens((*extra[:2], 0.0), (extra[2], extra[3]))
        case "FULL_OPENCV":
            return Lens((*extra[:2], *extra[4:]), (extra[2], extra[3]))
        case "OPENCV_FISHEYE":
            return Lens(extra, fisheye=True)
    return None


FOCAL_LENGTHS = {"SIMPLE_PINHOLE": 1, "SIMPLE_RADIAL": 1, "RADIAL": 1, "SIMPLE_RADIAL_FISHEYE": 1, "RADIAL_FISHEYE": 1}
"""How many focal lengths a model's parameters begin with, where not two."""


def _polynomial(coefficients: Sequence[float], x: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = (total + coefficient) * x
    return 1 + total


def _nearest(image: NDArray, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray:
    height, width = image.shape[:2]
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    out = np.zeros_like(image)
    out[seen] = image[y[seen].astype(np.intp), x[seen].astype(np.intp)]
    return out


def _bilinear(image: NDArray, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray:
    height, width = image.shape[:2]
    seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    # Half a pixel within the border there is no neighbour; the border's own pixel stands for it.
    column = np.clip(x[seen] - 0.5, 0, width - 1)
    row = np.clip(y[seen] - 0.5, 0, height - 1)
    left, top = np.floor(column).astype(np.intp), np.floor(row).astype(np.intp)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    extra = (1,) * (image.ndim - 2)
    a, b = (column - left).reshape(-1, *extra), (row - top).reshape(-1, *extra)
    upper = image[top, left] * (1 - a) + image[top, right] * a
    lower = image[bottom, left] * (1 - a) + image[bottom, right] * a
    out = np.zeros_like(image)
    out[seen] = np.round(upper * (1 - b) + lower * b).astype(image.dtype)
    return out
