"""Vectors of objects from subsets of their views, a chunk of objects at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import torch
from mvcore.api import Embedder, IndexedDataset, ViewBatch, ViewSegments, concatenate
from torch import Tensor
from torch.nn.functional import normalize

from mvcore_duoduo.attention import PREFIX
from mvcore_duoduo.evaluation.options import SubsetOptions
from mvcore_duoduo.evaluation.subsets import Subset
from mvcore_duoduo.evaluation.suffix import OBJECT, suffix_of

Job: TypeAlias = tuple[int, Subset]
"""An object's index in its source, and which of its views stand for it."""

Wanted: TypeAlias = Mapping[int, Sequence[Subset]]
"""By an object's index the different subsets of its views to be encoded."""

VIEW = frozenset({"view"})


@dataclass(frozen=True)
class SubsetEncoder:
    """Encodes objects from subsets of their views.

    Args:
        model: with the feature `object`, or an object is the mean of its views.
        options: `average` and `prefix_cache`.
    """

    model: Embedder
    options: SubsetOptions

    @property
    def has_object(self) -> bool:
        """The model makes vectors of objects itself."""
        return "object" in self.model.pipeline.provides

    @property
    def how(self) -> str:
        """How an object becomes a vector, for definitions."""
        if self.has_object:
            return "the model's vector of an object"
        return f"the mean of the {'raw' if self.options.average == 'raw' else 'unit'} vectors of an object's views"

    def encode(
        self, source: str, dataset: IndexedDataset, wanted: Wanted, *, whole: bool
    ) -> Iterator[tuple[list[Job], Tensor]]:
        """Chunks of jobs and their vectors (K, D), float32 on the CPU; every job comes once.

        Args:
            source: the source's name.
            dataset: the source.
            wanted: at least one subset of at least one object.
            whole: all objects of the source are wanted, now or in another call.
        """
        if not self.options.prefix_cache or (self.has_object and PREFIX not in self.model.pipeline.provides):
            yield from self._from_images(dataset, wanted)
        elif self.has_object:
            yield from self._from_tokens(dataset, wanted)
        elif whole:
            yield from self._from_pass(source, dataset, wanted)
        else:
            for chunk, batch, jobs in self._chunks(dataset, wanted):
                yield from self._means(self.model.features(batch, VIEW).view.float().cpu(), jobs, chunk)

    def _from_tokens(self, dataset: IndexedDataset, wanted: Wanted) -> Iterator[tuple[list[Job], Tensor]]:
        """Each view is read and goes through the blocks below once; only the blocks above run for every subset."""
        suffix = suffix_of(self.model)
        for chunk, batch, jobs in self._chunks(dataset, wanted):
            tokens = self.model.features(batch, frozenset({PREFIX}))[PREFIX]
            shared = suffix.prepare(tokens)
            for some, rows in self._even(jobs, chunk):
                yield some, suffix.objects(shared, rows.to(tokens.device)).float().cpu()

    def _from_images(self, dataset: IndexedDataset, wanted: Wanted) -> Iterator[tuple[list[Job], Tensor]]:
        """Each subset by itself."""
        jobs = [(i, subset) for i, subsets in wanted.items() for subset in subsets]
        for some in _filled(jobs, self.model.views_per_batch):
            batch = concatenate([_load(dataset, i, subset) for i, subset in some])
            features = self.model.features(batch, OBJECT if self.has_object else VIEW)
            yield some, (features.object if self.has_object else self._mean(features.view, batch)).float().cpu()

    def _from_pass(self, source: str, dataset: IndexedDataset, wanted: Wanted) -> Iterator[tuple[list[Job], Tensor]]:
        """From the pass over all views that other evaluators use too, or from stored vectors."""
        views = self.model.embed(source, dataset).features["view"]
        place: dict[tuple[int, int], int] = {}
        first = 0
        for i in range(len(dataset)):
            if i in wanted:
                place |= {(i, position): first + position for subset in wanted[i] for position in subset}
            first += len(dataset.views_of(i))
        yield from self._means(views, [(i, subset) for i, subsets in wanted.items() for subset in subsets], place)

    def _means(
        self, views: Tensor, jobs: Sequence[Job], place: Mapping[tuple[int, int], int]
    ) -> Iterator[tuple[list[Job], Tensor]]:
        views = normalize(views, dim=-1) if self.options.average == "unit" else views
        for some, rows in self._even(jobs, place):
            yield some, views[rows].mean(dim=1)

    def _mean(self, views: Tensor, batch: ViewBatch) -> Tensor:
        views = normalize(views, dim=-1) if self.options.average == "unit" else views
        return ViewSegments(batch.counts, views.device).mean(views)

    def _chunks(
        self, dataset: IndexedDataset, wanted: Wanted
    ) -> Iterator[tuple[dict[tuple[int, int], int], ViewBatch, list[Job]]]:
        """Some objects with all views that any of their subsets takes: each view's row, the batch, and the jobs."""
        used = [(i, tuple(sorted({place for subset in subsets for place in subset}))) for i, subsets in wanted.items()]
        for some in _filled(used, self.model.views_per_batch):
            rows = {key: row for row, key in enumerate((i, place) for i, places in some for place in places)}
            batch = concatenate([_load(dataset, i, places) for i, places in some])
            yield rows, batch, [(i, subset) for i, _ in some for subset in wanted[i]]

    def _even(self, jobs: Sequence[Job], place: Mapping[tuple[int, int], int]) -> Iterator[tuple[list[Job], Tensor]]:
        """Jobs of equally many views, with the rows (K, F) of these."""
        for count, equal in groupby(sorted(jobs, key=_size), key=_size):
            mine = list(equal)
            step = max(1, self.model.views_per_batch // count)
            for start in range(0, len(mine), step):
                some = mine[start : start + step]
                yield some, torch.tensor([[place[i, position] for position in subset] for i, subset in some])


def _size(job: Job) -> int:
    return len(job[1])


def _filled(jobs: Sequence[Job], views_per_batch: int) -> Iterator[list[Job]]:
    """Consecutive jobs of at most so many views together; one alone may have more."""
    some: list[Job] = []
    views = 0
    for job in jobs:
        if some and views + len(job[1]) > views_per_batch:
            yield some
            some, views = [], 0
        some.append(job)
        views += len(job[1])
    yield some


def _load(dataset: IndexedDataset, i: int, places: Subset) -> Any:
    views = dataset.views_of(i)
    return dataset.load(i, [int(views[place]) for place in places], None)
