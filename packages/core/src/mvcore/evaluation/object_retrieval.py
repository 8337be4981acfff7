"""The evaluator `core.object_retrieval`: does a text, or do some views, find their object among all objects?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvcore.evaluation.embedder import Embedder, naming_source
from mvcore.evaluation.moments import unit_rows
from mvcore.evaluation.options import ObjectRetrievalOptions, check_names
from mvcore.evaluation.ranking import Relevance, discounted_gain, recalled, reciprocal_rank
from mvcore.evaluation.results import EvalResult, Figure, fingerprint
from mvcore.evaluation.statistics import figure_over_objects, ratio_samples
from mvcore.evaluation.texts import texts_of_views
from mvcore.index.nearest import Nearest
from mvcore.model import Model
from mvcore.packing import concatenate
from mvcore.parts import IndexedDataset

ID = "core.object_retrieval"

Places = list[int]
"""Some of an object's views, by their place among them."""


class ObjectRetrieval:
    """Recall, NDCG and MRR of objects by texts, `core.object_retrieval/text_r1/<source>`, and by views, `image_r1`."""

    def __init__(self, **options: Any) -> None:
        self.options = ObjectRetrievalOptions(**options)

    def __call__(self, model: Model | Embedder, sources: Mapping[str, IndexedDataset], output: Path) -> EvalResult:
        """Measures every chosen source.

        Raises:
            ConfigError: texts are demanded of a source that has none.
            DataError: a feature without a direction.
        """
        embedder = Embedder.of(model)
        figures: list[Figure] = []
        for name in check_names(self.options.sources, list(sources), ID):
            with naming_source(ID, name):
                figures += self._by_text(embedder, name, sources[name])
                figures += self._by_views(embedder, name, sources[name])
        return EvalResult(figures)

    def _by_text(self, embedder: Embedder, name: str, dataset: IndexedDataset) -> list[Figure]:
        options = self.options
        texts = texts_of_views(embedder, name, dataset, options.text, options.template, options.texts_per_batch, ID)
        if texts is None:
            return []
        owners = embedder.embed(name, dataset).object_of_view
        pairs = torch.unique(torch.stack([texts.text_index, owners[texts.view_index]], dim=1), dim=0).numpy()
        # A text that describes several objects asks once, and each of them is a right answer.
        asked, first, query = np.unique(pairs[:, 0], return_index=True, return_inverse=True)
        everything = [(i, list(range(len(dataset.views_of(i))))) for i in range(len(dataset))]
        objects = object_vectors(embedder, name, dataset, everything)
        relevant, right = self._ranked(texts.vectors[torch.from_numpy(asked)], objects, query, pairs[:, 1])
        return self._figures("text", name, dataset, relevant, right, pairs[first, 1])

    def _by_views(self, embedder: Embedder, name: str, dataset: IndexedDataset) -> list[Figure]:
        counts = [len(dataset.views_of(i)) for i in range(len(dataset))]
        drawn = [held_out(count, self.options.query_views, self.options.seed, i) for i, count in enumerate(counts)]
        asked = [i for i, places in enumerate(drawn) if places]
        if not asked:
            return []
        rest = [(i, [v for v in range(count) if v not in drawn[i]]) for i, count in enumerate(counts)]
        objects = object_vectors(embedder, name, dataset, rest)
        queries = object_vectors(embedder, name, dataset, [(i, drawn[i]) for i in asked])
        own = np.array(asked)
        relevant, right = self._ranked(queries, objects, np.arange(len(asked)), own)
        return self._figures("image", name, dataset, relevant, right, own)

    def _ranked(
        self, queries: Tensor, objects: Tensor, query: NDArray[np.int64], answer: NDArray[np.int64]
    ) -> tuple[Relevance, NDArray[np.int64]]:
        """Which of the first answers are right, and how many right ones each query has.

        Args:
            queries, objects: (Q, D) and (O, D).
            query, answer: (P,) rows of both that belong together.
        """
        gallery = unit_rows(objects, slice(None), "objects").float().numpy()
        asking = unit_rows(queries, slice(None), "queries").float().numpy()
        _, rows = Nearest(gallery).search(asking, max(self.options.depth, *self.options.topk))
        pairs = query * len(gallery) + answer
        relevant = np.isin(np.arange(len(asking))[:, None] * len(gallery) + rows, pairs)
        return relevant, np.bincount(query, minlength=len(asking))

    def _figures(
        self,
        kind: str,
        name: str,
        dataset: IndexedDataset,
        relevant: Relevance,
        right: NDArray[np.int64],
        owner: NDArray[np.int64],
    ) -> list[Figure]:
        views = self.options.query_views
        held = f"{views} view{'s'[: views != 1]} held out of its object's vector"
        query = f"a query of {name}, {'a text' if kind == 'text' else held}"
        among = f"the {len(dataset)} objects"
        items = fingerprint([dataset.object_name(i) for i in range(len(dataset))])
        counts = np.bincount(owner, minlength=len(dataset)).astype(np.float64)
        measured: list[tuple[str, NDArray[np.float64], str]] = []
        for k in self.options.topk:
            what = f"Share of queries with a right object among the first {k} of {among}; {query}; 0 to 1."
            measured.append((f"r{k}", recalled(relevant, k), what))
            what = f"Normalised discounted gain of the first {k} of {among}, gain 1 for a right one; {query}; 0 to 1."
            measured.append((f"ndcg{k}", discounted_gain(relevant, right, k), what))
        what = f"Mean of 1 / rank of the first right one of {among}, 0 below rank {relevant.shape[1]}; {query}."
        measured.append(("mrr", reciprocal_rank(relevant), what))
        return [
            figure_over_objects(
                f"{ID}/{kind}_{short}/{name}",
                ratio_samples(np.bincount(owner, values, minlength=len(dataset)), counts),
                definition,
                n=len(values),
                items=items,
                headline=f"{kind} to object R@{min(self.options.topk)} {name}"
                if short == f"r{min(self.options.topk)}"
                else "",
                percent=short != "mrr",
            )
            for short, values, definition in measured
        ]


