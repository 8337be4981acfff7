"""Geometry-aware image transforms: pixels move, and masks, depth, cameras and keypoints move with them.

Points are continuous pixels (x, y): the corner of an image is (0, 0), its first pixel's centre (0.5, 0.5). Every
geometric transform is a (3, 3) matrix A that takes a point of the stored image to where its content is afterwards, so
keypoints become A p and intrinsics A K. Images are uint8 in and out; masks and depth are resampled to the nearest.

Evaluation fits a stored image into a square (`fit`). Training does the same and then draws (`Augmentation`): all of its
geometric transforms are composed into one matrix, so that pixels are interpolated once.

A horizontal flip has no camera that sees it: mirrored views lose their camera (`camera_valid` is False), and keep their
depth and masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Fit: TypeAlias = Literal["crop", "pad"]
Matrices: TypeAlias = NDArray[np.float64]
Colour: TypeAlias = tuple[int, int, int]

_WARPED_AT_ONCE = 1 << 16
"""Pixels whose sampling grid is held at a time: what fits into a core's cache."""


class Window(NamedTuple):
    """A box (left, top, right, bottom) of an image, resized to (width, height) and put at (x, y) of the result."""

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    at: tuple[int, int] = (0, 0)

    def matrix(self) -> Matrices:
        """(3, 3), from the image to the result."""
        left, top, right, bottom = self.box
        scale_x, scale_y = self.size[0] / (right - left), self.size[1] / (bottom - top)
        x, y = self.at
        return np.array([[scale_x, 0, x - left * scale_x], [0, scale_y, y - top * scale_y], [0, 0, 1]])


def fit_window(height: int, width: int, side: int, fit: Fit = "crop") -> Window:
    """The window that brings an image of (height, width) into a square: its central square, or all of it, padded."""
    if fit == "crop":
        short = min(height, width)
        left, top = (width - short) / 2, (height - short) / 2
        return Window((left, top, left + short, top + short), (side, side))
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return Window((0, 0, width, height), size, ((side - size[0]) // 2, (side - size[1]) // 2))


def cut_image(pixels: NDArray[np.uint8], window: Window, side: int, fill: Colour = (0, 0, 0)) -> NDArray[np.uint8]:
    """A window of (H, W, 3) pixels as (side, side, 3), resized bicubically with antialiasing; padding is `fill`."""
    if _is_whole(pixels, window, side):
        return pixels
    resized = np.asarray(Image.fromarray(pixels).resize(window.size, Image.Resampling.BICUBIC, window.box))
    if window.size == (side, side):
        return resized
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:] = fill
    return _put(canvas, resized, window)


def cut_map(values: NDArray, window: Window, side: int) -> NDArray:
    """A window of a (H, W) bool mask or float32 depth map as (side, side), nearest; padding is 0."""
    if _is_whole(values, window, side):
        return values
    image = Image.fromarray(values.astype(np.uint8) if values.dtype == np.bool_ else values.astype(np.float32))
    resized = np.asarray(image.resize(window.size, Image.Resampling.NEAREST, window.box)).astype(values.dtype)
    if window.size == (side, side):
        return resized
    return _put(np.zeros((side, side), values.dtype), resized, window)


def _is_whole(pixels: NDArray, window: Window, side: int) -> bool:
    height, width = pixels.shape[:2]
    return (height, width) == (side, side) and window == Window((0, 0, width, height), (side, side))


def _put(canvas: NDArray, pixels: NDArray, window: Window) -> NDArray:
    x, y = window.at
    canvas[y : y + window.size[1], x : x + window.size[0]] = pixels
    return canvas


def warp(maps: Tensor, matrices: Matrices, fill: Sequence[float] | None) -> Tensor:
    """Moves the content of square maps by one matrix each.

    Args:
        maps: (N, C, S, S); uint8 is interpolated bilinearly and rounded, other types are taken from the nearest.
        matrices: (N, 3, 3) affine, from old to new points.
        fill: (C,) values that come in from outside; None repeats the border.

    Returns:
        (N, C, S, S) of the same type.
    """
    side = maps.shape[-1]
    unit = np.array([[2 / side, 0, -1], [0, 2 / side, -1], [0, 0, 1]])  # pixels to grid_sample's [-1, 1]
    inverse = unit @ np.linalg.inv(matrices) @ np.linalg.inv(unit)
    theta = torch.from_numpy(inverse[:, :2]).float()
    step = max(1, _WARPED_AT_ONCE // side**2)
    parts = [_warp(maps[k : k + step], theta[k : k + step], fill) for k in range(0, len(maps), step)]
    return torch.cat(parts)


def _warp(maps: Tensor, theta: Tensor, fill: Sequence[float] | None) -> Tensor:
    smooth = maps.dtype == torch.uint8
    values = maps.float()
    outside = None if fill is None else torch.tensor(list(fill), dtype=torch.float32)[:, None, None]
    moved = F.grid_sample(
        values if outside is None else values - outside,
        _grid(theta, maps.shape[-1]),
        mode="bilinear" if smooth else "nearest",
        padding_mode="border" if outside is None else "zeros",
        align_corners=False,
    )
    if outside is not None:
        moved += outside
    # Truncating after adding a half rounds; bilinear weights never leave the range of the values.
    return moved.add_(0.5).to(maps.dtype) if smooth else moved


def _grid(theta: Tensor, side: int) -> Tensor:
    """`F.affine_grid` of square maps as an outer sum, several times faster: (N, S, S, 2)."""
    centres = (torch.arange(side) + 0.5) * (2 / side) - 1
    along_x = theta[:, None, :, 0] * centres[None, :, None] + theta[:, None, :, 2]
    along_y = theta[:, None, :, 1] * centres[None, :, None]
    return along_x[:, None] + along_y[:, :, None]


def move_points(points: NDArray[np.floating], matrices: Matrices) -> Matrices:
    """(N, P, 2) keypoints after (N, 3, 3) affine transforms."""
    return points @ matrices[:, :2, :2].transpose(0, 2, 1) + matrices[:, None, :2, 2]


def move_cameras(
    intrinsics: Matrices, world_to_camera: Matrices, matrices: Matrices
) -> tuple[Matrices, Matrices, NDArray[np.bool_]]:
    """Cameras of transformed images: K' R = A K.

    The roll R goes into the extrinsics, so that K' stays upper triangular with positive focal lengths. It turns about
    the optical axis, so z-depth keeps its meaning.

    Args:
        intrinsics: (N, 3, 3).
        world_to_camera: (N, 4, 4).
        matrices: (N, 3, 3) affine.

    Returns:
        Both moved, and (N,) bool which of them are cameras: a mirrored view has none and keeps A K as it is.
    """
    moved = matrices @ intrinsics
    valid = np.linalg.det(moved[:, :2, :2]) > 0
    focal_y = np.linalg.norm(moved[:, 1, :2], axis=1)
    down = moved[:, 1, :2] / np.where(focal_y > 0, focal_y, 1)[:, None]
    right = np.stack([down[:, 1], -down[:, 0]], axis=1)
    upright = moved.copy()
    upright[:, 0, 0] = np.einsum("nk,nk->n", moved[:, 0, :2], right)
    upright[:, 0, 1] = np.einsum("nk,nk->n", moved[:, 0, :2], down)
    upright[:, 1, 0], upright[:, 1, 1] = 0, focal_y
    roll = np.broadcast_to(np.eye(4), (len(moved), 4, 4)).copy()
    roll[:, 0, :2], roll[:, 1, :2] = right, down
    keep = valid[:, None, None]
    return np.where(keep, upright, moved), np.where(keep, roll @ world_to_camera, world_to_camera), valid
