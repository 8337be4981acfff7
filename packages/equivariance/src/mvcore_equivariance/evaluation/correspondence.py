"""The evaluator `equivariance.correspondence`: does a pixel's feature find the same 3D point in another view?

Truth comes from depth and cameras. The paper gives APE and PCDP without saying where the nearest feature is sought or
what a guess would score, and its own figures at 0.2 stand near a guess; both are said here beside every figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mvcore.api import (
    ConfigError,
    DataError,
    DenseGrid,
    Embedder,
    EvalResult,
    Figure,
    IndexedDataset,
    Model,
    Table,
    figure_over_objects,
    fingerprint,
    ratio_samples,
    sample_dense,
)
from numpy.typing import NDArray
from torch import Tensor

from mvcore_equivariance.evaluation.dense import grid_of
from mvcore_equivariance.evaluation.draws import generator
from mvcore_equivariance.evaluation.options import CorrespondenceOptions
from mvcore_equivariance.evaluation.pairs import Truth, draw_pairs, true_points
from mvcore_equivariance.evaluation.views import ObjectViews, load_views
from mvcore_equivariance.matching import Given, Sampled, nearest, pixel_grid, within
from mvcore_equivariance.metrics import pixel_errors

ID = "equivariance.correspondence"
_NEEDS = ("images", "cameras", "depth")
_GUESSES = 1 << 22
"""Distances to all candidates held at once."""
_SHOWN_PAIRS = 3
_SHOWN_VIEWS = 6


@dataclass(frozen=True)
class Points:
    """What was found for the P points of an object.

    Args:
        values: (P, 2 + 2 K): the error and whether it is below each of K thresholds, and the same expected of a guess.
        angles: (P,) viewpoint change in degrees.
    """

    values: NDArray[np.float64]
    angles: NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """One pair of views with what was predicted, for a picture."""

    truth: Truth
    predicted: Tensor
    right: Tensor


@dataclass
class _Source:
    """What was found on one source."""

    name: str
    objects: int
    found: dict[str, Points]
    pairs: int = 0
    blind_pairs: int = 0


class Correspondence:
    """APE and PCDP between views with known depth and cameras, `equivariance.correspondence/pcdp_<t>/<source>`."""

    def __init__(self, **options: Any) -> None:
        self.options = CorrespondenceOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: an unknown source.
            DataError: a source without depth or cameras, or without two views that share a point; broken features.
        """
        model = Embedder.of(model)
        figures: list[Figure] = []
        tables: list[Table] = []
        pictures: list[Path] = []
        for name in self._chosen(sources):
            found, drawn = self._source(model, name, sources[name], output)
            measured = self._figures(found)
            figures += measured
            tables += self._tables(found, measured)
            pictures += drawn
        return EvalResult(figures, tables, pictures)

    def _chosen(self, sources: Mapping[str, IndexedDataset]) -> list[str]:
        for name in self.options.sources or ():
            if name not in sources:
                raise ConfigError(f"{ID}: no source {name!r} to measure on; there are: {', '.join(sources) or 'none'}")
        return list(sources if self.options.sources is None else self.options.sources)

    def _source(self, model: Embedder, name: str, dataset: IndexedDataset, output: Path) -> tuple[_Source, list[Path]]:
        missing = [field for field in _NEEDS if field not in dataset.provides]
        if missing:
            way = "open it with depth: true, or " if missing == ["depth"] else ""
            raise DataError(
                f"{ID}: source {name!r} gives no {' and no '.join(missing)}, from which true correspondences are made; "
                f"{way}measure a store that holds cameras and depth"
            )
        found = _Source(name, len(dataset), {})
        pictures: list[Path] = []
        for i in range(len(dataset)):
            views = load_views(name, dataset, i, self.options.views_at_once)
            truths = self._truths(views, dataset.object_name(i), found)
            if not truths:
                continue
            rows = sorted({row for truth in truths for row in (truth.first, truth.second)})
            dense = views.dense(model, rows, self.options.views_at_once)
            grid = grid_of(model, views.image_size, dense)
            points, matches = self._object(views, truths, dict(zip(rows, dense, strict=True)), grid)
            if self.options.picture and not found.found:
                pictures = _draw(name, views, dict(zip(rows, dense, strict=True)), matches, self._rule(), output)
            found.found[dataset.object_name(i)] = points
        if not found.found:
            raise DataError(
                f"{ID}: no two views of an object of source {name!r} with camera and depth see a point in common "
                f"({found.objects} objects, {found.pairs} pairs tried)"
            )
        return found, pictures

    def _truths(self, views: ObjectViews, name: str, found: _Source) -> list[Truth]:
        options = self.options
        pairs = draw_pairs(len(views), options.pairs_per_object, generator(options.seed, name))
        drawn = [
            true_points(views, first, second, options.points_per_pair, generator(options.seed, name, first, second))
            for first, second in pairs
        ]
        truths = [truth for truth in drawn if truth is not None]
        found.pairs += len(pairs)
        found.blind_pairs += len(pairs) - len(truths)
        return truths

    def _object(
        self, views: ObjectViews, truths: Sequence[Truth], dense: Mapping[int, Tensor], grid: DenseGrid
    ) -> tuple[Points, list[Match]]:
        """All pairs of an object; those into one view search it together."""
        values: list[Tensor] = []
        matches: list[Match] = []
        size = views.image_size
        for second, group in groupby(truths, key=lambda truth: truth.second):
            into = list(group)
            domain = views.foreground[second]
            candidates = self._candidates(domain, size)
            queries = [
                sample_dense(dense[t.first][None], t.points[None].to(dense[t.first].device), grid)[0] for t in into
            ]
            best = nearest(Given(torch.cat(queries)), Sampled(dense[second], candidates, grid)).index.cpu()
            length = float(min(size)) if self.options.normaliser == "edge" else _longest_side(domain)
            for truth, index in zip(into, best.split([len(t.points) for t in into]), strict=True):
                predicted = candidates[index]
                errors = pixel_errors(predicted, truth.truth) / length
                hits = [errors < threshold for threshold in self.options.thresholds]
                guess = _guess(truth.truth, candidates, length, self.options.thresholds)
                values.append(torch.cat([torch.stack([errors, *hits], 1), guess], dim=1))
                matches.append(Match(truth, predicted, hits[0]))
        angles = torch.cat([match.truth.angles for match in matches])
        return Points(torch.cat(values).numpy(), angles.numpy()), matches

    def _candidates(self, domain: Tensor, size: tuple[int, int]) -> Tensor:
        """(M, 2) where the nearest feature is sought; an object smaller than a cell is searched pixel by pixel."""
        for stride in (self.options.search_stride, 1):
            grid = pixel_grid(size, stride)
            candidates = grid[within(grid, domain)] if self.options.domain == "mask" else grid
            if len(candidates):
                break
        return candidates

    def _figures(self, found: _Source) -> list[Figure]:
        items = fingerprint(list(found.found))
        figures: list[Figure] = []
        for label, inside in self._bins().items():
            chosen = [points.values[inside(points.angles)] for points in found.found.values()]
            counts = np.array([len(values) for values in chosen], np.float64)
            sums = np.stack([values.sum(0) for values in chosen])
            for column, (what, definition) in enumerate(self._columns()):
                figures.append(
                    figure_over_objects(
                        f"{ID}/{what}{label and '/' + label}/{found.name}",
                        ratio_samples(sums[:, column], counts),
                        f"{definition}{label and f', where the viewpoint changes by {label}'}, in {found.name}.",
                        n=int(counts.sum()),
                        items=items,
                        headline=self._headline(what, label, found.name),
                        percent=True,
                    )
                )
        return figures

    def _bins(self) -> dict[str, Callable[[NDArray[np.float64]], NDArray[np.bool_]]]:
        """By label, which angles lie in it; all under an empty one. The last bin holds its upper edge."""
        edges = self.options.angle_bins
        bins = {"": lambda angles: np.ones(len(angles), bool)}
        for low, high in pairwise(edges):
            last = high == edges[-1]
            bins[f"{low:g}-{high:g}deg"] = lambda angles, low=low, high=high, last=last: (
                (angles >= low) & ((angles <= high) if last else (angles < high))
            )
        return bins

    def _columns(self) -> list[tuple[str, str]]:
        """Name and definition of each column of `Points.values`."""
        options = self.options
        where = "among the pixels of the object" if options.domain == "mask" else "in the whole image"
        by = "the image's shortest edge" if options.normaliser == "edge" else "the longer side of the object's box"
        found = f"when each point is sent to the nearest feature {where} of another view"
        guessed = f"of points drawn at random {where}"
        columns: list[tuple[str, str]] = []
        for prefix, how in (("", found), ("chance_", guessed)):
            columns.append((f"{prefix}ape", f"Mean distance to the true point, over {by}, {how}"))
            columns += [
                (f"{prefix}pcdp_{t:g}", f"Share of points less than {t:g} of {by} from the true one, {how}")
                for t in options.thresholds
            ]
        return columns

    def _rule(self) -> str:
        """What pictures call right."""
        by = "shortest edge" if self.options.normaliser == "edge" else "box"
        return f"within {self.options.thresholds[0]:g} of the {by}"

    def _headline(self, what: str, label: str, source: str) -> str:
        """The heading in comparison tables: APE and the strictest PCDP, over all angles."""
        shown = {"ape": "APE", f"pcdp_{self.options.thresholds[0]:g}": f"PCDP@{self.options.thresholds[0]:g}"}
        return f"{shown[what]} {source}" if what in shown and not label else ""

    def _tables(self, found: _Source, figures: Sequence[Figure]) -> list[Table]:
        names = [what for what, _ in self._columns()]
        by_name = {figure.name: figure for figure in figures}
        rows: list[list[str]] = []
        for label in self._bins():
            cells = [by_name[f"{ID}/{what}{label and '/' + label}/{found.name}"] for what in names]
            values = [f"{100 * cell.value:.2f}" if cell.n else "-" for cell in cells]
            rows.append([label.replace("deg", "") or "all", str(cells[0].n), *values])
        options = self.options
        heads = [what.replace("chance_", "chance ").replace("pcdp_", "PCDP@").replace("ape", "APE") for what in names]
        protocol = (
            ("search", f"{options.domain}, every {options.search_stride} pixels"),
            ("errors over", "shortest edge" if options.normaliser == "edge" else "longer side of the object's box"),
            ("objects", f"{len(found.found)} of {found.objects}"),
            ("ordered pairs of views", f"{found.pairs}, {found.blind_pairs} of them without a point in common"),
        )
        return [
            Table(
                f"Correspondence on {found.name} by viewpoint change, in percent", ("degrees", "points", *heads), rows
            ),
            Table(f"How correspondence was measured on {found.name}", ("", ""), protocol),
        ]


