"""Pictures of a run as PNG files, drawn without a display.

Colour ranges and axes are fixed, so that the pictures of two runs can be laid side by side.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvcore.errors import DataError
from mvcore.evaluation.files import write_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from mvcore.evaluation.results import EvalResult

DPI = 150
COLOURS = ("#8a8a8a", "#e1812c", "#1f6fb4", "#3a923a", "#845b97", "#c03d3e")
"""Rows in their order: the untouched model is grey."""
_COSINE_TICKS = (-1.0, -0.5, 0.0, 0.5, 0.8, 0.95, 1.0)


def draw_similarity_maps(
    maps: Mapping[str, ArrayLike],
    path: Path,
    *,
    title: str = "Cosine of view i and view j, mean over objects",
    labels: Sequence[str] | None = None,
) -> Path:
    """View-by-view similarity maps side by side.

    Colour goes with the angle between two vectors, not with its cosine, over the whole range from opposite to equal: so
    negative cosines are seen, and so are the differences near 1.

    Args:
        maps: (V, V) cosines by name, as `mvcore.evaluation.similarity.view_similarity_map` makes them.
        path: of the PNG.
        title: above the maps.
        labels: V names of the views; their numbers by default.

    Raises:
        ValueError: no map, or one that is not square or holds what is no cosine.
    """
    arrays = {name: np.asarray(values, np.float64) for name, values in maps.items()}
    if not arrays:
        raise ValueError("no similarity map to draw")
    for name, values in arrays.items():
        if values.ndim != 2 or values.shape[0] != values.shape[1] or not (np.abs(values) <= 1 + 1e-6).all():
            raise ValueError(f"map {name!r} must be (V, V) cosines, not {values.shape}")
    figure = new_figure(3.4 * len(arrays) + 0.9, 4.0)
    axes = figure.subplots(1, len(arrays), squeeze=False)[0]
    image = None
    for axis, (name, values) in zip(axes, arrays.items(), strict=True):
        image = axis.imshow(np.clip(values, -1, 1), cmap="RdBu_r", norm=angle_norm(), interpolation="nearest")
        count = len(values)
        off = values[~np.eye(count, dtype=bool)]
        axis.set_title(f"{name}\nmean of i ≠ j: {off.mean():.3f}" if off.size else name, fontsize=9)
        step = max(1, math.ceil(count / 8))
        ticks = np.arange(0, count, step)
        names = [str(i) for i in range(count)] if labels is None else list(labels)
        axis.set_xticks(ticks, [names[i] for i in ticks], fontsize=7, rotation=90 if labels else 0)
        axis.set_yticks(ticks, [names[i] for i in ticks], fontsize=7)
        axis.set_xlabel("view", fontsize=8)
    axes[0].set_ylabel("view", fontsize=8)
    assert image is not None
    bar = figure.colorbar(image, ax=list(axes), shrink=0.78, ticks=_COSINE_TICKS)
    bar.set_label("cosine", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def draw_by_viewpoint(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    path: Path,
    *,
    quantity: str,
    limits: tuple[float, float] = (0.0, 1.0),
    percent: bool = False,
    title: str = "",
    trained: Sequence[float] = (),
) -> Path:
    """A quantity against the azimuth of the camera, one line a model.

    Args:
        curves: by name: azimuths in degrees and values, of equal length in any order.
        path: of the PNG.
        quantity: name of the vertical axis.
        limits: of the vertical axis, before `percent`.
        percent: values are shown times 100.
        title: above the picture.
        trained: azimuths that the first model was trained on, marked.

    Raises:
        ValueError: no curve, or azimuths and values of unequal length.
    """
    if not curves:
        raise ValueError("no curve to draw")
    scale = 100 if percent else 1
    figure = new_figure(6.4, 3.4)
    axis = figure.subplots()
    for azimuth in trained:
        axis.axvline(azimuth, color="#dddddd", linewidth=6, zorder=0)
    for i, (name, (azimuths, values)) in enumerate(curves.items()):
        x, y = np.asarray(azimuths, np.float64), np.asarray(values, np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise ValueError(f"curve {name!r}: azimuths and values must both be (K,), not {x.shape} and {y.shape}")
        # The circle is cut at 180 degrees: what stands there is drawn at both ends.
        ends = np.abs(x) == 180
        x, y = np.concatenate([x, -x[ends]]), np.concatenate([y, y[ends]])
        order = np.argsort(x)
        axis.plot(x[order], scale * y[order], marker="o", markersize=3.5, color=COLOURS[i % len(COLOURS)], label=name)
    axis.set_ylim(scale * limits[0], scale * limits[1])
    axis.set_xlim(-187, 187)
    axis.set_xticks(range(-180, 181, 45))
    axis.set_xlabel("azimuth of the camera (degrees; 0 = frontal)", fontsize=9)
    axis.set_ylabel(f"{quantity} (%)" if percent else quantity, fontsize=9)
    finish(axis, title)
    axis.legend(fontsize=8, frameon=False, ncols=len(curves), loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return save_figure(figure, path)


def draw_lines(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike, ArrayLike]],
    path: Path,
    *,
    quantity: str,
    along: str,
    limits: tuple[float, float] = (0.0, 1.0),
    percent: bool = False,
    title: str = "",
) -> Path:
    """A quantity against numbers, one line a row, with a band of its deviation.

    Args:
        curves: by name: numbers, values and deviations (NaN where there is none), of equal length in any order.
        path: of the PNG.
        quantity: name of the vertical axis.
        along: name of the horizontal axis.
        limits: of the vertical axis, before `percent`.
        percent: values and deviations are shown times 100.
        title: above the picture.

    Raises:
        ValueError: no curve, or numbers, values and deviations of unequal length.
    """
    if not curves:
        raise ValueError("no curve to draw")
    scale = 100 if percent else 1
    figure = new_figure(6.4, 3.6)
    axis = figure.subplots()
    ticks: set[float] = set()
    for i, (name, given) in enumerate(curves.items()):
        x, y, deviation = (np.asarray(values, np.float64) for values in given)
        if not x.shape == y.shape == deviation.shape or x.ndim != 1:
            shapes = ", ".join(map(str, (x.shape, y.shape, deviation.shape)))
            raise ValueError(f"curve {name!r}: numbers, values and deviations must all be (K,), not {shapes}")
        order = np.argsort(x)
        x, y, spread = x[order], scale * y[order], scale * np.nan_to_num(deviation[order])
        colour = COLOURS[i % len(COLOURS)]
        axis.plot(x, y, marker="o", markersize=3.5, color=colour, label=name)
        axis.fill_between(x, y - spread, y + spread, color=colour, alpha=0.18, linewidth=0)
        ticks |= {float(value) for value in x}
    axis.set_ylim(scale * limits[0], scale * limits[1])
    axis.set_xticks(sorted(ticks), [f"{tick:g}" for tick in sorted(ticks)])
    axis.set_xlabel(along, fontsize=9)
    axis.set_ylabel(f"{quantity} (%)" if percent else quantity, fontsize=9)
    finish(axis, title)
    axis.legend(fontsize=8, frameon=False, ncols=min(3, len(curves)), loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return save_figure(figure, path)


def draw_heat_maps(
    images: NDArray[np.uint8],
    heat: ArrayLike,
    path: Path,
    *,
    titles: Sequence[str] = (),
    label: str = "",
    point: tuple[int, float, float] | None = None,
) -> Path:
    """Draws a row of images, and under it the same under their heat maps, all in one range of colour.

    Args:
        images: (F, H, W, 3).
        heat: (F, h, w), not negative; each cell covers its part of the image.
        path: the PNG to write.
        titles: one for each image.
        label: what the heat is.
        point: number of an image and a place in it, in pixels, to be marked.
    """
    values = np.asarray(heat)
    height, width = images.shape[1:3]
    figure = new_figure(max(5.0, 2.0 * len(images) + 0.8), 4.5)
    axes = figure.subplots(2, len(images), squeeze=False)
    shown: Any = None
    for column in range(len(images)):
        for row in range(2):
            axis = axes[row, column]
            axis.imshow(images[column], extent=(0, width, height, 0))
            axis.set_axis_off()
            if point is not None and point[0] == column:
                axis.plot(*point[1:], marker="o", markersize=7, markerfacecolor="none", markeredgecolor="white", mew=3)
                axis.plot(*point[1:], marker="o", markersize=7, markerfacecolor="none", markeredgecolor="black", mew=1)
        # Light and without colour, so that the heat alone has one.
        grey = 0.4 + 0.6 * images[column].mean(axis=2) / 255
        axes[1, column].imshow(grey, extent=(0, width, height, 0), cmap="gray", vmin=0, vmax=1)
        shown = axes[1, column].imshow(
            values[column], extent=(0, width, height, 0), cmap="YlOrRd", alpha=0.6, vmin=0, vmax=values.max() or 1
        )
        if column < len(titles):
            axes[0, column].set_title(titles[column], fontsize=9)
    bar = figure.colorbar(shown, ax=list(axes[1]), pad=0.01)
    bar.ax.tick_params(labelsize=8)
    figure.supxlabel(label, fontsize=9)
    return save_figure(figure, path)


def accuracy_by_azimuth(result: EvalResult, sources: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Azimuths and top-1 of what `core.zero_shot` found on `sources` together, for `draw_by_viewpoint`.

    Returns:
        (K,) degrees, increasing, and (K,) shares of right views; empty where no camera is known.
    """
    right: dict[int, float] = {}
    views: dict[int, int] = {}
    for figure in result.figures:
        parts = figure.name.split("/")
        if len(parts) == 4 and parts[1] == "azimuth" and parts[2] in sources:
            angle = int(parts[3])
            right[angle] = right.get(angle, 0.0) + figure.value * figure.n
            views[angle] = views.get(angle, 0) + figure.n
    angles = sorted(views)
    return np.array(angles, np.float64), np.array([right[a] / views[a] for a in angles], np.float64)


