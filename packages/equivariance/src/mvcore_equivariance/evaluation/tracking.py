"""The evaluator `equivariance.tracking`: points followed through videos by their features alone, on TAP-Vid-DAVIS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from mvcore.api import (
    ConfigError,
    DataError,
    Embedder,
    EvalResult,
    Figure,
    IndexedDataset,
    Model,
    Table,
    figure_over_objects,
    fingerprint,
    resolve_path,
)
from numpy.typing import NDArray
from PIL import Image

from mvcore_equivariance.evaluation.dense import dense_maps, settings
from mvcore_equivariance.evaluation.options import TrackingOptions
from mvcore_equivariance.evaluation.plain_pickle import read_pickle
from mvcore_equivariance.evaluation.tracker import Tracker
from mvcore_equivariance.metrics import tap_vid_metrics
from mvcore_equivariance.pictures import draw_tracks

ID = "equivariance.tracking"
_SIDE = 256
"""Frames are scaled to this for the metrics, which are in pixels."""
_EVERY = 5
_SHOWN = {
    "average_jaccard": ("AJ", "Mean Jaccard over 1, 2, 4, 8 and 16 pixels"),
    "average_pts_within_thresh": ("delta", "Mean share of visible points found within 1, 2, 4, 8 and 16 pixels"),
    "occlusion_accuracy": ("OA", "Share of points that are rightly called visible or hidden"),
}


@dataclass(frozen=True)
class Video:
    """A video of TAP-Vid.

    Args:
        name: its name.
        frames: (T, H, W, 3) uint8.
        points: (N, T, 2) x, y as shares of width and height.
        hidden: (N, T) bool.
    """

    name: str
    frames: NDArray[np.uint8]
    points: NDArray[np.float64]
    hidden: NDArray[np.bool_]


@dataclass(frozen=True)
class Queries:
    """Points that are asked for.

    Args:
        frames: (Q,) where.
        rows: (Q,) which of the video's points.
    """

    frames: NDArray[np.int64]
    rows: NDArray[np.int64]


def read_videos(path: Path) -> list[Video]:
    """The videos of `tapvid_davis.pkl`: by name `video`, `points` and `occluded`.

    Raises:
        DataError: no such file, or something else in it.
    """
    held = read_pickle(path)
    if not isinstance(held, dict) or not held:
        raise DataError(f"{path}: must hold videos by name, as tapvid_davis.pkl does")
    return [_video(path, str(name), entry) for name, entry in held.items()]


def _video(path: Path, name: str, entry: Any) -> Video:
    arrays = [_array(path, name, entry, key) for key in ("video", "points", "occluded")]
    frames, points, hidden = arrays
    if (
        frames.shape[3:] != (3,)
        or frames.dtype != np.uint8
        or hidden.ndim != 2
        or points.shape != (*hidden.shape, 2)
        or hidden.shape[1:] != frames.shape[:1]
        or not np.isfinite(points).all()
    ):
        raise DataError(
            f"{path}: video {name!r} must have frames (T, H, W, 3) uint8, finite points (N, T, 2) and occluded (N, T), "
            f"not {frames.shape} {frames.dtype}, {points.shape} and {hidden.shape}"
        )
    return Video(name, frames, points.astype(np.float64), hidden.astype(bool))


def _array(path: Path, name: str, entry: Any, key: str) -> NDArray[Any]:
    value = entry.get(key) if isinstance(entry, dict) else None
    if not isinstance(value, np.ndarray):
        raise DataError(f"{path}: video {name!r} must have the arrays video, points and occluded; it has no {key}")
    return value


def queries_of(video: Video, mode: Literal["first", "strided"]) -> Queries:
    """Each point at its first visible frame, or at every fifth where it is visible; one never visible is left out."""
    visible = np.asarray(~video.hidden, bool)
    if mode == "first":
        rows = np.flatnonzero(visible.any(1))
        return Queries(visible[rows].argmax(1), rows)
    place, rows = np.nonzero(visible[:, ::_EVERY].T)
    return Queries(place * _EVERY, rows)


class Tracking:
    """Average Jaccard, points within a distance and occlusion accuracy, `equivariance.tracking/<metric>/<queries>`."""

    def __init__(self, **options: Any) -> None:
        self.options = TrackingOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures the videos that the options name; sources are not read.

        Raises:
            ConfigError: an unknown video, or the model's map cannot be had as the options say.
            DataError: a file is missing or damaged; broken features.
        """
        model, options = Embedder.of(model), self.options
        videos = read_videos(resolve_path(options.data, what="TAP-Vid-DAVIS"))
        for name in options.videos or ():
            if name not in {video.name for video in videos}:
                raise ConfigError(f"{ID}: no video {name!r}; there are: {', '.join(video.name for video in videos)}")
        chosen = [video for video in videos if options.videos is None or video.name in options.videos]
        found: dict[str, dict[str, float]] = {}
        pictures: list[Path] = []
        changes = {"layer": -1, "norm": False} if options.features == "prenorm" else {}
        with settings(model, ID, patches=options.patches, stride=options.stride, **changes):
            for video in chosen:
                queries = queries_of(video, options.queries)
                if not len(queries.rows):
                    continue
                show = output if options.picture and not pictures else None
                scores, drawn = self._video(model, video, queries, show)
                found[video.name] = scores
                pictures += drawn
        if not found:
            raise DataError(f"{ID}: no video of {options.data} has a visible point")
        return EvalResult(self._figures(found), [self._table(found)], pictures)

    def _video(
        self, model: Embedder, video: Video, queries: Queries, output: Path | None
    ) -> tuple[dict[str, float], list[Path]]:
        options = self.options
        size = (options.width, options.height)
        frames = np.stack([np.asarray(Image.fromarray(f).resize(size, Image.Resampling.LANCZOS)) for f in video.frames])
        tracker = Tracker(
            dense_maps(model, frames, f"{ID}: video {video.name!r}", options.frames_at_once),
            radius=options.radius,
            temperature=options.temperature,
            anchor_similarity=options.anchor_similarity,
            similarity=options.similarity,
        )
        asked = video.points[queries.rows, queries.frames]
        tracks = tracker.track(torch.from_numpy(np.column_stack([queries.frames, asked * size])).float())
        points, hidden = tracks.points.cpu().double().numpy(), tracks.hidden.cpu().numpy()
        scores = tap_vid_metrics(
            np.column_stack([queries.frames, asked[:, ::-1] * _SIDE])[None],
            video.hidden[queries.rows][None],
            video.points[queries.rows][None] * _SIDE,
            hidden[None],
            points[None] * (_SIDE / np.array(size)),
            options.queries,
        )
        drawn: list[Path] = []
        if output is not None:
            truth = video.points[queries.rows] * size
            path = output / f"tracks-{Path(video.name).name}.png"
            first = queries.frames == queries.frames.min()
            drawn.append(
                draw_tracks(
                    frames,
                    points[first],
                    hidden[first],
                    path,
                    truth=truth[first],
                    truth_occluded=video.hidden[queries.rows[first]],
                    title=f"{video.name}: points asked for in frame {queries.frames.min()}",
                )
            )
        return {key: float(values[0]) for key, values in scores.items()}, drawn

    def _figures(self, found: Mapping[str, Mapping[str, float]]) -> list[Figure]:
        figures: list[Figure] = []
        mode = self.options.queries
        for key in next(iter(found.values())):
            values = {name: scores[key] for name, scores in found.items() if np.isfinite(scores[key])}
            if not values:
                continue
            head, what = _SHOWN.get(key, ("", key.replace("_", " ").capitalize() + " pixels"))
            figures.append(
                figure_over_objects(
                    f"{ID}/{key}/{mode}",
                    np.array(list(values.values())),
                    f"{what} in frames scaled to {_SIDE} x {_SIDE}, mean over videos, queries {mode}.",
                    n=len(values),
                    items=fingerprint(list(values)),
                    headline=head and f"{head} {mode}",
                    percent=True,
                )
            )
        return figures

    def _table(self, found: Mapping[str, Mapping[str, float]]) -> Table:
        rows = [[name, *(f"{100 * scores[key]:.2f}" for key in _SHOWN)] for name, scores in found.items()]
        return Table(
            f"TAP-Vid-DAVIS, queries {self.options.queries}, in percent",
            ("video", *(head for head, _ in _SHOWN.values())),
            rows,
        )
