"""The evaluator `duoduo.view_count`: zero-shot accuracy of objects against the number of their views.

Every number of views is measured on several draws of views, one a seed; all objects take part in each. The protocols of
the authors are the same measurement with their classes, labels and numbers of views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

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
    draw_lines,
    figure_over_objects,
    fingerprint,
)
from numpy.typing import NDArray
from torch import Tensor

from mvcore_duoduo.evaluation.classes import Classes, Labelled, class_vectors, classes_of
from mvcore_duoduo.evaluation.encoding import Job, SubsetEncoder
from mvcore_duoduo.evaluation.leaks import overlap_of, training_ids
from mvcore_duoduo.evaluation.metrics import cosine_ranks, macro_samples
from mvcore_duoduo.evaluation.options import MVPNetOptions, ScanObjectNNOptions, ViewCountOptions
from mvcore_duoduo.evaluation.subsets import view_subset

_OBJECTS = 1024
"""Objects whose subsets are held at once."""


@dataclass(frozen=True)
class Measured:
    """What was found on one source.

    Args:
        ranks: (O, counts, seeds) how many classes stand before an object's own.
        labels: (O,) class numbers.
        names: O object names.
        few: by number of views, how many objects have fewer.
    """

    ranks: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    few: tuple[int, ...]


class ViewCount:
    """Accuracy of objects by number of views, `<id>/top<k>/<views>/<source>`, and over classes, `macro_top<k>`."""

    ID: ClassVar[str] = "duoduo.view_count"
    OPTIONS: ClassVar[type[ViewCountOptions]] = ViewCountOptions

    def __init__(self, **options: Any) -> None:
        self.options = self.OPTIONS(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: an unknown source, or a model without text where no class matrix is given.
            DataError: an object without a class, a file that cannot be read, or objects of the training set.
        """
        model = Embedder.of(model)
        chosen = {name: sources[name] for name in chosen_sources(self.options.sources, sources, self.ID)}
        trained = training_ids(model, self.options)
        classes = classes_of(self.options, chosen, self.ID)
        labelled: dict[str, Labelled] = {}
        tables: list[Table] = []
        for name, dataset in chosen.items():
            labelled[name] = classes.of(self.ID, name, dataset, allow_missing=self.options.allow_missing)
            names = [dataset.object_name(i) for i in labelled[name].objects]
            leaked = overlap_of(names, trained, self.options, self.ID, name)
            tables.append(_objects_table(name, labelled[name], leaked))
        vectors = class_vectors(model, self.options, classes, width_of(model), self.ID)
        figures: list[Figure] = []
        for name, dataset in chosen.items():
            encoder = SubsetEncoder(model, self.options)
            found = self._measure(encoder, name, dataset, labelled[name], vectors)
            mine = self._figures(name, found, classes, encoder.how)
            figures += mine
            tables.append(self._table(name, found, mine))
        pictures = [self._picture(figures, list(chosen), output)] if self.options.picture else []
        return EvalResult(figures, tables, pictures)

    def headline(self, k: int, count: int, source: str) -> str:
        """The heading of a figure in comparison tables: the smallest k at the most and at the fewest views."""
        counts = self.options.counts
        shown = k == min(self.options.topk) and count in (max(counts), min(counts))
        return f"top-{k} {count} view{'s' * (count > 1)} {source}" if shown else ""

    def _measure(
        self, encoder: SubsetEncoder, name: str, dataset: IndexedDataset, labelled: Labelled, classes: Tensor
    ) -> Measured:
        counts, seeds = self.options.counts, self.options.seeds
        objects = labelled.objects
        ranks = np.full((len(objects), len(counts) * len(seeds)), -1, np.int64)
        for start in range(0, len(objects), _OBJECTS):
            some = objects[start : start + _OBJECTS]
            places = self._draws(dataset, some, start)
            wanted: dict[int, list[tuple[int, ...]]] = {}
            for i, subset in places:
                wanted.setdefault(i, []).append(subset)
            whole = len(objects) == len(dataset)
            numbers = dict(zip(some, labelled.numbers[start : start + _OBJECTS].tolist(), strict=True))
            for jobs, vectors in encoder.encode(name, dataset, wanted, whole=whole):
                own = torch.tensor([numbers[i] for i, _ in jobs])
                for job, rank in zip(jobs, _ranked(vectors, classes, own, self.ID, name), strict=True):
                    for row, column in places[job]:
                        ranks[row, column] = rank
        sizes = np.array([len(dataset.views_of(i)) for i in objects])
        return Measured(
            ranks.reshape(len(objects), len(counts), len(seeds)),
            labelled.numbers.numpy(),
            tuple(dataset.object_name(i) for i in objects),
            tuple(int((sizes < count).sum()) for count in counts),
        )

    def _draws(self, dataset: IndexedDataset, objects: Sequence[int], start: int) -> dict[Job, list[tuple[int, int]]]:
        """The different draws of some objects, and at which (object, count and seed) each stands."""
        places: dict[Job, list[tuple[int, int]]] = {}
        for row, i in enumerate(objects, start):
            name, views = dataset.object_name(i), len(dataset.views_of(i))
            pairs = ((count, seed) for count in self.options.counts for seed in self.options.seeds)
            for column, (count, seed) in enumerate(pairs):
                places.setdefault((i, view_subset(seed, name, count, views)), []).append((row, column))
        return places

    def _figures(self, source: str, found: Measured, classes: Classes, how: str) -> list[Figure]:
        items, seeds = fingerprint(found.names), len(self.options.seeds)
        figures: list[Figure] = []
        for at, count in enumerate(self.options.counts):
            for k in self.options.topk:
                hits = (found.ranks[:, at] < k).astype(np.float64)
                per_seed = [hits[:, s] for s in range(seeds)]
                views = f"{count} view{'s' * (count > 1)}"
                what = (
                    f"whose class is among the {k} most similar of {len(classes.words)} to {how} from {views}, "
                    f"mean over {seeds} draw{'s' * (seeds > 1)} of views, 0 to 1."
                )
                for macro in (False, True):
                    values = [macro_samples(h, found.labels) if macro else h for h in per_seed]
                    figures.append(
                        figure_over_objects(
                            f"{self.ID}/{'macro_' * macro}top{k}/{count}/{source}",
                            np.mean(values, axis=0),
                            f"{'Mean over classes of the share' if macro else 'Share'} of objects of {source} {what}",
                            n=len(found.names),
                            std=deviation([float(value.mean()) for value in values]),
                            items=items,
                            headline="" if macro else self.headline(k, count, source),
                            percent=True,
                        )
                    )
        return figures

    def _table(self, source: str, found: Measured, figures: Sequence[Figure]) -> Table:
        by_name = {figure.name: figure for figure in figures}
        kinds = [f"{prefix}top{k}" for prefix in ("", "macro_") for k in self.options.topk]
        rows: list[tuple[str, ...]] = []
        for count, few in zip(self.options.counts, found.few, strict=True):
            cells = [_cell(by_name[f"{self.ID}/{kind}/{count}/{source}"]) for kind in kinds]
            rows.append((str(count), *cells, str(len(found.names)), str(few)))
        heads = [f"{kind.replace('_', ' ').replace('top', 'top-')} %" for kind in kinds]
        title = f"Accuracy by number of views, {source} (mean ± deviation over {len(self.options.seeds)} draws)"
        return Table(title, ("views", *heads, "objects", "with fewer views"), rows)

    def _picture(self, figures: Sequence[Figure], sources: Sequence[str], output: Path) -> Path:
        results = {
            f"{source} top-{k}" if len(sources) > 1 else f"top-{k}": self.curve(figures, k, source)
            for source in sources
            for k in self.options.topk
        }
        return draw_lines(
            results, output / "view-count.png", quantity="zero-shot accuracy", along="views of an object", percent=True
        )

    @classmethod
    def curve(cls, figures: Sequence[Figure], k: int, source: str) -> tuple[list[int], list[float], list[float]]:
        """Numbers of views, top-k accuracies and deviations over draws of one source, for `mvcore.api.draw_lines`.

        Args:
            figures: those of a result, of this run or of a saved one.
            k: of the accuracy.
            source: the source's name.
        """
        points: Iterator[tuple[int, float, float]] = (
            (int(parts[2]), figure.value, figure.std)
            for figure in figures
            if len(parts := figure.name.split("/", 3)) == 4
            and (parts[0], parts[1], parts[3]) == (cls.ID, f"top{k}", source)
        )
        found = sorted(points)
        return [x for x, _, _ in found], [y for _, y, _ in found], [d for _, _, d in found]


