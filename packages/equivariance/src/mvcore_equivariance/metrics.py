"""What the evaluators count: errors of correspondences, keypoints, poses and tracks.

Shares are 0 to 1. Points are (x, y) in pixels; where a threshold is given, an error counts as small when it is strictly
below it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

THRESHOLDS = (0.05, 0.1, 0.2)
TAP_VID_PIXELS = (1, 2, 4, 8, 16)
"""Distances at which TAP-Vid counts a point as found, in pixels of a frame scaled to 256 x 256."""


class ApePcdp(NamedTuple):
    """Average pixel error and percentage of correct dense points.

    Args:
        ape: () mean error over the shortest edge of the image.
        pcdp: (K,) share of points whose error is below each threshold.
    """

    ape: Tensor
    pcdp: Tensor


def ape_pcdp(
    predicted: Tensor, truth: Tensor, image_size: tuple[int, int], thresholds: Sequence[float] = THRESHOLDS
) -> ApePcdp:
    """APE and PCDP of predicted correspondences (the paper, section 4.1).

    Args:
        predicted, truth: (P, 2) in pixels.
        image_size: (width, height); errors are divided by the shorter.
        thresholds: as shares of the shorter edge.

    Raises:
        ValueError: other shapes, no point, or an image without pixels.
    """
    edge = min(image_size)
    if edge <= 0:
        raise ValueError(f"image_size must be positive, not {image_size}")
    errors = pixel_errors(predicted, truth)
    return ApePcdp(errors.mean() / edge, shares_below(errors, [threshold * edge for threshold in thresholds]))


def pck(predicted: Tensor, truth: Tensor, size: float | Tensor, alphas: Sequence[float]) -> Tensor:
    """(K,) percentage of correct keypoints: the share whose error is below `alpha * size`.

    Args:
        predicted, truth: (P, 2) in pixels.
        size: what an error is measured against, in pixels: one number or (P,).
        alphas: K shares of it.

    Raises:
        ValueError: other shapes, no point, or a size that is not positive.
    """
    errors = pixel_errors(predicted, truth)
    sizes = torch.as_tensor(size, dtype=errors.dtype, device=errors.device)
    if sizes.shape not in ((), errors.shape) or not bool((sizes > 0).all()):
        raise ValueError(f"size must be positive and () or ({len(errors)},), not {size}")
    return shares_below(errors, [alpha * sizes for alpha in alphas])


def pixel_errors(predicted: Tensor, truth: Tensor) -> Tensor:
    """(P,) distances in float64.

    Raises:
        ValueError: not two (P, 2) of equal length, or no point.
    """
    predicted, truth = torch.as_tensor(predicted), torch.as_tensor(truth)
    if predicted.shape != truth.shape or predicted.ndim != 2 or predicted.shape[1] != 2 or not len(predicted):
        raise ValueError(f"points must both be (P, 2) with P > 0, not {tuple(predicted.shape)}, {tuple(truth.shape)}")
    return torch.linalg.vector_norm(predicted.double() - truth.double(), dim=1)


def shares_below(errors: Tensor, limits: Sequence[float | Tensor]) -> Tensor:
    """(K,) share of the errors (P,) strictly below each limit, one number or (P,)."""
    return torch.stack([(errors < limit).to(errors.dtype).mean() for limit in limits])


class PoseError(NamedTuple):
    """Rotation in degrees, 0 to 180, and distance in the units of the translations."""

    degrees: float
    distance: float


def pose_error(predicted: ArrayLike | Tensor, truth: ArrayLike | Tensor) -> PoseError:
    """How far two rigid poses are apart.

    Args:
        predicted, truth: (4, 4), rotation and translation.

    Raises:
        ValueError: other shapes, or values that are not finite.
    """
    first, second = _pose(predicted), _pose(truth)
    turn = first[:3, :3] @ second[:3, :3].T
    # acos((trace - 1) / 2) loses half the digits near 0 and 180 degrees, and leaves its domain there.
    sine = np.linalg.norm([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]]) / 2
    cosine = (np.trace(turn) - 1) / 2
    return PoseError(math.degrees(math.atan2(sine, cosine)), float(np.linalg.norm(first[:3, 3] - second[:3, 3])))


def _pose(values: ArrayLike | Tensor) -> NDArray[np.float64]:
    matrix = np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise ValueError(f"a pose must be (4, 4) finite numbers, not {matrix.shape}: {matrix.tolist()}")
    return matrix


def tap_vid_metrics(
    query_points: ArrayLike,
    gt_occluded: ArrayLike,
    gt_tracks: ArrayLike,
    pred_occluded: ArrayLike,
    pred_tracks: ArrayLike,
    query_mode: Literal["first", "strided"],
) -> dict[str, NDArray[np.float64]]:
    """Occlusion accuracy, points within a distance, and Jaccard of B videos of N points in T frames (TAP-Vid).

    Doersch et al., *TAP-Vid*, NeurIPS 2022, section 3: with queries `first` the frames after a point's query are
    counted, with `strided` all but the query's own. A point is within a distance when it is visible in truth and
    predicted so near, whatever is predicted of its visibility. Jaccard is true positives over true points and false
    positives, which are points predicted visible that are not, or not there.

    Args:
        query_points: (B, N, 3) frame, y, x.
        gt_occluded, pred_occluded: (B, N, T) bool.
        gt_tracks, pred_tracks: (B, N, T, 2) x, y in pixels of frames scaled to 256 x 256.
        query_mode: `first` or `strided`.

    Returns:
        (B,) shares: `occlusion_accuracy`, `pts_within_<d>` and `jaccard_<d>` for 1, 2, 4, 8 and 16 pixels,
        `average_pts_within_thresh`, `average_jaccard`; NaN where nothing is counted.

    Raises:
        ValueError: other shapes, an unknown mode, or a query frame that is not there.
    """
    queries, truth, tracks = np.asarray(query_points), np.asarray(gt_tracks, float), np.asarray(pred_tracks, float)
    visible, claimed = ~np.asarray(gt_occluded, bool), ~np.asarray(pred_occluded, bool)
    counted = _evaluated_frames(queries, visible.shape, query_mode)
    for name, values in (("gt_tracks", truth), ("pred_tracks", tracks)):
        if values.shape != (*visible.shape, 2):
            raise ValueError(f"{name} must be {(*visible.shape, 2)}, not {values.shape}")
    if claimed.shape != visible.shape:
        raise ValueError(f"pred_occluded must be {visible.shape}, not {claimed.shape}")
    squares = ((tracks - truth) ** 2).sum(-1)
    points = (visible & counted).sum((1, 2))
    found: dict[str, NDArray[np.float64]] = {
        "occlusion_accuracy": _ratio(((claimed == visible) & counted).sum((1, 2)), counted.sum((1, 2)))
    }
    for distance in TAP_VID_PIXELS:
        near = squares < distance**2
        right = near & visible & counted
        false_positives = (claimed & ~(near & visible) & counted).sum((1, 2))
        found[f"pts_within_{distance}"] = _ratio(right.sum((1, 2)), points)
        found[f"jaccard_{distance}"] = _ratio((right & claimed).sum((1, 2)), points + false_positives)
    for average, each in (("average_pts_within_thresh", "pts_within"), ("average_jaccard", "jaccard")):
        found[average] = np.mean([found[f"{each}_{distance}"] for distance in TAP_VID_PIXELS], axis=0)
    return found


def _evaluated_frames(queries: NDArray, shape: tuple[int, ...], query_mode: str) -> NDArray[np.bool_]:
    """(B, N, T) which frames of a point are counted."""
    if len(shape) != 3 or queries.shape != (*shape[:2], 3):
        raise ValueError(f"query_points must be (B, N, 3) and gt_occluded (B, N, T), not {queries.shape} and {shape}")
    asked = np.round(queries[..., :1]).astype(np.int64)
    if ((asked < 0) | (asked >= shape[2])).any():
        raise ValueError(f"a query's frame must lie in 0 to {shape[2] - 1}, not {asked.min()} to {asked.max()}")
    frames = np.arange(shape[2])
    if query_mode == "first":
        return frames > asked
    if query_mode == "strided":
        return frames != asked
    raise ValueError(f"query_mode must be 'first' or 'strided', not {query_mode!r}")


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
