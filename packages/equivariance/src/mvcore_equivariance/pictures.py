"""Pictures of dense features: correspondences between two views, their principal components, tracks over frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from mvcore.api import new_figure, save_figure
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RIGHT, _WRONG = "#1f6fb4", "#e1812c"
_POINTS = 24
"""Correspondences in a picture: more are not told apart."""


@dataclass(frozen=True)
class MatchedPair:
    """Two views and P points of the first with where they are found, and where they are, in the second.

    Args:
        first, second: (H, W, 3) uint8.
        points, predicted, truth: (P, 2) x, y in continuous pixels.
        right: (P,) bool, whether a prediction counts as right.
        about: of the pair, to stand before how many are right.
    """

    first: NDArray[np.uint8]
    second: NDArray[np.uint8]
    points: NDArray[np.floating]
    predicted: NDArray[np.floating]
    truth: NDArray[np.floating]
    right: NDArray[np.bool_]
    about: str = ""


def draw_matches(pairs: Sequence[MatchedPair], path: Path, *, title: str = "", rule: str = "right") -> Path:
    """Pairs of views under each other, with lines from points to where they are found.

    Right ones are blue circles, wrong ones orange crosses with a dotted line to where the point is.

    Args:
        pairs: at least one.
        path: of the PNG.
        title: above the picture.
        rule: what counts as right, for the legend.

    Raises:
        ValueError: no pair.
    """
    if not pairs:
        raise ValueError("no pair of views to draw")
    figure = new_figure(6.6, 3.35 * len(pairs) + 0.6)
    axes = figure.subplots(len(pairs), 1, squeeze=False)[:, 0]
    for axis, pair in zip(axes, pairs, strict=True):
        draw_pair(axis, pair)
    _legend(figure, axes[0], rule)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def draw_pair(axis: Axes, pair: MatchedPair) -> None:
    """Draws one pair of views side by side, and some of its points; the title says how many are right."""
    height, width = pair.first.shape[:2]
    gap = width // 16
    shift = np.array([width + gap, 0.0])
    axis.imshow(pair.first, extent=(0, width, height, 0))
    other = pair.second.shape
    axis.imshow(pair.second, extent=(shift[0], shift[0] + other[1], other[0], 0))
    axis.set_xlim(0, shift[0] + other[1])
    axis.set_ylim(max(height, other[0]), 0)
    axis.set_axis_off()
    some = _spread(len(pair.points))
    for start, end, true, right in zip(
        pair.points[some], pair.predicted[some] + shift, pair.truth[some] + shift, pair.right[some], strict=True
    ):
        colour = _RIGHT if right else _WRONG
        axis.plot(*np.stack([start, end]).T, color=colour, linewidth=0.8, alpha=0.85)
        axis.plot(*start, marker="o", markersize=3, color=colour, markeredgecolor="white", markeredgewidth=0.4)
        axis.plot(*end, marker="o" if right else "X", markersize=4, color=colour, markeredgecolor="white", mew=0.4)
        if not right:
            axis.plot(*np.stack([end, true]).T, color=colour, linewidth=0.8, linestyle=":")
    drawn = f", {len(some)} of them drawn" if len(some) < len(pair.points) else ""
    found = f"{int(pair.right.sum())} of {len(pair.right)} points right{drawn}"
    axis.set_title(": ".join(filter(None, (pair.about, found))), fontsize=9)


def _legend(figure: Figure, axis: Axes, rule: str) -> None:
    handles = [
        axis.plot([], [], color=_RIGHT, marker="o", markersize=4, label=rule)[0],
        axis.plot([], [], color=_WRONG, marker="X", markersize=5, label="wrong")[0],
        axis.plot([], [], color=_WRONG, linestyle=":", label="to the true point")[0],
    ]
    figure.legend(handles=handles, fontsize=8, frameon=False, ncols=3, loc="outside lower center")


def draw_pca(
    images: NDArray[np.uint8],
    dense: NDArray[np.floating],
    foreground: NDArray[np.bool_] | None,
    path: Path,
    *,
    title: str = "",
) -> Path:
    """A row of views, and under it the first three principal components of their features as red, green and blue.

    The components and their ranges are those of all views together: equal colours are equal features.

    Args:
        images: (V, H, W, 3).
        dense: (V, C, h, w); taken at unit length.
        foreground: (V, H, W), whose cells alone count and are shown; None = all.
        path: of the PNG.
        title: above the picture.

    Raises:
        ValueError: no view, or other shapes.
    """
    if dense.ndim != 4 or not len(dense) or images.shape[:1] != dense.shape[:1]:
        raise ValueError(f"images must be (V, H, W, 3) and dense (V, C, h, w), not {images.shape} and {dense.shape}")
    colours = principal_colours(dense, None if foreground is None else _cells(foreground, dense.shape[2:]))
    count = len(images)
    figure = new_figure(max(3.0, 1.7 * count), 3.9)
    axes = figure.subplots(2, count, squeeze=False)
    height, width = images.shape[1:3]
    for column in range(count):
        axes[0, column].imshow(images[column], extent=(0, width, height, 0))
        axes[1, column].imshow(colours[column], extent=(0, width, height, 0), interpolation="nearest")
        for row in (0, 1):
            axes[row, column].set_axis_off()
    lines = [
        "below each view its features, with their three principal",
        "directions over all views as red, green and blue",
    ]
    figure.supxlabel((" " if count > 2 else "\n").join(lines), fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def principal_colours(dense: NDArray[np.floating], cells: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """(V, h, w, 3) first three principal components of unit features (V, C, h, w), 0 to 1 from the 2nd to the 98th
    percentile; white outside of `cells` (V, h, w). The sign of a component is that of its largest weight.
    """
    values = np.moveaxis(np.asarray(dense, np.float64), 1, -1)
    values = values / np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 1e-12)
    chosen = np.ones(values.shape[:3], bool) if cells is None or not cells.any() else cells
    some = values[chosen] - values[chosen].mean(axis=0)
    _, lengths, axes = np.linalg.svd(some, full_matrices=False)
    axes = axes[lengths > 1e-6 * max(lengths[0], 1e-6)][:3]  # what is left of rounding is no component
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    scores = some @ (axes * np.sign(largest)).T
    low, high = np.percentile(scores, [2, 98], axis=0)
    colours = np.ones((*values.shape[:3], 3))
    colours[chosen] = 0.5
    colours[chosen, : len(axes)] = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colours


def _cells(foreground: NDArray[np.bool_], grid: Sequence[int]) -> NDArray[np.bool_]:
    """(V, h, w) whether the middle of each cell of the map is foreground."""
    rows, columns = (
        ((np.arange(count) + 0.5) * side / count).astype(np.int64)
        for count, side in zip(grid, foreground.shape[1:], strict=True)
    )
    return foreground[:, rows[:, None], columns]


def draw_tracks(
    frames: NDArray[np.uint8],
    tracks: NDArray[np.floating],
    occluded: NDArray[np.bool_],
    path: Path,
    *,
    truth: NDArray[np.floating] | None = None,
    truth_occluded: NDArray[np.bool_] | None = None,
    title: str = "",
) -> Path:
    """Points over some frames: dots where they are seen, rings where they are taken for hidden.

    Args:
        frames: (T, H, W, 3).
        tracks: (N, T, 2) x, y in continuous pixels of the frames.
        occluded: (N, T).
        path: of the PNG.
        truth, truth_occluded: the same as they are; a line leads from a point to where it is.
        title: above the picture.

    Raises:
        ValueError: other shapes.
    """
    if tracks.shape != (*occluded.shape, 2) or occluded.shape[1] != len(frames):
        raise ValueError(f"tracks must be (N, {len(frames)}, 2), not {tracks.shape}, {occluded.shape}")
    from matplotlib import colormaps

    shown = np.unique(np.linspace(0, len(frames) - 1, min(5, len(frames))).round().astype(int))
    some = _spread(len(tracks))
    palette = colormaps["hsv"](np.linspace(0, 1, len(some), endpoint=False))
    height, width = frames.shape[1:3]
    figure = new_figure(2.6 * len(shown), 2.6 * height / width + 0.7)
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    for axis, frame in zip(axes, shown, strict=True):
        axis.imshow(0.35 + 0.65 * frames[frame] / 255, extent=(0, width, height, 0))
        axis.set_axis_off()
        axis.set_title(f"frame {frame}", fontsize=8)
        for colour, point in zip(palette, some, strict=True):
            at = tracks[point, frame]
            axis.plot(*at, marker="o", markersize=5.5, markerfacecolor="none", markeredgecolor="white", mew=1.6)
            if truth is not None and (truth_occluded is None or not truth_occluded[point, frame]):
                axis.plot(*np.stack([at, truth[point, frame]]).T, color=colour, linewidth=0.8)
            face: Any = "none" if occluded[point, frame] else colour
            axis.plot(*at, marker="o", markersize=4, markerfacecolor=face, markeredgecolor=colour, mew=0.8)
        axis.set_xlim(0, width)
        axis.set_ylim(height, 0)
    lines = "" if truth is None else "; lines lead to the true place"
    figure.supxlabel(f"dots: seen; rings: taken for hidden{lines}", fontsize=8)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def _spread(count: int) -> NDArray[np.int64]:
    """Indices of some of `count` points, evenly spread."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(_POINTS, count)).round().astype(np.int64))