def _guess(truth: Tensor, candidates: Tensor, length: float, thresholds: Sequence[float]) -> Tensor:
    """(P, 1 + K) mean error, and share below each threshold, of a point drawn evenly among the candidates."""
    rows: list[Tensor] = []
    for part in truth.split(max(1, _GUESSES // len(candidates))):
        errors = torch.cdist(part, candidates.double(), compute_mode="donot_use_mm_for_euclid_dist") / length
        shares = [(errors < threshold).double().mean(1) for threshold in thresholds]
        rows.append(torch.stack([errors.mean(1), *shares], dim=1))
    return torch.cat(rows)


def _longest_side(mask: Tensor) -> float:
    """The longer side in pixels of a mask's bounding box."""
    row, column = mask.nonzero(as_tuple=True)
    return float(max(row.max() - row.min(), column.max() - column.min()) + 1)


def _draw(
    name: str, views: ObjectViews, dense: Mapping[int, Tensor], matches: Sequence[Match], rule: str, output: Path
) -> list[Path]:
    from mvcore_equivariance.pictures import MatchedPair, draw_matches, draw_pca

    images = views.images.permute(0, 2, 3, 1).numpy()
    order = sorted(
        matches, key=lambda match: float(match.truth.angles.mean())
    )  # from the nearest views to the farthest
    chosen = np.unique(np.linspace(0, len(order) - 1, min(_SHOWN_PAIRS, len(order))).round().astype(int))
    shown = [order[k] for k in chosen]
    pairs = [
        MatchedPair(
            images[match.truth.first],
            images[match.truth.second],
            match.truth.points.numpy(),
            match.predicted.numpy(),
            match.truth.truth.numpy(),
            match.right.numpy(),
            f"viewpoint changes by {float(match.truth.angles.mean()):.0f} degrees",
        )
        for match in shown
    ]
    rows = list(dense)[:_SHOWN_VIEWS]
    maps = torch.stack([dense[row] for row in rows]).cpu().numpy()
    return [
        draw_matches(pairs, output / f"correspondences-{name}.png", title=f"Nearest features, {views.name}", rule=rule),
        draw_pca(
            images[rows],
            maps,
            views.foreground[rows].numpy(),
            output / f"features-{name}.png",
            title=f"Dense features, {views.name}",
        ),
    ]