class ObjaverseLVIS(ViewCount):
    """`duoduo.objaverse_lvis`: the objects and 1,156 classes of `lvis.csv`, given as `labels`."""

    ID = "duoduo.objaverse_lvis"


class ScanObjectNN(ViewCount):
    """`duoduo.scanobjectnn`: renders of ScanObjectNN among its 15 classes."""

    ID = "duoduo.scanobjectnn"
    OPTIONS = ScanObjectNNOptions


class MVPNet(ViewCount):
    """`duoduo.mvpnet`: the objects of `mvpnet_val.csv` among MVImgNet's classes, guarded against training objects."""

    ID = "duoduo.mvpnet"
    OPTIONS = MVPNetOptions


def chosen_sources(chosen: Sequence[str] | None, there: Mapping[str, Any], owner: str) -> list[str]:
    """The chosen sources, or all of them.

    Raises:
        ConfigError: a chosen source that is not there.
    """
    for name in chosen or ():
        if name not in there:
            raise ConfigError(f"{owner}: no source {name!r} to measure on; there are: {', '.join(there) or 'none'}")
    return list(there if chosen is None else chosen)


def width_of(model: Embedder) -> int:
    """D, the width of an object's vector."""
    dims = model.backbone.dims
    return dims["object"] if "object" in dims else dims["view"]


def deviation(values: Sequence[float]) -> float:
    """Standard deviation with ddof 1; NaN of one value, and exactly 0 of equal ones."""
    if len(values) < 2:
        return math.nan
    return 0.0 if len(set(values)) == 1 else float(np.std(values, ddof=1))


def _ranked(vectors: Tensor, classes: Tensor, own: Tensor, owner: str, source: str) -> list[int]:
    try:
        return cosine_ranks(vectors, classes, own).tolist()
    except ValueError as error:
        raise DataError(f"{owner} on source {source!r}: {error}; the model gives broken features") from error


def _cell(figure: Figure) -> str:
    spread = "" if math.isnan(figure.std) else f" ± {100 * figure.std:.2f}"
    return f"{100 * figure.value:.2f}{spread}"


def _objects_table(source: str, labelled: Labelled, leaked: str) -> Table:
    rows = [
        ("measured", str(len(labelled.objects))),
        ("in the source, but not in the labels", str(labelled.unlisted)),
        ("in the labels, but not in the source", str(labelled.missing)),
        ("of the training set", leaked),
    ]
    return Table(f"Objects, {source}", ("objects", "number"), rows)