def held_out(count: int, query_views: int, seed: int, number: int) -> Places:
    """The places of the views that ask for an object; none where no view would be left to find it by."""
    if count <= query_views:
        return []
    return sorted(np.random.default_rng([seed, number]).permutation(count)[:query_views].tolist())


def object_vectors(
    embedder: Embedder, source: str, dataset: IndexedDataset, wanted: Sequence[tuple[int, Places]]
) -> Tensor:
    """(W, D) float32 vectors of objects, each from some of its views, by the rule of `Model.encode_views`.

    A model without an `object` feature passes over each view once, whatever is wanted.

    Args:
        wanted: numbers of objects and the places of their views.
    """
    if "object" in embedder.pipeline.provides:
        return torch.cat(
            [embedder.object_vectors(batch).float().cpu() for batch in _batches(embedder, dataset, wanted)]
        )
    embedded = embedder.embed(source, dataset)
    views, owners = unit_rows(embedded.features["view"], slice(None), "views"), embedded.object_of_view
    starts = torch.searchsorted(owners, torch.arange(len(dataset)))
    rows = torch.tensor([int(starts[i]) + place for i, places in wanted for place in places])
    counts = torch.tensor([len(places) for _, places in wanted])
    to = torch.repeat_interleave(torch.arange(len(wanted)), counts)
    sums = torch.zeros(len(wanted), views.shape[1], dtype=views.dtype).index_add_(0, to, views[rows])
    return (sums / counts[:, None]).float()


def _batches(embedder: Embedder, dataset: IndexedDataset, wanted: Sequence[tuple[int, Places]]) -> Iterator[Any]:
    """Batches of about `views_per_batch` views."""
    group: list[Any] = []
    for i, places in wanted:
        if group and sum(batch.n_views for batch in group) + len(places) > embedder.views_per_batch:
            yield concatenate(group)
            group = []
        views = dataset.views_of(i)
        group.append(dataset.load(i, [views[place] for place in places], None))
    if group:
        yield concatenate(group)
