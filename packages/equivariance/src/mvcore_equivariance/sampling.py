"""Descriptors of points: bilinear samples of a dense map, and the resolution at which the authors make that map."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_LONG_SIDE = 640
_CELL = 8


def sample_features(dense: Tensor, points: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Bilinear samples of dense maps at points of the images that they were made from.

    The map's cells tile the image, whatever the patch size or a resize between image and model: cell (row i, column j)
    of an h x w map stands at x = (j + 0.5) W / w, y = (i + 0.5) H / h. Between cells the map is linear, outside of the
    outermost ones constant. Patches that overlap, of a stride below their side, tile another rectangle: move points by
    (stride - patch) / 2 and give (w stride, h stride) as the size.

    The released code samples in the same way, but is given indices of pixels in the place of their centres, half a
    pixel to the upper left: `points` without the 0.5 is what it does.

    Args:
        dense: (B, C, h, w) floating; half precision is sampled in float32.
        points: (B, P, 2) of any real type, (x, y) in continuous pixels with pixel centres at +0.5; P may be 0.
        image_size: (W, H) of the images in which the points are.

    Returns:
        (B, P, C), not normalised, in the type of `dense` (float32 where that is half precision).

    Raises:
        ValueError: wrong shapes, integer or complex maps, or a size that is not positive.
    """
    if dense.ndim != 4 or not dense.is_floating_point() or 0 in dense.shape[2:]:
        raise ValueError(f"dense must be (B, C, h, w) floating, got {tuple(dense.shape)} {dense.dtype}")
    if points.ndim != 3 or points.shape[2] != 2 or len(points) != len(dense) or points.is_complex():
        raise ValueError(f"points must be (B, P, 2) with B = {len(dense)}, got {tuple(points.shape)} {points.dtype}")
    width, height = image_size
    if not (width > 0 and height > 0):
        raise ValueError(f"image_size must be (W, H) above 0, got {image_size}")
    if dense.dtype in (torch.float16, torch.bfloat16):
        dense = dense.float()
    x, y = points.to(dense.dtype).unbind(dim=2)
    # By numbers, not by a tensor of them, which would have to be brought to the device.
    grid = torch.stack([x * (2 / width) - 1, y * (2 / height) - 1], dim=2)[:, None]
    sampled = F.grid_sample(dense, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return sampled[:, :, 0].transpose(1, 2)


def released_resolution(image_size: tuple[int, int], patch: int = 14) -> tuple[int, int]:
    """The size to which the released code resizes an image before the model, whatever its own size.

    The longer side counts as 640 pixels, and every 8 of those become one patch: 512 x 512 is seen at 1120 x 1120, as
    80 x 80 patches of 14. Sides are cut down to whole patches, which may distort by less than one of them.

    Args:
        image_size: (W, H) in pixels.
        patch: side of the model's patches in pixels.

    Returns:
        (W, H) in pixels, multiples of `patch`.

    Raises:
        ValueError: a side that is not positive, or so short that no patch of the map is left.
    """
    width, height = image_size
    if not (width > 0 and height > 0 and patch > 0):
        raise ValueError(f"image_size must be (W, H) above 0 and patch positive, got {image_size} and {patch}")
    longest = max(width, height)
    columns, rows = (side * _LONG_SIDE // longest // _CELL for side in (width, height))
    if not (columns and rows):
        raise ValueError(
            f"an image of {width}x{height} has a side below {_CELL} pixels for {_LONG_SIDE} of the longer one: no "
            "patch is left of it; crop the image"
        )
    return columns * patch, rows * patch
