"""The evaluator `equivariance.pose`: an object's pose from 2D-3D matches, on OnePose-LowTexture.

He et al., *OnePose++*, NeurIPS 2022. Points of a reference sequence, whose places on the object are known from
structure from motion, are matched by their features with a grid of points of each test frame; the pose comes from PnP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    read_image,
    sample_dense,
)
from numpy.typing import NDArray
from torch import Tensor

from mvcore_equivariance.evaluation.dense import dense_maps, settings
from mvcore_equivariance.evaluation.draws import generator
from mvcore_equivariance.evaluation.files import folder, listed, points_of, read_array, read_json, read_matrix
from mvcore_equivariance.evaluation.options import PoseOptions
from mvcore_equivariance.matching import Given, mutual_nearest
from mvcore_equivariance.metrics import PoseError, pose_error
from mvcore_equivariance.pnp import solve_pnp

ID = "equivariance.pose"
_CENTIMETRES = 100


@dataclass(frozen=True)
class Sequences:
    """Where an object's files are.

    Args:
        name: `<id>-<name>-<type>`.
        reference, test: the folders of its two sequences.
        points: (K, 3) points of the object in metres.
    """

    name: str
    reference: Path
    test: Path
    points: NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """A test frame.

    Args:
        error: None where no pose was found.
        matches: mutual nearest neighbours.
        inliers: those that RANSAC agrees with.
    """

    error: PoseError | None
    matches: int
    inliers: int


def find_objects(data: Path, sfm: Path, chosen: tuple[str, ...] | None) -> list[Sequences]:
    """The objects of the data set.

    Raises:
        ConfigError: a chosen object that is not there.
        DataError: no object, or files that are missing or damaged.
    """
    there = sorted(path.name for path in data.iterdir() if path.is_dir() and path.name.count("-") >= 1)
    for name in chosen or ():
        if name not in there:
            raise ConfigError(f"{ID}: no object {name!r} in {data}; there are: {', '.join(there[:10]) or 'none'}")
    names = there if chosen is None else list(chosen)
    if not names:
        raise DataError(f"{data}: holds no object; folders are named <id>-<name>-<type>")
    return [_object(data, sfm, name) for name in names]


def _object(data: Path, sfm: Path, name: str) -> Sequences:
    short = name.split("-")[1]
    reference, test = (data / name / f"{short}-{number}" for number in (1, 2))
    for path in (reference, test):
        if not path.is_dir():
            raise DataError(f"{path}: no such folder; an object has the sequences {short}-1 and {short}-2")
    return Sequences(name, reference, test, read_array(sfm / name / "anno/anno_3d_average.npz", "keypoints3d", 3))


class Pose:
    """Share of frames whose pose is right, `equivariance.pose/accuracy_<limit>`, mean over objects."""

    def __init__(self, **options: Any) -> None:
        self.options = PoseOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures the objects that the options name; sources are not read.

        Raises:
            ConfigError: an unknown object, the model's map cannot be had as the options say, or OpenCV is missing.
            DataError: a file is missing or damaged; broken features.
        """
        model = Embedder.of(model)
        data, sfm = folder(self.options.data, "OnePose-LowTexture"), folder(self.options.sfm, "sfm")
        objects = find_objects(data, sfm, self.options.objects)
        found = {sequences.name: self._object(model, sequences) for sequences in objects}
        return EvalResult(self._figures(found), [self._table(found)])

    def _object(self, model: Embedder, sequences: Sequences) -> list[Measured]:
        features, points = self._templates(model, sequences)
        frames = listed(sequences.test / "color", "*.png")[:: self.options.every]
        return [self._frame(model, sequences.test, frame, features, points) for frame in frames]

    def _templates(self, model: Embedder, sequences: Sequences) -> tuple[Given, NDArray[np.float64]]:
        """Features of the reference sequence's annotated points, and these points on the object."""
        features: list[Tensor] = []
        points: list[NDArray[np.float64]] = []
        for note in listed(sequences.reference / "anno_loftr", "*.json"):
            places, numbers = _annotated(note, len(sequences.points))
            if len(places):
                features.append(self._features(model, sequences.reference / "color" / f"{note.stem}.png", places))
                points.append(sequences.points[numbers])
        if not features:
            raise DataError(f"{sequences.reference}: no annotated point in any frame")
        every, places3d = torch.cat(features), np.concatenate(points)
        if len(every) > self.options.templates:
            rng = generator(self.options.seed, sequences.name)
            kept = np.sort(rng.choice(len(every), self.options.templates, replace=False))
            every, places3d = every[torch.from_numpy(kept).to(every.device)], places3d[kept]
        return Given(every), places3d

    def _features(self, model: Embedder, path: Path, places: NDArray[np.float64]) -> Tensor:
        """(P, C) float32 features of an image at points (P, 2)."""
        image = read_image(path)
        cell = self.options.cell
        with settings(model, ID, patches=None if cell is None else max(1, max(image.shape[:2]) // cell)):
            maps = dense_maps(model, image[None], str(path))
        return sample_dense(maps.values, torch.from_numpy(places)[None].to(maps.values), maps.grid)[0]

    def _frame(
        self, model: Embedder, sequence: Path, frame: Path, templates: Given, points: NDArray[np.float64]
    ) -> Measured:
        options = self.options
        image = read_image(frame)
        intrinsics = read_matrix(sequence / "intrin_ba" / f"{frame.stem}.txt", (3, 3))
        truth = read_matrix(sequence / "poses_ba" / f"{frame.stem}.txt", (4, 4))
        rows, columns = (np.arange(0, side, options.grid, dtype=np.float64) for side in image.shape[:2])
        places = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
        pairs = mutual_nearest(Given(self._features(model, frame, places)), templates).cpu().numpy()
        found = solve_pnp(
            points[pairs[:, 1]],
            places[pairs[:, 0]],
            intrinsics,
            reprojection=options.reprojection,
            iterations=options.iterations,
            confidence=options.confidence,
            more_than=options.inliers,
        )
        error = None if found.pose is None else pose_error(found.pose, truth)
        return Measured(error, len(pairs), found.inliers)

    def _figures(self, found: Mapping[str, list[Measured]]) -> list[Figure]:
        def figure(
            name: str, of: Callable[[Measured], float], text: str, *, head: str = "", share: bool = True
        ) -> Figure:
            return figure_over_objects(
                f"{ID}/{name}",
                np.array([np.mean([of(frame) for frame in each]) for each in found.values()]),
                text,
                n=sum(map(len, found.values())),
                items=fingerprint(list(found)),
                headline=head,
                percent=share,
            )

        figures = [
            figure(
                f"accuracy_{limit:g}",
                lambda frame, limit=limit: float(_right(frame, limit)),
                f"Share of frames whose pose is less than {limit:g} degrees and {limit:g} cm from the true one, mean "
                "over objects; a frame without a pose counts as wrong.",
                head=f"pose {limit:g}cm-{limit:g}deg",
            )
            for limit in self.options.limits
        ]
        few = f"Share of frames with less than 4 matches or at most {self.options.inliers} inliers, mean over objects."
        many = "Inliers of RANSAC in a frame, mean over objects."
        figures.append(figure("failed", lambda frame: float(frame.error is None), few))
        figures.append(figure("inliers", lambda frame: float(frame.inliers), many, share=False))
        return figures

    def _table(self, found: Mapping[str, list[Measured]]) -> Table:
        limits = self.options.limits
        rows = [
            [
                name,
                str(len(each)),
                *(f"{100 * np.mean([_right(frame, limit) for frame in each]):.2f}" for limit in limits),
                str(sum(frame.error is None for frame in each)),
                f"{np.mean([frame.matches for frame in each]):.1f}",
                f"{np.mean([frame.inliers for frame in each]):.1f}",
            ]
            for name, each in found.items()
        ]
        heads = (f"{limit:g}cm-{limit:g}deg" for limit in limits)
        return Table(
            "OnePose-LowTexture, in percent", ("object", "frames", *heads, "failed", "matches", "inliers"), rows
        )


def _right(frame: Measured, limit: float) -> bool:
    error = frame.error
    return error is not None and error.degrees < limit and error.distance * _CENTIMETRES < limit


def _annotated(path: Path, count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Points (P, 2) of a reference frame, and the numbers (P,) of the object's points that they show."""
    held = read_json(path)
    if not isinstance(held, dict) or not {"keypoints2d", "assign_matrix"} <= held.keys():
        raise DataError(f"{path}: must hold keypoints2d and assign_matrix")
    places = points_of(held["keypoints2d"], f"{path}: keypoints2d")
    assigned = held["assign_matrix"]
    try:
        matrix = np.array(assigned, np.int64).reshape(2, -1)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{path}: assign_matrix must be two equal lists of numbers") from None
    for numbers, limit, what in ((matrix[0], len(places), "keypoints2d"), (matrix[1], count, "keypoints3d")):
        if ((numbers < 0) | (numbers >= limit)).any():
            raise DataError(f"{path}: assign_matrix names {int(numbers.max())}, but {what} holds {limit} points")
    return places[matrix[0]], matrix[1]
