"""The evaluator `equivariance.transfer`: keypoints carried to another object of the class, on PF-PASCAL.

Ham et al., *Proposal Flow: Semantic Correspondences from Object Proposals*, TPAMI 2018: 299 pairs of images of 20
classes, in one list with views from different sides and in one from the same. PCK is pooled over the keypoints of a
class, and classes count by their numbers of pairs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.api import (
    DataError,
    Embedder,
    EvalResult,
    Figure,
    IndexedDataset,
    Model,
    Table,
    figure_over_objects,
    fingerprint,
    ratio_samples,
    read_image,
    sample_dense,
)
from numpy.typing import NDArray
from PIL import Image

from mvcore_equivariance.evaluation.dense import dense_maps, settings
from mvcore_equivariance.evaluation.files import folder, points_of, read_text
from mvcore_equivariance.evaluation.options import TransferOptions
from mvcore_equivariance.matching import Given, Sampled, nearest, pixel_grid
from mvcore_equivariance.metrics import pck
from mvcore_equivariance.pictures import MatchedPair, draw_matches

ID = "equivariance.transfer"
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
_COLUMNS = 7
_SHOWN = 3


@dataclass(frozen=True)
class Canvas:
    """How an image lies on a square: its longer side as long as the square's, in the middle of the other.

    Args:
        width, height: of the image in pixels.
        size: side of the square in pixels.
    """

    width: int
    height: int
    size: int

    @property
    def scale(self) -> float:
        """Pixels of the square to one of the image."""
        return self.size / max(self.width, self.height)

    @property
    def inside(self) -> tuple[int, int]:
        """Width and height of the image on the square, in whole pixels."""
        longer = max(self.width, self.height)
        width, height = (max(1, round(self.size * side / longer)) for side in (self.width, self.height))
        return width, height

    @property
    def corner(self) -> tuple[int, int]:
        """Where its upper left corner lies, x and y."""
        width, height = self.inside
        return (self.size - width) // 2, (self.size - height) // 2

    def paint(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(S, S, 3) the image on black."""
        canvas = np.zeros((self.size, self.size, 3), np.uint8)
        (width, height), (x, y) = self.inside, self.corner
        canvas[y : y + height, x : x + width] = np.asarray(
            Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS)
        )
        return canvas

    def to_square(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(P, 2) points of the image on the square."""
        return points * self.scale + self.corner

    def to_image(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """(P, 2) points of the square in the image."""
        return (points - self.corner) / self.scale


@dataclass(frozen=True)
class Pair:
    """A row of a list: two images, the class, and the same P keypoints in both, in pixels of the images."""

    source: Path
    target: Path
    category: int
    points: NDArray[np.float64]
    truth: NDArray[np.float64]


def read_pairs(data: Path, which: str) -> list[Pair]:
    """The pairs of one of the lists.

    Raises:
        DataError: no such list, or a row of another form.
    """
    path = data / f"test_pairs_pf_{which}_views.csv"
    rows = list(csv.reader(io.StringIO(read_text(path), newline="")))[1:]
    if not rows:
        raise DataError(f"{path}: holds no pair")
    return [_pair(data, row, f"{path}: line {number}") for number, row in enumerate(rows, 2) if row]


def _pair(data: Path, row: Sequence[str], where: str) -> Pair:
    if len(row) != _COLUMNS or not row[2].strip().isdigit() or not 1 <= int(row[2]) <= len(CLASSES):
        raise DataError(
            f"{where}: must be source image, target image, class from 1 to {len(CLASSES)}, and x and y of the "
            f"keypoints in both with ';' between, not {','.join(row)[:80]!r}"
        )
    try:
        x, y, other_x, other_y = ([float(cell) for cell in column.split(";") if cell.strip()] for column in row[3:])
        source, target = (
            points_of([list(point) for point in zip(*pair, strict=True)], where)
            for pair in ((x, y), (other_x, other_y))
        )
    except ValueError:
        raise DataError(f"{where}: keypoints must be as many numbers in x as in y, with ';' between") from None
    count = min(len(source), len(target))
    if not count:
        raise DataError(f"{where}: has no keypoint in both images")
    images = [(data.parent / name.strip()).resolve() for name in row[:2]]
    for image in images:
        if not image.is_relative_to(data.parent.resolve()):
            raise DataError(f"{where}: {image} lies outside of {data.parent}")
    return Pair(images[0], images[1], int(row[2]) - 1, source[:count], target[:count])


class Transfer:
    """PCK of keypoints sent to their nearest feature, `equivariance.transfer/pck_<alpha>/<list>`."""

    def __init__(self, **options: Any) -> None:
        self.options = TransferOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures the lists that the options name; sources are not read.

        Raises:
            ConfigError: the model's map cannot be had as the options say.
            DataError: a file is missing or damaged; broken features.
        """
        model = Embedder.of(model)
        data = folder(self.options.data, "PF-PASCAL")
        lists = {which: read_pairs(data, which) for which in self.options.lists}
        figures: list[Figure] = []
        tables: list[Table] = []
        pictures: list[Path] = []
        with settings(model, ID, patches=self.options.patches):
            for which, pairs in lists.items():
                found = [self._match(model, pair) for pair in pairs]
                figures += self._figures(which, pairs, found)
                tables.append(self._table(which, pairs, found))
                if self.options.picture:
                    rule = f"within {self.options.alphas[0]:g} of the side"
                    path = output / f"transfer-{which}.png"
                    pictures.append(draw_matches(found[:_SHOWN], path, title=f"PF-PASCAL, {which} views", rule=rule))
        return EvalResult(figures, tables, pictures)

    def _match(self, model: Embedder, pair: Pair) -> MatchedPair:
        """A pair on its squares, and where the target's nearest features are."""
        size = self.options.size
        images = [read_image(path) for path in (pair.source, pair.target)]
        source, target = (Canvas(image.shape[1], image.shape[0], size) for image in images)
        painted = np.stack([source.paint(images[0]), target.paint(images[1])])
        maps = dense_maps(model, painted, ID, at_once=1)
        points = source.to_square(pair.points)
        truth = target.to_square(pair.truth)
        there = torch.from_numpy(points)[None].to(maps.values)
        query = sample_dense(maps.values[:1], there, maps.grid)[0]
        grid = pixel_grid((size, size))
        if self.options.search == "image":
            low = torch.tensor(target.corner)
            grid = grid[((grid > low) & (grid < low + torch.tensor(target.inside))).all(1)]
        candidates = Sampled(maps.values[1], grid, maps.grid, normalised=self.options.product == "cosine")
        predicted = grid[nearest(Given(query), candidates).index.cpu()].double().numpy()
        right = np.linalg.norm(predicted - truth, axis=1) < self.options.alphas[0] * size
        return MatchedPair(painted[0], painted[1], points, predicted, truth, right)

    def _hits(self, found: MatchedPair) -> NDArray[np.float64]:
        """(K,) how many keypoints of a pair are right at each threshold."""
        predicted, truth = (torch.from_numpy(points) for points in (found.predicted, found.truth))
        return pck(predicted, truth, self.options.size, self.options.alphas).numpy() * len(truth)

    def _figures(self, which: str, pairs: Sequence[Pair], found: Sequence[MatchedPair]) -> list[Figure]:
        hits = np.stack([self._hits(match) for match in found])
        counts = np.array([len(match.truth) for match in found], np.float64)
        categories = np.array([pair.category for pair in pairs])
        items = fingerprint([f"{pair.source.name} {pair.target.name}" for pair in pairs])
        figures: list[Figure] = []
        for column, alpha in enumerate(self.options.alphas):
            # The mean of these over a class's pairs is its pooled PCK; over all pairs, classes count by their pairs.
            samples = np.empty(len(pairs))
            for category in np.unique(categories):
                own = categories == category
                samples[own] = ratio_samples(hits[own, column], counts[own])
            figures.append(
                figure_over_objects(
                    f"{ID}/pck_{alpha:g}/{which}",
                    samples,
                    f"Share of keypoints found less than {alpha:g} of the longer side from the true one, on "
                    f"PF-PASCAL's pairs of {which} views; pooled in a class, classes weighted by their pairs.",
                    n=int(counts.sum()),
                    items=items,
                    headline=f"PCK@{alpha:g} {which}",
                    percent=True,
                )
            )
        return figures

    def _table(self, which: str, pairs: Sequence[Pair], found: Sequence[MatchedPair]) -> Table:
        rows: list[list[str]] = []
        for number, name in enumerate(CLASSES):
            own = [match for pair, match in zip(pairs, found, strict=True) if pair.category == number]
            if own:
                points = sum(len(match.truth) for match in own)
                shares = np.sum([self._hits(match) for match in own], axis=0) / points
                rows.append([name, str(len(own)), str(points), *(f"{100 * share:.2f}" for share in shares)])
        heads = (f"PCK@{alpha:g}" for alpha in self.options.alphas)
        return Table(f"PF-PASCAL, {which} views, in percent", ("class", "pairs", "keypoints", *heads), rows)