def draw_training_curves(metrics: Path, path: Path, *, title: str = "Training", prefix: str = "train/") -> Path | None:
    """Each metric under `prefix` of a `metrics.csv` against the step, one panel a metric.

    Returns:
        `path`, or None where the file holds no such metric.

    Raises:
        DataError: the file is missing or is no table of metrics.
    """
    series = read_metrics(metrics)
    chosen = {name: points for name, points in series.items() if name.startswith(prefix)}
    if not chosen:
        return None
    columns = min(3, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = new_figure(3.1 * columns, 2.3 * rows + 0.3)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, (steps, values)) in zip(axes, chosen.items(), strict=False):
        finite = np.isfinite(values)
        few = len(steps) <= 200
        axis.plot(steps[finite], values[finite], color=COLOURS[2], alpha=1 if few else 0.3, linewidth=1 if few else 0.6)
        if not few:
            axis.plot(*_smoothed(steps[finite], values[finite]), color=COLOURS[2], linewidth=1.4)
        finish(axis, name.removeprefix(prefix))
        axis.set_xlabel("step", fontsize=8)
    for axis in axes[len(chosen) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10)
    return save_figure(figure, path)


def read_metrics(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of each metric of a `metrics.csv`, whose rows hold only some of the columns.

    Raises:
        DataError: the file is missing, has no column `step`, or holds what is no number.
    """
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if "step" not in (reader.fieldnames or ()):
                raise DataError(f"{path}: no column 'step'; give the metrics.csv of a run")
            found: dict[str, tuple[list[float], list[float]]] = {}
            for row in reader:
                for name, text in row.items():
                    if name not in ("step", "epoch") and text and row["step"]:
                        steps, values = found.setdefault(name, ([], []))
                        steps.append(float(row["step"]))
                        values.append(float(text))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give the metrics.csv of a run") from error
    except (ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a table of metrics ({error}); give the metrics.csv of a run") from error
    return {name: (np.array(steps), np.array(values)) for name, (steps, values) in found.items()}


def _smoothed(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Running mean over a fiftieth of the points; only full windows, so that the ends do not bend."""
    width = max(2, len(values) // 50)
    kernel = np.full(width, 1 / width)
    return np.convolve(steps, kernel, mode="valid"), np.convolve(values, kernel, mode="valid")


def angle_norm() -> Any:
    """Colours of cosines by the angle, from opposite to equal."""
    from matplotlib.colors import FuncNorm

    def angle(cosine: ArrayLike) -> np.ndarray:
        return -np.arccos(np.clip(cosine, -1, 1))

    def cosine(angle: ArrayLike) -> np.ndarray:
        return np.cos(angle)

    return FuncNorm((angle, cosine), vmin=-1, vmax=1)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches."""
    # Not through pyplot: it keeps every figure alive and picks a backend for the whole process.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def finish(axis: Axes, title: str) -> None:
    """Grid, frame and title of a plain plot."""
    axis.grid(visible=True, color="#e6e6e6", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    axis.set_title(title, fontsize=9)


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes the PNG whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    write_atomic(path, buffer.getvalue())
    return path
