"""The ledger's pictures: similarity view by view, of all pairs, and against the angle between cameras."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mvcore.evaluation.ledger_maps import Maps
from mvcore.evaluation.results import Figure
from mvcore.report.figures import COLOURS, angle_norm, finish, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COSINES = (-1.0, -0.5, 0.0, 0.5, 0.8, 0.95, 1.0)
_DEVIATIONS = (0.0, 0.02, 0.1, 0.25, 0.5, 1.0)


def draw_view_maps(maps: Mapping[str, Maps], path: Path, *, title: str = "") -> Path:
    """Mean (above) and deviation (below) over objects of the cosine of view i and view j, one column a model.

    Means go over the whole range from opposite to equal in diverging colours, so that negative ones are seen;
    deviations from 0 to 1. Both ranges are fixed, so that pictures compare. Where the elevations of the cameras are
    known, views stand in their order and lines mark the blocks of one elevation.

    Raises:
        ValueError: no map, or maps of unequal size.
    """
    from matplotlib.colors import PowerNorm

    sizes = {found.mean.shape for found in maps.values()}
    if len(sizes) != 1 or (0, 0) in sizes:
        raise ValueError(f"there must be maps of one size, not {sorted(sizes)}")
    figure = new_figure(2.9 * len(maps) + 1.3, 6.4)
    axes = figure.subplots(2, len(maps), squeeze=False)
    shown: list[Any] = [None, None]
    blocks: list[tuple[int, str]] = []
    for column, (name, found) in enumerate(maps.items()):
        order, blocks = view_order(found)
        off = ~np.eye(len(order), dtype=bool)
        mean, std = found.mean[np.ix_(order, order)], found.std[np.ix_(order, order)]
        shown[0] = axes[0, column].imshow(
            np.clip(mean, -1, 1), cmap="RdBu_r", norm=angle_norm(), interpolation="nearest"
        )
        shown[1] = axes[1, column].imshow(
            np.clip(std, 0, 1), cmap="viridis", norm=PowerNorm(0.5, vmin=0, vmax=1), interpolation="nearest"
        )
        axes[0, column].set_title(f"{name}\nmean of i ≠ j: {mean[off].mean():.3f}", fontsize=9)
        axes[1, column].set_title(f"mean deviation: {std[off].mean():.3f}", fontsize=9)
        for axis in axes[:, column]:
            _mark_blocks(axis, len(order), blocks)
    names = ("cosine, mean over objects", "deviation over objects")
    for row, (what, ticks) in enumerate(zip(names, (_COSINES, _DEVIATIONS), strict=True)):
        bar = figure.colorbar(shown[row], ax=list(axes[row]), shrink=0.85, ticks=ticks)
        bar.set_label(what, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        axes[row, 0].set_ylabel("view" if not blocks else "elevation of the camera", fontsize=8)
    figure.suptitle(f"Views of an object against each other, {title}" if title else "", fontsize=10)
    return save_figure(figure, path)


def view_order(maps: Maps) -> tuple[NDArray[np.intp], list[tuple[int, str]]]:
    """The views in the order of their elevation and azimuth, and where each block of one elevation begins.

    Returns:
        (V,) indices, as they are where elevations are not known; starts with labels as `40°`, none where there is but
        one elevation or too many to be blocks.
    """
    rounded = np.round(maps.elevations.astype(np.float64))
    count = len(rounded)
    if np.isnan(rounded).any():
        return np.arange(count), []
    azimuths = np.round(np.nan_to_num(maps.azimuths.astype(np.float64)) % 360, 2)
    order = np.lexsort((azimuths, rounded))
    ordered = rounded[order]
    starts = [0, *(i for i in range(1, count) if ordered[i] != ordered[i - 1])]
    if len(starts) < 2 or len(starts) > count / 2:
        return order, []
    return order, [(start, f"{ordered[start]:g}°") for start in starts]


def draw_all_pairs(maps: Mapping[str, Maps], path: Path, *, title: str = "") -> Path:
    """Cosines of all pairs of some views, objects ordered by category, one panel a model.

    Raises:
        ValueError: no map.
    """
    if not maps:
        raise ValueError("no map to draw")
    figure = new_figure(3.4 * len(maps) + 1.5, 4.2)
    axes = figure.subplots(1, len(maps), squeeze=False)[0]
    shown: Any = None
    for axis, (name, found) in zip(axes, maps.items(), strict=True):
        shown = axis.imshow(
            np.clip(found.pairs.astype(np.float32), -1, 1), cmap="RdBu_r", norm=angle_norm(), interpolation="nearest"
        )
        axis.set_title(name, fontsize=9)
        _mark_categories(axis, found.categories, names=axis is axes[0])
        axis.set_xlabel(f"{len(set(found.objects.tolist()))} objects, {len(found.pairs)} views", fontsize=8)
    bar = figure.colorbar(shown, ax=list(axes), shrink=0.8, ticks=_COSINES)
    bar.set_label("cosine", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(f"All pairs of views, objects by category, {title}" if title else "", fontsize=10)
    return save_figure(figure, path)


def draw_by_relative_angle(
    curves: Mapping[str, Sequence[tuple[float, Figure]]],
    levels: Mapping[str, Figure],
    path: Path,
    *,
    title: str = "",
) -> Path:
    """Similarity of two views of an object against the angle between their cameras, with intervals over objects.

    Args:
        curves: by model: degrees and the figure there, rising.
        levels: by model, the similarity of views of different objects, as a dashed line.
        path: of the PNG.
        title: above the picture.

    Raises:
        ValueError: no curve.
    """
    if not any(curves.values()):
        raise ValueError("no curve to draw")
    figure = new_figure(6.4, 3.8)
    axis = figure.subplots()
    lowest = 0.0
    for i, (name, points) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        angles = np.array([angle for angle, _ in points])
        values = np.array([f.value for _, f in points])
        low, high = (np.nan_to_num([getattr(f, end) for _, f in points], nan=np.nan) for end in ("low", "high"))
        low, high = np.where(np.isnan(low), values, low), np.where(np.isnan(high), values, high)
        axis.plot(angles, values, marker="o", markersize=3.5, color=colour, label=name)
        axis.fill_between(angles, low, high, color=colour, alpha=0.2, linewidth=0)
        lowest = min(lowest, float(low.min()))
        if name in levels:
            axis.axhline(levels[name].value, color=colour, linewidth=1, linestyle="--")
            lowest = min(lowest, levels[name].value)
    # Fixed but for negative values, so that pictures compare.
    axis.set_ylim(-1 if lowest < -0.05 else -0.05, 1.02)
    axis.set_xlim(-4, 184)
    axis.set_xticks(range(0, 181, 30))
    axis.set_xlabel("angle between the two cameras (degrees); dashed: views of different objects", fontsize=9)
    axis.set_ylabel("cosine of two views of an object", fontsize=9)
    finish(axis, title)
    axis.legend(fontsize=8, frameon=False, ncols=min(4, len(curves)), loc="upper center", bbox_to_anchor=(0.5, -0.18))
    return save_figure(figure, path)


def _mark_blocks(axis: Axes, count: int, blocks: Sequence[tuple[int, str]]) -> None:
    if not blocks:
        ticks = np.arange(0, count, max(1, math.ceil(count / 8)))
        axis.set_xticks(ticks, [str(i) for i in ticks], fontsize=7)
        axis.set_yticks(ticks, [str(i) for i in ticks], fontsize=7)
        return
    starts = [start for start, _ in blocks] + [count]
    middles = [(a + b - 1) / 2 for a, b in pairwise(starts)]
    names = [name for _, name in blocks]
    axis.set_xticks(middles, names, fontsize=7)
    axis.set_yticks(middles, names, fontsize=7)
    axis.tick_params(length=0)
    for start in starts[1:-1]:
        axis.axhline(start - 0.5, color="black", linewidth=1)
        axis.axvline(start - 0.5, color="black", linewidth=1)


def _mark_categories(axis: Axes, categories: NDArray[np.str_], *, names: bool) -> None:
    count = len(categories)
    starts = [0, *(i for i in range(1, count) if categories[i] != categories[i - 1]), count]
    axis.set_xticks([])
    axis.set_yticks([])
    if len(starts) - 1 > 60 or len(starts) == 2:
        return
    for start in starts[1:-1]:
        axis.axhline(start - 0.5, color="black", linewidth=0.4)
        axis.axvline(start - 0.5, color="black", linewidth=0.4)
    if names:
        # Narrow blocks share their room: no more names than fit below each other.
        shown = [(a, b) for a, b in pairwise(starts) if b - a >= count / 45]
        axis.set_yticks([(a + b - 1) / 2 for a, b in shown], [str(categories[a]) for a, _ in shown], fontsize=6)
        axis.tick_params(length=0)
